"""Bad input, for every installed sensor: a clear error or a recovery that the Scene notes; never a crash, never wrong numbers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pystac
import pytest
import rasterio
from odc.geo.geobox import GeoBox

from fusion.cube.calendar import Calendar, centre_of
from fusion.cube.cube import Cube
from fusion.cube.grid import Grid
from fusion.cube.spectrum import SpectralBasis
from fusion.errors import SceneError, SensorError
from fusion.observe.observation import looks
from fusion.observe.scene import Scene
from fusion.observe.sensor import Sensor, sensor, sensors
from fusion.testing import default_window, example_scene
from sensors.writing import write_tif

NAMES = sorted(sensors())


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Sensor, pystac.Item, Grid]]:
    """One good simulated scene of every sensor, written once; each call gives a fresh item of it."""
    made: dict[str, tuple[pystac.Item, Grid]] = {}

    def of(name: str) -> tuple[Sensor, pystac.Item, Grid]:
        one = sensor(name)
        if name not in made:
            grid = default_window(one)
            assert one.write is not None
            item = one.write(example_scene(one, grid), tmp_path_factory.mktemp(name))
            item.save_object(include_self_link=True)
            made[name] = item, grid
        item, grid = made[name]
        return one, item.clone(), grid

    return of


def damage(item: pystac.Item, folder: Path, spoil: Callable[[Path], None]) -> pystac.Item:
    """The item with every asset copied into `folder` and spoilt there."""
    for asset in item.assets.values():
        source = Path(asset.href)
        for part in {source, *source.parent.glob(f"{source.stem}.*")}:  # an ENVI header travels with its image
            shutil.copy(part, folder / part.name)
        target = folder / source.name
        spoil(target)
        asset.href = str(target)
    return item


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def login_page(path: Path) -> None:
    path.write_text("<!DOCTYPE html><html><body>Please log in to download this file</body></html>")


@pytest.mark.parametrize("spoil", [cut, empty, login_page, Path.unlink], ids=["cut short", "empty", "a login page", "gone"])
@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_scene_errors(name: str, spoil: Callable[[Path], None], archive: Any, tmp_path: Path) -> None:
    """A permanent failure of one scene, with its name in the message: the job records it and goes on."""
    one, item, grid = archive(name)
    with pytest.raises(SceneError, match=rf"{name}.*{item.id}"):
        one.read(damage(item, tmp_path, spoil), grid)


@pytest.mark.parametrize("name", NAMES)
def test_an_item_without_its_assets_says_what_is_missing(name: str, archive: Any) -> None:
    one, item, grid = archive(name)
    item.assets = {"thumbnail": pystac.Asset("thumbnail.png")}
    with pytest.raises(SceneError, match="thumbnail"):
        one.read(item, grid)


CLOUDY = {  # the stored numbers of a quality layer all in cloud, by asset key
    "landsat": {"qa_pixel": 22280}, "sentinel-2": {"scl": 9}, "hls": {"Fmask": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith(tuple(CLOUDY))])
def test_an_all_cloud_scene_weighs_nothing(name: str, archive: Any, tmp_path: Path) -> None:
    """No exception from file to observation: every precision is zero."""
    one, item, grid = archive(name)
    layers = next(v for k, v in CLOUDY.items() if name.startswith(k))
    for key, value in layers.items():
        with rasterio.open(item.assets[key].href) as file:
            box, dtype = GeoBox(file.shape, file.transform, file.crs), file.dtypes[0]
        item.assets[key].href = str(write_tif(tmp_path / f"{key}.tif", np.full(tuple(box.shape), value, dtype=dtype), box))
    scene = one.read(item, grid)
    assert scene.seen == 0.0
    times = np.array([centre_of(scene.when)])
    cube = Cube(grid, Calendar(times), SpectralBasis.library(4))
    for look in looks(scene, one, cube):
        assert (np.asarray(look.precision) == 0).all()
        assert np.isfinite(np.asarray(look.data)).all()


def test_an_all_nothing_flight_is_refused_or_weighs_nothing(archive: Any, tmp_path: Path) -> None:
    one, item, grid = archive("neon-aop")
    copy = tmp_path / "flight.h5"
    shutil.copy(item.assets["reflectance"].href, copy)
    item.assets["reflectance"].href = str(copy)
    with h5py.File(copy, "a") as file:
        file["SIMU/Reflectance/Reflectance_Data"][:] = -9999
    scene = one.read(item, grid)
    assert scene.seen == 0.0


# one band of a GeoTIFF archive, changed --------------------------------------------------------------------------------

GEOTIFF = {"landsat-8": "red", "landsat-5": "nir08", "sentinel-2b": "swir16", "hls-l30": "B04", "hls-s30": "B8A"}


def rewrite(item: pystac.Item, key: str, folder: Path, change: Callable[[Any], Any], **tif: Any) -> None:
    with rasterio.open(item.assets[key].href) as file:
        values, box, fill = change(file.read(1)), GeoBox(file.shape, file.transform, tif.pop("crs", file.crs)), file.nodata
    item.assets[key].href = str(write_tif(folder / "changed.tif", values, box, fill=tif.pop("fill", fill), **tif))
    item.assets[key].extra_fields.pop("raster:bands", None)


def changed(archive: Any, name: str, folder: Path, change: Any = lambda v: v, **tif: Any) -> tuple[Scene, Scene]:
    """(the good scene, the scene with one layer changed)."""
    one, item, grid = archive(name)
    good = one.read(item, grid)
    rewrite(item, GEOTIFF[name], folder, change, **tif)
    return good, one.read(item, grid)


def same(good: Scene, found: Scene) -> None:
    np.testing.assert_allclose(found.reflectance, good.reflectance, atol=1e-6)
    np.testing.assert_allclose(found.sigma, good.sigma, rtol=1e-4)


@pytest.mark.parametrize("name", list(GEOTIFF))
def test_undeclared_nodata_and_scale_are_the_documented_ones(name: str, archive: Any, tmp_path: Path) -> None:
    good, found = changed(archive, name, tmp_path, fill=None)
    same(good, found)
    assert any("no nodata declared" in note for note in found.notes)
    assert any("no scale declared" in note for note in found.notes)


@pytest.mark.parametrize("name", list(GEOTIFF))
def test_numbers_kept_in_another_integer_or_whole_floats_are_read(name: str, archive: Any, tmp_path: Path) -> None:
    for dtype in ("int32", "float32"):
        good, found = changed(archive, name, tmp_path, lambda v, d=dtype: v.astype(d))
        same(good, found)
        assert any(f"holds {dtype} instead of" in note for note in found.notes)


@pytest.mark.parametrize("name", list(GEOTIFF))
def test_rendered_or_converted_numbers_are_refused(name: str, archive: Any, tmp_path: Path) -> None:
    """An 8-bit picture and reflectance as fractions are other numbers, not other types of the same."""
    for change in (lambda v: (v // 256).astype("uint8"), lambda v: (v * 1e-4).astype("float32"), lambda v: v.astype("complex64")):
        with pytest.raises(SceneError, match="converted or rendered"):
            changed(archive, name, tmp_path, change, fill=0)


@pytest.mark.parametrize("name", list(GEOTIFF))
def test_a_scale_of_another_product_is_refused(name: str, archive: Any, tmp_path: Path) -> None:
    with pytest.raises(SceneError, match="declares scale"):
        changed(archive, name, tmp_path, scale=0.0123)


@pytest.mark.parametrize("name", ["hls-l30", "hls-s30"])
def test_a_divisor_declared_as_scale_is_noted(name: str, archive: Any, tmp_path: Path) -> None:
    good, found = changed(archive, name, tmp_path, scale=10000.0)
    same(good, found)
    assert any("a divisor" in note for note in found.notes)


@pytest.mark.parametrize("offset", [-0.4, 0.2])
def test_a_doubled_or_absent_offset_is_refused_where_the_product_has_one(offset: float, archive: Any, tmp_path: Path) -> None:
    with pytest.raises(SceneError, match="absent or applied twice"):
        changed(archive, "landsat-8", tmp_path, scale=2.75e-5, offset=offset)


def test_sentinel_2_offsets_are_decided_by_the_baseline_alone(archive: Any, tmp_path: Path) -> None:
    """Earth Search's files with the offset applied, still declared: read once, and said."""
    one, item, grid = archive("sentinel-2b")
    good = one.read(item, grid)
    for key in (k for k in item.assets if k != "scl"):
        rewrite(item, key, tmp_path / key, lambda v: np.where(v == 0, 0, v - 1000).astype(v.dtype), scale=1e-4, offset=-0.1)
    item.properties["earthsearch:boa_offset_applied"] = True
    found = one.read(item, grid)
    same(good, found)
    assert any("applied the offset itself" in note for note in found.notes)


@pytest.mark.parametrize("name", list(GEOTIFF))
def test_a_missing_crs_comes_from_the_item_or_is_asked_for(name: str, archive: Any, tmp_path: Path) -> None:
    good, found = changed(archive, name, tmp_path, crs=None)
    same(good, found)
    assert any("no CRS of its own" in note for note in found.notes)
    one, item, grid = archive(name)
    rewrite(item, GEOTIFF[name], tmp_path, lambda v: v, crs=None)
    for key in [k for k in item.properties if k.startswith("proj:")]:
        del item.properties[key]
    with pytest.raises(SceneError, match="add one to the item"):
        one.read(item, grid)


@pytest.mark.parametrize(("name", "key"), [("landsat-8", "qa_pixel"), ("hls-l30", "Fmask")])
def test_a_quality_layer_that_is_no_bit_field_is_refused(name: str, key: str, archive: Any, tmp_path: Path) -> None:
    one, item, grid = archive(name)
    rewrite(item, key, tmp_path, lambda v: v.astype("float32"))
    with pytest.raises(SceneError, match="bits need integers"):
        one.read(item, grid)


def test_a_scene_without_any_time_is_refused(archive: Any) -> None:
    one, item, grid = archive("landsat-8")
    item.datetime = None
    with pytest.raises(SceneError, match="neither datetime nor start_datetime"):
        one.read(item, grid)


@pytest.mark.parametrize(
    ("name", "key"), [("neon-aop", "SIMU/Reflectance/Metadata/Spectral_Data"), ("emit", "sensor_band_parameters")]
)
def test_micrometres_for_nanometres(name: str, key: str, archive: Any, tmp_path: Path) -> None:
    one, item, grid = archive(name)
    good = one.read(item, grid)

    def spoil(path: Path) -> None:
        with h5py.File(path, "a") as file:
            for dataset in file[key].values():
                if dataset.dtype.kind == "f" and dataset.size > 100:
                    dataset[()] = dataset[()] / 1000

    found = one.read(damage(item, tmp_path, spoil), grid)
    np.testing.assert_allclose(found.centres, good.centres)
    np.testing.assert_allclose(found.fwhm, good.fwhm)
    assert any("micrometres" in note for note in found.notes)


@pytest.mark.parametrize("name", [n for n in NAMES if sensor(n).bands])
def test_an_unknown_band_names_the_known(name: str) -> None:
    one = sensor(name)
    with pytest.raises(SensorError, match="did you mean 'red'"):
        one.band("redd")
    with pytest.raises(SensorError, match="Its bands: "):
        one.band("thermal-9")


def test_a_scene_far_from_unity_is_refused() -> None:
    """The last net: reflectance whose median is not on the 0..1 scale never becomes a Scene."""
    one = sensor("landsat-8")
    good = example_scene(one, default_window(one))
    with pytest.raises(SceneError, match=r"not on the 0\.\.1 scale"):
        Scene(good.sensor, good.id, good.bands, good.reflectance * 1e4, good.sigma * 1e4, good.geobox, good.when)
