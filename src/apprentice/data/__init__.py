"""Demonstrations: LeRobotDataset in and out, and the contract that keeps their conventions."""
