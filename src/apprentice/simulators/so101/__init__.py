"""A twin of the SO-101 arm: the paper's five real-world tasks behind the interface that the real arm has in LeRobot."""

VERSION = "1"  # of scene, physics and faults: change it with whatever an old policy would see or feel otherwise
