"""Seer: our own small expert, a LeRobot policy of type `seer`."""
