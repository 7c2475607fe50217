"""Estimates on other grids and dates against dense averages of a field whose covariance is known."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pystac
import pytest
import rasterio
import xarray as xr
from odc.geo.geobox import GeoBox

import fusion
from fusion.cube.calendar import Calendar
from fusion.cube.cube import Cube
from fusion.cube.grid import Grid
from fusion.cube.spectrum import SpectralBasis
from fusion.errors import JobError, StoreError
from fusion.explore import indices
from fusion.explore.moments import quantiles
from fusion.observe.sensor import sensor
from fusion.service.store import CubeStore
from fusion.service.template import Layout

EDGE, S, K, SHARED, OWN = 32, 64, 2, 0.03, 0.04


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    """A store whose errors are SHARED by all pixels and dates of a draw, plus OWN ones of each pixel; the mean is a ramp in x and t."""
    grid = Grid.from_bbox((-105.30, 40.01, -105.28, 40.0225), "EPSG:32613").crop(slice(0, EDGE), slice(0, EDGE))
    address = Cube(grid, Calendar.regular("2024-05-01", "2024-05-17", 8), SpectralBasis.library(K))
    url = str(tmp_path_factory.mktemp("regrid") / "cube.zarr")
    store = CubeStore.create(
        url, Layout(address, EDGE, S, ("landsat-8",)), job={"name": "ramp"}, fingerprint="e" * 64, items={}, provenance={},
    )  # fmt: skip
    rng = np.random.default_rng(0)
    half = SHARED * rng.normal(size=(S // 2, 1, K, 1, 1)) + OWN * rng.normal(size=(S // 2, *address.shape))
    mean = np.zeros(address.shape, np.float32)
    mean[:, 0] = 0.5 + 0.01 * np.arange(EDGE) + 0.1 * np.arange(address.shape[0])[:, None, None]
    draws = (mean + np.concatenate([half, -half])).astype(np.float32)
    sd = np.full_like(mean, np.hypot(SHARED, OWN))
    store.write_tile(grid.tiles(EDGE, 0)[0], mean=mean, sd=sd, draws=draws, record={"status": "OK"})
    store.finish()
    return fusion.open_cube(url)


def equation(cube: xr.Dataset, own: float) -> float:
    """sd of the red band when a share `own` of the pixels' own variance is left."""
    basis, red = cube.fusion.cube.basis, sensor("landsat-8").band("red").response
    weights = basis.weights([red])
    h = (weights @ basis.components)[0]
    return float(np.sqrt((h @ h) * (SHARED**2 + own * OWN**2) + basis.residual(weights)[0, 0]))


def test_a_coarser_grid_averages_and_keeps_what_neighbours_share(cube: xr.Dataset) -> None:
    red = cube.fusion.band("landsat-8", "red")
    coarse = cube.fusion.regrid(red, resolution=120.0).compute()
    assert coarse["mean"].shape[-2:] == (EDGE // 4, EDGE // 4)
    blocks = red["mean"].values.reshape(-1, EDGE // 4, 4, EDGE // 4, 4).mean((2, 4))
    np.testing.assert_allclose(coarse["mean"], blocks, atol=1e-5)
    assert float(coarse["sd"].mean()) == pytest.approx(equation(cube, 1 / 16), rel=0.05)
    assert float(red["sd"].mean()) == pytest.approx(equation(cube, 1), rel=0.05)
    assert set(coarse.data_vars) == {"mean", "sd", "draws"}


def test_another_projection_interpolates(cube: xr.Dataset) -> None:
    red = cube.fusion.band("landsat-8", "red")
    there = cube.fusion.regrid(red, crs="EPSG:4326").compute()
    assert {"latitude", "longitude"} <= set(there["mean"].dims)
    x, y = float(cube.x[15]), float(cube.y[15])
    lon, lat = cube.fusion.cube.grid.to_crs("EPSG:4326").transform(x, y)
    at = there["mean"].sel(longitude=lon, latitude=lat, method="nearest").isel(time=0)
    near = cube.fusion.cube.grid.to_crs("EPSG:4326").transform(float(at.longitude), float(at.latitude), direction="INVERSE")
    expected = float(np.interp(near[0], cube.x, red["mean"].isel(time=0, y=15)))
    assert float(at) == pytest.approx(expected, abs=1e-4)
    # an interpolated value has less of the pixels' own variance than a pixel, never more
    assert equation(cube, 0.25) * 0.95 < float(there["sd"].mean()) < equation(cube, 1)


def test_a_grid_may_be_given(cube: xr.Dataset) -> None:
    red = cube.fusion.band("landsat-8", "red").isel(time=0)
    box = GeoBox.from_bbox(cube.fusion.cube.grid.bounds, resolution=90)
    for like in (box, Grid(box), cube.fusion.regrid(red, like=box)["mean"]):
        assert cube.fusion.regrid(red, like=like)["mean"].shape == tuple(box.shape)
    with pytest.raises(JobError, match="does not meet"):
        cube.fusion.regrid(red, like=GeoBox.from_bbox((0, 0, 900, 900), "EPSG:32613", resolution=90))
    with pytest.raises(JobError, match="positive number"):
        cube.fusion.regrid(red, resolution=-30)
    with pytest.raises(JobError, match="no grid can be made"):
        cube.fusion.regrid(red, crs="EPSG:999999")
    with pytest.raises(JobError, match="cannot read a grid"):
        cube.fusion.regrid(red, like="there")
    with pytest.raises(StoreError, match="draws"):
        cube.fusion.regrid(red[["mean", "sd"]], resolution=90)


def test_between_two_times_the_field_is_linear(cube: xr.Dataset) -> None:
    red = cube.fusion.band("landsat-8", "red")
    between = cube.fusion.regrid(red, times=["2024-05-05", "2024-05-09"]).compute()
    np.testing.assert_allclose(between["mean"][0], red["mean"].isel(time=[0, 1]).mean("time"), atol=1e-5)
    np.testing.assert_allclose(between["mean"][1], red["mean"][1], atol=1e-5)
    assert float(between["sd"][0].mean()) == pytest.approx(equation(cube, 0.5), rel=0.06)
    with pytest.raises(JobError, match="outside of the cube"):
        cube.fusion.regrid(red, times=["2025-01-01"])


def test_exports_take_another_grid(cube: xr.Dataset, tmp_path: Path) -> None:
    with rasterio.open(cube.fusion.to_cog("landsat-8", "red", "2024-05-01", tmp_path / "a.tif", resolution=120.0)) as file:
        assert file.shape == (EDGE // 4, EDGE // 4)
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.descriptions == ("red posterior mean", "red posterior standard deviation")
        assert np.isnan(file.nodata)
    path = cube.fusion.to_netcdf("landsat-8", tmp_path / "a.nc", ["red", "nir08"], crs="EPSG:4326", resolution=0.0005)
    with xr.open_dataset(path, engine="h5netcdf", decode_coords="all") as back:
        assert back.rio.crs.to_epsg() == 4326
        assert back["red_sd"].attrs["standard_name"] == "surface_bidirectional_reflectance standard_error"
        assert back["red"].attrs["ancillary_variables"] == "red_sd"
        assert back["latitude"].attrs["units"] == "degrees_north"
    part = cube.isel(x=slice(0, 16))
    made = part.fusion.to_stac("landsat-8", tmp_path / "s", ["red"], ["2024-05-01"])
    item = next(iter(pystac.Collection.from_file(str(tmp_path / "s/collection.json")).get_items()))
    with rasterio.open(item.assets["red"].get_absolute_href()) as file:
        assert item.properties["proj:shape"] == [EDGE, 16] == list(file.shape)
        assert item.properties["proj:transform"] == list(file.transform)[:6]
    assert made.extent.spatial.bboxes[0][2] < float(cube.fusion.cube.grid.lonlat.boundingbox.right) - 1e-4
    with pytest.raises(JobError, match="does not exist"):
        cube.fusion.to_netcdf("landsat-8", tmp_path / "no/a.nc")


def test_quantiles_of_a_band_are_those_of_a_gaussian_and_farther_than_the_draws_is_refused(cube: xr.Dataset) -> None:
    red = cube.fusion.band("landsat-8", "red").isel(time=0)
    found = quantiles(red, [0.05, 0.5, 0.975])
    np.testing.assert_allclose((found[0] - red["mean"]) / red["sd"], -1.6448536, atol=1e-3)
    np.testing.assert_allclose(found[1], red["mean"], rtol=1e-6)
    np.testing.assert_allclose((found[2] - red["mean"]) / red["sd"], 1.9599640, atol=1e-3)
    ndvi = cube.fusion.index("NDVI").isel(time=0)
    with pytest.raises(JobError, match="draws tell"):
        quantiles(ndvi, 0.9999)
    with pytest.raises(JobError, match="draws tell"):
        quantiles(ndvi.isel(y=3, x=3), 0.005)
    with pytest.raises(JobError, match="between 0 and 1"):
        quantiles(red, 5)


def _default(spyndex: ModuleType, constant: str) -> bool:
    return constant in spyndex.constants and spyndex.constants[constant].default is not None


def test_the_whole_catalogue_of_indices_is_evaluated_or_refused_with_a_reason() -> None:
    import spyndex

    facts = sensor("sentinel-2a")
    names = [b.name for b in facts.bands]
    values = xr.Dataset({n: ("x", np.linspace(0.05, 0.4, 3) + 0.01 * i) for i, n in enumerate(names)})
    done = []
    for name in spyndex.indices:
        other = [b for b in set(spyndex.indices[name].bands) - set(indices.ROLES) if not _default(spyndex, b)]
        if other:  # thermal, radar, kernels
            with pytest.raises(JobError, match="neither a reflectance band nor a constant"):
                indices.index_of(name, names, "sentinel-2a")
            continue
        index = indices.index_of(name, names, "sentinel-2a")
        letters = {role: values[names_of[0]] for role, names_of in indices.ROLES.items()}
        used = {b: letters.get(b, index.constants.get(b)) for b in spyndex.indices[name].bands}
        # the catalogue's own evaluation of its formula, with the letters that the sensor's bands stand for
        expected = spyndex.computeIndex(name, params={k: v if np.isscalar(v) else v.values for k, v in used.items()})
        np.testing.assert_allclose(index(values[index.bands]), expected, rtol=1e-6, equal_nan=True, err_msg=name)
        done.append(name)
    assert len(done) > 200
    assert {"NDVI", "EVI", "NBR", "MNDWI", "NDREI", "SAVI"} <= set(done)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("NDREI", "needs RE1, which landsat-8 does not have"), ("(nir08 - rad) / red", "needs rad"), ("nir08 -", "no expression"),
        ("nir08 = red", "no expression"), ("1 + 1", "names no band"), ("red.values", "cannot be evaluated|not a value"),
        ("NDVIX", "did you mean"), ("__import__('os')", "needs __import__"),
    ],
)  # fmt: skip
def test_what_is_no_index_is_refused_with_a_sentence(cube: xr.Dataset, text: str, why: str) -> None:
    with pytest.raises(JobError, match=why):
        cube.fusion.index(text)


def test_a_spectrometer_has_no_named_bands_for_an_index(cube: xr.Dataset) -> None:
    with pytest.raises(JobError, match=r"named bands|does not have"):
        cube.fusion.index("NDVI", sensor="neon-aop")


def test_a_threshold_has_the_probability_of_the_draws(cube: xr.Dataset) -> None:
    limit = float(cube.fusion.band("landsat-8", "red")["mean"].mean())
    found = cube.fusion.expect(lambda b: (b["red"] > limit).astype(float), bands=["red"]).compute()
    share = found["draws"].mean("draw")
    np.testing.assert_allclose(found["mean"], share, atol=1e-6)
    assert float((found["sd"] ** 2 - share * (1 - share)).min()) > -1e-3


def test_the_stretch_shows_dark_water_and_bright_land_at_once(cube: xr.Dataset) -> None:
    view = cube.isel(time=[0])
    basis = cube.fusion.cube.basis
    facts = sensor("landsat-8")
    h, level, _ = basis.responses([facts.band(n).response for n in ("red", "green", "blue")])
    wanted = np.full((EDGE, EDGE, 3), 0.25)
    wanted[:, : EDGE // 2] = 0.012  # water, with a plume of .01 reflectance
    wanted[:10, : EDGE // 2] = 0.022
    wanted[:, -4:] = 0.4
    z = np.einsum("kb,yxb->kyx", np.linalg.pinv(h), wanted - level)
    image = view.assign(mean=(("time", "component", "y", "x"), z[None])).fusion.rgb("2024-05-01")
    got = np.einsum("bk,kyx->byx", h, z) + level[:, None, None]
    shown = image.transpose("band", "y", "x").values
    assert np.isfinite(shown).all()
    water, plume, land = (shown[:, 20, 3], shown[:, 5, 3], shown[:, 20, 20])
    assert (got[:, 5, 3] - got[:, 20, 3]).max() < 0.02
    assert (plume - water).mean() > 0.1  # a linear stretch to the 98th percentile gives .026
    assert land.max() < 0.97
