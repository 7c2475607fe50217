"""Airborne images: channels put right, rotated maps, scales, and genuine AVIRIS spectra."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pystac
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from fusion.cube.grid import Grid
from fusion.errors import SceneError
from sensors.airborne import AIRBORNE
from sensors.channels import in_nanometres, widths
from sensors.images import affine_of_map_info
from tests.sensors.making import again, local_item, scene, window

GRID = window(5.0, 8)


def envi(
    folder: Path, cube: NDArray[Any], wavelengths: Any, *, fwhm: Any = None, crs: str | None = "EPSG:32613",
    nodata: float | None = -9999.0, **header: str,
) -> pystac.Item:
    """An ENVI file (N, H, W) over GRID and the item of it."""
    path = folder / "image.img"
    count, height, width = cube.shape
    profile = {"driver": "ENVI", "count": count, "height": height, "width": width, "dtype": cube.dtype.name}
    tags = {"wavelength": wavelengths, **({} if fwhm is None else {"fwhm": fwhm})}
    with rasterio.open(path, "w", **profile, crs=crs, transform=GRID.transform, nodata=nodata, interleave="bil") as file:
        file.write(cube)
        file.update_tags(ns="ENVI", **{k: "{" + ", ".join(map(str, v)) + "}" for k, v in tags.items()}, **header)
    (folder / "image.img.aux.xml").unlink(missing_ok=True)  # only what a header can say
    return local_item("flight", folder, {}, {"data": path})


def smooth(count: int, seed: int = 0) -> NDArray[np.float32]:
    """(count, 8, 8) plausible reflectance."""
    rng = np.random.default_rng(seed)
    return (0.2 + 0.1 * np.sin(np.linspace(0, 3, count))[:, None, None] + rng.normal(0, 0.01, (count, 8, 8))).astype(np.float32)


@pytest.mark.parametrize("rotation", [0.0, 25.0, -140.0])
def test_what_is_written_is_read_back(rotation: float, tmp_path: Path) -> None:
    x, y = GRID.transform.c, GRID.transform.f
    turned = Affine.translation(x - 40, y + 20) * Affine.rotation(rotation) * Affine.scale(5, -5)
    box = GeoBox((40, 44), turned, "EPSG:32613") if rotation else GRID.geobox.pad(3)
    one = scene(AIRBORNE, box)
    back, truth = again(AIRBORNE, one, tmp_path, GRID)
    np.testing.assert_array_equal(back.reflectance, truth)
    assert back.simulated
    assert back.centres is not None
    assert (np.diff(back.centres) > 0).all()
    for low, high in ((1325, 1465), (1770, 1975)):
        assert not ((back.centres >= low) & (back.centres <= high)).any()
    shoulder = (back.centres > 900) & (back.centres < 1000)
    plain = (back.centres > 600) & (back.centres < 700)
    rho = np.nan_to_num(back.reflectance)
    ratio = np.nan_to_num(back.sigma) / (0.002 + 0.02 * rho)
    seen = np.isfinite(back.reflectance)
    np.testing.assert_allclose(ratio[shoulder][seen[shoulder]], 3.0, rtol=1e-4)
    np.testing.assert_allclose(ratio[plain][seen[plain]], 1.0, rtol=1e-4)


def test_a_rotated_header_puts_pixels_where_gdal_does(tmp_path: Path) -> None:
    """`map info` with rotation: our reading of NEON's notation is the one that GDAL has of ENVI's."""
    for degrees in (0.0, 30.0, -75.0):
        item = envi(tmp_path, smooth(3), [500, 600, 700], fwhm=[5, 5, 5])
        text = f"{{UTM, 1, 1, 480000, 4428040, 5, 5, 13, North, WGS-84, units=Meters, rotation={degrees}}}"
        header = tmp_path / "image.hdr"
        lines = [line for line in header.read_text().splitlines() if not line.startswith("map info")]
        header.write_text("\n".join([*lines, f"map info = {text}"]))
        with rasterio.open(item.assets["data"].href) as file:
            assert file.transform.almost_equals(affine_of_map_info(text, "here"), precision=1e-6)


def test_genuine_aviris_channels(shared: Path, tmp_path: Path) -> None:
    """AVIRIS-C as it comes: wavelengths overlap at detector seams, 43 channels are zero without saying so, counts of 1/10000."""
    with np.load(shared / "data/hyperspectral/aviris_90x90x224.npz") as data:
        arrays = {key: data[key] for key in data.files}
    cube = next(a for a in arrays.values() if a.ndim == 3)
    centres = next(a for a in arrays.values() if a.ndim == 1 and a.size == cube.shape[-1]).astype(float)
    assert (np.diff(centres) < 0).any(), "the genuine wavelengths overlap"
    found = AIRBORNE.read(envi(tmp_path, np.moveaxis(cube[:8, :8], -1, 0).astype(np.int16), centres), GRID)
    assert found.centres is not None
    zero = (cube[:8, :8] == 0).all(axis=(0, 1))
    assert zero.sum() >= 43
    dark = (centres >= 1325) & (centres <= 1465) | (centres >= 1770) & (centres <= 1975) | (centres < 400) | (centres > 2500)
    expected = np.array([i for i in np.argsort(centres, kind="stable") if not (zero | dark)[i]])
    np.testing.assert_allclose(found.centres, centres[expected])
    np.testing.assert_allclose(found.reflectance, np.moveaxis(cube[:8, :8], -1, 0)[expected] * 1e-4, atol=1e-6)
    text = " ".join(found.notes)
    assert "channels sorted" in text
    assert "1.15 x the channel spacing" in text
    assert "reflectance x 10000" in text
    assert ("zero-coded" in text) == bool((zero & ~dark).any())


@pytest.mark.parametrize("unit", ["", "Nanometers", "Micrometers"])
def test_micrometres_are_recognised(unit: str, tmp_path: Path) -> None:
    header = {"wavelength_units": unit} if unit else {}
    found = AIRBORNE.read(envi(tmp_path, smooth(4), [0.5, 0.6, 0.7, 0.8], fwhm=[0.006] * 4, **header), GRID)
    np.testing.assert_allclose(found.centres, [500, 600, 700, 800])  # type: ignore[arg-type]
    np.testing.assert_allclose(found.fwhm, 6.0)  # type: ignore[arg-type]
    assert any("micrometres" in note for note in found.notes) == (unit != "Micrometers")


@settings(max_examples=60, deadline=None)
@given(low=st.floats(400, 900), high=st.floats(1200, 2500), count=st.integers(2, 500))
def test_units_are_told_by_size(low: float, high: float, count: int) -> None:
    nm = np.linspace(low, high, count)
    assert np.allclose(in_nanometres(nm, "wavelengths", "here", "nm")[0], nm)
    assert np.allclose(in_nanometres(nm / 1000, "wavelengths", "here", "um")[0], nm)
    assert in_nanometres(nm / 1000, "wavelengths", "here", "um")[1] == ()
    assert in_nanometres(nm, "wavelengths", "here", "Micrometers")[1] != ()


def test_missing_widths_follow_the_spacing_but_not_the_seams() -> None:
    centres = np.concatenate([np.arange(400, 700, 10.0), np.arange(697, 1000, 10.0)])
    fwhm, notes = widths(None, centres, "here")
    assert notes
    np.testing.assert_allclose(fwhm, 11.5, rtol=0.36)  # at the seam the spacing itself is uncertain by a third
    np.testing.assert_allclose(fwhm[5:25], 11.5)


@pytest.mark.parametrize(
    ("factor", "dtype", "header", "scale"),
    [(1.0, "float32", {}, 1.0), (1e4, "int16", {}, 1e-4), (1e4, "int16", {"reflectance_scale_factor": "10000"}, 1e-4),
     (100.0, "float32", {"reflectance_scale_factor": "100"}, 0.01)],
)  # fmt: skip
def test_scales(factor: float, dtype: str, header: dict[str, str], scale: float, tmp_path: Path) -> None:
    stored = (smooth(4) * factor).astype(dtype)
    found = AIRBORNE.read(envi(tmp_path, stored, [500, 600, 700, 800], fwhm=[6] * 4, **header), GRID)
    np.testing.assert_allclose(found.reflectance, stored * scale, rtol=1e-6)


def test_codes_are_no_looks(tmp_path: Path) -> None:
    cube = smooth(4)
    cube[:, 0, 0] = -9999
    cube[:, 1, 1] = 0
    cube[2, 2, 2] = np.nan
    cube[1, 3, 3] = -50
    found = AIRBORNE.read(envi(tmp_path, cube, [500, 600, 700, 800], fwhm=[6] * 4, nodata=None), GRID)
    gone = np.isnan(found.reflectance)
    assert gone[:, 0, 0].all()
    assert gone[:, 1, 1].all()
    assert gone.sum() == 4 + 4 + 1 + 1
    text = " ".join(found.notes)
    assert "1 pixels are zero in every channel" in text
    assert "no fill declared" in text


def test_the_files_own_bad_bands_are_dropped(tmp_path: Path) -> None:
    found = AIRBORNE.read(envi(tmp_path, smooth(4), [500, 600, 700, 800], fwhm=[6] * 4, bbl="{1, 0, 1, 1}"), GRID)
    np.testing.assert_allclose(found.centres, [500, 700, 800])  # type: ignore[arg-type]


@pytest.mark.parametrize("last", [False, True])
def test_netcdf(last: bool, tmp_path: Path) -> None:
    """AVIRIS-3's layout: groups, a grid mapping with a GeoTransform, wavelengths first or last."""
    path, cube = tmp_path / "image.nc", smooth(5)
    cube[:, 0, 0] = -9999
    x, y = GRID.transform.c, GRID.transform.f
    with h5py.File(path, "w") as file:
        group = file.create_group("reflectance")
        data = group.create_dataset("reflectance", data=np.moveaxis(cube, 0, -1) if last else cube)
        data.attrs["_FillValue"] = np.float32(-9999)
        group["wavelength"], group["fwhm"] = np.array([500, 600, 700, 800, 1400.0]), np.full(5, 7.5)
        group["wavelength"].attrs["units"] = "nm"
        mapping = file.create_dataset("transverse_mercator", data=b"")
        mapping.attrs["GeoTransform"] = f"{x} 5 0 {y} 0 -5"
        mapping.attrs["crs_wkt"] = GRID.crs.to_wkt()
    found = AIRBORNE.read(local_item("flight", tmp_path, {}, {"data": path}), GRID)
    expected = cube[:4].copy()
    expected[:, 0, 0] = np.nan
    np.testing.assert_array_equal(found.reflectance, expected)
    assert found.geobox == GRID.geobox
    np.testing.assert_allclose(found.fwhm, 7.5)  # type: ignore[arg-type]


def test_only_the_window_is_read(tmp_path: Path) -> None:
    big = GeoBox((60, 60), Affine(5, 0, GRID.transform.c - 100, 0, -5, GRID.transform.f + 100), "EPSG:32613")
    one = scene(AIRBORNE, big)
    back, truth = again(AIRBORNE, one, tmp_path, GRID)
    assert max(back.geobox.shape) <= 8 + 2 * 5
    np.testing.assert_array_equal(back.reflectance, truth)


def test_a_far_window_sees_nothing(tmp_path: Path) -> None:
    """The nearest pixel comes back: its footprint has no mass inside the window, so nothing is fused and nothing fails."""
    one = scene(AIRBORNE, GRID.geobox)
    assert AIRBORNE.write is not None
    item = AIRBORNE.write(one, tmp_path)
    far = Grid.from_bbox((490000, 4428000, 490040, 4428040), "EPSG:32613", 5, bbox_crs="EPSG:32613")
    found = AIRBORNE.read(item, far)
    assert found.geobox.shape[1] == 1
    assert found.geobox.boundingbox.right < far.bounds.left


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"wavelengths": [5, 6, 7, 8]}, "neither nanometres nor micrometres"),
        ({"wavelengths": [500, 600, 700], "fwhm": [6] * 3}, "4 channels and 3 wavelengths"),
        ({"wavelengths": ["a", "b", "c", "d"]}, "not a list of numbers"),
        ({"fwhm": [6, 6, 6]}, "3 widths for 4 wavelengths"),
        ({"fwhm": [6, 6, 6, 900]}, "cannot be"),
        ({"wavelengths": [1350, 1360, 1370, 1380]}, "no usable channel"),
        ({"factor": 20.0}, "reflectance scale factor"),
        ({"crs": None}, "no CRS"),
    ],
)
def test_what_cannot_be_trusted_is_refused(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"wavelengths": [500, 600, 700, 800], "fwhm": [6] * 4, "crs": "EPSG:32613", **change}
    cube = smooth(4) * options.pop("factor", 1.0)
    with pytest.raises(SceneError, match=told):
        AIRBORNE.read(envi(tmp_path, cube, options.pop("wavelengths"), **options), GRID)
