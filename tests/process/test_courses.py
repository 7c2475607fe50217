"""Functions of time that go through knots: exact there, the best prediction between, and no swinging from one look to the next."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.process.courses import APART, LEVELS, functions, knots, temporal_functions

SEASON = np.array([158.0, 166, 174, 182, 206, 214, 222, 230, 246, 262, 270, 286])
"""a summer's looks of two Landsats, days"""
steps = st.lists(st.sampled_from([1.0, 2, 3, 5, 8, 16, 24]), min_size=2, max_size=30)


def covariance(days: np.ndarray) -> np.ndarray:
    """The mixture of `kernels`, as a level might have it (by hand: JAX would compile it for every number of dates)."""
    lag = np.abs(days[:, None] - days[None, :])
    slow = (1 + np.sqrt(3) * lag / 25) * np.exp(-np.sqrt(3) * lag / 25) / 2 + np.exp(-lag / 75) / 2
    return 0.3 + 0.2 * np.cos(2 * np.pi * lag / 365.25) + 0.49 * slow + 0.01 * np.exp(-lag / 4)


def weights(c: np.ndarray, at: list[int]) -> np.ndarray:
    """(T, len(at)) of best prediction from the values at some times (Rasmussen & Williams 2006, eq. 2.23 without noise)."""
    return c[:, at] @ np.linalg.inv(c[np.ix_(at, at)]) if at else np.zeros((len(c), 0))


@given(steps, st.integers(1, 12), st.data())
def test_a_course_is_kept_at_its_knots_and_best_predicted_between(gaps: list[float], rank: int, data: st.DataObject) -> None:
    """Of looks it knows what the knots among them say, and of the rest what all looks and the other knots say."""
    c = covariance(np.cumsum(gaps))
    looked = sorted(data.draw(st.sets(st.integers(0, len(c) - 1))))
    widths = temporal_functions(len(c), dict.fromkeys(LEVELS, rank) | {"class": max(rank - 2, 1)})
    order = knots(c, widths["pixel"], looked)
    psi, kept = functions(c, widths, looked)
    np.testing.assert_allclose(psi.T @ psi, np.eye(widths["pixel"]), atol=1e-9)
    course = np.random.default_rng(rank).normal(size=len(c))
    for level, width in widths.items():
        fine, rest = ([t for t in order[:width] if (t in looked) is there] for there in (True, False))
        at_looks = (weights(c, fine) @ course[fine])[looked]
        expected = weights(c, [*looked, *rest]) @ np.concatenate([at_looks, course[rest]])
        found = psi[:, :width] @ kept[level] @ course
        np.testing.assert_allclose(found, expected, atol=1e-6 * (1 + np.abs(expected).max()))
        np.testing.assert_allclose(found[order[:width]], course[order[:width]], atol=1e-6)
        np.testing.assert_allclose((psi[:, :width] @ kept[level])[np.ix_(looked, rest)], 0, atol=1e-6)


@pytest.mark.parametrize("times", [1, 2, 12])
@pytest.mark.parametrize("every", [1, 2, 13])
def test_with_as_many_functions_as_times_nothing_is_left_out(times: int, every: int) -> None:
    c = covariance(SEASON[:times])
    psi, kept = functions(c, temporal_functions(times), range(0, times, every))
    for level in LEVELS:
        np.testing.assert_allclose(psi @ kept[level], np.eye(times), atol=1e-7)


@given(steps, st.data())
def test_each_knot_is_where_most_is_open_in_gaps_or_at_looks(gaps: list[float], data: st.DataObject) -> None:
    c = covariance(np.cumsum(gaps))
    looked = sorted(data.draw(st.sets(st.integers(0, len(c) - 1))))
    order = knots(c, data.draw(st.integers(1, len(c))), looked)
    assert len(set(order)) == len(order)
    for i, knot in enumerate(order):
        fine, rest = ([t for t in order[:i] if (t in looked) is there] for there in (True, False))
        at_looks, in_gaps = (np.diag(c - weights(c, at) @ c[at]) for at in (fine, [*looked, *rest]))
        left = np.where(np.isin(np.arange(len(c)), looked), APART * at_looks, in_gaps)
        assert left[knot] >= np.delete(left, order[:i]).max() - 1e-6


@given(steps, st.integers(2, 12), st.data())
def test_nothing_swings_between_looks(gaps: list[float], rank: int, data: st.DataObject) -> None:
    """A change of one at one knot moves no other time by much more than one: a polynomial through the looks moves some by tens."""
    c = covariance(np.cumsum(gaps))
    looked = data.draw(st.sets(st.integers(0, len(c) - 1)))
    psi, kept = functions(c, temporal_functions(len(c), dict.fromkeys(LEVELS, rank)), sorted(looked))
    assert np.abs(psi @ kept["pixel"]).max() < 1.3
