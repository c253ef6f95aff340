"""What evaluation needs of LIBERO: kinds of failure, moved objects, references that the simulator is held against."""
