"""The reading side against the written equations: a stored Gaussian field of known covariance comes back as it must."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pystac
import pytest
import rasterio
import shapely
import xarray as xr
from scipy.stats import norm

import fusion
from fusion.cube.calendar import Calendar
from fusion.cube.cube import Cube
from fusion.cube.grid import Grid
from fusion.cube.spectrum import SpectralBasis
from fusion.errors import JobError, StoreError
from fusion.explore import export, interactive, plots
from fusion.observe.sensor import sensor
from fusion.process.pooling import Summary, pool
from fusion.process.tails import quantile
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
    h = weights @ basis.components  # the residual of the basis: correlated F F^T, the rest independent
    own = basis.residual_var - (basis.correlated**2).sum(1)
    floor = ((weights @ basis.correlated) ** 2).sum(1) + weights**2 @ np.maximum(own, 0)
    bands = cube.fusion.bands("landsat-8")
    assert isinstance(bands["mean"].data, type(cube["mean"].data))  # still lazy
    expected_sd = np.sqrt(np.einsum("bk,kl,bl->b", h, truth["cov"], h) + floor)
    found = bands.compute()
    np.testing.assert_allclose(found["mean"].mean(("time", "y", "x")), weights @ basis.mean + h @ truth["mean"], atol=1e-5)
    np.testing.assert_allclose(found["sd"].mean(("time", "y", "x")), expected_sd, rtol=0.01)
    # pooling over neighbours: S draws alone would scatter by 1/sqrt(2 S/2) = 12 %
    assert float((found["sd"].std(("time", "y", "x")) / found["sd"].mean(("time", "y", "x"))).max()) < 0.06


def test_the_sd_is_exact_where_the_store_keeps_independent_components(cube: xr.Dataset) -> None:
    basis, rng = cube.fusion.cube.basis, np.random.default_rng(3)
    tiles = (cube.sizes["tile_y"], cube.sizes["tile_x"])
    mixing = rng.normal(size=(*tiles, K, K))  # another one in each tile
    canonical = rng.uniform(0.01, 0.1, size=cube["mean"].shape)
    full = cube.assign(
        canonical_sd=(("time", "component", "y", "x"), canonical),
        mixing=(("tile_y", "tile_x", "component", "canonical"), mixing),
    )
    red = sensor("landsat-8").band("red").response
    h, _, floor = basis.responses((red,))
    found = full.fusion.band("landsat-8", "red")["sd"].compute()
    for row, col in ((0, 0), (CORE - 1, CORE), (CORE, CORE - 1), (2 * CORE - 1, 2 * CORE - 1)):
        one = mixing[row // CORE, col // CORE]
        for t in range(cube.sizes["time"]):
            cov = one @ np.diag(canonical[t, :, row, col] ** 2) @ one.T
            assert float(found[t, row, col]) == pytest.approx(np.sqrt(h[0] @ cov @ h[0] + floor[0]), rel=1e-4)
    view = full.isel(y=CORE + 3, x=slice(CORE - 2, CORE + 2))  # a part that straddles two tiles finds its own mixing
    np.testing.assert_allclose(view.fusion.band("landsat-8", "red")["sd"], found[:, CORE + 3, CORE - 2 : CORE + 2], rtol=1e-5)
    running = full.assign(mixing=full["mixing"] * np.nan)  # written when the run ends; until then the draws tell
    np.testing.assert_allclose(running.fusion.band("landsat-8", "red")["sd"], cube.fusion.band("landsat-8", "red")["sd"])


def test_intervals_have_the_tails_of_the_tiles(cube: xr.Dataset) -> None:
    """Of the tile itself in its middle, of both half way between two, lazily and for any part; an average of many pixels is normal."""
    tails = np.zeros((cube.sizes["tile_y"], cube.sizes["tile_x"]))
    tails[0, 0] = 0.4
    full = cube.assign(tail=(("tile_y", "tile_x"), tails))
    red = full.fusion.band("landsat-8", "red")
    assert not isinstance(red["tail"].data, np.ndarray)
    span = full.fusion.interval(red, 0.5).compute()
    half = ((span["upper"] - span["lower"]) / 2 / red["sd"]).compute().transpose("time", "y", "x").values
    places = (np.arange(half.shape[1]) + 0.5) / CORE
    weight = np.clip(1.5 - places, 0, 1)  # linear between the middles of the first two tiles
    expected = quantile(0.75, 0.4 * weight[:, None] * weight[None])
    np.testing.assert_allclose(half, np.broadcast_to(expected, half.shape), rtol=2e-3)
    one = full.isel(y=2, x=3)
    alone = one.fusion.band("landsat-8", "red")
    np.testing.assert_allclose((one.fusion.interval(alone, 0.5)["upper"] - alone["mean"]) / alone["sd"], half[:, 2, 3], rtol=1e-3)
    errors = full.fusion.normal_errors(red, red["mean"] + red["sd"] * quantile(0.9, 0.4)).compute()
    assert float(errors[0, 0, 0]) == pytest.approx(norm.ppf(0.9), abs=0.01)
    west, south, east, north = full.fusion.cube.grid.lonlat.boundingbox.bbox
    assert "tail" not in full.fusion.area(shapely.box(west, south, east, north)).coords
    change = [d.fusion.change(*cube.time.values[[0, -1]], threshold=0.02)["probability"].isel(y=0, x=0).compute() for d in (cube, full)]
    assert 0 < float(change[1]) < 1
    assert float(change[0]) != float(change[1])


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
    # what the basis cannot express: a covariance over wavelengths, that of the materials, beside the field's
    own = np.sqrt(np.maximum(basis.residual_var - (basis.correlated**2).sum(1), 0))
    rest = rng.normal(size=(len(z), basis.correlated.shape[1])) @ basis.correlated.T + rng.normal(size=(len(z), own.size)) * own
    red, nir = (h[n] @ basis.mean + z @ (h[n] @ basis.components) + rest @ h[n] for n in ("red", "nir08"))
    ndvi = (nir - red) / (nir + red)
    found = cube.fusion.index("NDVI").compute()
    assert float(found["mean"].mean()) == pytest.approx(ndvi.mean(), abs=0.004)
    assert abs(float(found["plug_in"].mean()) - ndvi.mean()) > 3 * abs(float(found["mean"].mean()) - ndvi.mean())
    assert float(found["sd"].mean()) == pytest.approx(ndvi.std(), rel=0.05)
    assert float(found["sd"].std() / found["sd"].mean()) < 0.06  # pooled: draws alone would scatter by 9 % and more
    quantiles = cube.fusion.quantiles(found.isel(time=0), [0.05, 0.5, 0.95]).mean(("y", "x"))
    np.testing.assert_allclose(quantiles, np.quantile(ndvi, [0.05, 0.5, 0.95]), atol=0.15 * ndvi.std())
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


def test_a_spectrometer_sees_its_own_channels(cube: xr.Dataset, truth: dict[str, np.ndarray]) -> None:
    basis = cube.fusion.cube.basis
    found = cube.fusion.bands("neon-aop")["mean"].isel(time=0, y=0, x=0).compute()
    assert found.dims == ("wavelength",)
    assert found.sizes["wavelength"] > 200
    assert float(found.wavelength.min()) > basis.wavelengths[0]
    assert float(found.wavelength.max()) < basis.wavelengths[-1]
    assert not ((found.wavelength > 1330) & (found.wavelength < 1460)).any()  # water vapour: nothing is seen there
    spectrum = basis.mean + basis.components @ truth["mean"]
    np.testing.assert_allclose(found, np.interp(found.wavelength, basis.wavelengths, spectrum), atol=0.01)


def test_the_sd_of_an_area_is_that_of_the_average(cube: xr.Dataset, truth: dict[str, np.ndarray]) -> None:
    grid = cube.fusion.cube.grid
    x0, y0 = float(cube.x[0]) - 15, float(cube.y[0]) + 15
    box = shapely.box(x0, y0 - 10 * 30, x0 + 10 * 30, y0)  # the first 10 x 10 pixels
    found = cube.fusion.area(box, crs=str(grid.crs)).compute()
    assert found.attrs["pixels"] == 100
    one = cube.fusion.band("landsat-8", "nir08").compute()
    np.testing.assert_allclose(found["mean"].sel(band="nir08"), one["mean"][:, :10, :10].mean(("y", "x")), rtol=1e-5)
    # independent pixels: the sd of the mean of 100 is a tenth of one pixel's; 64 draws scatter it by 9 %
    basis = cube.fusion.cube.basis
    weights = sensor("landsat-8").band("nir08").response.on(basis.wavelengths)
    h = weights @ basis.components
    own = np.maximum(basis.residual_var - (basis.correlated**2).sum(1), 0)
    floor = ((weights @ basis.correlated) ** 2).sum() + weights**2 @ own  # of the material, so it does not average away
    inside = np.sqrt(found["sd"].sel(band="nir08").mean() ** 2 - floor)
    assert float(inside) == pytest.approx(np.sqrt(h @ truth["cov"] @ h) / 10, rel=0.25)
    assert float(found["draws"].sel(band="nir08").std("draw").mean()) == pytest.approx(np.sqrt(h @ truth["cov"] @ h) / 10, rel=0.25)
    same = cube.fusion.area(dict(box.__geo_interface__), crs=str(grid.crs)).compute()
    np.testing.assert_array_equal(same["sd"], found["sd"])
    with pytest.raises(JobError, match="no pixel centre"):
        cube.fusion.area(shapely.box(0, 0, 1, 1))


def test_a_collection_of_images_opens_as_stac(cube: xr.Dataset, tmp_path: Path) -> None:
    made = export.to_stac(cube, "landsat-8", tmp_path / "out", ["red"], ["2024-05-01", "2024-05-17"])
    back = pystac.Collection.from_file(str(tmp_path / "out/collection.json"))
    assert back.id == made.id
    items = list(back.get_items())
    assert [item.id for item in items] == ["2024-05-01", "2024-05-17"]
    assert back.extent.temporal.intervals[0][1].isoformat().startswith("2024-05-17")
    asset = items[1].assets["red"]
    assert not Path(asset.href).is_absolute()
    with rasterio.open(asset.get_absolute_href()) as file:
        expected = cube.fusion.band("landsat-8", "red").sel(time="2024-05-17", method="nearest").compute()
        np.testing.assert_allclose(file.read(1), expected["mean"], rtol=1e-6)
        np.testing.assert_allclose(file.read(2), expected["sd"], rtol=1e-6)
    with pytest.raises(JobError, match="new folder"):
        export.to_stac(cube, "landsat-8", tmp_path / "out")


def test_interactive_views_render_to_a_page(cube: xr.Dataset, tmp_path: Path) -> None:
    hvplot = pytest.importorskip("hvplot")
    maps = interactive.maps(cube.fusion.band("landsat-8", "red"), "red")
    hvplot.save(maps, tmp_path / "maps.html")
    page = (tmp_path / "maps.html").read_text()
    assert "posterior standard deviation" in page
    assert "easting (m)" in page
    series = interactive.point(cube, LON, LAT)
    hvplot.save(series, tmp_path / "point.html")
    assert "as landsat-8 would see it" in (tmp_path / "point.html").read_text()
    with pytest.raises(JobError, match="select one band first"):
        interactive.maps(cube.fusion.bands("landsat-8"))


def test_calibration_plot_tells_honest_from_over_confident() -> None:
    rng = np.random.default_rng(1)
    error = rng.normal(size=20_000)
    figure = plots.calibration({"honest": error, "sd too small by half": 2 * error})
    left, right = figure.axes
    honest, narrow = (line.get_ydata() for line in right.lines[:2])
    levels = right.lines[0].get_xdata()
    assert abs(honest - levels).max() < 0.02
    assert (narrow < levels).all()
    flat, heaped = (patch.get_data().values for patch in left.patches[:2])
    assert abs(flat - 1).max() < 0.2
    assert heaped[0] > 2
    with pytest.raises(JobError, match="nothing was held out"):
        plots.calibration({"empty": np.array([np.nan])})


def test_shrinkage_plot_takes_a_population() -> None:
    rng = np.random.default_rng(2)
    sd = rng.uniform(0.1, 2.0, 12)
    said = rng.normal(1.0, 0.5, 12) + sd * rng.normal(size=12)
    summaries = [Summary(str(j), np.array([m]), np.array([1 / s**2])) for j, (m, s) in enumerate(zip(said, sd, strict=True))]
    people = pool(summaries, np.zeros(1), np.full(1, 3.0))
    mean, spread = people.estimate[:, :, 0]
    figure = plots.shrinkage(said, sd, mean, spread, float(people.centre[0, 0]), "log sd")
    (ax,) = figure.axes
    assert ax.get_ylabel() == "log sd"
    assert len([t for t in ax.texts if t.arrow_patch is not None]) == 12
    assert np.var(mean) < np.var(said)


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
