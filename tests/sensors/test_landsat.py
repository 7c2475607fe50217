"""Landsat Collection 2 against genuine scenes, decoded here from the raw numbers by the product guide's equations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
from numpy.typing import NDArray

from fusion.cube.grid import Grid
from fusion.errors import SceneError
from sensors import landsat
from sensors.landsat import LANDSAT_5, LANDSAT_7, LANDSAT_8, LANDSAT_9, SENSORS
from sensors.writing import write_tif
from tests.sensors.making import again, scene, window

SCENES = ("LC08_005009_20150710", "LC08_008059_20191201")


def genuine(shared: Path, name: str) -> tuple[pystac.Item, Path]:
    """The scene's own STAC file, its links pointed to the files beside it."""
    folder = shared / "data/landsat_native" / name
    item = pystac.Item.from_dict(json.loads(next(folder.glob("*_SR_stac.json")).read_text()))
    for key in list(item.assets):
        beside = list(folder.glob(f"*_{key}"))
        if beside:
            item.assets[key].href = str(beside[0])
    item.set_self_href(str(folder / "item.json"))
    return item, folder


def raw(folder: Path, stem: str) -> tuple[NDArray[Any], Any, Any]:
    with rasterio.open(next(folder.glob(f"*_{stem}.TIF"))) as file:
        return file.read(1), file.transform, file.crs


def middle(folder: Path) -> Grid:
    """A window over the middle third of the (decimated) scene."""
    values, transform, crs = raw(folder, "QA_PIXEL")
    rows, cols = values.shape
    west, north = transform * (cols // 3, rows // 3)
    east, south = transform * (2 * cols // 3, 2 * rows // 3)
    return Grid.from_bbox((west, south, east, north), crs.to_wkt(), 600.0, bbox_crs=crs.to_wkt())


@pytest.mark.parametrize("name", SCENES)
def test_a_genuine_scene_is_decoded_exactly(shared: Path, name: str) -> None:
    item, folder = genuine(shared, name)
    found = LANDSAT_8.read(item, middle(folder))
    qa, transform, _ = raw(folder, "QA_PIXEL")
    radsat, aerosol = raw(folder, "QA_RADSAT")[0], raw(folder, "SR_QA_AEROSOL")[0]
    col, row = (round(v) for v in ~transform * (found.geobox.transform.c, found.geobox.transform.f))
    part = (slice(row, row + found.geobox.shape[0]), slice(col, col + found.geobox.shape[1]))
    assert found.geobox.transform.almost_equals(transform * transform.translation(col, row), precision=1e-6)
    qa, radsat, aerosol = qa[part], radsat[part], aerosol[part]
    spoilt = np.zeros(qa.shape, dtype=bool)
    for bit in (0, 1, 2, 3, 4):  # fill, dilated cloud, cirrus, cloud, shadow
        spoilt |= (qa >> bit) % 2 == 1
    spoilt |= (radsat >> 11) % 2 == 1  # terrain occlusion
    factor = np.where((qa >> 5) % 2 == 1, 2.0, 1.0) * np.where((aerosol >> 6) % 4 == 3, 2.5, 1.0)
    seen = 0
    for index, (band, number) in enumerate(
        {"coastal": 1, "blue": 2, "green": 3, "red": 4, "nir08": 5, "swir16": 6, "swir22": 7}.items()
    ):
        assert found.bands[index] == band
        stored = raw(folder, f"SR_B{number}")[0][part].astype(np.float64)
        expected = stored * 0.0000275 - 0.2
        expected[spoilt | (stored < 7273) | (stored > 43636) | ((radsat >> (number - 1)) % 2 == 1)] = np.nan
        np.testing.assert_allclose(found.reflectance[index], expected, rtol=0, atol=1e-7)
        sigma = (0.002 + 0.01 * np.clip(expected, 0, None)) * factor
        good = np.isfinite(expected)
        np.testing.assert_allclose(found.sigma[index][good], sigma[good], rtol=1e-5)
        seen += int(good.sum())
    assert seen > 1000, "the golden window must hold clear pixels"
    assert not found.simulated
    assert any("scale" in note for note in found.notes)  # the files declare none
    assert any("without a time of day" in note for note in found.notes)  # nor does this catalog give one
    assert any("Tier 2" in note for note in found.notes) == item.id.endswith("T2")


@pytest.mark.parametrize("name", list(SENSORS))
def test_what_is_written_is_read_back(name: str, tmp_path: Path) -> None:
    sensor, grid = SENSORS[name], window(30.0)
    assert sensor.native is not None
    box = sensor.native(grid)
    assert (box.transform.c % 30, box.transform.f % 30) == (15, 15)
    back, truth = again(sensor, scene(sensor, box), tmp_path, grid)
    assert back.simulated
    assert back.when.time == np.datetime64("2025-05-05T10:20:30")  # type: ignore[union-attr]
    np.testing.assert_array_equal(np.isnan(back.reflectance), np.isnan(truth))
    assert np.nanmax(np.abs(back.reflectance - truth)) <= 0.5 * 2.75e-5 + 1e-7
    assert back.notes == ()


def test_southern_scenes_keep_their_northern_zone() -> None:
    grid = Grid.from_bbox((-79.9, -7.3, -79.88, -7.28), resolution=30)
    assert grid.crs.epsg == 32717
    assert LANDSAT_9.native is not None
    box = LANDSAT_9.native(grid)
    assert box.crs is not None
    assert box.crs.epsg == 32617
    assert box.transform.f < 0


def written(sensor: Any, folder: Path) -> tuple[pystac.Item, Grid, Any]:
    grid = window(30.0, 12)
    box = sensor.native(grid)
    item = sensor.write(scene(sensor, box, low=0.1), folder)
    return item, grid, box


def layer(item: pystac.Item, folder: Path, box: Any, key: str, dtype: str, **where: int) -> None:
    """Writes a quality layer whose value at row 8, column c is the number given for cN."""
    stem = item.assets[key].href if key in item.assets else str(folder / f"{key}.TIF")
    values = np.zeros(tuple(box.shape), dtype=dtype)
    if key == "qa_pixel":
        values[:] = 5440
    for column, value in where.items():
        values[8, int(column[1:])] = value
    write_tif(Path(stem), values, box)
    item.assets[key] = pystac.Asset(stem)


def test_slc_off_gaps_are_no_look(tmp_path: Path) -> None:
    """Bit 9 of QA_RADSAT marks pixels that the failed corrector left out, in every band; bits 0-6 saturate one band each."""
    item, grid, box = written(LANDSAT_7, tmp_path)
    layer(item, tmp_path, box, "qa_radsat", "uint16", c10=1 << 9, c11=1 << 2, c12=1 << 6)
    found = LANDSAT_7.read(item, grid)
    assert found.geobox == box
    gone = np.isnan(found.reflectance[:, 8])
    assert gone[:, 10].all()
    assert dict(zip(found.bands, gone[:, 11], strict=True)) == {b: b == "red" for b in found.bands}
    assert dict(zip(found.bands, gone[:, 12], strict=True)) == {b: b == "swir22" for b in found.bands}


def test_hazy_and_snowy_pixels_are_wider_not_gone(tmp_path: Path) -> None:
    item, grid, box = written(LANDSAT_5, tmp_path)
    layer(item, tmp_path, box, "qa_pixel", "uint16", c10=5440 | 1 << 5, c14=5440 | 1 << 2)
    layer(item, tmp_path, box, "atmos_opacity", "int16", c11=301, c12=300)
    layer(item, tmp_path, box, "cloud_qa", "uint8", c13=2)
    found = LANDSAT_5.read(item, grid)
    ratio = found.sigma[0, 8] / (0.004 + 0.02 * found.reflectance[0, 8])
    np.testing.assert_allclose(ratio[[10, 11, 12, 13, 14]], [2.0, 2.5, 1.0, 2.0, 1.0], rtol=1e-5)  # TM has no cirrus bit


@pytest.mark.parametrize("bit", [0, 1, 2, 3, 4])
def test_oli_rejects_each_flag(bit: int, tmp_path: Path) -> None:
    item, grid, box = written(LANDSAT_8, tmp_path)
    layer(item, tmp_path, box, "qa_pixel", "uint16", c10=21824 | 1 << bit, c11=21824)
    found = LANDSAT_8.read(item, grid)
    assert np.isnan(found.reflectance[:, 8, 10]).all()
    assert np.isfinite(found.reflectance[:, 8, 11]).all()


def test_terrain_shadow_and_high_aerosol(tmp_path: Path) -> None:
    item, grid, box = written(LANDSAT_9, tmp_path)
    layer(item, tmp_path, box, "qa_radsat", "uint16", c10=1 << 11)
    layer(item, tmp_path, box, "qa_aerosol", "uint8", c11=0b11000010, c12=0b10000010)
    found = LANDSAT_9.read(item, grid)
    assert np.isnan(found.reflectance[:, 8, 10]).all()
    ratio = found.sigma[0, 8] / (0.002 + 0.01 * found.reflectance[0, 8])
    np.testing.assert_allclose(ratio[[11, 12]], [2.5, 1.0], rtol=1e-5)


def test_all_three_catalogs_name_their_assets(shared: Path) -> None:
    """Every band and QA_PIXEL is found under the keys of Planetary Computer, Earth Search and the USGS, old and new."""
    stac = shared / "data/stac"
    seen = set()
    for path in [*stac.glob("*andsat*.json"), *stac.glob("odcstac_LC08*.json"), *stac.glob("search_results/*landsat*.json")]:
        content = json.loads(path.read_text())
        for item in content.get("features", [content]):
            if item.get("type") != "Feature":
                continue
            kind = item["id"][:4]
            labels = landsat.OLI if kind in ("LC08", "LC09") else landsat.TM
            for band, number in labels.items():
                assert {band, f"SR_B{number}", f"SR_B{number}.TIF"} & item["assets"].keys(), (path.name, band)
            assert {"qa_pixel", "QA_PIXEL", "QA_PIXEL.TIF"} & item["assets"].keys(), path.name
            seen.add(kind)
    assert {"LC08", "LC09", "LE07", "LT05"} <= seen


def test_declared_storage_of_genuine_items_agrees(shared: Path) -> None:
    item = json.loads((shared / "data/stac/pc_landsat-c2-l2_LC09_L2SP_010065_20220129_02_T1.json").read_text())
    told = item["assets"]["red"]["raster:bands"][0]
    ours = landsat.STORAGE
    assert (told["scale"], told["offset"], told["nodata"]) == (ours.scale, ours.offset, ours.fill[0])


def test_another_satellites_item_is_refused(tmp_path: Path) -> None:
    item, grid, _ = written(LANDSAT_8, tmp_path)
    with pytest.raises(SceneError, match="is of landsat-8: read it with that sensor"):
        LANDSAT_9.read(item, grid)


def test_facts() -> None:
    assert [b.name for b in LANDSAT_7.bands] == ["blue", "green", "red", "nir08", "swir16", "swir22"]
    assert [round(b.response.centroid) for b in LANDSAT_8.bands] == [443, 483, 561, 655, 865, 1609, 2201]
    assert (LANDSAT_8.psf.fwhm, LANDSAT_5.psf.fwhm) == (40.0, 46.0)
    assert not LANDSAT_8.psf.cell, "the published width includes the cell"
