"""Closed-loop success rates on LIBERO, with their uncertainty, and the report page that shows them."""

import apprentice.simulators.libero  # noqa: F401  before MuJoCo, for which it chooses how to draw without a display
