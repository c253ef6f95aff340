"""How often Python collects garbage. It is a module of its own, so that help need not wait for more."""

import gc


def collect_rarely() -> None:
    """Before LeRobot is imported: a sixth of that time goes into looking at objects that all stay."""
    gc.set_threshold(20_000, 50, 50)
