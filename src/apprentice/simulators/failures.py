"""The kinds of failure, named alike in every simulator that tells them."""

NEVER_REACHED, MISSED, DROPPED, ELSEWHERE = "never reached", "missed the grasp", "dropped", "left elsewhere"
WRONG_OBJECT, TIMED_OUT = "wrong object", "timed out"
