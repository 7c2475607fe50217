"""Sentinel-2 Level 2A: the offset of genuine items, three resolutions on one grid, scene classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from fusion.errors import SceneError
from sensors.lattice import nested, shared_cells
from sensors.reading import Plane
from sensors.sentinel2 import BANDS, PSFS, SENSORS, SENTINEL_2A, SENTINEL_2C, offset_of
from sensors.writing import write_tif
from tests.sensors.making import again, local_item, scene, window


def genuine_item(path: Path) -> pystac.Item:
    content = json.loads(path.read_text())
    return pystac.Item.from_dict(content.get("features", [content])[0])


@pytest.mark.parametrize(
    ("name", "offset"),
    [
        ("pc_sentinel-2-l2a_S2B_20190629_R043_T06VVN.json", 0.0),  # baseline 02.12
        ("live_es_item_sentinel-2-c1-l2a.json", -0.1),  # Collection 1: numbers untouched
        ("live_es_item_sentinel-2-l2a.json", 0.0),  # declares -0.1 in raster:bands AND says that it has applied it
        ("es_style_s2l2a_S2A_T34VEL_20240108.json", -0.1),
        ("stactools_s2l2a_S2B_20220413_N0400_R025_T33XWJ.json", -0.1),  # baseline 04.00 itself
    ],
)
def test_the_offset_of_genuine_items(shared: Path, name: str, offset: float) -> None:
    assert offset_of(genuine_item(shared / "data/stac" / name), "here")[0] == offset


@pytest.mark.parametrize(
    ("properties", "collection", "offset"),
    [
        ({"s2:processing_baseline": "03.01"}, "sentinel-2-l2a", 0.0),
        ({"s2:processing_baseline": "04.00"}, "sentinel-2-l2a", -0.1),
        ({"s2:processing_baseline": "05.11"}, "sentinel-2-l2a", -0.1),
        ({"s2:processing_baseline": "05.11", "earthsearch:boa_offset_applied": True}, "sentinel-2-l2a", 0.0),
        ({"s2:processing_baseline": "05.11", "earthsearch:boa_offset_applied": False}, "sentinel-2-l2a", -0.1),
        ({"s2:processing_baseline": "05.00", "earthsearch:boa_offset_applied": True}, "sentinel-2-c1-l2a", -0.1),
        ({"s2:processing_baseline": "02.09", "earthsearch:boa_offset_applied": True}, "sentinel-2-l2a", 0.0),
    ],
)
def test_the_offset_rule(properties: dict[str, Any], collection: str, offset: float) -> None:
    item = local_item("any", Path(), properties, {})
    item.collection_id = collection
    assert offset_of(item, "here")[0] == offset


@pytest.mark.parametrize("told", [None, "new"])
def test_without_a_baseline_nothing_is_guessed(told: str | None) -> None:
    item = local_item("any", Path(), {"s2:processing_baseline": told} if told else {}, {})
    with pytest.raises(SceneError, match="cannot be told: add it"):
        offset_of(item, "here")


@pytest.mark.parametrize("name", list(SENSORS))
def test_what_is_written_is_read_back(name: str, tmp_path: Path) -> None:
    sensor, grid = SENSORS[name], window(20.0, 24)
    assert sensor.native is not None
    box = sensor.native(grid)
    assert (box.transform.c % 20, box.transform.f % 20, box.transform.a) == (0, 0, 20)
    one = scene(sensor, box)
    back, truth = again(sensor, one, tmp_path, grid)
    sixty = back.bands.index("coastal")
    fine = [i for i in range(len(back.bands)) if i != sixty]
    np.testing.assert_array_equal(np.isnan(back.reflectance[fine]), np.isnan(truth[fine]))
    assert np.nanmax(np.abs(back.reflectance - truth)) <= 0.5e-4 + 1e-7
    share = np.isfinite(back.reflectance[sixty]).mean()
    assert 0.08 < share < 0.14, "a 60 m pixel is one look, in the cell at its centre"
    assert back.notes == ()


def native_files(
    folder: Path, declared: dict[str, Any] | None = None, baseline: str = "05.00"
) -> tuple[pystac.Item, dict[str, Any]]:
    """A tile in three resolutions whose stored numbers are random; (item, stored numbers by band)."""
    rng, stored, assets = np.random.default_rng(3), {}, {}
    for band, (label, edge) in BANDS.items():
        shape = (480 // edge * 5, 480 // edge * 5)
        stored[band] = rng.integers(1100, 9000, shape).astype(np.uint16)
        box = GeoBox(shape, Affine(edge, 0, 480000, 0, -edge, 4428000 + 2400), "EPSG:32613")
        assets[band] = write_tif(folder / f"{label}.tif", stored[band], box, fill=0)
    classes = rng.integers(0, 12, (120, 120)).astype(np.uint8)
    twenty = GeoBox((120, 120), Affine(20, 0, 480000, 0, -20, 4430400), "EPSG:32613")
    assets["scl"] = write_tif(folder / "SCL.tif", classes, twenty)
    stored["scl"] = classes
    item = local_item("tile", folder, {"platform": "sentinel-2a", "s2:processing_baseline": baseline}, assets)
    for band in BANDS:
        if declared:
            item.assets[band].extra_fields["raster:bands"] = [declared]
    return item, stored


@pytest.mark.parametrize("declared", [None, {"scale": 1e-4, "offset": -0.1, "nodata": 0}, {"scale": 1e-4, "offset": 0}])
@pytest.mark.parametrize(("baseline", "offset"), [("05.00", -0.1), ("03.00", 0.0)])
def test_each_band_is_averaged_kept_or_placed(tmp_path: Path, declared: Any, baseline: str, offset: float) -> None:
    """rho(20 m) = mean of the four 10 m pixels, the 20 m pixel, or the 60 m pixel at its centre; whatever raster:bands says."""
    item, stored = native_files(tmp_path, declared, baseline)
    found = SENTINEL_2A.read(item, window(20.0, 30, corner=(481000.0, 4428600.0)))
    col = round((found.geobox.transform.c - 480000) / 20)
    row = round((4430400 - found.geobox.transform.f) / 20)
    height, width = found.geobox.shape
    keep = np.isin(stored["scl"], (4, 5, 6, 7, 11))
    for index, (band, (_, edge)) in enumerate(BANDS.items()):
        numbers = stored[band].astype(np.float64) * 1e-4 + offset
        full = np.full((120, 120), np.nan)
        for i in range(120):
            for j in range(120):
                if edge == 10:
                    full[i, j] = numbers[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean()
                elif edge == 20:
                    full[i, j] = numbers[i, j]
                elif i % 3 == 1 and j % 3 == 1:
                    full[i, j] = numbers[i // 3, j // 3]
        full[~keep] = np.nan
        np.testing.assert_allclose(found.reflectance[index], full[row : row + height, col : col + width], rtol=0, atol=1e-6)
    unsure = np.isin(stored["scl"], (7, 11))[row : row + height, col : col + width]
    rho = found.reflectance[2]
    good = np.isfinite(rho)
    expected = (0.003 + 0.015 * np.clip(rho, 0, None)) * np.where(unsure, 2, 1)
    np.testing.assert_allclose(found.sigma[2][good], expected[good], rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(
    row=st.integers(0, 7), col=st.integers(0, 7), fine_row=st.integers(0, 9), fine_col=st.integers(0, 9), seed=st.integers(0, 99),
)  # fmt: skip
def test_nesting_does_not_depend_on_the_crop(row: int, col: int, fine_row: int, fine_col: int, seed: int) -> None:
    """Layers cropped anywhere give, on the shared cells, the same values as the whole layers."""
    rng = np.random.default_rng(seed)
    whole20 = GeoBox((24, 24), Affine(20, 0, 0, 0, -20, 480), "EPSG:32613")
    whole10 = GeoBox((48, 48), Affine(10, 0, 0, 0, -10, 480), "EPSG:32613")
    whole60 = GeoBox((8, 8), Affine(60, 0, 0, 0, -60, 480), "EPSG:32613")
    values = {box: rng.uniform(0, 1, tuple(box.shape)).astype(np.float32) for box in (whole20, whole10, whole60)}
    base = whole20[row : row + 12, col : col + 12]
    crop = (slice(fine_row, fine_row + 33), slice(fine_col, fine_col + 33))
    ten = Plane(values[whole10][crop], whole10[crop])
    twenty, sixty = Plane(values[whole20], whole20), Plane(values[whole60], whole60)
    box = shared_cells(base, [ten, twenty, sixty], "here")
    top, left = round((480 - box.transform.f) / 20), round(box.transform.c / 20)
    part = (slice(top, top + box.shape[0]), slice(left, left + box.shape[1]))
    means = values[whole10].reshape(24, 2, 24, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(nested(ten, box, "here"), means[part], rtol=1e-6)
    np.testing.assert_array_equal(nested(twenty, box, "here"), values[whole20][part])
    alone = np.full((24, 24), np.nan, dtype=np.float32)
    alone[1::3, 1::3] = values[whole60]
    np.testing.assert_array_equal(nested(sixty, box, "here"), alone[part])
    assert box.shape[0] >= 1


def test_layers_that_do_not_nest_are_refused(tmp_path: Path) -> None:
    item, _ = native_files(tmp_path)
    shifted = GeoBox((240, 240), Affine(10, 0, 480004, 0, -10, 4430400), "EPSG:32613")
    item.assets["red"].href = str(write_tif(tmp_path / "shifted.tif", np.full((240, 240), 2000, np.uint16), shifted))
    with pytest.raises(SceneError, match="do not nest"):
        SENTINEL_2A.read(item, window(20.0, 30, corner=(481000.0, 4428600.0)))


def test_another_satellites_item_is_refused(tmp_path: Path) -> None:
    item, _ = native_files(tmp_path)
    with pytest.raises(SceneError, match="is of sentinel-2a"):
        SENTINEL_2C.read(item, window(20.0, 30))


def test_catalogs_name_their_assets(shared: Path) -> None:
    for path in sorted((shared / "data/stac").glob("*s2l2a*")) + sorted((shared / "data/stac").glob("*sentinel-2*item*.json")):
        keys = genuine_item(path).assets.keys()
        for band, (label, _) in BANDS.items():
            assert {band, label} & keys, (path.name, band)
        assert {"scl", "SCL"} & keys
    item = genuine_item(shared / "data/stac/live_es_item_sentinel-2-c1-l2a.json")
    for band, (_, edge) in BANDS.items():  # our native resolutions are the catalog's
        assert item.assets[band].extra_fields["raster:bands"][0].get("spatial_resolution", edge) == edge


def test_widths_of_the_whole_response() -> None:
    """Cell and blur together have the second moment of a 12, 24 and 72 m wide Gaussian-blurred box of the native pixel."""
    for edge in (10, 20, 60):
        carried = 20.0  # every band is carried by 20 m cells
        total = carried**2 / 12 + PSFS[edge].fwhm ** 2 / (8 * np.log(2))
        native = (edge**2 if edge > 20 else 20**2) / 12 + (0.4 * edge) ** 2
        assert total == pytest.approx(native, rel=1e-6)
