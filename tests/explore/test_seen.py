"""Residuals against a world whose spectrum, noise and offset are known exactly."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pystac
import pytest
import xarray as xr

import fusion
from fusion.cube.calendar import Calendar, centre_of
from fusion.cube.cube import Cube
from fusion.cube.grid import Grid
from fusion.cube.spectrum import SpectralBasis
from fusion.errors import JobError, StoreError
from fusion.explore import plots
from fusion.service.job import Job
from fusion.service.store import CubeStore
from fusion.service.template import Layout
from fusion.simulate import uniform_world
from fusion.simulate.weather import Nuisances

matplotlib.use("Agg")
K, EDGE, BIAS = 4, 24, 0.05
PERIOD = ("2024-05-01", "2024-06-02")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[xr.Dataset, xr.Dataset]:
    """A cube that holds the truth of a noisy one-colour world, and one that is too bright by BIAS in every band."""
    folder = tmp_path_factory.mktemp("residuals")
    grid = Grid.from_bbox((-105.30, 40.01, -105.284, 40.0225), "EPSG:32613", align=15.0).crop(slice(0, EDGE), slice(0, EDGE))
    basis = SpectralBasis.library(K)
    address = Cube(grid, Calendar.regular(*PERIOD, 8), basis)
    z = np.array([1.0, -0.5, 0.3, 0.2])
    world = uniform_world(
        grid, *PERIOD, basis.wavelengths, basis.mean + basis.components @ z,
        nuisances=Nuisances(noise=1, offset=0, gain=0, discrepancy=0, shift=0, clouds=0.3),
    )
    catalog = world.archive(folder / "archive", ["landsat-8"])
    items = [item.to_dict(transform_hrefs=False) for item in catalog.get_items(recursive=True)]
    for item in items:
        for asset in item["assets"].values():
            home = folder / "archive/landsat-8" / item["id"] / "item.json"
            asset["href"] = pystac.utils.make_absolute_href(asset["href"], str(home))
    west, south, east, north = grid.lonlat.boundingbox.bbox
    job = Job.of({
        "area": {"bbox": (west, south, east, north)}, "period": {"start": PERIOD[0], "end": PERIOD[1]},
        "sensors": [{"name": "landsat-8", "catalog": str(folder / "archive/catalog.json")}], "output": {"store": "unused.zarr"},
    })  # fmt: skip
    opened = []
    for name, bias in (("true", 0.0), ("bright", BIAS)):
        store = CubeStore.create(
            str(folder / f"{name}.zarr"), Layout(address, EDGE, 0, ("landsat-8",)), job=job.document(), fingerprint="f" * 64,
            items={"landsat-8": items}, provenance={},
        )
        shift = np.linalg.pinv(basis.components) @ np.full(basis.wavelengths.size, bias)
        mean = np.broadcast_to((z + shift)[:, None, None], address.shape).astype(np.float32)
        store.write_tile(grid.tiles(EDGE, 0)[0], mean=mean, sd=np.ones_like(mean), record={"status": "OK"})
        store.finish()
        opened.append(fusion.open_cube(store.url))
    return opened[0], opened[1]


def test_the_truth_leaves_white_noise_of_the_stated_size(made: tuple[xr.Dataset, xr.Dataset]) -> None:
    found = made[0].fusion.residuals("landsat-8")
    assert found.attrs["failed"] == []
    assert set(found["residual"].dims) == {"look", "band", "row", "col"}
    assert list(found.time.values) == sorted(found.time.values)
    count = int(found["residual"].notnull().sum())
    assert count > 2000
    facts = fusion.sensor("landsat-8")
    basis = made[0].fusion.cube.basis
    for name in ("red", "nir08", "swir16"):
        band = facts.band(name)
        one = found["residual"].sel(band=name)
        rho = band.response.on(basis.wavelengths) @ (basis.mean + basis.components @ made[0]["mean"].values[0, :, 0, 0])
        sigma = band.noise.a + band.noise.b * rho
        assert float(one.mean()) == pytest.approx(0.0, abs=5 * sigma / np.sqrt(int(one.notnull().sum())) + 1e-4)
        assert float(one.std()) == pytest.approx(sigma, rel=0.1)
        # the stated variance also allows for offsets, which this world has none of
        assert float(found["standardised"].sel(band=name).std()) < 1


def test_a_cube_that_is_too_bright_is_found_out(made: tuple[xr.Dataset, xr.Dataset]) -> None:
    true, bright = (one.fusion.residuals("landsat-8")["residual"] for one in made)
    basis = made[1].fusion.cube.basis
    flat = basis.components @ (np.linalg.pinv(basis.components) @ np.full(basis.wavelengths.size, BIAS))
    response = fusion.sensor("landsat-8").band("nir08").response.on(basis.wavelengths)
    np.testing.assert_allclose((true - bright).sel(band="nir08").mean(), response @ flat, atol=1e-4)


def test_a_window_gives_the_residuals_of_its_pixels(made: tuple[xr.Dataset, xr.Dataset]) -> None:
    whole = made[0].fusion.residuals("landsat-8")["residual"]
    part = made[0].isel(y=slice(4, 16), x=slice(6, 20)).fusion.residuals("landsat-8")["residual"]
    assert part.sizes["row"] < whole.sizes["row"]
    inner = part.isel(row=slice(3, 8), col=slice(3, 8), look=0).values
    best = min(
        float(np.nanmax(abs(whole.isel(look=0, row=slice(r, r + 5), col=slice(c, c + 5)).values - inner)))
        for r in range(EDGE - 5) for c in range(EDGE - 5)
        if np.isfinite(whole.isel(look=0, row=slice(r, r + 5), col=slice(c, c + 5)).values).all()
    )  # fmt: skip
    assert best < 1e-5  # the same pixels, wherever they lie in the larger raster


def test_scenes_come_back_in_order(made: tuple[xr.Dataset, xr.Dataset]) -> None:
    found = made[0].fusion.scenes("landsat-8")
    assert len(found) >= 2
    days = [centre_of(scene.when) for scene in found]
    assert days == sorted(days)
    assert {scene.sensor for scene in found} == {"landsat-8"}
    assert all(scene.simulated for scene in found)


def test_other_views_and_sensors_are_refused(made: tuple[xr.Dataset, xr.Dataset]) -> None:
    with pytest.raises(StoreError, match="not made with 'landsat-9'"):
        made[0].fusion.residuals("landsat-9")
    with pytest.raises(JobError, match="all its times"):
        made[0].isel(time=slice(0, 2)).fusion.residuals("landsat-8")
    with pytest.raises(JobError, match="neighbouring pixels"):
        made[0].isel(y=slice(None, None, 2)).fusion.residuals("landsat-8")
    with pytest.raises(StoreError, match="lost its address"):
        xr.Dataset(made[0].data_vars, made[0].coords, {"fusion": made[0].attrs["fusion"]}).fusion.residuals("landsat-8")


def test_residual_maps_have_one_panel_per_look(made: tuple[xr.Dataset, xr.Dataset], tmp_path: Path) -> None:
    found = made[0].fusion.residuals("landsat-8")
    figure = plots.residual_maps(found, "red")
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert set(titles) <= {str(t)[:10] for t in found.time.values}
    assert titles
