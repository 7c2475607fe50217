"""Laws of every footprint: the equation, the adjoint, row sums, crops, phases, identity, derivatives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from fusion.cube.grid import Grid
from fusion.errors import JobError
from fusion.observe.footprint import footprint, tangents
from fusion.observe.geometry import window
from fusion.observe.operator import Dense, Footprint, Gathered, Separable, Stencil, squared
from fusion.observe.psf import PSF
from fusion.observe.sensor import sensors
from tests.observe.cases import Case, constant_view, grid_at, reference_rows, sinusoidal_tile, utm

COLORADO = (-105.0, 40.0, 32613)
MODIS = PSF("scanner", 500.0, geolocation=50.0)
VIIRS = PSF("gaussian", 500.0, geolocation=50.0)
EMIT = PSF("gaussian", 60.0, cell=False, geolocation=25.0)
DEGREES = 5.4e-4
OLI = PSF("gaussian", 40.0, cell=False, geolocation=2.8)


def _scanner(name: str, lon: float, lat: float, epsg: int, tile: tuple[int, int], view: tuple[float, float] | None) -> Case:
    grid = grid_at(lon, lat, epsg, (44, 40), 90.0)
    geobox = window(sinusoidal_tile(*tile), grid)
    return Case(name, geobox, MODIS, grid, None if view is None else constant_view(geobox, *view))


def _fine(name: str, raster: GeoBox, psf: PSF, grid: Grid) -> Case:
    return Case(name, window(raster, grid), psf, grid)


def _cases() -> list[Case]:
    grid = grid_at(*COLORADO)
    left, top = grid.bounds.left, grid.bounds.top
    north_zone = grid_at(151.0, -33.5, 32756)
    return [
        _fine("same pixels", utm(32613, 30, left - 900, top + 600), OLI, grid),
        _fine("half a pixel off", utm(32613, 30, left - 915, top + 615), PSF("gaussian", 26.0), grid),
        _fine("odd phase", utm(32613, 30, left - 907, top + 598), OLI, grid),
        _fine("20 m on 30 m", utm(32613, 20, left - 900, top + 600), PSF("gaussian", 18.8, geolocation=2.4), grid),
        _fine("nested 210 m", utm(32613, 210, left, top), PSF("gaussian", 0.0), grid),
        _fine("false northing", utm(32656, 30, north_zone.bounds.left - 915, north_zone.bounds.top - 1e7 + 615), OLI, north_zone),
        _fine("next zone", GeoBox((900, 900), Affine(30, 0, 1008000, 0, -30, 4455000), "EPSG:32612"), OLI, grid),
        _fine("rotated", utm(32613, 20, left - 300, top + 900, turn=-37.0), PSF("gaussian", 14.0), grid),
        _fine("rotated, sharp", utm(32613, 24, left - 300, top + 900, turn=21.0), PSF("gaussian", 0.0), grid),
        _fine("geographic", GeoBox((400, 400), Affine(DEGREES, 0, -105.1, 0, -DEGREES, 40.1), "EPSG:4326"), EMIT, grid),
        _fine("viirs south", sinusoidal_tile(31, 12), VIIRS, grid_at(151.0, -33.5, 32756, (44, 40), 90.0)),
        _fine("latent finer", utm(32613, 30, left + 5, top - 3, (4, 5)), OLI, _small(left, top)),
        _scanner("modis composite, cell leaning 50 degrees", *COLORADO, (9, 4), None),
        _scanner("modis oblique", *COLORADO, (9, 4), (52.0, 104.0)),
        _scanner("modis south", 151.0, -33.5, 32756, (31, 12), (30.0, 260.0)),
    ]


def _small(left: float, top: float) -> Grid:
    return Grid(GeoBox((20, 24), Affine(5, 0, left, 0, -5, top), "EPSG:32613"))


CASES = {case.name: case for case in _cases()}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def _double(case: Case) -> Footprint:
    return footprint(case.geobox, case.psf, case.grid, view=case.view, dtype=np.float64)


def _single(case: Case) -> Footprint:
    return footprint(case.geobox, case.psf, case.grid, view=case.view)


def _check_equation(case: Case, rng: np.random.Generator, count: int) -> None:
    subset = None
    if case.geobox.shape[0] * case.geobox.shape[1] > 50_000:  # an aircraft's pixels: a few of them will do
        subset = rng.random(tuple(case.geobox.shape)) < 1e-3
    foot = footprint(case.geobox, case.psf, case.grid, view=case.view, subset=subset, dtype=np.float64)
    seen = np.asarray(foot.seen).ravel()
    kept = np.flatnonzero(seen)
    assert kept.size, "the case must have rows"
    # the fullest and the least seen rows, and some in between: the renormalised edge obeys the equation too
    some = rng.choice(kept, min(count, kept.size), replace=False)
    rows = np.unique(np.concatenate([kept[np.argsort(seen[kept])[[0, -1]]], some]))
    matrix = foot.dense()[rows] * seen[rows, None]
    latent = None
    if case.psf.kind == "scanner":
        heavy = np.argsort(matrix.sum(axis=0))[-30:]
        latent = np.unique(np.concatenate([heavy, rng.choice(matrix.shape[1], 30, replace=False)]))
        matrix = matrix[:, latent]
    expected = reference_rows(case, rows, latent)
    np.testing.assert_allclose(matrix, expected, rtol=0, atol=1e-6 * expected.max())
    if latent is None:
        np.testing.assert_allclose(seen[rows], expected.sum(axis=1), atol=2e-6)


@each_case
def test_rows_are_the_integral_of_the_equation(case: Case) -> None:
    _check_equation(case, np.random.default_rng(0), 3 if case.psf.kind == "scanner" else 8)


@pytest.mark.parametrize("name", sorted(sensors()))
def test_every_installed_sensor_obeys_the_equation(name: str) -> None:
    sensor = sensors()[name]
    coarse = sensor.pixel > 200
    grid = grid_at(*COLORADO, (44, 40), 90.0) if coarse else grid_at(*COLORADO, (12, 10))
    if sensor.native is not None:
        raster = sensor.native(grid)
    else:  # aircraft: a rotated flight line
        raster = utm(32613, sensor.pixel, grid.bounds.left - 100, grid.bounds.top + 50, (500, 500), turn=-17.0)
    geobox = window(raster, grid)
    for psf in {sensor.psf, *(b.psf for b in sensor.bands if b.psf is not None)}:
        view = constant_view(geobox, 40.0, 99.0) if psf.kind == "scanner" and "09ga" in name else None
        _check_equation(Case(name, geobox, psf, grid, view), np.random.default_rng(1), 3)


@each_case
def test_forward_and_adjoint_are_the_matrix(case: Case) -> None:
    foot, matrix = _single(case), _double(case).dense()
    rng = np.random.default_rng(2)
    z, v = rng.normal(size=(3, 2, *foot.grid_shape)), rng.normal(size=(3, 2, *foot.shape))
    z32, v32 = jnp.asarray(z, jnp.float32), jnp.asarray(v, jnp.float32)
    forward = np.einsum("ps,abs->abp", matrix, z.reshape(3, 2, -1)).reshape(3, 2, *foot.shape)
    back = np.einsum("ps,abp->abs", matrix, v.reshape(3, 2, -1)).reshape(3, 2, *foot.grid_shape)
    call = jax.jit(lambda f, a: f(a)).lower(foot, z32)  # a footprint is an argument, not a constant
    turn = jax.jit(lambda f, a: f.adjoint(a)).lower(foot, v32)
    np.testing.assert_allclose(call.compile()(foot, z32), forward, atol=3e-6)
    np.testing.assert_allclose(turn.compile()(foot, v32), back, atol=3e-6 * abs(back).max())
    assert "scatter" not in call.as_text() + turn.as_text()


@each_case
def test_squared_weights(case: Case) -> None:
    foot = _single(case)
    alone, square = squared(foot), foot.dense() ** 2
    np.testing.assert_allclose(alone.dense(), square, atol=1e-6 * square.max())
    v = np.random.default_rng(3).uniform(size=foot.shape)
    back = v.ravel() @ square
    np.testing.assert_allclose(np.asarray(alone.adjoint(jnp.asarray(v, jnp.float32))).ravel(), back, atol=3e-6 * back.max())


@each_case
def test_rows_sum_to_one_or_are_dropped_by_the_rule(case: Case) -> None:
    foot = _double(case)
    total, seen = foot.dense().sum(axis=1), np.asarray(foot.seen).ravel()
    np.testing.assert_allclose(total[seen > 0], 1.0, atol=1e-8)
    assert not total[seen == 0].any()
    assert (seen[seen > 0] >= 0.5 - 1e-6).all()
    flat = _single(case)(jnp.full(foot.grid_shape, 0.3, jnp.float32))
    np.testing.assert_allclose(np.asarray(flat).ravel()[seen > 0], 0.3, rtol=1e-5)


@each_case
def test_a_smaller_grid_keeps_exactly_the_rows_it_holds(case: Case) -> None:
    """W of a cropped grid = columns of the whole W, rows renormalised, those under one half dropped."""
    crop = (slice(3, case.grid.shape[0] - 2), slice(4, case.grid.shape[1] - 1))
    small = footprint(case.geobox, case.psf, case.grid.crop(*crop), view=case.view, dtype=np.float64)
    foot = _double(case)
    whole = foot.dense() * np.asarray(foot.seen).reshape(-1, 1)
    inside = whole.reshape(-1, *case.grid.shape)[:, crop[0], crop[1]].reshape(len(whole), -1)
    share = inside.sum(axis=1)
    clear = np.abs(share - 0.5) > 1e-5
    kept = (share > 0.5) & clear
    np.testing.assert_allclose(small.dense()[kept], inside[kept] / share[kept, None], atol=1e-6 * inside.max())
    assert not small.dense()[clear & (share < 0.5)].any()


def test_regimes() -> None:
    kinds = {name: type(_single(case)) for name, case in CASES.items()}
    assert kinds["same pixels"] is kinds["half a pixel off"] is kinds["odd phase"] is kinds["false northing"] is Stencil
    assert kinds["20 m on 30 m"] is kinds["nested 210 m"] is Separable
    assert kinds["modis oblique"] is Dense
    assert Gathered not in kinds.values()  # small grids fit one matrix: the gathered regime has its own test


def test_gathered_rows_are_the_dense_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["rotated"]
    dense = _single(case)
    monkeypatch.setattr("fusion.observe.footprint.DENSE_LIMIT", 0)
    foot = footprint(case.geobox, case.psf, case.grid, subset=np.ones(tuple(case.geobox.shape), bool))
    assert isinstance(foot, Gathered)
    np.testing.assert_allclose(foot.dense(), dense.dense(), atol=1e-9)
    rng = np.random.default_rng(3)
    z, v = (jnp.asarray(rng.normal(size=(4, *s)), jnp.float32) for s in (foot.grid_shape, foot.shape))
    np.testing.assert_allclose(foot(z), dense(z), atol=2e-6)
    np.testing.assert_allclose(foot.adjoint(v), dense.adjoint(v), atol=2e-6)
    gradient = jax.jit(jax.grad(lambda a: jnp.vdot(foot(a), v)))
    np.testing.assert_allclose(gradient(z), dense.adjoint(v), atol=2e-6)
    assert "scatter" not in gradient.lower(z).as_text()


def test_nested_cells_without_blur_are_plain_block_means() -> None:
    case = CASES["nested 210 m"]
    foot = _double(case)
    z = np.random.default_rng(4).normal(size=case.grid.shape)
    seen = (np.asarray(foot(jnp.asarray(z, jnp.float32))))
    for i in range(foot.shape[0]):
        for j in range(foot.shape[1]):
            block = z[7 * i : 7 * i + 7, 7 * j : 7 * j + 7]
            if block.size == 49:
                assert seen[i, j] == pytest.approx(block.mean(), abs=1e-6)


def test_equal_rasters_share_one_footprint_whatever_the_file_held() -> None:
    grid = grid_at(*COLORADO)
    tile = sinusoidal_tile(9, 4)
    cropped = tile[100:2300, 50:2390]
    a, b, c, d, e, f = tile.transform[:6]
    rounded = GeoBox(tile.shape, Affine(a, b, round(c, 3), d, e, f), tile.crs)  # as product metadata write it
    first = footprint(window(tile, grid), MODIS, grid)
    assert footprint(window(cropped, grid), MODIS, grid) is first
    assert footprint(window(rounded, grid), MODIS, grid) is first
    assert footprint(window(tile, grid), MODIS, grid, widen=1.1) is not first


def test_shift_moves_the_footprint_and_widen_widens_it() -> None:
    case = CASES["same pixels"]
    x, y = np.meshgrid(case.grid.x, case.grid.y)
    moved = footprint(case.geobox, case.psf, case.grid, shift=(12.0, -7.0), dtype=np.float64).dense()
    still = _double(case)
    inner = np.asarray(still.seen).ravel() > 1 - 1e-6  # pixel centres sample the blur: their mean is off by up to a centimetre
    np.testing.assert_allclose((moved - still.dense())[inner] @ y.ravel(), 12.0, atol=0.02)
    np.testing.assert_allclose((moved - still.dense())[inner] @ x.ravel(), -7.0, atol=0.02)

    def variance(w: np.ndarray) -> np.ndarray:
        east = x.ravel() - x.mean()
        return w @ east**2 - (w @ east) ** 2

    wide = footprint(case.geobox, case.psf, case.grid, widen=1.2, dtype=np.float64)
    kept = inner & (np.asarray(wide.seen).ravel() > 1 - 1e-6)
    blur = (40.0 / 2.354820045) ** 2
    np.testing.assert_allclose((variance(wide.dense()) - variance(still.dense()))[kept], blur * (1.2**2 - 1), rtol=0.03)


@pytest.mark.parametrize("name", ["odd phase", "modis oblique"])
def test_tangents_predict_a_small_displacement(name: str) -> None:
    case = CASES[name]
    slope = tangents(case.geobox, case.psf, case.grid, view=case.view)
    base = _single(case)
    north, east, wider = 0.6, -0.5, 0.01
    moved = footprint(case.geobox, case.psf, case.grid, view=case.view, shift=(north, east), widen=1 + wider)
    guess = base.dense() + north * slope["y"].dense() + east * slope["x"].dense() + wider * slope["width"].dense()
    inner = np.asarray(base.seen).ravel() > 0.99
    change = np.abs((moved.dense() - base.dense())[inner]).sum(axis=1)
    assert (np.abs((moved.dense() - guess)[inner]).sum(axis=1) < 0.12 * change + 1e-5).all()
    z = jnp.asarray(np.random.default_rng(5).normal(size=base.grid_shape), jnp.float32)
    for tangent in slope.values():
        with pytest.raises(TypeError, match="derivative"):
            squared(tangent)
        np.testing.assert_allclose(np.asarray(tangent(z)).ravel(), tangent.dense() @ np.asarray(z).ravel(), atol=2e-4)
        back = tangent.dense().T @ np.ones(base.shape[0] * base.shape[1])
        np.testing.assert_allclose(np.asarray(tangent.adjoint(jnp.ones(base.shape))).ravel(), back, atol=2e-4)


def test_grids_across_the_antimeridian_are_refused_with_advice() -> None:
    grid = grid_at(179.995, -17.0, 32760, (40, 60))
    with pytest.raises(JobError, match="split the job at 180 degrees"):
        window(sinusoidal_tile(35, 10), grid)
    with pytest.raises(JobError, match="antimeridian"):
        footprint(utm(32760, 30, grid.bounds.left, grid.bounds.top), OLI, grid)


def test_pixels_beyond_the_edge_of_the_world_are_never_seen() -> None:
    """A sinusoidal raster goes on past 180 degrees of longitude; what lies there is nowhere."""
    grid = grid_at(179.9, 60.0, 32660, (60, 60), 90.0)
    tile = sinusoidal_tile(26, 3)
    beyond = GeoBox((400, 3000), tile.transform * Affine.translation(300, 0), tile.crs)
    foot = footprint(window(beyond, grid), MODIS, grid)
    assert np.isfinite(np.asarray(foot.weights)).all()
    np.testing.assert_allclose(np.asarray(foot.weights).sum(axis=1), 1.0, atol=1e-5)


def test_a_grid_under_no_whole_footprint_is_not_seen() -> None:
    grid = grid_at(*COLORADO, (6, 7))
    foot = footprint(window(sinusoidal_tile(9, 4), grid), MODIS, grid)
    assert not np.asarray(foot.seen).any()
    seen = foot(jnp.ones((2, *foot.grid_shape)))
    assert seen.shape == (2, *foot.shape)
    assert seen.size
    assert not np.asarray(seen).any()
    assert not np.asarray(foot.adjoint(jnp.ones((2, *foot.shape)))).any()
