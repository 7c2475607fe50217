"""HLS version 2: storage, Fmask, angles, and grids half a pixel off the Landsat archive's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pystac
import pytest

from fusion.errors import SceneError
from sensors.hls import L30, L30_BANDS, S30, S30_BANDS, SENSORS
from sensors.landsat import LANDSAT_8
from sensors.writing import write_tif
from tests.sensors.making import again, scene, window


@pytest.mark.parametrize("name", list(SENSORS))
def test_what_is_written_is_read_back(name: str, tmp_path: Path) -> None:
    sensor, grid = SENSORS[name], window(30.0)
    assert sensor.native is not None
    back, truth = again(sensor, scene(sensor, sensor.native(grid)), tmp_path, grid)
    np.testing.assert_array_equal(np.isnan(back.reflectance), np.isnan(truth))
    assert np.nanmax(np.abs(back.reflectance - truth)) <= 0.5e-4 + 1e-7
    assert back.notes == ()


def test_the_grids_lie_half_a_pixel_apart() -> None:
    assert L30.native is not None
    assert LANDSAT_8.native is not None
    hls, usgs = L30.native(window(30.0)), LANDSAT_8.native(window(30.0))
    assert (hls.transform.c % 30, hls.transform.f % 30) == (0, 0)
    assert (usgs.transform.c % 30, usgs.transform.f % 30) == (15, 15)


def made(folder: Path) -> tuple[pystac.Item, object]:
    assert L30.native is not None
    assert L30.write is not None
    box = L30.native(window(30.0, 12))
    return L30.write(scene(L30, box, low=0.1), folder), box


def test_fmask_and_angles(tmp_path: Path) -> None:
    """Bits 1 cloud, 2 adjacent, 3 shadow reject; 4 snow and 6-7 = 3 high aerosol widen; 255 is fill; 40000 is no angle."""
    item, box = made(tmp_path)
    mask = np.full(tuple(box.shape), 64, dtype=np.uint8)  # type: ignore[attr-defined]
    for column, value in enumerate((0b10, 0b100, 0b1000, 255, 0b10000, 0b11000000, 0b100000, 0b10000000)):
        mask[8, column + 2] = value
    write_tif(Path(item.assets["Fmask"].href), mask, box)  # type: ignore[arg-type]
    for key, degrees in (("VZA", 712), ("VAA", 10450)):
        angle = np.full(mask.shape, degrees, dtype=np.uint16)
        angle[0, 0] = 40000
        item.add_asset(key, pystac.Asset(str(write_tif(tmp_path / f"{key}.tif", angle, box, fill=40000))))  # type: ignore[arg-type]
    found = L30.read(item, window(30.0, 12))
    assert np.isnan(found.reflectance[:, 8, 2:6]).all()
    assert np.isfinite(found.reflectance[:, 8, 6:10]).all()
    ratio = found.sigma[0, 8, 6:10] / (0.002 + 0.01 * found.reflectance[0, 8, 6:10])
    np.testing.assert_allclose(ratio, [2.0, 2.5, 1.0, 1.0], rtol=1e-5)
    assert found.view is not None
    assert np.isnan(found.view.zenith[0, 0])
    np.testing.assert_allclose(found.view.zenith[1:], 7.12, rtol=1e-6)
    np.testing.assert_allclose(found.view.azimuth[1:], 104.5, rtol=1e-6)


def test_stored_numbers_are_ten_thousandths(tmp_path: Path) -> None:
    item, box = made(tmp_path)
    stored = np.full(tuple(box.shape), 1234, dtype=np.int16)  # type: ignore[attr-defined]
    stored[8, 2:4] = (-9999, -123)
    write_tif(Path(item.assets["B04"].href), stored, box)  # type: ignore[arg-type]
    item.assets["B04"].extra_fields.clear()
    found = L30.read(item, window(30.0, 12))
    red = found.reflectance[found.bands.index("red")]
    assert np.isnan(red[8, 2])
    np.testing.assert_allclose(red[8, 3:5], [-0.0123, 0.1234], atol=1e-7)
    assert "no scale declared: the product's documented 0.0001 is used" in found.notes
    assert "no nodata declared: the product's -9999 is used" in found.notes


def test_the_other_product_is_refused(tmp_path: Path) -> None:
    item, _ = made(tmp_path)
    item.id = "HLS.S30.T13TGF.2021133T172406.v2.0"
    with pytest.raises(SceneError, match="other HLS product"):
        L30.read(item, window(30.0, 12))


def test_responses_follow_the_band_adjustment() -> None:
    """The producer adjusts the seven common bands of S30 to OLI; the red edge and B08 stay MSI."""
    for band in L30_BANDS:
        assert S30.band(band).response.centroid == pytest.approx(LANDSAT_8.band(band).response.centroid)
    assert S30.band("rededge1").response.centroid == pytest.approx(704.1, abs=0.5)
    assert S30.band("nir").response.centroid == pytest.approx(832.8, abs=0.5)
    assert S30.band("swir16").psf.fwhm > S30.band("red").psf.fwhm  # type: ignore[union-attr]


def test_catalogs_name_their_assets(shared: Path) -> None:
    item = json.loads((shared / "data/stac/cmrstac_HLSL30_2.0_item.json").read_text())
    assert {*L30_BANDS.values(), "Fmask", "VZA", "VAA"} <= item["assets"].keys()
    for product, bands in (("l30", L30_BANDS), ("s30", S30_BANDS)):
        told = json.loads((shared / f"data/stac/pc_hls2-{product}_collection_template.json").read_text())["item_assets"]
        assert {*bands.values(), "Fmask"} <= told.keys()
