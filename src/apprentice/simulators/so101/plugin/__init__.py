"""The twin in LeRobot's own commands: an environment for `lerobot-eval`, a robot for `lerobot-rollout`."""
