"""A policy behind a port, for robots and evaluations elsewhere."""
