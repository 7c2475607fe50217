"""The reading side against the written equations: a stored Gaussian field of known covariance comes back as it must."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import rasterio
import xarray as xr

import fusion
from fusion.cube.calendar import Calendar
from fusion.cube.cube import Cube
from fusion.cube.grid import Grid
from fusion.cube.spectrum import SpectralBasis
from fusion.errors import JobError, StoreError
from fusion.explore import export, plots
from fusion.observe.sensor import sensor
from fusion.service.store import CubeStore
from fusion.service.template import Layout

matplotlib.use("Agg")
S, K, CORE = 64, 3, 24
LON, LAT = -105.2897, 40.0171


@pytest.fixture(scope="module")
def truth() -> dict[str, np.ndarray]:
    """Mean and covariance (K, K), the same at every pixel and time, with strong correlations between components."""
    root = np.array([[0.9, 0.0, 0.0], [-0.7, 0.5, 0.0], [0.4, -0.2, 0.3]])
    return {"mean": np.array([0.5, -1.0, 0.8]), "root": root, "cov": root @ root.T * 0.01}


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory, truth: dict[str, np.ndarray]) -> xr.Dataset:
    """A store of four tiles whose draws have that covariance exactly in expectation, opened as a user would."""
    grid = Grid.from_bbox((-105.30, 40.01, -105.284, 40.0225), "EPSG:32613").crop(slice(0, 2 * CORE), slice(0, 2 * CORE))
    address = Cube(grid, Calendar.regular("2024-05-01", "2024-05-17", 8), SpectralBasis.library(K))
    url = str(tmp_path_factory.mktemp("explore") / "cube.zarr")
    store = CubeStore.create(
        url, Layout(address, CORE, S, ("landsat-8",), ("scene", "pixel")), job={"name": "known"}, fingerprint="f" * 64,
        items={}, provenance={"seed": 1},
    )
    rng = np.random.default_rng(0)
    shape = (len(address.calendar), K, CORE, CORE)
    for tile in grid.tiles(CORE, 0):
        white = rng.normal(size=(S // 2, *shape))
        white = np.concatenate([white, -white])  # antithetic pairs, as the engines draw
        mean = np.broadcast_to(truth["mean"][:, None, None], shape).astype(np.float32)
        sd = np.broadcast_to(np.sqrt(np.diag(truth["cov"]))[:, None, None], shape).astype(np.float32)
        draws = (mean + 0.1 * np.einsum("kl,stlyx->stkyx", truth["root"], white)).astype(np.float32)
        parts = {"scene": np.full(shape[1:], 0.25, np.float32), "pixel": np.full(shape[1:], 0.75, np.float32)}
        record = {"status": "OK", "chi_square": {"landsat-8": 1.0}, "looks": {"landsat-8": 2}}
        store.write_tile(tile, mean=mean, sd=sd, draws=draws, decomposition=parts, record=record)
    store.finish()
    return fusion.open_cube(url)


def test_bands_have_the_mean_and_sd_of_the_equation(cube: xr.Dataset, truth: dict[str, np.ndarray]) -> None:
    facts = sensor("landsat-8")
    basis = cube.fusion.cube.basis
    weights = np.stack([b.response.on(basis.wavelengths) for b in facts.bands])
    h, floor = weights @ basis.components, weights**2 @ basis.residual_var
    bands = cube.fusion.bands("landsat-8")
    assert isinstance(bands["mean"].data, type(cube["mean"].data))  # still lazy
    expected_sd = np.sqrt(np.einsum("bk,kl,bl->b", h, truth["cov"], h) + floor)
    found = bands.compute()
    np.testing.assert_allclose(found["mean"].mean(("time", "y", "x")), weights @ basis.mean + h @ truth["mean"], atol=1e-5)
    np.testing.assert_allclose(found["sd"].mean(("time", "y", "x")), expected_sd, rtol=0.01)
    # pooling over neighbours: S draws alone would scatter by 1/sqrt(2 S/2) = 12 %
    assert float((found["sd"].std(("time", "y", "x")) / found["sd"].mean(("time", "y", "x"))).max()) < 0.06


def test_wavelengths_interpolate_the_basis(cube: xr.Dataset, truth: dict[str, np.ndarray]) -> None:
    basis = cube.fusion.cube.basis
    found = cube.fusion.at([650.0, 1600.0], fwhm=1.0)["mean"].isel(time=0, y=3, x=5).compute()
    spectrum = basis.mean + basis.components @ truth["mean"]
    np.testing.assert_allclose(found, np.interp([650, 1600], basis.wavelengths, spectrum), atol=1e-4)
    with pytest.raises(JobError, match="nanometres"):
        cube.fusion.at(0.65)


def test_an_index_is_an_expectation_not_a_plug_in(cube: xr.Dataset, truth: dict[str, np.ndarray]) -> None:
    facts, basis = sensor("landsat-8"), cube.fusion.cube.basis
    h = {n: facts.band(n).response.on(basis.wavelengths) for n in ("red", "nir08")}
    rng = np.random.default_rng(5)
    z = truth["mean"] + 0.1 * rng.normal(size=(200_000, K)) @ truth["root"].T
    red, nir = (h[n] @ basis.mean + z @ (h[n] @ basis.components) for n in ("red", "nir08"))
    ndvi = (nir - red) / (nir + red)
    found = cube.fusion.index("NDVI").compute()
    assert float(found["mean"].mean()) == pytest.approx(ndvi.mean(), abs=4 * ndvi.std() / np.sqrt(S * found["mean"].size))
    assert float(found["sd"].mean()) == pytest.approx(ndvi.std(), rel=0.03)
    same = cube.fusion.index("(nir08 - red) / (nir08 + red)").compute()
    np.testing.assert_allclose(same["mean"], found["mean"], rtol=1e-5)
    with pytest.raises(JobError, match="NDVI"):
        cube.fusion.index("NDVIX")


def test_change_is_judged_on_joint_draws(cube: xr.Dataset) -> None:
    found = cube.fusion.change("2024-05-01", "2024-05-17", threshold=10.0).compute()
    assert float(found["probability"].max()) < 1e-3  # no NDVI moves by 10
    always = cube.fusion.change("2024-05-01", "2024-05-17", threshold=0.0).compute()
    np.testing.assert_allclose(always["probability"], 1.0, atol=1e-6)
    assert float(abs(found["mean"]).mean()) < 3 * float(found["sd"].mean()) / np.sqrt(S)


def test_places_outside_the_cube_are_refused_with_its_extent(cube: xr.Dataset) -> None:
    assert cube.fusion.pixel(LON, LAT).sizes == {"time": 3, "component": K, "draw": S} | {
        d: n for d, n in cube.sizes.items() if d not in ("time", "component", "draw", "y", "x")
    }
    with pytest.raises(JobError, match="outside the cube, which spans"):
        cube.fusion.pixel(LON + 1, LAT)


def test_what_is_no_cube_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no cube can be opened"):
        fusion.open_cube(str(tmp_path / "nothing.zarr"))
    xr.Dataset({"a": ("x", [1.0])}).to_zarr(tmp_path / "other.zarr", zarr_format=3, consolidated=False)
    with pytest.raises(StoreError, match="not a fused cube"):
        fusion.open_cube(str(tmp_path / "other.zarr"))
    with pytest.raises(StoreError, match="not a fused cube"):
        _ = xr.Dataset().fusion


def test_exports_open_in_other_tools(cube: xr.Dataset, tmp_path: Path) -> None:
    band = cube.fusion.band("landsat-8", "red").isel(time=0).compute()
    with rasterio.open(export.to_cog(cube, "landsat-8", "red", "2024-05-01", tmp_path / "red.tif")) as file:
        assert file.crs.to_epsg() == 32613
        assert file.tags()["sensor"] == "landsat-8"
        np.testing.assert_allclose(file.read(1), band["mean"], rtol=1e-6)
        np.testing.assert_allclose(file.read(2), band["sd"], rtol=1e-6)
        assert file.transform.almost_equals(cube.fusion.cube.grid.transform)
    path = export.to_netcdf(cube, "landsat-8", tmp_path / "cube.nc", ["red", "nir08"])
    with xr.open_dataset(path, engine="h5netcdf", decode_coords="all") as back:
        assert back.rio.crs.to_epsg() == 32613
        np.testing.assert_allclose(back["red_sd"].isel(time=0), band["sd"], rtol=1e-6)
        assert back.attrs["Conventions"] == "CF-1.8"


def test_every_picture_has_units_on_its_axes(cube: xr.Dataset) -> None:
    figures = [
        plots.map_pair(cube.fusion.band("landsat-8", "red"), "2024-05-09", "red"),
        plots.time_series(cube, LON, LAT),
        plots.spectrum(cube, LON, LAT, "2024-05-09"),
        plots.decomposition(cube),
        plots.tile_status(cube),
    ]
    for figure in figures:
        maps = [ax for ax in figure.axes if ax.get_xlabel() or ax.get_ylabel()]
        assert maps
        figure.canvas.draw()
    image = cube.fusion.rgb("2024-05-09")
    assert image.shape == (2 * CORE, 2 * CORE, 3)
    assert 0 <= float(image.min()) <= float(image.max()) <= 1
