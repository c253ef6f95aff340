from math import log, sqrt

import pytest
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binomtest

from apprentice.common.intervals import Z95, mcnemar, tango, wilson


# Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17 (1998), table I,
# method 3 (score without continuity correction), quoted to four digits.
@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_published_values(successes, episodes, low, high):
    assert wilson(successes, episodes) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("successes", "episodes"), [(1, 2), (7, 20), (19, 20), (57, 60), (499, 500)])
def test_bounds_solve_the_equation_that_defines_them(successes, episodes):
    rate = successes / episodes

    def excess(p):
        return (rate - p) ** 2 - Z95**2 * p * (1 - p) / episodes

    expected = brentq(excess, 1e-12, rate), brentq(excess, rate, 1 - 1e-12)
    assert wilson(successes, episodes) == pytest.approx(expected, abs=1e-9)


def test_extremes():
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 60)[0] == 0.0
    assert wilson(60, 60)[1] == 1.0
    with pytest.raises(ValueError, match="21 of 20"):
        wilson(21, 20)


# Fagerland, Lydersen and Laake, "Recommended tests and confidence intervals for paired binomial proportions",
# Statistics in Medicine 33 (2014): airway reactivity of 21 children around a transplant, 7 better and 1 worse.
def test_published_pairs():
    assert tango(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)
    assert mcnemar(1, 7) == pytest.approx(0.0703, abs=5e-5)


@pytest.mark.parametrize(("won", "lost", "pairs"), [(1, 0, 44), (5, 0, 50), (30, 10, 110), (3, 40, 500), (0, 0, 20)])
def test_bounds_of_a_difference_solve_the_equation_that_defines_them(won, lost, pairs):
    """The likeliest rate of lost pairs is searched for here, instead of solved for."""

    def score(difference):
        def unlikelihood(q):
            return -sum(
                n * log(p)
                for n, p in ((won, q + difference), (lost, q), (pairs - won - lost, 1 - 2 * q - difference))
                if n
            )

        ends = max(0.0, -difference) + 1e-12, (1 - difference) / 2 - 1e-12
        q = minimize_scalar(unlikelihood, bounds=ends, method="bounded", options={"xatol": 1e-12}).x
        q = min([q, *ends], key=unlikelihood)
        return (won - lost - pairs * difference) / sqrt(pairs * (2 * q + difference * (1 - difference)))

    low, high = tango(won, lost, pairs)
    assert -1 < low <= (won - lost) / pairs <= high < 1
    assert score(low) == pytest.approx(Z95, abs=2e-3) and score(high) == pytest.approx(-Z95, abs=2e-3)
    swapped = tango(lost, won, pairs)
    assert swapped == pytest.approx((-high, -low), abs=1e-12)


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (1, 0), (6, 6), (10, 30), (220, 180)])
def test_mcnemar_is_a_fair_coin(won, lost):
    expected = binomtest(won, won + lost).pvalue if won + lost else 1.0
    assert mcnemar(won, lost) == pytest.approx(expected, rel=1e-9)


def test_impossible_pairs():
    assert tango(0, 0, 0) == (-1.0, 1.0)
    with pytest.raises(ValueError, match="at most 20 pairs"):
        tango(11, 10, 20)
