"""Landscapes: tiles that share one see the same ground; one tile by itself is the special case; nothing depends on the order."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from fusion.cube.calendar import Calendar
from fusion.cube.cube import Cube
from fusion.cube.grid import Grid
from fusion.cube.spectrum import SpectralBasis
from fusion.errors import StoreError
from fusion.infer.empirical import Learned, pooled
from fusion.infer.images import changes, images, parted
from fusion.infer.landscape import Landscape, Survey, learn, survey, surveyed
from fusion.infer.probes import probe
from fusion.infer.problem import pose
from fusion.observe.footprint import footprint
from fusion.observe.layer import Layer
from fusion.observe.observation import Observation
from fusion.observe.psf import PSF
from fusion.process.liveliness import ASIDE

EDGE, HALO = 40, 8
TIMES = 4
BANDS = ("green", "red", "nir")


def ground() -> np.ndarray:
    """(T, B, 40, 64) smooth parcels that change, and noise: one field that both tiles look at."""
    rng = np.random.default_rng(0)
    rows, cols = np.mgrid[:EDGE, : 2 * EDGE - 2 * HALO]
    parcel = (rows // 9 * 7 + cols // 11 * 3) % 5
    level = rng.uniform(-0.1, 0.1, (TIMES, 3, 5))
    return np.asarray(level[:, :, parcel] + 0.005 * rng.normal(size=(TIMES, 3, *rows.shape)))


def tile(left: int, noise: float = 0.005) -> tuple[list[Observation], Cube, tuple[int, int]]:
    """The looks of the 40 x 40 window whose first column is `left`, its cube and its origin."""
    grid = Grid(GeoBox((EDGE, EDGE), Affine(30, 0, 500_000 + 30 * left, 0, -30, 4_400_000), "EPSG:32613"))
    basis = SpectralBasis.of_bands([560.0, 660.0, 860.0], [0.08, 0.1, 0.3], 0.03**2 * np.eye(3) + 0.02**2)
    cube = Cube(grid, Calendar.regular("2024-05-01", "2024-06-18", 16), basis)
    psf = PSF("gaussian", 26.0)
    foot = footprint(grid.geobox, psf, grid)
    looks = [Observation(
        "fine", f"look-{t}", BANDS, ground()[t][..., left : left + EDGE].astype(np.float32),
        np.full((3, EDGE, EDGE), noise**-2, np.float32), Layer.of(foot, np.eye(3), basis.mean, np.eye(TIMES)[t]),
        np.full(3, 0.005, np.float32), np.full(3, 0.01, np.float32), np.zeros(3, np.float32), 0.0, 10.0, cube.calendar.times[t],
        grid.geobox, psf, None, simulated=True,
    ) for t in range(TIMES)]
    return looks, cube, (0, left)


@pytest.fixture(scope="module")
def two() -> list[tuple[list[Observation], Cube, tuple[int, int]]]:
    """Two windows that overlap in 16 columns; the second has other noise."""
    return [tile(0), tile(EDGE - 2 * HALO, noise=0.02)]


def surveys(two: Any) -> list[Survey]:
    return [survey(looks, cube, origin=origin) for looks, cube, origin in two]


def equal(one: Any, other: Any) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def test_a_tile_by_itself_is_a_survey_of_one(two: Any) -> None:
    looks, cube, origin = two[0]
    useful, fine, _ = parted(looks)
    keys, stack = images(fine, cube)
    made = learn([surveyed(useful, keys, stack, (), cube)], cube)
    alone, given = pose(looks, cube, origin=origin), pose(looks, cube, origin=origin, landscape=made)
    assert equal((alone.hierarchy, alone.series), (given.hierarchy, given.series))


def test_tiles_with_one_landscape_see_the_same_ground(two: Any) -> None:
    shared = learn(surveys(two), two[0][1])
    found: dict[str, list[Any]] = {"alone": [], "together": []}
    for looks, cube, origin in two:
        found["alone"].append(pose(looks, cube, origin=origin).hierarchy)
        found["together"].append(pose(looks, cube, origin=origin, landscape=shared).hierarchy)
    for name in ("mixing", "temporal", "empirical"):
        left, right = (np.asarray(getattr(h, name)) for h in found["together"])
        np.testing.assert_array_equal(left, right)
    assert not np.array_equal(*(np.asarray(h.empirical) for h in found["alone"]))
    # inside the overlap, away from both windows' edges, every pixel has the same memberships
    here, there = slice(EDGE - 2 * HALO + 3, EDGE - 3), slice(3, 2 * HALO - 3)
    differ = {}
    for name, (one, other) in found.items():
        left, right = (np.asarray(h.spaces["class"].weight) for h in (one, other))
        differ[name] = np.abs(left[..., here] - right[..., there]).max()
    assert differ["together"] < 1e-4
    assert differ["alone"] > 0.1
    # what it showed itself counts against means of the whole area, so that both windows find the same liveliness
    for name, alike in (("alone", False), ("together", True)):
        left, right = (np.asarray(h.liveliness) for h in found[name])
        assert (np.abs(left[:, here] - right[:, there]).max() < 1e-4) == alike
    # and the same borders between segments
    edges = [np.diff(np.asarray(h.spaces["object"].label), axis=1) != 0 for h in found["together"]]
    inner = edges[0][3:-3, here.start + 2 : here.stop - 3] == edges[1][3:-3, there.start + 2 : there.stop - 3]
    assert inner.mean() > 0.97


def test_order_does_not_matter_and_files_bring_it_back(two: Any) -> None:
    both = surveys(two)
    one, other = learn(both, two[0][1]), learn(both[::-1], two[0][1])
    again = Landscape.from_arrays(one.to_arrays())
    for made in (other, again):
        for name, value in one.to_arrays().items():
            if name != "told":
                np.testing.assert_array_equal(value, made.to_arrays()[name])
        assert made.keys == one.keys
    back = [Survey.from_arrays(s.to_arrays()) for s in both]
    np.testing.assert_array_equal(learn(back, two[0][1]).cover.centres, one.cover.centres)
    with pytest.raises(StoreError, match="earlier version"):
        Landscape.from_arrays({name: value for name, value in one.to_arrays().items() if name != "prior"})
    told = json.loads(one.to_arrays()["told"].tobytes()) | {"learned": [{"sensor": "modis"}]}
    with pytest.raises(StoreError, match="variety"):
        Landscape.from_arrays(one.to_arrays() | {"told": np.frombuffer(json.dumps(told).encode(), np.uint8)})
    # all arrays are plain: nothing has to be unpickled
    assert all(a.dtype.kind in "fiu" for a in (*one.to_arrays().values(), *both[0].to_arrays().values()))


def test_a_survey_is_small_and_depends_on_the_place_alone(two: Any) -> None:
    looks, cube, origin = two[0]
    first, second = (survey(looks, cube, origin=origin) for _ in range(2))
    np.testing.assert_array_equal(first.patches, second.patches)
    assert not np.array_equal(first.patches, survey(looks, cube, origin=(7, 7)).patches)
    assert first.patches.shape == (12, 64, 5, 5)
    assert first.keys == tuple(("fine", band, t) for t in range(TIMES) for band in BANDS)


def test_looks_of_one_latent_time_are_averaged_by_precision(two: Any) -> None:
    looks, cube, _ = two[0]
    sharper = replace(looks[1], data=looks[1].data + np.float32(0.03), precision=np.full_like(looks[1].precision, 4 * 0.005**-2), scene_id="twin")
    keys, stack = images([*looks, sharper], cube)
    assert keys == images(looks, cube)[0]
    residual = float(looks[1].residual_var[0])
    weights = 1 / (0.005**2 + residual), 1 / (0.005**2 / 4 + residual)
    expected = (weights[0] * images(looks, cube)[1][3:6] + weights[1] * images([sharper], cube)[1]) / sum(weights)
    np.testing.assert_allclose(stack[3:6], expected, atol=1e-5)


def test_change_is_the_variance_over_time_without_the_scene(two: Any) -> None:
    looks = two[0][0]
    hidden = [replace(o, precision=np.where(np.arange(EDGE) < 30 - 10 * i, o.precision, 0).astype(np.float32)) for i, o in enumerate(looks)]
    found = changes(hidden)
    values = np.stack([np.where(o.precision > 0, o.data, np.nan) for o in hidden]).astype(float)
    values = np.stack([v - np.nanmean(v, axis=(1, 2), keepdims=True) for v in values[:3]])[:, :, 14:17, 4:6]  # inside a parcel; look 3 sees nothing
    assert found is not None
    np.testing.assert_allclose(found[:, 14:17, 4:6], np.var(values, axis=0, ddof=1), rtol=0.4, atol=1e-4)  # the blur is in between
    assert np.isnan(found[..., 25:]).all()
    assert changes(looks[:1]) is None


def test_lively_ground_is_told_from_quiet_ground_and_its_average_is_one(two: Any) -> None:
    looks, cube, origin = two[0]
    quiet = np.arange(EDGE)[:, None] < EDGE // 2
    still = looks[0].data
    seen = [replace(o, data=np.where(quiet, still + 0.001 * t, o.data).astype(np.float32)) for t, o in enumerate(looks) if t != 2]
    for posed in (pose(seen, cube, origin=origin), pose(seen, cube, origin=origin, landscape=learn([survey(seen, cube, origin=origin)], cube))):
        alive = np.asarray(posed.hierarchy.liveliness, float)
        assert alive[:15].mean() < 0.8 < 1.1 < alive[25:].mean()
        assert (alive**2).mean() == pytest.approx(1, abs=0.2)
    nothing = np.asarray(pose(looks[:1], cube, origin=origin).hierarchy.liveliness)
    np.testing.assert_allclose(nothing, 1, atol=1e-5)  # one look tells nothing of change


def test_changes_with_nothing_to_foretell_between_them_tell_less(two: Any) -> None:
    """The looks at times 0, 1 and 3: the change from 1 to 3 counts whole, for time 2 lies between, that from 0 to 1 a tenth."""
    looks, cube, _ = two[0]
    seen = [o for t, o in enumerate(looks) if t != 2]
    cover = learn([surveyed(seen, *images(seen, cube), (), cube)], cube).cover
    np.testing.assert_allclose(cover.weight, np.repeat([ASIDE / 3, ASIDE / 3, 1 / 3], 3))
    half = learn([surveyed(looks, *images(looks, cube), (), cube)], cube).halves[0]
    np.testing.assert_allclose(half.weight[6:9], 1 / 3)  # every other image, which the images between judge


def test_an_image_under_cloud_does_not_stand_between_two_others(two: Any) -> None:
    looks, cube, _ = two[0]
    seen = np.arange(EDGE)[:, None] * EDGE + np.arange(EDGE) < EDGE * EDGE // 10
    cloudy = replace(looks[1], precision=np.where(seen, looks[1].precision, 0).astype(np.float32))
    keys, stack = images([looks[0], cloudy, *looks[2:]], cube)
    cover = learn([surveyed(looks, keys, stack, (), cube)], cube).cover
    times = {key: i for i, key in enumerate(keys)}
    for band in BANDS:
        mine = [times["fine", band, t] for t in range(TIMES)]
        assert cover.before[mine].tolist() == [-1, -1, mine[0], mine[2]]
    clear = learn([surveyed(looks, *images(looks, cube), (), cube)], cube).cover
    assert (clear.before[:3] == -1).all()
    np.testing.assert_array_equal(clear.before[3:], np.arange(9))
    np.testing.assert_array_equal(clear.share, 1 / 3)


def test_planes_that_a_tile_lacks_are_missing(two: Any) -> None:
    shared = learn(surveys(two), two[0][1])
    looks, cube, origin = two[0]
    keys, stack = images(looks[1:], cube)
    planes = shared.planes(keys, stack)
    assert np.isnan(planes[[k[2] == 0 for k in shared.keys]]).all()
    assert np.isfinite(planes[[k[2] > 0 for k in shared.keys]]).all()
    assert np.isfinite(np.asarray(pose(looks[1:], cube, origin=origin, landscape=shared).hierarchy.spaces["class"].weight)).all()
    nothing = pose([], cube, origin=origin, landscape=shared).hierarchy
    np.testing.assert_array_equal(nothing.mixing, pose(looks, cube, origin=origin, landscape=shared).hierarchy.mixing)


def test_a_landscape_of_later_times_is_a_part_of_it(two: Any) -> None:
    looks, cube, origin = two[0]
    shared = learn(surveys(two), cube)
    later = Cube(cube.grid, Calendar(cube.calendar.times[2:]), cube.basis)
    part = shared.since(2)
    assert part.keys == tuple(("fine", band, t) for t in range(2) for band in sorted(BANDS)) or len(part.keys) == 6
    assert part.empirical is not None
    assert np.mean(np.diag(part.empirical)) == pytest.approx(1)
    again = [replace(o, layer=Layer.of(o.layer.footprint, np.eye(3), cube.basis.mean, np.eye(2)[t])) for t, o in enumerate(looks[2:])]
    assert pose(again, later, origin=origin, landscape=part).hierarchy.shape == (2, 3, EDGE, EDGE)


def test_a_look_never_judges_classes_that_were_drawn_from_it(two: Any) -> None:
    """Every fine look judges in one fold, whose classes and segments do not move when its data do."""
    looks, cube, origin = two[0]
    shared = learn(surveys(two), cube)
    problem = pose(looks, cube, origin=origin, folded=True)
    judged = np.stack([fold.judges[0][:TIMES] for fold in problem.folds])
    np.testing.assert_array_equal(judged.sum(0), 1)
    assert not pose(looks, cube, origin=origin).folds
    for turned in range(TIMES):
        moved = [replace(o, data=o.data[..., ::-1].copy()) if t == turned else o for t, o in enumerate(looks)]
        there = pose(moved, cube, origin=origin, folded=True)
        for fold, other, judge in zip(problem.folds, there.folds, judged[:, turned], strict=True):
            before, after = ((*(f.hierarchy.spaces[name] for name in ("class", "object")), f.hierarchy.liveliness) for f in (fold, other))
            assert equal(before, after) == bool(judge)
    for series, _, judges in problem.views:
        assert series == problem.series  # looks that do not judge are still there to foretell the others
        told = probe([(series, problem.hierarchy, judges)], problem.hyper)
        assert max(float(np.asarray(one.judged).sum(1).max()) for one in told) == judges[0][:TIMES].sum()
    together = pose(looks, cube, origin=origin, landscape=Landscape.from_arrays(shared.to_arrays()), folded=True)
    assert [f.judges[0][:TIMES].tolist() for f in together.folds] == judged.tolist()
    one = pose(looks[:1], cube, origin=origin, folded=True)  # one date alone cannot be parted
    assert not one.folds
    assert [h is one.hierarchy for _, h, _ in one.views] == [True]


def test_ground_that_varies_but_hardly_changes_has_a_calmer_prior(two: Any) -> None:
    """Images of the same variance over the ground, which change from one to the next as much as that, or hardly."""
    looks, cube, _ = two[0]
    seen = [looks[0], looks[2]]
    calm = [seen[0], replace(seen[1], data=(0.95 * seen[0].data + 0.05 * seen[1].data).astype(np.float32))]

    def variance(some: list[Observation]) -> float:
        return float(np.trace(learn([surveyed(some, *images(some, cube), (), cube)], cube).prior))

    library = float(np.trace(cube.basis.prior))
    assert variance(calm) < 0.5 * library < library < variance(seen)
    assert variance(calm[:1]) == pytest.approx(library, rel=0.05)


def test_calibrations_are_pooled_by_clear_values() -> None:
    rng = np.random.default_rng(1)
    one, other = (
        Learned("modis", widen, shift, np.linalg.qr(rng.normal(size=(2, 2)))[0], rng.normal(size=2), *np.ones((3, 2)), 9.0, 5, cells, np.ones(2), 0.5)
        for widen, shift, cells in ((1.0, (0.0, 100.0), 300.0), (1.6, (40.0, -20.0), 100.0))
    )
    assert pooled([one]) == (one,)
    (both,) = pooled([other, one])
    assert both.widen == pytest.approx(np.exp(0.25 * np.log(1.6)))
    assert both.shift == pytest.approx((10.0, 70.0))
    bias = 0.75 * np.linalg.inv(one.rotation) @ one.bias + 0.25 * np.linalg.inv(other.rotation) @ other.bias
    np.testing.assert_allclose(np.linalg.inv(both.rotation) @ both.bias, bias)
    np.testing.assert_array_equal(both.rotation, one.rotation)
    assert len(pooled([one, replace(other, sensor="viirs")])) == 2
