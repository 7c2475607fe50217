"""Laws of the accuracy benchmark: its lines and scores, and what is learned of a coarse sensor, against written equations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import norm

from benchmarks.accuracy import SETTING, fused, score
from benchmarks.limits import best, explained, left, parts
from benchmarks.pairs import Case, Pair, cases, cut, forecasts, observations, read, small
from benchmarks.peers.naive import predictions
from fusion.infer.empirical import calibrated

RATIO, CELLS = 8, 14
DAYS = np.datetime64("2021-06-01") + np.array([0, 16, 32]) * np.timedelta64(1, "D")


def world(blur: float, shift: tuple[int, int], bias: float, noise: float, seed: int = 0) -> Pair:
    """Three fine images that change linearly in time; the coarse sensor blurs by `blur` pixels, looks up and left by `shift`."""
    rng = np.random.default_rng(seed)
    size = RATIO * CELLS
    first, last = (0.3 + 0.05 * ndimage.gaussian_filter(rng.standard_normal((size, size)), 3.0) / 0.09 for _ in range(2))
    fine = np.stack([first, 0.5 * (first + last), last])[:, None]
    seen = np.stack([ndimage.gaussian_filter(np.roll(f[0], shift, (0, 1)), blur, mode="nearest") for f in fine])
    coarse = seen.reshape(3, CELLS, RATIO, CELLS, RATIO).mean(axis=(2, 4))[:, None] + bias
    coarse = coarse + noise * rng.standard_normal(coarse.shape)
    return Pair("cia_like", ("nir",), fine, DAYS, coarse, DAYS, RATIO, 30.0, False)


def test_linear_world_is_predicted_by_the_linear_line() -> None:
    case = Case(world(3.0, (0, 0), 0.0, 0.0), "cia", (0, 2), 1)
    lines = predictions(case)
    assert np.abs(lines["linear in time"] - case.truth).max() < 1e-12
    assert np.abs(lines["linear + coarse anomaly"] - case.truth).max() < 1e-12
    assert np.array_equal(lines["last image"], case.pair.fine[0])


def test_forecasts_see_nothing_after_their_date() -> None:
    """In a world that changes linearly the last image is wrong by the change, and by nothing if the coarse change (one number a cell) is it."""
    pair = world(0.0, (0, 0), 0.0, 0.0)
    found = list(forecasts(pair))
    assert [(c.given, c.target) for c in found] == [((0,), 1), ((0, 1), 2), ((1,), 2)]
    for case in found:
        assert case.pair.coarse_dates.max() == pair.fine_dates[case.target]
        lines = predictions(case)
        np.testing.assert_array_equal(lines["last image"], pair.fine[case.target - 1])
        change = pair.fine[case.target] - pair.fine[case.target - 1]
        cells = change.reshape(1, CELLS, RATIO, CELLS, RATIO).mean(axis=(2, 4)).repeat(RATIO, 1).repeat(RATIO, 2)
        np.testing.assert_allclose(lines["last image + coarse change"], pair.fine[case.target - 1] + cells, atol=1e-12)
        looks, cube = observations(case)
        assert max(cube.calendar.day_of(o.when) for o in looks if o.sensor == "fine") < cube.calendar.days[-1]


def test_score_of_a_calibrated_prediction() -> None:
    rng = np.random.default_rng(3)
    truth, sd = rng.standard_normal((1, 200, 200)) * 0.02, np.full((1, 200, 200), 0.02)
    found = score(np.zeros_like(truth), truth, sd)
    assert found.rmse == pytest.approx(0.02, rel=0.02)
    assert np.abs(found.cover - [0.5, 0.9, 0.95]).max() < 0.01
    # CRPS = integral over x of (Phi(x / sd) - 1[x >= y])^2, by the trapezium rule
    x = np.linspace(-0.2, 0.2, 40_001)
    by_hand = [np.trapezoid((norm.cdf(x / 0.02) - (x >= y)) ** 2, x) for y in truth[0, 0, :50]]
    assert score(np.zeros((1, 1, 50)), truth[:, :1, :50], sd[:, :1, :50]).crps == pytest.approx(np.mean(by_hand), rel=1e-3)


def test_hidden_pixels_do_not_count() -> None:
    truth = np.full((1, 4, 4), 0.2)
    truth[0, 0, 0] = np.nan
    assert score(np.full((1, 4, 4), 0.3), truth, np.ones((1, 4, 4))).rmse == pytest.approx(0.1)


def test_parts_of_an_error_add_up_and_go_to_their_scale() -> None:
    rng = np.random.default_rng(5)
    error = rng.normal(size=(16, 24)) + 0.5
    error[:3, :7] = np.nan
    assert parts(error, 8).sum() == pytest.approx(np.nanmean(error**2))
    chequered = np.kron(np.where(np.indices((2, 4)).sum(0) % 2, 0.3, -0.3), np.ones((8, 8)))
    np.testing.assert_allclose(parts(0.2 + chequered, 8), [0.04, 0.09, 0.0], atol=1e-12)


def test_a_rule_fitted_to_hidden_images_finds_what_the_coarse_sensor_tells() -> None:
    pair = world(0.0, (0, 0), 0.0, 0.0)
    away = np.random.default_rng(6).normal(size=(CELLS, CELLS)) * 0.02
    pair.fine[1, 0] += np.kron(away, np.ones((RATIO, RATIO)))
    pair.coarse[1, 0] += 2 * away + 0.1
    case = Case(pair, "cia", (0, 2), 1)
    (found,) = left(case, pair.fine[0])
    assert np.nanstd(found.truth) == pytest.approx(away.std(), rel=1e-6)
    assert explained(*(plane - plane.mean() for plane in found.cells)) == pytest.approx(1.0)
    assert best([found], [])[0] == pytest.approx(np.sqrt((away**2).mean()))
    assert best([found], ["coarse", "coarse mean"])[0] < 1e-9
    assert best([found], ["coarse"])[0] > 0.002  # its mean is wrong by half of .1


@pytest.mark.parametrize(("shift", "expected"), [((0, 0), (0.0, 0.0)), ((4, 0), (120.0, 0.0)), ((0, -4), (0.0, 120.0))])
def test_a_coarse_sensor_is_learned(shift: tuple[int, int], expected: tuple[float, float]) -> None:
    """Blur of sd 5 px (stated: 8 x 30 m / 2.355 = 3.4 px), half a cell of displacement, a bias: found from two pairs."""
    case = Case(world(5.0, shift, 0.02, 0.001), "cia", (0, 2), 1)
    looks, cube = observations(case)
    better, (learned,) = calibrated(looks, cube)
    assert learned.shift == pytest.approx(expected, abs=35.0)  # metres north and east; the search stops at an eighth of a cell
    assert 1.0 <= learned.widen <= 1.8
    assert learned.bias[0] == pytest.approx(0.02, abs=0.004)
    assert np.hypot(learned.white_sd, learned.lasting_sd)[0] < 0.006
    assert len(better) == len(looks)
    for old, new in zip(looks, better, strict=True):
        if old.sensor == "fine":
            assert new is old


def test_a_sensor_that_states_no_discrepancy_is_given_none() -> None:
    """Its place is learned, its numbers stay: what fine bands do not foretell of it is ground."""
    looks, cube = observations(Case(world(5.0, (4, 0), 0.02, 0.001), "cia", (0, 2), 1))
    looks = tuple(replace(o, discrepancy_sd=0 * o.discrepancy_sd) for o in looks)
    better, (learned,) = calibrated(looks, cube)
    assert learned.shift == pytest.approx((120.0, 0.0), abs=35.0)
    for old, new in zip(looks, better, strict=True):
        seen = new.precision > 0
        np.testing.assert_allclose(new.data[seen], old.data[seen], rtol=1e-6)
        np.testing.assert_allclose(new.precision[seen], old.precision[seen], rtol=1e-5)
        np.testing.assert_allclose(new.offset_sd, old.offset_sd, rtol=1e-6)
        assert not new.discrepancy_sd.any()


def place(bias: float, seed: int) -> Case:
    """A world of 3 x 3 cells, of which one lies nine tenths inside the grid: too few to register by."""
    pair = world(3.0, (0, 0), bias, 0.003, seed)
    return cut(Case(pair, "cia", (0, 2), 1), (3, 3), (5, 5))


def test_small_places_are_cut_on_whole_cells() -> None:
    pair = world(0.0, (0, 0), 0.02, 0.0)
    found = list(small(pair, 3, 6))
    assert len(found) == 6 * len(list(cases(pair)))
    for case in found:
        assert case.protocol == "cia, 3 x 3 cells"
        assert case.truth.shape == (1, 3 * RATIO, 3 * RATIO)
        cells = case.pair.fine.reshape(3, 1, 3, RATIO, 3, RATIO).mean(axis=(3, 5))
        np.testing.assert_allclose(case.pair.coarse, cells + 0.02)
    assert len({case.truth.tobytes() for case in found}) > 1


@pytest.mark.parametrize("seed", range(5))
def test_few_cells_tell_a_bias_and_nothing_of_width_and_place(seed: int) -> None:
    """The mean of two looks' 9 cells each is off by what cells err by (.01, of what lies outside) and by a look's shrinkage."""
    looks, cube = observations(place(0.03, seed))
    _, (learned,) = calibrated(looks, cube)
    assert (learned.widen, learned.shift) == (1.0, (0.0, 0.0))
    assert learned.bias[0] == pytest.approx(0.03, abs=0.008)
    assert 0.003 < np.hypot(learned.white_sd, learned.lasting_sd)[0] < 0.02  # between what was drawn and what is stated (.015) with its noise


def test_a_small_place_is_not_moved_by_a_bias() -> None:
    """The same ground with and without a bias of .03 that lasts, six times the stated offset of a look."""
    found = []
    for bias in (0.0, 0.03):
        case = place(bias, 0)
        mean, sd, *_ = fused(case, "gaussian", SETTING)
        found.append(mean)
        error = mean - case.truth
        assert np.sqrt((error**2).mean()) < 0.012
        assert (np.abs(error) < 1.96 * sd).mean() > 0.9
    assert abs(found[1].mean() - found[0].mean()) < 0.005


def test_without_a_pair_the_facts_stand() -> None:
    looks, cube = observations(Case(world(3.0, (0, 0), 0.0, 0.001), "cia", (0, 2), 1))
    coarse = tuple(o for o in looks if o.sensor == "coarse")
    same, learned = calibrated(coarse, cube)
    assert learned == ()
    assert all(a is b for a, b in zip(same, coarse, strict=True))


def test_published_lines_are_reproduced(shared: Path) -> None:
    """Last image .0430, linear .0321, linear + anomaly .0300 on four cases: the protocol is the published one."""
    scores: dict[str, list[float]] = {}
    for case in cases(read(shared / "data", "cia_west")):
        for method, mean in predictions(case).items():
            scores.setdefault(method, []).append(float(score(mean, case.truth).rmse.mean()))
    assert [round(float(np.mean(v)), 4) for v in scores.values()] == [0.0430, 0.0321, 0.0300]
