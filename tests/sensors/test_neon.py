"""NEON AOP: a genuine HDF5 file decoded by hand, and what its mosaics know per pixel."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import h5py
import numpy as np
import pystac
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from fusion.cube.calendar import PixelDay
from fusion.cube.grid import Grid
from fusion.cube.spectrum import SHOULDERS
from fusion.errors import SceneError
from sensors.neon import NEON_AOP
from tests.sensors.making import again, local_item, scene, window

GRID = window(1.0, 8)


def test_the_genuine_file_is_decoded_exactly(shared: Path) -> None:
    path = shared / "data/hyperspectral/neon_sjer_30x30x426.h5"
    grid = Grid.from_bbox((257010, 4111980, 257020, 4111990), "EPSG:32611", 1, bbox_crs="EPSG:32611")
    found = NEON_AOP.read(local_item("sjer", path.parent, {}, {"data": path}), grid)
    with h5py.File(path) as file:
        stored = file["SJER/Reflectance/Reflectance_Data"][()]
        nm = file["SJER/Reflectance/Metadata/Spectral_Data/Wavelength"][()]
    keep = (nm >= 400) & (nm <= 2500) & ~((nm >= 1325) & (nm <= 1465)) & ~((nm >= 1770) & (nm <= 1975))
    assert not keep[(nm > 1340) & (nm < 1445)].any()
    assert not keep[(nm > 1790) & (nm < 1955)].any()
    np.testing.assert_allclose(found.centres, nm[keep])  # type: ignore[arg-type]
    col, row = round(found.geobox.transform.c - 257000), round(4112000 - found.geobox.transform.f)
    assert 10 - 6 <= col <= 10
    assert 10 - 6 <= row <= 10
    height, width = found.geobox.shape
    expected = np.moveaxis(stored[row : row + height, col : col + width], -1, 0)[keep] / 10000
    np.testing.assert_allclose(found.reflectance, expected, atol=1e-6)
    assert found.geobox.crs is not None
    assert found.geobox.crs.epsg == 32611
    assert found.notes == ("no channel widths in the file: 1.15 x the channel spacing is used",)
    np.testing.assert_allclose(found.fwhm, 1.15 * 5.008, rtol=1e-3)  # type: ignore[arg-type]
    assert not found.simulated


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    one = scene(NEON_AOP, GRID.geobox.pad(2))
    back, truth = again(NEON_AOP, one, tmp_path, GRID)
    np.testing.assert_array_equal(np.isnan(back.reflectance), np.isnan(truth))
    assert np.nanmax(np.abs(back.reflectance - truth)) <= 0.5e-4 + 1e-7
    np.testing.assert_allclose(back.fwhm, 5.85)  # type: ignore[arg-type]
    assert back.when.time == one.when.time  # type: ignore[union-attr]


def made(folder: Path) -> tuple[pystac.Item, Path]:
    assert NEON_AOP.write is not None
    item = NEON_AOP.write(scene(NEON_AOP, GRID.geobox), folder)
    return item, Path(item.assets["reflectance"].href)


DATES = "SIMU/Reflectance/Metadata/Ancillary_Imagery/Acquisition_Date"


def test_a_mosaic_of_two_flights_is_dated_per_pixel(tmp_path: Path) -> None:
    item, path = made(tmp_path)
    with h5py.File(path, "a") as file:
        file[DATES][:, :4] = 20190331
        file[DATES][:, 4:] = 20190402
        file[DATES][0, 0] = -9999
    when = NEON_AOP.read(item, GRID).when
    assert isinstance(when, PixelDay)
    assert np.isnat(when.days[0, 0])
    assert (when.days[1:, :4] == np.datetime64("2019-03-31")).all()
    assert (when.days[:, 4:] == np.datetime64("2019-04-02")).all()


def test_the_files_day_wins_over_a_wrong_item(tmp_path: Path) -> None:
    item, _ = made(tmp_path)
    item.datetime = datetime.fromisoformat("2001-01-01T00:00:00+00:00")
    found = NEON_AOP.read(item, GRID)
    assert str(found.when.time)[:10] == "2025-05-05"  # type: ignore[union-attr]
    assert "the item says 2001-01-01, the file 2025-05-05: used" in found.notes


@pytest.mark.parametrize(
    ("name", "time"),
    [
        ("NEON_D17_SJER_DP1_20190415_183012_reflectance.h5", "2019-04-15T18:30:12"),
        ("NEON_D17_SJER_DP1_20190415_reflectance.h5", "2019-04-15T18:00:00"),
        ("NEON_D17_SJER_DP3_257000_4112000_reflectance.h5", None),
        ("NEON_D17_SJER_DP1_20191341_reflectance.h5", None),
    ],
)
def test_without_any_other_date_the_name_is_used(name: str, time: str | None, tmp_path: Path) -> None:
    item, path = made(tmp_path)
    with h5py.File(path, "a") as file:
        del file[DATES]
    item.datetime = None
    item.assets["reflectance"].href = str(path.rename(tmp_path / name))
    if time is None:
        with pytest.raises(SceneError, match="add"):
            NEON_AOP.read(item, GRID)
    else:
        found = NEON_AOP.read(item, GRID)
        assert found.when.time == np.datetime64(time)  # type: ignore[union-attr]
        assert "dated by the file's name" in found.notes


def test_codes_scales_and_angles(tmp_path: Path) -> None:
    item, path = made(tmp_path)
    with h5py.File(path, "a") as file:
        data = file["SIMU/Reflectance/Reflectance_Data"]
        del data.attrs["Scale_Factor"], data.attrs["Data_Ignore_Value"]
        data[5, 5, :] = -9999
        for name, value in (("Zenith", 12.5), ("Azimuth", 101.0)):
            angle = np.full((8, 8), value, dtype=np.float32)
            angle[0, 0] = -9999
            file[f"SIMU/Reflectance/Metadata/to-sensor_{name}_Angle"] = angle
    found = NEON_AOP.read(item, GRID)
    assert np.isnan(found.reflectance[:, 5, 5]).all()
    assert 0.2 < np.nanmedian(found.reflectance) < 0.4
    assert sum("documented" in note for note in found.notes) == 2
    assert found.view is not None
    assert np.isnan(found.view.zenith[0, 0])
    assert (found.view.zenith[1:] == 12.5).all()
    assert (found.view.azimuth[1:] == 101.0).all()


def test_rotated_map_info(tmp_path: Path) -> None:
    """The last number of Map_Info turns the image: (c cos R + r sin R, c sin R - r cos R) from the corner for column c, row r."""
    item, path = made(tmp_path)
    key = "SIMU/Reflectance/Metadata/Coordinate_System/Map_Info"
    with h5py.File(path, "a") as file:
        del file[key]
        file[key] = "UTM, 1.000, 1.000, 480000, 4428008, 1.0, 1.0, 13, North, WGS-84, units=Meters, 30"
    found = NEON_AOP.read(item, window(1.0, 20, corner=(479990.0, 4427996.0)))
    assert found.geobox.shape == (8, 8)
    x, y = found.geobox.transform * (2, 3)
    cos, sin = np.cos(np.pi / 6), np.sin(np.pi / 6)
    assert (x, y) == pytest.approx((480000 + 2 * cos + 3 * sin, 4428008 + 2 * sin - 3 * cos))


@pytest.mark.parametrize("strip", [1 << 26, 1])
def test_metre_pixels_are_averaged_on_the_way_to_a_coarse_grid(
    strip: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For 30 m latent pixels: means of 10 x 10, sigma over sqrt of their number, nothing where less than half is seen."""
    monkeypatch.setattr("sensors.images.STRIP", strip)
    grid = window(30.0, 2)
    one = scene(NEON_AOP, grid.geobox.zoom_out(1 / 30).pad(7))  # 1 m pixels, 7 m around the window
    rho = one.reflectance.copy()
    rho[:, 7:13, 7:17] = np.nan  # six of ten rows of the first block
    rho[:, 17:21, 7:17] = np.nan  # four of ten rows of the one below
    one = replace(one, reflectance=rho)
    assert NEON_AOP.write is not None
    item = NEON_AOP.write(one, tmp_path)
    path = Path(item.assets["reflectance"].href)
    with h5py.File(path, "a") as file:
        file[DATES][:, 37:] = 20250506  # the right half of the window was flown a day later
    found = NEON_AOP.read(item, grid)
    assert found.geobox == grid.geobox.zoom_out(1 / 3)
    assert any("means of 10 x 10" in note for note in found.notes)
    stored = np.where(np.isfinite(rho), np.round(np.nan_to_num(rho) * 1e4) / 1e4, np.nan)
    assert found.centres is not None
    assert one.centres is not None
    for channel in (0, 40, 200):
        source = stored[int(np.abs(one.centres - found.centres[channel]).argmin())]
        for i in range(6):
            for j in range(6):
                block = source[7 + 10 * i : 17 + 10 * i, 7 + 10 * j : 17 + 10 * j]
                count = np.isfinite(block).sum()
                value, sigma = found.reflectance[channel, i, j], found.sigma[channel, i, j]
                if count < 50:
                    assert np.isnan(value)
                    continue
                assert value == pytest.approx(np.nanmean(block), abs=1e-5)
                shoulder = 3 if any(a <= found.centres[channel] <= b for a, b in SHOULDERS) else 1
                assert sigma == pytest.approx(shoulder * (0.002 + 0.02 * value) / np.sqrt(count), rel=1e-4)
    assert np.isnan(found.reflectance[:, 0, 0]).all()
    assert isinstance(found.when, PixelDay)
    assert (found.when.days == np.array([["2025-05-05"] * 3 + ["2025-05-06"] * 3] * 6, dtype="datetime64[D]")).all()


def test_layouts_that_are_none_are_refused(tmp_path: Path) -> None:
    item, path = made(tmp_path)
    with h5py.File(path, "a") as file:
        file.move("SIMU/Reflectance", "SIMU/Radiance")
    with pytest.raises(SceneError, match="is it a NEON reflectance file"):
        NEON_AOP.read(item, GRID)
    turned = GeoBox((8, 8), Affine(1, 0.1, 480000, 0.1, -1, 4428008), "EPSG:32613")
    assert NEON_AOP.write is not None
    with pytest.raises(SceneError, match="north-up"):
        NEON_AOP.write(scene(NEON_AOP, turned), tmp_path)
    with pytest.raises(SceneError, match="WGS 84 / UTM"):
        NEON_AOP.write(scene(NEON_AOP, GeoBox((8, 8), GRID.transform, "EPSG:5070")), tmp_path)
