"""A training as a folder: its settings, its checkpoints, its best one, what is logged; and how it goes on."""
