"""Seer as published: a LeRobot policy of type `seer_full`, and the importer of the public code's checkpoints."""
