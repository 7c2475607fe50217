"""VIIRS: HDF-EOS5 granules written and read back, quality fields as the user guide has them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from fusion.cube.calendar import Instant, Window
from fusion.cube.grid import Grid
from fusion.errors import SceneError
from fusion.observe.sensor import Sensor
from fusion.testing import example_scene
from sensors import viirs

HERE = Grid.from_bbox((-105.03, 40.0, -105.0, 40.02))


@pytest.mark.parametrize("sensor", [viirs.VNP43, viirs.VNP09], ids=lambda s: s.name)
def test_read_of_write_is_the_scene_up_to_quantisation(sensor: Sensor, tmp_path: Path) -> None:
    scene = example_scene(sensor, HERE)
    back = sensor.read(sensor.write(scene, tmp_path), HERE)
    assert back.reflectance == pytest.approx(scene.reflectance, abs=5.01e-5, nan_ok=True)
    assert back.sigma == pytest.approx(scene.sigma, rel=2e-3, nan_ok=True)
    assert back.geobox.shape == scene.geobox.shape
    if sensor is viirs.VNP09:
        assert back.when == scene.when
    else:
        day = scene.when.time.astype("datetime64[D]").astype("datetime64[us]")
        eight, seven = np.timedelta64(8, "D"), np.timedelta64(7, "D")
        assert back.when == Window(day - eight, day + seven, day, 8.0)


@pytest.mark.parametrize(
    ("field", "bits", "kept", "factor"),
    [("QF1", 0b0100, True, 1), ("QF1", 0b1000, False, 1), ("QF1", 0b1100, False, 1), ("QF1", 0b10000, False, 1),
     ("QF2", 0b1000, False, 1), ("QF2", 0b10000, False, 1), ("QF2", 0b100000, True, 1), ("QF2", 0b1000000, False, 1),
     ("QF7", 0b10, True, 2), ("QF7", 0b1000, True, 1), ("QF7", 0b1100, False, 1)],
)  # fmt: skip
def test_daily_quality_fields(field: str, bits: int, kept: bool, factor: int, tmp_path: Path) -> None:
    """QF1 cloud (2-3), night (4); QF2 shadow, aerosol, snow, cirrus (3, 4, 5, 6); QF7 next to cloud (1), aerosol (2-3)."""
    scene = example_scene(viirs.VNP09, HERE)
    flat = replace(scene, reflectance=np.full_like(scene.reflectance, 0.2), sigma=np.ones_like(scene.sigma))
    item = viirs.VNP09.write(flat, tmp_path)
    with h5py.File(item.assets["data"].href, "r+") as file:
        file[f"HDFEOS/GRIDS/VNP_Grid_500m_2D/Data Fields/SurfReflect_{field}_1"][3, 4] = bits
    back = viirs.VNP09.read(item, HERE)
    expected = np.ones(scene.geobox.shape)
    expected[3, 4] = factor if kept else np.nan
    assert back.sigma[1] / (0.003 + 0.03 * 0.2) == pytest.approx(expected, rel=1e-5, nan_ok=True)


def test_magnitude_inversions_are_widened_and_fill_is_no_look(tmp_path: Path) -> None:
    scene = example_scene(viirs.VNP43, HERE)
    flat = replace(scene, reflectance=np.full_like(scene.reflectance, 0.2), sigma=np.ones_like(scene.sigma))
    item = viirs.VNP43.write(flat, tmp_path)
    with h5py.File(item.assets["data"].href, "r+") as file:
        quality = file["HDFEOS/GRIDS/VIIRS_Grid_BRDF/Data Fields/BRDF_Albedo_Band_Mandatory_Quality_I2"]
        quality[0, 0], quality[0, 1] = 1, 255
    back = viirs.VNP43.read(item, HERE)
    assert back.sigma[1, 0, 0] == pytest.approx(2 * back.sigma[1, 1, 1])
    assert np.isnan(back.reflectance[1, 0, 1])
    assert np.isfinite(back.reflectance[0]).all()


def test_a_damaged_granule_is_said_to_be_damaged(tmp_path: Path) -> None:
    item = viirs.VNP09.write(example_scene(viirs.VNP09, HERE), tmp_path)
    path = Path(item.assets["data"].href)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(SceneError, match="truncated"):
        viirs.VNP09.read(item, HERE)


def test_bands_and_time() -> None:
    assert [round(b.response.centroid) for b in viirs.VNP09.bands] == pytest.approx([642, 867, 1602], abs=10)
    assert isinstance(example_scene(viirs.VNP09, HERE).when, Instant)
