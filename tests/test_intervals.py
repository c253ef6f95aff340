import pytest
from scipy.optimize import brentq

from apprentice.intervals import Z95, wilson


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
