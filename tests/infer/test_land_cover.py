"""A land-cover map as a prior of the classes: it counts as one look, so it rules where images tell nothing apart and yields to many."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from fusion.cube.calendar import Calendar
from fusion.cube.cube import Cube
from fusion.cube.grid import Grid
from fusion.cube.spectrum import SpectralBasis
from fusion.errors import JobError
from fusion.infer import fit
from fusion.infer.images import ALWAYS, MAP
from fusion.infer.landscape import Landscape, learn, survey
from fusion.infer.problem import Problem, pose
from fusion.observe.footprint import footprint
from fusion.observe.layer import Layer
from fusion.observe.observation import Observation
from fusion.observe.psf import PSF
from tests.infer.test_landscape import EDGE, tile

CODES = np.indices((EDGE, EDGE)).sum(0) // 7 % 3 * 10
"""stripes of codes 0, 10 and 20, which the parcels of `tile` do not follow"""
SIDE, CELL, TIMES = 24, 6, 3


def posed(looks: Any, cube: Cube, codes: Any, **settings: Any) -> Problem:
    return pose(looks, cube, classes=16, calibrate=False, land_cover=codes, **settings)


def apart(problem: Problem, codes: np.ndarray) -> float:
    """1 where ground of different codes has no class in common, 0 where codes make no difference."""
    share = np.asarray(problem.hierarchy.spaces["class"].weight, np.float64) ** 2
    shares = np.stack([share[:, codes == code].mean(1) for code in np.unique(codes)])
    return float(1 - np.mean([np.minimum(a, b).sum() for i, a in enumerate(shares) for b in shares[i + 1 :]]))


def test_the_map_counts_as_one_look() -> None:
    looks, cube, _ = tile(0)
    alone = [apart(posed(looks[:n], cube, None), CODES) for n in (1, 4)]
    told = [apart(posed(looks[:n], cube, CODES), CODES) for n in (1, 4)]
    assert max(alone) < 0.4
    assert told[0] > 0.7, told
    assert alone[1] + 0.1 < told[1] < told[0], (alone, told)


@pytest.mark.parametrize("codes", [np.full((EDGE, EDGE), 7), np.full((EDGE, EDGE), -1)])
def test_a_map_that_says_nothing_changes_nothing(codes: np.ndarray) -> None:
    looks, cube, _ = tile(0)
    for name in ("class", "object"):
        one, other = (posed(looks, cube, m).hierarchy.spaces[name] for m in (codes, None))
        parts = [(a.weight if name == "class" else a.label) for a in (one, other)]
        np.testing.assert_allclose(*parts, atol=1e-5)


def test_ground_of_no_code_is_what_images_say() -> None:
    """An unknown code is the mean of all; a missing image is what the images that are there say of it, whatever the map."""
    looks, cube, origin = tile(0)
    cover = learn([survey(looks, cube, calibrate=False, origin=origin, land_cover=CODES)], cube, classes=16).cover
    stack = np.random.default_rng(0).normal(size=(len(cover.mean), 4, 5)) * 0.1
    mean = np.where((cover.share == 0)[:, None, None], cover.mean[:, None, None], stack)
    unknown = np.where((cover.share == 0)[:, None, None], np.nan, stack)
    np.testing.assert_allclose(cover.features(unknown), cover.features(mean), atol=1e-12)
    few = np.where(np.arange(len(mean))[:, None, None] % 2, np.nan, mean)
    gone = np.isnan(few[:, 0, 0]) & (cover.share > 0)
    there = ~gone & (cover.share > 0)
    deviation = np.where(np.isnan(few), 0.0, few - cover.mean[:, None, None]).reshape(len(mean), -1)
    spread = cover.factors @ cover.factors.T + cover.rest * np.eye(len(mean))
    deviation[gone] = spread[np.ix_(gone, there)] @ np.linalg.solve(spread[np.ix_(there, there)], deviation[there])
    np.testing.assert_allclose(cover.features(few).reshape(len(cover.loadings), -1), cover.loadings @ deviation, atol=1e-8)


def test_liveliness_is_what_images_say_whatever_the_map() -> None:
    looks, cube, _ = tile(0)
    one, other = (posed(looks, cube, m).hierarchy.liveliness for m in (CODES, None))
    assert np.corrcoef(np.ravel(one), np.ravel(other))[0, 1] > 0.9
    assert np.isfinite(one).all()


def test_tiles_with_other_codes_see_the_same_ground() -> None:
    """Where two tiles overlap, whatever codes lie beyond."""
    halves = [tile(left) for left in (0, 24)]
    wide = np.indices((EDGE, 64)).sum(0) // 7 % 3 * 10
    wide[:, :20], wide[:, 44:] = 30, 40
    codes = [wide[:, left : left + EDGE] for left in (0, 24)]
    surveys = [survey(looks, cube, calibrate=False, origin=origin, land_cover=m) for (looks, cube, origin), m in zip(halves, codes, strict=True)]
    found = learn(surveys, halves[0][1], classes=16)
    shares = [
        posed(looks, cube, m, landscape=found, origin=origin).hierarchy.spaces["class"].weight
        for (looks, cube, origin), m in zip(halves, codes, strict=True)
    ]
    np.testing.assert_allclose(shares[0][:, :, 24 + 2 : 40 - 2], shares[1][:, :, 2 : 16 - 2], atol=0.02)


def test_the_map_is_of_all_times_and_stored_with_the_landscape() -> None:
    looks, cube, origin = tile(0)
    found = learn([survey(looks, cube, calibrate=False, origin=origin, land_cover=CODES)], cube, classes=16)
    told = np.array([key[0] == MAP for key in found.keys])
    assert told.any()
    for cover in (found.cover, *found.halves):
        assert np.abs(cover.loadings[:, told]).max() > 0
    later = found.since(2)
    assert {key for key in later.keys if key[0] == MAP} == {key for key in found.keys if key[2] == ALWAYS}
    assert {key[2] for key in later.keys} == {ALWAYS, 0, 1}
    again = Landscape.from_arrays(found.to_arrays())
    assert again.keys == found.keys
    seen = posed(looks[:2], cube, CODES, folded=True).seen
    assert seen is not None
    assert seen[:2].all()
    assert not seen[2:].any()  # a map of no time is no look of any, the last among them


@pytest.mark.parametrize("codes", [np.zeros((EDGE, EDGE - 1), int), np.zeros((EDGE, EDGE))])
def test_what_is_no_map_of_the_tile_is_refused(codes: np.ndarray) -> None:
    looks, cube, _ = tile(0)
    with pytest.raises(JobError, match="land_cover"):
        posed(looks, cube, codes)


@pytest.fixture(scope="module")
def harvest() -> tuple[list[Observation], Cube, np.ndarray, np.ndarray]:
    """(looks, cube, codes, hidden image): two crops alike on both fine images, one of which is bare between; coarse cells see each day."""
    rng = np.random.default_rng(0)
    rows, cols = np.indices((SIDE, SIDE))
    codes = ((rows // 4 * 5 + cols // 3 * 3) % 4 < 2).astype(int)
    level = np.zeros((TIMES, SIDE, SIDE))
    level[1] = np.where(codes == 1, 0.1 * (1 + rows / SIDE), 0.0)
    grid = Grid(GeoBox((SIDE, SIDE), Affine(30, 0, 500_000, 0, -30, 4_400_000), "EPSG:32613"))
    basis = SpectralBasis.of_bands([660.0], [0.1], np.full((1, 1), 0.1**2))
    cube = Cube(grid, Calendar.regular("2024-05-01", "2024-06-02", 16), basis)
    fine, coarse = PSF("gaussian", 0.0, cell=True), PSF("gaussian", 30.0 * CELL, cell=True)
    wide = grid.geobox.zoom_out(CELL)
    looks = []
    for name, t, box, psf, sigma in [("fine", t, grid.geobox, fine, 0.004) for t in (0, 2)] + [("wide", t, wide, coarse, 0.002) for t in range(3)]:
        foot = footprint(box, psf, grid)
        clean = np.asarray(foot(jnp.asarray(level[t][None], jnp.float32)))
        looks.append(Observation(
            name, f"{name}-{t}", ("red",), (clean + sigma * rng.normal(size=clean.shape)).astype(np.float32),
            np.where(np.asarray(foot.seen) > 0.5, sigma**-2, 0.0).astype(np.float32)[None], Layer.of(foot, np.eye(1), basis.mean, np.eye(TIMES)[t]),
            np.full(1, 0.002, np.float32), np.zeros(1, np.float32), np.zeros(1, np.float32), 0.001 if name == "wide" else 0.0, 10.0,
            cube.calendar.times[t], box, psf, None, simulated=True,
        ))
    return looks, cube, codes, level[1]


@pytest.mark.slow
def test_a_map_tells_apart_what_images_do_not(harvest: tuple[list[Observation], Cube, np.ndarray, np.ndarray]) -> None:
    """Known truth: the error of the hidden date, where only coarse pixels and the map know which crop was cut."""
    looks, cube, codes, hidden = harvest
    found = {m: fit(looks, cube, engine="gaussian", classes=8, calibrate=False, draws=0, land_cover=codes if m else None) for m in (True, False)}
    error = {m: float(np.sqrt(np.mean((f.mean[1, 0] - hidden) ** 2))) for m, f in found.items()}
    assert error[True] < 0.6 * error[False], error
