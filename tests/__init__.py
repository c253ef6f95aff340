from apprentice.common.garbage import collect_rarely

collect_rarely()
