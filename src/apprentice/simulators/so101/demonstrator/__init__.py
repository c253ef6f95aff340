"""Solves the five tasks with the simulator's state, through the policy's own actions."""
