import gc

from apprentice.pool import RARELY

gc.set_threshold(*RARELY)  # before anything imports LeRobot
