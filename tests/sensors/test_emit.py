"""EMIT: the lookup table against a loop over pixels, companions, and values that the map repeats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pystac
import pytest

from fusion.cube.calendar import instant_of
from fusion.cube.grid import Grid
from fusion.errors import SceneError
from sensors.emit import EMIT, native
from tests.sensors.making import again, local_item, original, scene, window

GRID = window(60.0, 8)
BOX = native(GRID)
FLAGS = [
    "Cloud flag", "Cirrus flag", "Water flag", "Spacecraft Flag", "Dilated Cloud Flag", "AOD550", "H2O", "Aggregate Flag",
]  # fmt: skip


def granule(folder: Path, companions: bool = True, seed: int = 1) -> tuple[pystac.Item, dict[str, np.ndarray[Any, Any]]]:
    """A granule whose raw image is sheared against the map: (item, arrays)."""
    rng = np.random.default_rng(seed)
    (height, width), raw, channels = BOX.shape, (30, 40), 6
    cube = rng.uniform(0.05, 0.5, (*raw, channels)).astype(np.float32)
    cube[4, 5] = -9999
    rows, cols = np.indices((height, width))
    y, x = rows + cols // 5 - 1, cols + 1 + rows // 7  # -1: above the image, nothing seen
    x, y = np.clip(x // 2 * 2, 0, raw[1] - 1), np.where(y < 0, -1, np.clip(y, -1, raw[0] - 1))  # each raw column twice on the map
    arrays = {"cube": cube, "x": np.where(y < 0, 0, x + 1), "y": y + 1}
    arrays["sigma"] = rng.uniform(0.02, 0.04, cube.shape).astype(np.float32)
    arrays["mask"] = np.zeros((*raw, 8), dtype=np.float32)
    arrays["mask"][10, 10, 0] = arrays["mask"][11, 12, 1] = arrays["mask"][12, 14, 3] = arrays["mask"][13, 16, 4] = 1
    arrays["mask"][14, 18, 2] = arrays["mask"][15, 20, 7] = 1  # water and the aggregate do not reject
    arrays["mask"][:, :, 5] = 0.1
    parts = {"RFL": ("reflectance", cube)}
    if companions:
        parts |= {"RFLUNCERT": ("reflectance_uncertainty", arrays["sigma"]), "MASK": ("mask", arrays["mask"])}
    files = {}
    for part, (name, values) in parts.items():
        files[part] = folder / f"EMIT_L2A_{part}_001_20220815T042838_2222703_003.nc"
        with h5py.File(files[part], "w") as file:
            file[name] = values
            file.attrs["geotransform"] = np.array(BOX.transform.to_gdal())
            file.attrs["spatial_ref"] = BOX.crs.to_wkt() if BOX.crs else ""
            file.attrs["time_coverage_start"] = "2022-08-15T04:28:38+0000"
            file["location/glt_x"], file["location/glt_y"] = arrays["x"].astype(np.int32), arrays["y"].astype(np.int32)
            if part == "MASK":
                file["sensor_band_parameters/mask_bands"] = FLAGS
            else:
                file["sensor_band_parameters/wavelengths"] = np.array([450.0, 550, 650, 850, 1380, 2200])
                file["sensor_band_parameters/fwhm"] = np.full(6, 8.5)
                file["sensor_band_parameters/good_wavelengths"] = np.array([1, 1, 0, 1, 1, 1], dtype=np.uint8)
    return local_item("emit", folder, {}, files), arrays


def test_the_lookup_table_pixel_by_pixel(tmp_path: Path) -> None:
    """map(i, j) = raw(glt_y - 1, glt_x - 1), nothing where the table is 0; sigma sqrt(copies) x the larger of two."""
    item, arrays = granule(tmp_path)
    found = EMIT.read(item, GRID)
    np.testing.assert_allclose(found.centres, [450, 550, 850, 2200])  # type: ignore[arg-type]
    col, row = (round(v) for v in ~BOX.transform * (found.geobox.transform.c, found.geobox.transform.f))
    height, width = found.geobox.shape
    pairs = [(arrays["y"][row + i, col + j], arrays["x"][row + i, col + j]) for i in range(height) for j in range(width)]
    seen = rejected = 0
    for i in range(height):
        for j in range(width):
            y, x = arrays["y"][row + i, col + j], arrays["x"][row + i, col + j]
            values = found.reflectance[:, i, j]
            if x == 0 or y == 0 or (y - 1, x - 1) == (4, 5) or arrays["mask"][y - 1, x - 1, [0, 1, 3, 4]].any():
                assert np.isnan(values).all()
                rejected += int(x > 0)
                continue
            seen += 1
            truth = arrays["cube"][y - 1, x - 1][[0, 1, 3, 5]]
            np.testing.assert_array_equal(values, truth)
            sigma = np.maximum(0.003 + 0.02 * truth, arrays["sigma"][y - 1, x - 1][[0, 1, 3, 5]] * np.sqrt(pairs.count((y, x))))
            np.testing.assert_allclose(found.sigma[:, i, j], sigma, rtol=1e-5)
    assert seen > 50
    assert rejected >= 2
    assert found.notes == ()
    assert found.geobox.crs == "EPSG:4326"


def test_without_companions_it_says_so(tmp_path: Path) -> None:
    item, _ = granule(tmp_path, companions=False)
    found = EMIT.read(item, GRID)
    assert found.notes == ("no RFLUNCERT file: the sensor's general noise is used", "no MASK file: clouds are not screened")


def test_time_of_a_bare_file(tmp_path: Path) -> None:
    item, _ = granule(tmp_path, companions=False)
    item.assets = {"data": item.assets["RFL"]}
    item.datetime = None
    item.properties["start_datetime"] = "2022-08-15T00:00:00Z"
    assert EMIT.read(item, GRID).when.time == instant_of("2022-08-15T04:28:38")  # type: ignore[union-attr]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    one = scene(EMIT, BOX)
    back, truth = again(EMIT, one, tmp_path, GRID)
    assert back.simulated
    np.testing.assert_array_equal(np.isnan(back.reflectance), np.isnan(truth))
    np.testing.assert_array_equal(np.nan_to_num(back.reflectance), np.nan_to_num(truth))
    assert back.notes == ()
    far = Grid.from_bbox((300000, 4428000, 300600, 4428600), "EPSG:32613", 60, bbox_crs="EPSG:32613")
    assert EMIT.write is not None
    edge = EMIT.read(EMIT.write(one, tmp_path), far)
    np.testing.assert_array_equal(np.isnan(edge.reflectance), np.isnan(original(one, edge)))


def test_the_native_pixels_cover_the_window() -> None:
    assert BOX.crs == "EPSG:4326"
    inner = GRID.lonlat.boundingbox
    outer = BOX.boundingbox
    assert outer.left < inner.left
    assert outer.right > inner.right
    assert outer.bottom < inner.bottom
    assert outer.top > inner.top


def damage(item: pystac.Item, part: str, key: str, value: Any) -> None:
    with h5py.File(item.assets[part].href, "a") as file:
        del file[key]
        if value is not None:
            file[key] = value


@pytest.mark.parametrize(
    ("part", "key", "value", "told"),
    [
        ("RFL", "location/glt_x", None, "no location/glt_x"),
        ("RFL", "location/glt_x", np.full(BOX.shape, 999, dtype=np.int32), "outside the image"),
        ("RFL", "sensor_band_parameters/wavelengths", np.arange(6.0) + 10, "neither nanometres"),
        ("MASK", "sensor_band_parameters/mask_bands", ["a"] * 8, "another version"),
    ],
)
def test_damaged_granules_are_refused(part: str, key: str, value: Any, told: str, tmp_path: Path) -> None:
    item, _ = granule(tmp_path)
    damage(item, part, key, value)
    with pytest.raises(SceneError, match=told):
        EMIT.read(item, GRID)


def test_another_product_is_refused(tmp_path: Path) -> None:
    item, _ = granule(tmp_path)
    del item.assets["RFL"]
    with pytest.raises(SceneError, match="no EMIT_L2A_RFL"):
        EMIT.read(item, GRID)
