from apprentice.garbage import collect_rarely

collect_rarely()
