"""How far a success rate can be trusted."""

from math import sqrt

Z95 = 1.959963984540054  # 97.5 % quantile of the standard normal


def wilson(successes: int, episodes: int) -> tuple[float, float]:
    """Return the Wilson score interval (95 %) of a success rate, in [0, 1].

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927): all rates p with
    |successes / n - p| <= z sqrt(p (1 - p) / n). Unlike the normal approximation it stays honest at 0 % and 100 %.
    No episodes at all leave (0, 1). Raises ValueError unless 0 <= successes <= episodes.
    """
    if not 0 <= successes <= episodes:
        raise ValueError(f"expected 0 <= successes <= episodes, found {successes} of {episodes}")
    if episodes == 0:
        return 0.0, 1.0
    rate, z2 = successes / episodes, Z95**2
    centre = rate + z2 / (2 * episodes)
    half = Z95 * sqrt(rate * (1 - rate) / episodes + z2 / (4 * episodes**2))
    scale = 1 + z2 / episodes
    # Rounding may leave 1e-17 where the closed form gives exactly 0 or 1.
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == episodes else (centre + half) / scale
    return low, high
