"""The twin as a simulator: scene, faults, cameras, goals, and the environment that holds them."""
