"""Demonstrations of any simulator, made in any number of processes and written as a LeRobotDataset."""
