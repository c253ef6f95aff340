"""The student: a vision-language model with a handle for actions, as a LeRobot policy."""
