from apprentice.common.garbage_collection import collect_rarely

collect_rarely()
