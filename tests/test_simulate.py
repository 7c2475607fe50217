"""Laws of simulated worlds: known truth is seen as such, and every injected error has the size that it claims."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pystac
import pytest

from fusion.cube.calendar import Calendar, Instant, PixelDay, Window
from fusion.cube.cube import Cube
from fusion.cube.grid import Grid
from fusion.cube.spectrum import Response, SpectralBasis
from fusion.errors import JobError
from fusion.observe.footprint import footprint
from fusion.observe.sensor import Pass, sensor, sensors
from fusion.simulate import Nuisances, Pictures, World, uniform_world, world, world_of_pictures
from fusion.simulate.ground import Landscape, smooth, surfaces
from fusion.simulate.optics import blocks, shares
from fusion.simulate.weather import discrepancy, gains, offsets, sky

GRID = Grid.from_bbox((13.0, 46.0, 13.015, 46.01), resolution=30)
WAVELENGTHS = np.array([400.0, 2500.0])
QUIET = Nuisances.none()


def small(seed: int = 3, **settings: object) -> World:
    return world(GRID, "2020-04-01", "2020-10-01", **({"seed": seed, "finer": 1, "nuisances": QUIET} | settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(sensors()))
def test_a_constant_world_is_seen_constant_by_every_sensor(name: str) -> None:
    made = uniform_world(GRID, "2020-04-01", "2020-10-01", WAVELENGTHS, np.array([0.3, 0.3]), nuisances=QUIET)
    patch = GRID.crop(slice(0, 4), slice(0, 4))
    scene = made.see(name, "2020-07-03", window=patch, pixel=40.0)
    assert scene.simulated
    assert scene.id.startswith("SIMULATED")
    assert np.allclose(scene.reflectance, 0.3, atol=1e-6)
    assert scene.sigma.min() > 0


def test_a_sloping_spectrum_is_seen_through_the_response() -> None:
    made = uniform_world(GRID, "2020-04-01", "2020-10-01", WAVELENGTHS, np.array([0.1, 0.5]), nuisances=QUIET)
    scene = made.see("landsat-8", "2020-07-03")
    for band, seen in zip(sensor("landsat-8").bands, scene.reflectance.mean((1, 2)), strict=True):
        assert seen == pytest.approx(0.1 + 0.4 * (band.response.centroid - 400) / 2100, abs=1e-6)


def test_white_noise_has_its_moments_and_no_memory() -> None:
    made = uniform_world(GRID, "2020-04-01", "2020-10-01", WAVELENGTHS, np.full(2, 0.2), nuisances=replace(QUIET, noise=1.0))
    one = sensor("landsat-8")
    scenes = [made.see(one, day).reflectance.astype(float) for day in ("2020-05-01", "2020-05-02", "2020-05-03")]
    for b, band in enumerate(one.bands):
        error = np.stack([s[b] for s in scenes]) - 0.2
        sd = band.noise.a + band.noise.b * 0.2
        assert error.std() == pytest.approx(sd, rel=0.05)
        assert abs(error.mean()) < 4 * sd / np.sqrt(error.size)
        assert abs((error[:, 1:] * error[:, :-1]).mean()) < 0.06 * sd**2
        assert abs((error[0] * error[1]).mean()) < 0.08 * sd**2
    sigma = made.see(one, "2020-05-01").sigma[0]
    assert np.allclose(sigma, one.bands[0].noise.a + one.bands[0].noise.b * scenes[0][0], atol=1e-6)


def test_offsets_gains_and_discrepancy_have_their_size() -> None:
    one = sensor("modis-mcd43a4")
    centroids = np.array([b.response.centroid for b in one.bands])
    drawn = np.stack([offsets(1, one, day, centroids) for day in range(1500)])
    assert np.allclose(drawn.std(0), 1, rtol=0.08)
    assert np.abs(drawn.mean(0)).max() < 0.1
    assert (gains(1, one, 7) == gains(1, one, 7)).all()
    assert np.stack([gains(s, one, 7) for s in range(400)]).std() == pytest.approx(one.gain_sd, rel=0.08)
    first, later = (discrepancy(1, one, np.datetime64("2020-05-01") + lag, 2, 20000) for lag in (0, 8))
    assert first.std() == pytest.approx(one.discrepancy_sd, rel=0.03)
    assert np.corrcoef(first.ravel(), later.ravel())[0, 1] == pytest.approx(np.exp(-8 / one.discrepancy_days), abs=0.03)
    assert np.corrcoef(first[0], first[1])[0, 1] == pytest.approx(0.5, abs=0.03)
    assert abs(np.corrcoef(first[0, 1:], first[0, :-1])[0, 1]) < 0.03


def test_clouds_cover_what_they_should_and_come_in_blocks() -> None:
    days = np.datetime64("2020-01-01") + np.arange(250)
    cover = np.array([sky(5, day, (60, 60), 50.0, 0.45)[0].mean() for day in days])
    assert cover.mean() == pytest.approx(0.45, abs=0.08)
    partly = days[(cover > 0.3) & (cover < 0.7)][0]
    cloud, shadow = (part.reshape(60, 60) for part in sky(5, partly, (60, 60), 50.0, 0.45))
    edge = 4  # 200 m blocks of 50 m pixels
    assert (cloud[: 60 // edge * edge].reshape(15, edge, 15, edge).std(axis=(1, 3)) == 0).all()
    assert not (cloud & shadow).any()
    assert shadow.any()
    scene = small(nuisances=replace(QUIET, clouds=0.5)).see("landsat-8", partly)
    assert (np.isnan(scene.reflectance).all(0) == np.isnan(scene.reflectance).any(0)).all()


@pytest.mark.parametrize("name", ["landsat-8", "sentinel-2a", "modis-mcd43a4", "modis-terra-mod09ga"])
def test_footprints_by_points_agree_with_the_layers(name: str) -> None:
    """Two evaluations of the same facts without a line in common: characteristic functions against thrown points."""
    one = sensor(name)
    wide = GRID.crop(slice(-60, GRID.shape[0] + 60), slice(-60, GRID.shape[1] + 60))
    assert one.native is not None
    geobox = one.native(GRID)
    psf = replace(one.psf, geolocation=0.0)
    view = World._view(one, small().passes(one)[0], geobox.shape)
    made, layer = shares(geobox, psf, wide.geobox, view=view), footprint(geobox, psf, wide, view=view)
    assert np.allclose(np.asarray(made.sum(1)), 1, atol=1e-9)
    whole = np.asarray(layer.seen).ravel() > 0.999
    assert whole.sum() > 0.5 * whole.size
    field = 0.2 + 0.05 * smooth(np.random.default_rng(0), wide.shape, 12.0)
    ours, theirs = made @ field.ravel(), np.asarray(layer(field.astype(np.float32))).ravel()
    # the layer of a composite is one kernel of mean width, the world lets every look have its own
    assert np.abs(ours - theirs)[whole].max() < (3e-3 if name == "modis-mcd43a4" else 1.5e-3)
    checks = 0.2 + 0.1 * np.sign(smooth(np.random.default_rng(1), wide.shape, 5.0))
    ours, theirs = made @ checks.ravel(), np.asarray(layer(checks.astype(np.float32))).ravel()
    assert np.sqrt(((ours - theirs)[whole] ** 2).mean()) < 4e-3


def test_shares_of_surfaces_sum_to_one_and_nothing_is_lost_on_the_way_to_the_sensor() -> None:
    made = small(texture=0.0)
    for day in ("2020-04-10", "2020-06-01", "2020-07-20", "2020-09-20"):
        held = made.ground.at(np.datetime64(day, "us"))
        assert np.allclose(np.asarray(held.sum(1)), 1, atol=1e-5)
        assert held.data.min() >= -1e-6
    latent = blocks((5, 4), 3, 2)
    values = np.random.default_rng(0).uniform(0, 1, (19, 16))
    assert np.allclose((latent @ values.ravel()).reshape(5, 4), values[2:-2, 2:-2].reshape(5, 3, 4, 3).mean((1, 3)))
    seen = made.see("landsat-8", "2020-06-01").reflectance[4].mean()
    true = made.reflectance(["2020-06-01T09:40"], [sensor("landsat-8").band("nir08").response])[0, 0].mean()
    assert seen == pytest.approx(true, abs=0.01)


def test_the_seed_decides_everything_and_the_order_of_calls_nothing() -> None:
    settings = {"nuisances": Nuisances()}
    one, two, other = small(7, **settings), small(7, **settings), small(8, **settings)
    one.see("modis-mcd43a4", "2020-06-01")
    first, second, third = (w.see("landsat-8", "2020-06-10").reflectance for w in (one, two, other))
    assert np.array_equal(first, second, equal_nan=True)
    assert not np.array_equal(first, third, equal_nan=True)


def test_truth_is_the_spectrum_of_the_ground_on_the_basis() -> None:
    made = small()
    cube = Cube(GRID, Calendar.regular("2020-04-15", "2020-09-15", 50), SpectralBasis.library(12))
    z = made.truth(cube)
    assert z.shape == cube.shape
    spectra = made.reflectance(cube.calendar.times, cube.basis.wavelengths)
    back = cube.basis.mean[:, None, None] + np.einsum("lk,tkyx->tlyx", cube.basis.components, z)
    assert np.sqrt(((back - spectra) ** 2).mean()) < 0.01
    part = GRID.crop(slice(3, 9), slice(5, 12))
    assert np.array_equal(made.truth(Cube(part, cube.calendar, cube.basis)), z[:, :, 3:9, 5:12])
    assert spectra.min() >= 0
    assert spectra.max() < 1
    with pytest.raises(JobError, match="reaches beyond"):
        made.reflectance(["2020-05-01"], [550.0], GRID.crop(slice(-1, 3), slice(0, 3)))


def test_things_happen_on_the_ground_and_only_if_asked() -> None:
    still, moving = small(changes=False), small()
    ground = moving.ground
    assert isinstance(ground, Landscape)
    before, after = np.datetime64("2020-04-01", "us"), np.datetime64("2020-09-25", "us")
    index = surfaces()[1]
    assert ground.at(before)[:, index["char"]].sum() == 0
    assert ground.at(after)[:, index["char"]].sum() > 0
    assert ground.at(after)[:, index["litter"]].sum() > 0
    assert still.ground.at(after)[:, index["char"]].sum() == 0  # type: ignore[attr-defined]
    spring = np.datetime64("2020-04-01", "us") + np.arange(0, 90, 6) * np.timedelta64(1, "D")
    wet = [ground.at(day)[:, index["water/turbid"]].sum() for day in spring]
    assert max(wet) > 3 * min(wet)  # a flood


@pytest.mark.parametrize(("name", "kind"), [("modis-mcd43a4", Window), ("modis-terra-mod09a1", PixelDay), ("landsat-8", Instant)])
def test_composites_say_when(name: str, kind: type) -> None:
    made = small(nuisances=replace(QUIET, clouds=0.3))
    planned = next(p for p in made.passes(name) if p.day >= date(2020, 6, 1))
    scene = made.see(name, planned)
    assert isinstance(scene.when, kind)
    if isinstance(scene.when, PixelDay):
        age = (scene.when.days - np.datetime64(planned.day)).astype(float)
        seen = np.isfinite(scene.reflectance[0])
        assert (age[seen] >= 0).all()
        assert (age[seen] <= 7).all()
        assert np.isnat(scene.when.days[~seen]).all()


def test_an_archive_moves_and_is_read_back_by_the_sensors(tmp_path: Path) -> None:
    made = world(GRID, "2020-06-01", "2020-06-10", seed=2, finer=1, nuisances=Nuisances(clouds=0.2))
    patch = GRID.crop(slice(0, 8), slice(0, 8))
    flights = [("airborne", date(2020, 6, 5), patch)]
    made.archive(tmp_path / "made", ["landsat-8", "modis-mcd43a4", "sentinel-2b"], flights=flights, pixel=10.0)
    shutil.move(tmp_path / "made", tmp_path / "moved")
    catalog = pystac.Catalog.from_file(str(tmp_path / "moved" / "catalog.json"))
    assert catalog.title is not None
    assert catalog.title.startswith("SIMULATED")
    compared = set()
    for collection in catalog.get_children():
        one = sensor(collection.id)
        for item in collection.get_items():
            assert item.properties["fusion:simulated"] is True
            assert "SIMULATED" in item.properties["title"]
            item.make_asset_hrefs_absolute()
            window = patch if one.name == "airborne" else GRID
            scene = one.read(item, window)
            again = made.see(one, date.fromisoformat(item.id[-8:]), window=patch if one.name == "airborne" else None, pixel=10.0)
            assert scene.simulated
            assert abs(scene.seen - again.seen) < 0.1
            read, made_of = (s.reflectance[np.isfinite(s.reflectance)] for s in (scene, again))
            if made_of.size > 30:
                assert read.mean() == pytest.approx(made_of.mean(), abs=0.02)
                compared.add(one.name)
            if scene.reflectance.shape == again.reflectance.shape:
                both = np.isfinite(scene.reflectance) & (again.reflectance > 0)  # MCD43A4 cannot hold negative numbers
                assert np.abs(scene.reflectance - again.reflectance)[both].max() < 1e-3, one.name
    assert compared == {"landsat-8", "modis-mcd43a4", "sentinel-2b", "airborne"}  # not all of them all cloud


def test_landsat_7_loses_its_wedges_when_the_corrector_failed(tmp_path: Path) -> None:
    """No gap before 31 May 2003 or under the track, 420 of 960 m at the edge, stripes along the scan; gone in the files too."""
    grid = Grid.from_bbox((13.0, 46.0, 13.06, 46.04), resolution=30)
    broken = replace(QUIET, faults=1.0)
    made = uniform_world(grid, "2003-01-01", "2003-12-01", WAVELENGTHS, np.array([0.3, 0.3]), nuisances=broken)

    def lost(day: date, zenith: float) -> float:
        return 1.0 - made.see("landsat-7", Pass(day, zenith)).seen

    assert lost(date(2003, 5, 30), 7.0) == 0
    assert lost(date(2003, 6, 15), 0.5) == 0
    assert lost(date(2003, 6, 15), 8.4) == pytest.approx(420 / 960, abs=0.04)
    assert lost(date(2003, 6, 15), 4.7) == pytest.approx(0.5 * 420 / 960, abs=0.04)
    scene = made.see("landsat-7", Pass(date(2003, 6, 15), 7.0))
    gone = np.isnan(scene.reflectance).all(axis=0)
    across = [(gone[:, i] != gone[:, i + 1]).mean() for i in range(40)]
    along = [(gone[i] != gone[i + 1]).mean() for i in range(40)]
    assert np.mean(across) < 0.5 * np.mean(along)
    one = sensor("landsat-7")
    assert one.write is not None
    back = one.read(one.write(scene, tmp_path), grid)
    assert np.array_equal(np.isnan(back.reflectance), np.isnan(scene.reflectance))
    assert made.see("landsat-5", "2003-06-15").seen == 1


def test_what_cannot_be_simulated_is_said() -> None:
    made = small()
    with pytest.raises(JobError, match="list flights"):
        made.archive("never-written", ["neon-aop"])
    with pytest.raises(JobError, match="swap"):
        world(GRID, "2020-05-01", "2020-04-01")
    with pytest.raises(JobError, match="finer=1"):
        world(GRID.crop(slice(0, 4000), slice(0, 4000)), "2020-04-01", "2020-05-01")
    mute = replace(sensor("landsat-8"), write=None)
    with pytest.raises(JobError, match="cannot write"):
        made.archive("never-written", [mute])
    with pytest.raises(JobError, match="too many"):
        made.see("airborne", "2020-05-05", pixel=0.1)


def test_a_world_of_real_images_shows_those_images() -> None:
    made = world_of_pictures(resolution=20.0, nuisances=QUIET)
    pictures = made.ground
    assert isinstance(pictures, Pictures)
    assert "real Sentinel-2" in pictures.title
    assert made.grid.resolution == 20
    bands = [Response.gaussian(c, w) for c, w in ((492.4, 66), (559.8, 36), (664.6, 31), (832.8, 106))]
    seen = made.reflectance([pictures.times[5]], bands)[0]
    import warnings

    from nrt.data import romania_10m

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        real = romania_10m().sel(time=pictures.times[5].astype("datetime64[ns]"))
    for b, name in enumerate(("B2", "B3", "B4", "B8")):
        image = real[name].values[:100, :100].reshape(50, 2, 50, 2).mean((1, 3)) * 1e-4
        good = np.isin(real["SCL"].values, (4, 5)).reshape(50, 2, 50, 2).all((1, 3))
        assert np.abs(seen[b] - image)[good].mean() < 0.01, name
        assert np.corrcoef(seen[b][good], image[good])[0, 1] > 0.97, name
    scene = made.see("modis-mcd43a4", "2018-07-01")
    assert scene.notes[0].startswith("simulated: driven by real")
