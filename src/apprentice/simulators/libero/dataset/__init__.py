"""Demonstrations written as a LeRobotDataset, and a dataset replayed in the simulator."""
