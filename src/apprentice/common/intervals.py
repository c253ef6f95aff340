"""How far success rates, and differences of two, can be trusted."""

from math import comb, sqrt

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


def mcnemar(won: int, lost: int) -> float:
    """The two-sided p-value of the exact McNemar test: pairs that differ fall to either side like a fair coin.

    McNemar, Psychometrika 12 (1947); twice the smaller tail of the binomial, at most 1. Raises ValueError.
    """
    if min(won, lost) < 0:
        raise ValueError(f"expected counts, found {won} and {lost}")
    differing = won + lost
    tail = sum(comb(differing, k) for k in range(min(won, lost) + 1))
    return min(1.0, 2 * tail / 2**differing)


def tango(won: int, lost: int, pairs: int) -> tuple[float, float]:
    """Return Tango's score interval (95 %) of the difference of two paired rates, (won - lost) / pairs, in [-1, 1].

    Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample design",
    Statistics in Medicine 17 (1998): all differences d with |won - lost - n d| <= z sqrt(n (2 q + d (1 - d))), where q
    is the likeliest rate of lost pairs given d. No pairs at all leave (-1, 1). Raises ValueError.
    """
    if min(won, lost) < 0 or won + lost > pairs:
        raise ValueError(f"expected counts of at most {pairs} pairs, found {won} and {lost}")
    if pairs == 0:
        return -1.0, 1.0
    return -_tango_high(lost, won, pairs), _tango_high(won, lost, pairs)


def _tango_high(won: int, lost: int, pairs: int) -> float:
    """Upper end, by bisection: the score falls as the difference grows."""
    low, high = (won - lost) / pairs, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        b = (2 * pairs - won + lost) * middle - won - lost
        root = sqrt(max(b * b + 8 * pairs * lost * middle * (1 - middle), 0.0))
        spread = pairs * ((root - b) / (2 * pairs) + middle * (1 - middle))
        inside = pairs * middle - (won - lost) <= Z95 * sqrt(max(spread, 0.0))
        low, high = (middle, high) if inside else (low, middle)
    return high
