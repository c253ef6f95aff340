"""LIBERO's physics, pictures, suites and layouts."""
