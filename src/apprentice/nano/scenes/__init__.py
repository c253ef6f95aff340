"""Scenes with their truth, drawn from LIBERO-90 and from layouts of our own: what the built-in VLM learns from."""
