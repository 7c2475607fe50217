"""From a scene to an observation: nothing invented, nothing lost, every rule stated and kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from fusion.cube.calendar import Instant, PixelDay
from fusion.cube.response import DROPPED, Response, within
from fusion.errors import SceneError, SensorError
from fusion.observe.geometry import window
from fusion.observe.observation import looks, observe
from fusion.observe.psf import PSF
from fusion.observe.scene import Scene, View
from fusion.observe.sensor import Band, Noise
from fusion.observe.spectral import reduce_channels
from tests.observe.cases import sinusoidal_tile
from tests.observe.worlds import DAY, cube, raster, scene, sensor, spectrometer

CUBE = cube()
CHANNELS = np.arange(410.0, 2480.0, 20.0)
MODIS = PSF("scanner", 500.0, geolocation=50.0)


def _channel_scene(geobox: GeoBox, **extra: object):  # type: ignore[no-untyped-def]
    names = tuple(f"{c:.0f}" for c in CHANNELS)
    return scene(geobox, names, centres=CHANNELS, fwhm=np.full(CHANNELS.size, 12.0), **extra)


def test_missing_is_precision_zero_and_data_are_anomalies() -> None:
    look = scene(raster(dx=-315.0))
    seen = observe(look, sensor(), CUBE)
    assert seen.data.shape == seen.precision.shape == seen.layer.shape == (3, 18, 17)
    # native pixel (row, col) of the window is (10, 10) of the scene; the hole is at rows 4-5
    assert np.isfinite(seen.data).all()
    inner = np.isfinite(look.reflectance[:, 10:28, 10:27]) & (np.asarray(seen.layer.footprint.seen) > 1 - 1e-4)
    mean = np.asarray(seen.layer.mean)[:, None, None]
    np.testing.assert_allclose((seen.data + mean)[inner], look.reflectance[:, 10:28, 10:27][inner], atol=1e-6)
    np.testing.assert_allclose(seen.precision[inner], look.sigma[:, 10:28, 10:27][inner] ** -2.0, rtol=1e-5)


def test_the_common_error_of_a_look_goes_with_what_it_saw_of_each_band() -> None:
    look = scene(raster(dx=-315.0))
    look.reflectance[2] -= 0.6  # a band below zero has no brightness
    got = observe(look, sensor(offset_sd=0.005, offset_relative=0.04), CUBE)
    seen = np.where(got.precision > 0, got.data + np.asarray(got.layer.mean)[:, None, None], np.nan)
    np.testing.assert_allclose(got.offset_sd, [0.005 + 0.04 * np.nanmean(seen[0]), 0.005 + 0.04 * np.nanmean(seen[1]), 0.005], rtol=0.01)
    assert (observe(look, sensor(), CUBE).offset_sd == np.float32(0.01)).all()


@settings(max_examples=25, deadline=None)
@given(top=st.integers(0, 20), left=st.integers(0, 20), high=st.integers(12, 39), wide=st.integers(12, 39))
def test_how_a_file_was_cropped_changes_only_what_is_missing(top: int, left: int, high: int, wide: int) -> None:
    whole = scene(raster(), hole=False)
    part = replace(
        whole, geobox=whole.geobox[top : top + high, left : left + wide],
        reflectance=whole.reflectance[:, top : top + high, left : left + wide],
        sigma=whole.sigma[:, top : top + high, left : left + wide],
    )
    full, cut = observe(whole, sensor(), CUBE), observe(part, sensor(), CUBE)
    assert cut.layer.footprint is full.layer.footprint
    rows, cols = np.arange(18) + 10, np.arange(16) + 10
    held = ((rows >= top) & (rows < top + high))[:, None] & ((cols >= left) & (cols < left + wide))
    np.testing.assert_array_equal(cut.precision, np.where(held, full.precision, 0.0))
    np.testing.assert_array_equal(cut.data, np.where(held, full.data, 0.0))


def test_all_cloud_is_an_observation_and_says_so() -> None:
    look = scene(raster())
    look = replace(look, reflectance=np.full_like(look.reflectance, np.nan))
    seen = observe(look, sensor(), CUBE)
    assert not seen.precision.any()
    assert not seen.data.any()
    assert any("no clear pixel" in note for note in seen.notes)


def test_unusable_scenes_are_refused_with_their_name() -> None:
    with pytest.raises(SensorError, match=r"look-1.*no band 'rde'.*did you mean 'red'"):
        observe(scene(raster(), ("blue", "rde", "nir08")), sensor(), CUBE)
    with pytest.raises(SceneError, match=r"look-1.*2019-01-01.*outside the calendar"):
        observe(scene(raster(), when=Instant(np.datetime64("2019-01-01"))), sensor(), CUBE)
    with pytest.raises(SceneError, match=r"look-1.*misses the grid"):
        observe(scene(raster(dx=50_000.0)), sensor(), CUBE)
    with pytest.raises(SceneError, match="must give centres"):
        observe(scene(raster()), spectrometer(), CUBE)
    with pytest.raises(SceneError, match="micrometres"):
        observe(scene(raster(), centres=np.array([0.48, 0.66, 0.86]), fwhm=np.full(3, 0.01)), spectrometer(), CUBE)
    with pytest.raises(SceneError, match="no channel"):
        observe(scene(raster(), centres=np.array([1380.0, 1400.0, 1900.0]), fwhm=np.full(3, 10.0)), spectrometer(), CUBE)


def test_days_per_pixel_set_time_and_what_is_seen() -> None:
    box = raster()
    days = np.full(tuple(map(int, box.shape)), np.datetime64("2021-06-05"), "datetime64[D]")
    days[12, 13] = np.datetime64("NaT")
    days[14, 15] = np.datetime64("1999-01-01")
    seen = observe(scene(box, when=PixelDay(days), hole=False), sensor(), CUBE)
    assert seen.layer.tau.shape == (18, 16, len(CUBE.calendar))
    missing = np.zeros((18, 16), bool)
    missing[2, 3] = missing[4, 5] = True
    assert not seen.precision[:, missing].any()
    assert (seen.precision[:, 1:-1, 1:-1][:, ~missing[1:-1, 1:-1]] > 0).all()
    cloudy = scene(box, when=PixelDay(np.full_like(days, np.datetime64("NaT"))))
    assert not observe(cloudy, sensor(), CUBE).precision.any()


def test_coverage_lowers_precision_and_views_make_their_own_footprint() -> None:
    place = cube((130, 130))
    tile = sinusoidal_tile(9, 4)
    target = window(tile, place.grid)
    row, col = (round(v) for v in (~tile.transform * (target.transform * (0, 0)))[::-1])
    box = tile[max(0, row) : row + target.shape[0], col : col + target.shape[1]]
    shape = tuple(map(int, box.shape))
    flat = View(np.full(shape, 40, np.float32), np.full(shape, 100, np.float32), np.full(shape, 0.5, np.float32))
    modis = sensor("coarse", MODIS, 463.0)
    half, plain = (observe(scene(box, view=v, hole=False), modis, place) for v in (flat, replace(flat, coverage=None)))
    whole = np.asarray(plain.layer.footprint.seen) > 1 - 1e-4
    assert whole.any()
    np.testing.assert_allclose(half.precision[:, whole], 0.5 * plain.precision[:, whole], rtol=1e-5)
    assert half.layer.footprint is plain.layer.footprint
    nadir = observe(scene(box, hole=False), modis, place)
    assert nadir.layer.footprint is not plain.layer.footprint


def test_partly_seen_pixels_carry_the_prior_variance_of_what_is_unseen() -> None:
    seen = observe(scene(raster(dx=-315.0), hole=False), sensor(), CUBE)
    share = np.asarray(seen.layer.footprint.seen)
    h = np.asarray(seen.layer.colour, np.float64)
    spread = np.einsum("bk,kl,bl->b", h, CUBE.basis.prior, h)
    sigma2 = scene(raster(dx=-315.0), hole=False).sigma[:, 10:28, 10:27].astype(np.float64) ** 2
    row, col = 9, 0
    assert 0.5 <= share[row, col] < 0.9
    factor = np.mean(1 + (1 - share[row, col]) ** 2 * spread / sigma2[:, row, col])
    np.testing.assert_allclose(seen.precision[:, row, col], 1 / sigma2[:, row, col] / factor, rtol=1e-4)


def test_rank_one_is_exact_for_separable_noise() -> None:
    look = scene(raster())
    sigma = np.array([0.004, 0.01, 0.02])[:, None, None] * np.random.default_rng(0).uniform(0.5, 2, (1, *look.sigma.shape[1:]))
    seen = observe(replace(look, sigma=sigma.astype(np.float32)), sensor(), CUBE)
    weight, band = seen.rank_one()
    np.testing.assert_allclose(band[:, None, None] * weight, seen.precision, rtol=1e-4)


def test_channels_reduce_without_losing_information() -> None:
    """The posterior of z from the pseudo-bands equals the one from all channels, float64, any pixel scale."""
    rng = np.random.default_rng(0)
    basis, count = CUBE.basis, CHANNELS.size
    scale = np.array([[0.5, 1.0, 3.0]])
    spectrum = rng.uniform(0.003, 0.01, count)
    variance = (spectrum**2)[:, None, None] * scale**2
    data = rng.uniform(0.1, 0.5, (count, 1, 3))
    responses = tuple(Response.gaussian(c, 12.0) for c in CHANNELS)
    names = tuple(map(str, CHANNELS))
    got = reduce_channels(names, data, 1 / variance, CHANNELS, responses, basis, 0.01)
    assert got.data.shape[0] == basis.rank
    weights = np.stack([r.on(basis.wavelengths) for r in responses])
    h, mean = weights @ basis.components, weights @ basis.mean
    residual = weights @ np.diag(basis.residual_var) @ weights.T
    typical = np.median(variance, axis=(1, 2))
    for p in range(3):
        noise = (np.diag(typical) + residual) * variance[0, 0, p] / typical[0]
        precision = np.linalg.inv(basis.prior) + h.T @ np.linalg.solve(noise, h)
        expected = np.linalg.solve(precision, h.T @ np.linalg.solve(noise, data[:, 0, p] - mean))
        reduced = np.linalg.inv(basis.prior) + (got.colour.T * got.precision[:, 0, p]) @ got.colour
        z = np.linalg.solve(reduced, got.colour.T @ (got.precision[:, 0, p] * (got.data[:, 0, p] - got.mean)))
        np.testing.assert_allclose(reduced, precision, rtol=1e-6, atol=1e-6 * abs(precision).max())
        np.testing.assert_allclose(z, expected, rtol=1e-6, atol=1e-9)
    # the offset spectrum of the acquisition: independent between pseudo-bands, same power
    solved = np.linalg.solve(np.diag(typical) + residual, h)
    haze = 0.01**2 * np.exp(-np.abs(CHANNELS[:, None] - CHANNELS) / 200.0)
    turned = got.colour.T @ np.diag(got.offset_sd**2) @ got.colour
    direct = solved.T @ haze @ solved * (np.median(np.sqrt(typical)) ** 4)
    np.testing.assert_allclose(turned, direct, rtol=2e-2, atol=2e-2 * abs(direct).max())


def test_a_composite_of_pixels_with_their_own_days_is_split_into_its_days() -> None:
    """Every pixel is in one part, with the data, the precision and the prediction that it has in the whole; coarse composites stay whole."""
    rng = np.random.default_rng(4)
    box = raster(30.0)
    days = (np.datetime64("2021-06-01") + rng.integers(0, 8, tuple(box.shape))).astype("datetime64[D]")
    days[:3] = np.datetime64("NaT")
    composite = scene(box, when=PixelDay(days))
    whole, parts = observe(composite, sensor(), CUBE), looks(composite, sensor(), CUBE)
    assert 2 <= len(parts) <= 8
    assert len({p.scene_id for p in parts}) == len(parts), "looks of one name count once"
    assert all(p.scene_id.startswith(whole.scene_id) for p in parts)
    field = rng.standard_normal(CUBE.shape).astype(np.float32)
    told = np.asarray(whole.layer(field))
    for name, expected in (("data", whole.data), ("precision", whole.precision), ("seen", np.where(whole.precision > 0, told, 0.0))):
        values = [np.where(p.precision > 0, np.asarray(p.layer(field)), 0.0) if name == "seen" else getattr(p, name) for p in parts]
        assert np.max([np.count_nonzero(v[0]) for v in values]) < np.count_nonzero(expected[0])
        np.testing.assert_allclose(np.sum(values, axis=0), expected, rtol=1e-4, atol=1e-4)
    cells = raster(120.0, size=8)
    wide = scene(cells, when=PixelDay(np.resize(days[4:], tuple(cells.shape))))
    assert len(looks(wide, sensor(pixel=120.0), CUBE)) == 1


def test_what_all_pixels_share_is_never_averaged_away() -> None:
    """Gain errors and displacement enlarge the noise: N, T and S of the docstring, written out; their common part goes to the offset."""
    rng = np.random.default_rng(5)
    basis, count, g, moved = CUBE.basis, CHANNELS.size, 0.03, 0.1
    data = 0.2 + 0.05 * rng.standard_normal((count, 9, 8))
    precision = np.full(data.shape, 1e6)
    responses = tuple(Response.gaussian(c, 12.0) for c in CHANNELS)
    got = reduce_channels(tuple(map(str, CHANNELS)), data, precision, CHANNELS, responses, basis, 0.01, g, moved)
    weights = np.stack([r.on(basis.wavelengths) for r in responses])
    h = weights @ basis.components
    noise = 1e-6 * np.eye(count) + np.diag(g**2 * data.var(axis=(1, 2))) + weights @ np.diag(basis.residual_var) @ weights.T
    north, east = 0.5 * (data[:, 2:] - data[:, :-2]), 0.5 * (data[:, :, 2:] - data[:, :, :-2])
    shift = sum(moved**2 * np.einsum("byx,cyx->bc", d, d) / d[0].size for d in (north, east))
    t = np.linalg.solve(np.linalg.cholesky(h.T @ np.linalg.solve(noise, h)), np.linalg.solve(noise, h).T)
    np.testing.assert_allclose(t @ noise @ t.T, np.eye(basis.rank), atol=1e-9)
    solved = np.linalg.solve(np.eye(basis.rank) + t @ shift @ t.T, t).T @ t @ h  # (B, K): what a unit of z becomes in each channel
    told = (got.colour.T * got.precision[:, 0, 0]) @ got.colour
    np.testing.assert_allclose(told, solved.T @ h, rtol=1e-6, atol=1e-6 * told.max())
    common = 0.01**2 * np.exp(-np.abs(CHANNELS[:, None] - CHANNELS) / 200.0) + np.diag((g * data.mean(axis=(1, 2))) ** 2)
    turned = got.colour.T @ np.diag(got.precision[:, 0, 0] * got.offset_sd) ** 2 @ got.colour
    np.testing.assert_allclose(turned, solved.T @ common @ solved, rtol=1e-6, atol=1e-6 * turned.max())
    assert not got.gain_sd.any()


def test_a_displaced_look_at_broken_ground_still_tells_how_bright_it_is() -> None:
    """Sun and shadow beside each other, half a pixel astray, a spectrum that the basis meets to .01: the mean of the ground stays."""
    rng = np.random.default_rng(6)
    basis = CUBE.basis
    responses = tuple(Response.gaussian(c, 12.0) for c in CHANNELS)
    h, mean, _ = basis.responses(responses)
    truth = mean + 0.01 * np.sin(CHANNELS / 25.0)
    data = truth[:, None, None] * rng.choice([0.3, 1.0, 1.7], size=(20, 20))
    got = reduce_channels(tuple(map(str, CHANNELS)), data, np.full(data.shape, 1e5), CHANNELS, responses, basis, 0.015, 0.03, 0.5)
    spread = np.diag(got.offset_sd**2 + 1 / got.precision[:, 0, 0] / 400)
    solved = np.linalg.solve(spread, got.colour)
    information = got.colour.T @ solved + np.linalg.inv(basis.prior)
    found = h @ np.linalg.solve(information, solved.T @ (got.data.mean(axis=(1, 2)) - got.mean)) + mean
    level = data.mean(axis=(1, 2))
    assert np.abs(found - level).max() < 0.1 * level.max()


def test_water_and_outside_channels_say_nothing() -> None:
    place = raster()
    look = _channel_scene(place)
    wet = within(CHANNELS, DROPPED)
    assert wet.any()
    spoiled = replace(look, reflectance=np.where(wet[:, None, None], np.float32(0.9), look.reflectance))
    clean, same = observe(look, spectrometer(), CUBE), observe(spoiled, spectrometer(), CUBE)
    np.testing.assert_array_equal(clean.data, same.data)
    assert clean.bands == tuple(f"pseudo-{i + 1}" for i in range(CUBE.basis.rank))
    assert not clean.residual_var.any()
    told = observe(spoiled, replace(spectrometer(), opaque=()), CUBE)  # a sensor that states no such window is believed in it
    assert np.abs(told.data - clean.data).max() > 0.01


def test_finer_sensors_are_averaged_to_latent_pixels() -> None:
    """Nested 10 m pixels: exactly the precision-weighted block means, seen through latent box (*) PSF."""
    box = raster(10.0, dx=-100.0, dy=200.0, size=120)
    look = scene(box)
    seen = observe(look, sensor(psf=PSF("gaussian", 9.4), pixel=10.0), CUBE)
    assert seen.geobox == CUBE.grid.geobox
    assert seen.psf.fwhm == pytest.approx(9.4)
    mean = np.asarray(seen.layer.mean)
    for i, j in ((0, 0), (5, 7), (17, 15)):
        block = (slice(None), slice(20 + 3 * i, 23 + 3 * i), slice(10 + 3 * j, 13 + 3 * j))
        q = look.sigma[block].astype(np.float64) ** -2
        expected = (q * look.reflectance[block]).sum(axis=(1, 2)) / q.sum(axis=(1, 2))
        np.testing.assert_allclose(seen.data[:, i, j] + mean, expected, atol=1e-6)
        if 0 < i < 17:
            np.testing.assert_allclose(seen.precision[:, i, j], q.sum(axis=(1, 2)), rtol=1e-4)


def test_many_small_pixels_average_noise_but_not_what_the_basis_leaves_out() -> None:
    """With vanishing noise a latent pixel says no more of z than one exact spectrum does: H' R^-1 H, however many pixels it holds."""
    box = raster(5.0, dx=-60.0, dy=60.0, size=140)
    rng = np.random.default_rng(1)
    values = np.broadcast_to(rng.uniform(0.1, 0.4, CHANNELS.size).astype(np.float32)[:, None, None], (CHANNELS.size, *box.shape)).copy()
    names, widths = tuple(map(str, CHANNELS)), np.full(CHANNELS.size, 12.0)
    look = Scene("spectrometer", "fine", names, values, np.full_like(values, 1e-4), box, DAY, centres=CHANNELS, fwhm=widths)
    seen = observe(look, spectrometer(5.0), CUBE)
    pick = ~within(CHANNELS, DROPPED) & np.array([Response.gaussian(c, 12.0).inside() >= 0.95 for c in CHANNELS])
    weights = np.stack([Response.gaussian(c, 12.0).on(CUBE.basis.wavelengths) for c in CHANNELS[pick]])
    h = weights @ CUBE.basis.components
    most = h.T @ np.linalg.solve(weights @ np.diag(CUBE.basis.residual_var) @ weights.T, h)
    colour = np.asarray(seen.layer.colour, np.float64)
    inner = seen.precision[:, 8, 8].astype(np.float64)
    told = (colour.T * inner) @ colour
    assert (inner > 0).all()
    np.testing.assert_allclose(told, most, rtol=2e-2, atol=2e-2 * abs(most).max())


def test_a_rotated_flight_line_is_binned_by_pixel_centres() -> None:
    affine = Affine.translation(500200, 4427900) * Affine.rotation(-23.0) * Affine.scale(4.0, -4.0)
    box = GeoBox((70, 60), affine, "EPSG:32613")
    look = _channel_scene(box)
    seen = observe(look, spectrometer(4.0), CUBE)
    assert seen.geobox == CUBE.grid.geobox
    blur = np.hypot(4.0 / 2.354820045, 4.0 / np.sqrt(12)) * 2.354820045
    assert seen.psf.fwhm == pytest.approx(blur, rel=1e-6)
    x, y = affine * (np.arange(60)[None, :] + 0.5, np.arange(70)[:, None] + 0.5)
    row, col = ((4428000 - y) // 30).astype(int), ((x - 500010) // 30).astype(int)
    clear = np.isfinite(look.reflectance).all(axis=0)
    ok = clear & (row >= 0) & (row < 18) & (col >= 0) & (col < 16)
    count = np.zeros((18, 16))
    np.add.at(count, (row[ok], col[ok]), 1)
    expected = (count >= 0.5 * (30 / 4) ** 2) & (np.asarray(seen.layer.footprint.seen) > 0)
    np.testing.assert_array_equal(seen.precision[0] > 0, expected)
    assert expected.any()


def test_bands_of_different_sharpness_become_separate_looks() -> None:
    sharp, soft = PSF("gaussian", 20.0), PSF("gaussian", 60.0)
    facts = (("blue", 480, soft), ("red", 660, None), ("nir08", 860, None))
    bands = tuple(Band(n, Response.gaussian(c, 60.0), Noise(0.004, 0.01), psf=p) for n, c, p in facts)
    one = sensor(psf=sharp, bands=bands)
    parts = looks(scene(raster()), one, CUBE)
    assert [(p.bands, p.psf) for p in parts] == [(("blue",), soft), (("red", "nir08"), sharp)]
    mixed = observe(scene(raster()), one, CUBE)
    assert mixed.bands == ("blue", "red", "nir08")
    assert any("sharpness" in note for note in mixed.notes)
