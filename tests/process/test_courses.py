"""Functions of time that go through knots: exact there, the best prediction between, and no swinging from one look to the next."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.process.courses import RANKS, functions, pivots, temporal_functions

SEASON = np.array([158.0, 166, 174, 182, 206, 214, 222, 230, 246, 262, 270, 286])
"""a summer's looks of two Landsats, days"""
steps = st.lists(st.sampled_from([1.0, 2, 3, 5, 8, 16, 24]), min_size=2, max_size=30)


def covariance(days: np.ndarray) -> np.ndarray:
    """The mixture of `kernels`, as a level might have it (by hand: JAX would compile it for every number of dates)."""
    lag = np.abs(days[:, None] - days[None, :])
    slow = (1 + np.sqrt(3) * lag / 25) * np.exp(-np.sqrt(3) * lag / 25) / 2 + np.exp(-lag / 75) / 2
    return 0.3 + 0.2 * np.cos(2 * np.pi * lag / 365.25) + 0.49 * slow + 0.01 * np.exp(-lag / 4)


@given(steps, st.integers(1, 12))
def test_a_course_is_kept_at_its_knots_and_best_predicted_between(gaps: list[float], rank: int) -> None:
    c = covariance(np.cumsum(gaps))
    widths = temporal_functions(len(c), dict.fromkeys(RANKS, rank) | {"class": max(rank - 2, 1)})
    knots = pivots(c, widths["pixel"])
    psi, kept = functions(c, widths)
    np.testing.assert_allclose(psi.T @ psi, np.eye(widths["pixel"]), atol=1e-9)
    course = np.random.default_rng(rank).normal(size=len(c))
    for level, width in widths.items():
        at = knots[:width]
        expected = c[:, at] @ np.linalg.solve(c[np.ix_(at, at)], course[at])  # Rasmussen & Williams 2006, eq. 2.23 without noise
        found = psi[:, :width] @ kept[level] @ course
        np.testing.assert_allclose(found, expected, atol=1e-6 * (1 + np.abs(expected).max()))
        np.testing.assert_allclose(found[at], course[at], atol=1e-6)


@pytest.mark.parametrize("times", [1, 2, 12])
def test_with_as_many_functions_as_times_nothing_is_left_out(times: int) -> None:
    c = covariance(SEASON[:times])
    psi, kept = functions(c, temporal_functions(times))
    for level in RANKS:
        np.testing.assert_allclose(psi @ kept[level], np.eye(times), atol=1e-8)


@given(steps, st.data())
def test_knots_are_where_fine_looks_were_before_they_are_elsewhere(gaps: list[float], data: st.DataObject) -> None:
    c = covariance(np.cumsum(gaps))
    looked = data.draw(st.lists(st.integers(0, len(c) - 1), unique=True))
    count = data.draw(st.integers(1, len(c)))
    knots = pivots(c, count, looked)
    assert len(set(knots)) == count
    assert set(knots[: len(looked)]) <= set(looked) or not looked
    assert set(looked) <= set(knots) or count < len(looked)


@given(steps, st.integers(2, 12))
def test_nothing_swings_between_looks(gaps: list[float], rank: int) -> None:
    """A change of one at one knot moves no other time by much more than one: a polynomial through the looks moves some by tens."""
    c = covariance(np.cumsum(gaps))
    psi, kept = functions(c, temporal_functions(len(c), dict.fromkeys(RANKS, rank)))
    assert np.abs(psi @ kept["pixel"]).max() < 1.3
