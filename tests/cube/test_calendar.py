"""Temporal weights are those of the equation: linear between latent times, windows and per-pixel days alike."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.cube.calendar import DAY, Calendar, Instant, PixelDay, Window, centre_of, in_phase, instant_of
from fusion.errors import JobError
from tests.cube.strategies import calendars


@settings(deadline=None, max_examples=80)
@given(calendar=calendars(), share=st.floats(0, 1))
def test_a_linear_history_is_read_exactly_at_any_instant_inside(calendar: Calendar, share: float) -> None:
    day = share * calendar.days[-1]
    when = calendar.times[0] + np.timedelta64(round(day * 86_400_000_000), "us")
    tau = calendar.weights(Instant(when))
    assert tau.shape == (len(calendar),)
    assert (tau >= 0).all()
    assert np.isclose(tau.sum(), 1, atol=1e-12)
    assert np.isclose(tau @ calendar.days, day, atol=1e-6)
    assert (tau > 0).sum() <= 2


def test_far_outside_is_no_look_and_half_a_step_is_the_nearest_time() -> None:
    calendar = Calendar.regular("2020-01-01", "2020-03-01", 8)
    assert (calendar.weights(Instant(instant_of("2019-12-27"))) == 0).all()
    near = calendar.weights(Instant(instant_of("2019-12-29")))
    assert near[0] == 1
    assert near.sum() == 1


@settings(deadline=None, max_examples=50)
@given(start=st.integers(0, 60), length=st.integers(1, 20), decay=st.floats(1, 30) | st.just(np.inf))
def test_a_window_weighs_its_days(start: int, length: int, decay: float) -> None:
    calendar = Calendar.regular("2020-01-01", "2020-06-01", 1)
    first = calendar.times[0] + np.timedelta64(start, "D")
    centre = first + np.timedelta64(length // 2, "D")
    tau = calendar.weights(Window(first, first + np.timedelta64(length - 1, "D"), centre, decay))
    expected = np.zeros(len(calendar))
    for i in range(length):
        expected[start + i] = np.exp(-abs(i - length // 2) / decay)
    assert np.allclose(tau, expected / expected.sum(), atol=1e-12)


def test_a_window_mostly_outside_is_no_look() -> None:
    calendar = Calendar.regular("2020-01-01", "2020-02-01", 1)
    late = Window(instant_of("2020-01-30"), instant_of("2020-02-14"), instant_of("2020-02-07"))
    assert (calendar.weights(late) == 0).all()


def test_pixel_days_are_one_instant_each_and_missing_days_weigh_nothing() -> None:
    calendar = Calendar.regular("2020-01-01T12:00:00", "2020-02-10", 4)
    days = np.array([["2020-01-05", "2020-01-07"], ["NaT", "2020-01-01"]], dtype="datetime64[D]")
    tau = calendar.weights(PixelDay(days))
    assert tau.shape == (2, 2, len(calendar))
    assert tau[0, 0, 1] == 1
    assert np.isclose(tau[0, 1, 1], 0.5)
    assert np.isclose(tau[0, 1, 2], 0.5)
    assert (tau[1, 0] == 0).all()
    assert tau[1, 1, 0] == 1
    assert centre_of(PixelDay(days)) == np.datetime64("2020-01-05")
    assert np.isnat(PixelDay(np.full((2, 2), "NaT", "datetime64[D]")).centre)


def test_instants_are_utc() -> None:
    local = datetime(2020, 1, 1, 12, tzinfo=timezone(timedelta(hours=-7)))
    assert instant_of(local) == instant_of("2020-01-01T19:00:00Z") == np.datetime64("2020-01-01T19:00:00")


@pytest.mark.parametrize("value", ["yesterday", "NaT", None, "2020-13-01"])
def test_what_is_no_instant_is_refused(value: object) -> None:
    with pytest.raises(JobError, match="instant"):
        instant_of(value)


def test_calendars_that_make_no_sense_are_refused() -> None:
    with pytest.raises(JobError, match="increase strictly"):
        Calendar(np.array(["2020-01-02", "2020-01-01"], dtype="datetime64[us]"))
    with pytest.raises(JobError, match="at least one"):
        Calendar(np.array([], dtype="datetime64[us]"))
    with pytest.raises(JobError, match="swap"):
        Calendar.regular("2020-02-01", "2020-01-01", 8)
    with pytest.raises(JobError, match="positive"):
        Calendar.regular("2020-01-01", "2020-02-01", float("nan"))


@settings(deadline=None, max_examples=60)
@given(step=st.integers(2, 16), phase=st.integers(0, 15), hour=st.integers(0, 23), looks=st.integers(3, 12))
def test_a_regular_orbit_is_met_by_the_advised_start(step: int, phase: int, hour: int, looks: int) -> None:
    """Looks every `step` days, whatever their phase and hour, all lie on the latent times of the start that is advised."""
    first = instant_of("2024-05-01")
    instants = first + (phase % step) * DAY + np.arange(looks) * step * DAY + np.timedelta64(hour, "h")
    end = instants[-1] + step * DAY
    start, left = in_phase(instants, first, end, step)
    assert left == 0
    assert abs(start - first) <= step // 2 * DAY
    assert not Calendar.regular(start, end, step).missed(instants).any()


@settings(deadline=None, max_examples=60)
@given(calendar=calendars(), shares=st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=8))
def test_missed_is_the_distance_to_the_nearest_latent_time(calendar: Calendar, shares: list[float]) -> None:
    instants = np.array([calendar.times[0] + np.timedelta64(round(s * calendar.days[-1] * 86_400_000_000), "us") for s in shares])
    gap = np.abs(instants[:, None] - calendar.times).min(axis=1)
    inside = (instants > calendar.times[0]) & (instants < calendar.times[-1])
    np.testing.assert_array_equal(calendar.missed(instants), (gap > DAY) & inside)


def test_two_orbits_out_of_phase_are_met_by_halves() -> None:
    one = instant_of("2024-05-03T17:30") + np.arange(5) * 8 * DAY
    other = instant_of("2024-05-07T17:30") + np.arange(4) * 8 * DAY
    start, left = in_phase(np.concatenate([one, other]), "2024-05-01", "2024-06-20", 8)
    assert (str(start), left) in (("2024-05-03", 4), ("2024-05-04", 4))


def test_the_nearest_latent_time_is_the_earlier_of_two_as_near() -> None:
    calendar = Calendar.regular("2024-05-01", "2024-05-25", 8)
    np.testing.assert_array_equal(calendar.nearest([-3, 0, 3.9, 4, 4.1, 20.5, 99]), [0, 0, 0, 0, 1, 3, 3])
    assert int(calendar.nearest(9.0)) == 1
