"""Processors of the full Seer: LeRobot's usual ones. Images stay in [0, 1]; the model scales them itself."""

from apprentice.experts.seer.processor_seer import make_seer_pre_post_processors

make_seer_full_pre_post_processors = make_seer_pre_post_processors
