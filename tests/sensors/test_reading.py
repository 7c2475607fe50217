"""Laws of the shared reader: windows, recovery of what files leave unsaid, radiometry and quality bits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from fusion.cube.grid import Grid
from fusion.cube.spectrum import Response
from fusion.errors import SceneError
from fusion.observe.sensor import Band, Noise
from sensors import reading
from sensors.hdfeos import native, sinusoidal
from sensors.reading import Flag, Plane, Storage, assemble, calibrate, crs_of, instant, judge, onto, planes, window_of
from sensors.writing import write_tif
from tests.sensors.making import UTM, inside, item_of

WHERE = "camera scene X"
SR = Storage(1e-4, fill=(-28672,), valid=(-100, 16000))


def plane_of(values: object, **declared: object) -> Plane:
    array = np.atleast_2d(np.array(values))
    return Plane(array, UTM[: array.shape[0], : array.shape[1]], href="a.tif", **declared)


# --- windows ---------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.floats(-170, 170), st.floats(-65, 65), st.floats(0, 1500), st.floats(1000, 30000))
def test_every_native_pixel_within_reach_is_in_the_window(lon: float, lat: float, reach: float, size: float) -> None:
    degrees = size / 111_320
    grid = Grid.from_bbox((lon, lat, lon + degrees / np.cos(np.radians(lat)), lat + degrees), resolution=size / 20)
    whole = GeoBox((36, 72), Affine(555_975.25983, 0, -20015109.354, 0, -555_975.25983, 10007554.677), sinusoidal()).zoom_to(
        shape=(18 * 240, 36 * 240)
    )
    rows, cols = window_of(whole, grid, reach)
    row, col = np.meshgrid(np.arange(rows.start - 3, rows.stop + 3), np.arange(cols.start - 3, cols.stop + 3), indexing="ij")
    x, y = whole.transform * (col + 0.5, row + 0.5)
    to_grid = Transformer.from_crs(sinusoidal().proj, grid.crs.proj, always_xy=True)
    gx, gy = to_grid.transform(x, y)
    west, south, east, north = grid.bounds
    near = (gx > west - reach) & (gx < east + reach) & (gy > south - reach) & (gy < north + reach)
    taken = (row >= rows.start) & (row < rows.stop) & (col >= cols.start) & (col < cols.stop)
    assert not (near & ~taken).any()


def test_a_scene_elsewhere_yields_its_nearest_pixel() -> None:
    grid = Grid(GeoBox((10, 10), Affine(30, 0, 900_000, 0, -30, 4_600_000), "EPSG:32613"))
    rows, cols = window_of(UTM, grid, 50.0)
    assert (rows, cols) == (slice(0, 1), slice(49, 50))


def test_a_rotated_native_grid_is_windowed_by_its_affine() -> None:
    turned = GeoBox((200, 200), Affine.translation(500_000, 4_500_000) * Affine.rotation(30) * Affine.scale(5, -5), "EPSG:32613")
    x, y = turned.transform * (100, 100)
    grid = Grid(GeoBox((4, 4), Affine(5, 0, x - 10, 0, -5, y + 10), "EPSG:32613"))
    rows, cols = window_of(turned, grid, 0.0)
    assert rows.start <= 97
    assert rows.stop >= 103
    assert cols.start <= 97
    assert cols.stop >= 103
    assert rows.stop - rows.start < 12


# --- what files leave unsaid -----------------------------------------------------------------------------------------


def test_crs_comes_from_the_file_then_asset_then_item(shared: Path) -> None:
    genuine = pystac.Item.from_dict(json.loads((shared / "data/stac/pc_modis-43A4-061_MCD43A4.A2022032.h14v10.json").read_text()))
    assert not genuine.properties.get("proj:epsg")
    assert not genuine.properties.get("proj:code")
    found = crs_of(genuine, genuine.assets["Nadir_Reflectance_Band1"], None, WHERE)
    lon, lat = Transformer.from_crs(found.proj, "EPSG:4326", always_xy=True).transform(-4447802.078667, -1111950.519667)
    assert lat == pytest.approx(-10.0, abs=1e-9)
    assert lon == pytest.approx(-40.0 / np.cos(np.radians(10)), abs=1e-6)
    assert crs_of(item_of({}, **{"proj:code": "EPSG:32613"}), None, None, WHERE).epsg == 32613
    assert crs_of(item_of({}, **{"proj:epsg": 32613}), None, rasterio.CRS.from_epsg(32614), WHERE).epsg == 32614
    asset = pystac.Asset("a.tif", extra_fields={"proj:epsg": 32615})
    assert crs_of(item_of({}, **{"proj:epsg": 32613}), asset, None, WHERE).epsg == 32615


@pytest.mark.parametrize(("fields", "message"), [({}, "no CRS"), ({"proj:code": "EPSG:nonsense"}, "not understood")])
def test_no_crs_anywhere_is_said(fields: dict[str, object], message: str) -> None:
    with pytest.raises(SceneError, match=message):
        crs_of(item_of({}, **fields), None, None, WHERE)


def test_georeferencing_is_recovered_from_the_item_and_noted(tmp_path: Path) -> None:
    values = np.arange(2000, dtype=np.int16).reshape(40, 50)
    with rasterio.open(tmp_path / "bare.tif", "w", driver="GTiff", height=40, width=50, count=1, dtype="int16") as file:
        file.write(values, 1)
    fields = {"proj:epsg": 32613, "proj:transform": list(UTM.transform[:6]), "proj:shape": [40, 50]}
    found = planes(item_of({"red": str(tmp_path / "bare.tif")}, **fields), {"red": ("red",)}, inside(UTM, 10), 0.0, WHERE)["red"]
    assert len(found.notes) == 2
    row, col = (round(v) for v in reversed(~UTM.transform * (found.geobox.transform.c, found.geobox.transform.f)))
    assert np.array_equal(found.values, values[row : row + found.values.shape[0], col : col + found.values.shape[1]])
    lost = item_of({"red": str(tmp_path / "bare.tif")}, **{"proj:code": "EPSG:32613"})
    with pytest.raises(SceneError, match="proj:transform"):
        planes(lost, {"red": ("red",)}, inside(UTM, 10), 0.0, WHERE)


def test_stac_declarations_stand_in_for_silent_files(tmp_path: Path) -> None:
    write_tif(tmp_path / "a.tif", np.zeros((40, 50), dtype=np.int16), UTM)
    item = item_of({"red": str(tmp_path / "a.tif")})
    item.assets["red"].extra_fields["raster:bands"] = [{"nodata": 7, "scale": 0.5, "offset": -1}]
    told = planes(item, {"red": ("red",)}, inside(UTM, 1), 0.0, WHERE)["red"]
    assert (told.fill, told.scale, told.offset) == (7, 0.5, -1)
    write_tif(tmp_path / "a.tif", np.zeros((40, 50), dtype=np.int16), UTM, fill=9, scale=0.25, offset=2.0)
    own = planes(item, {"red": ("red",)}, inside(UTM, 1), 0.0, WHERE)["red"]
    assert (own.fill, own.scale, own.offset) == (9, 0.25, 2.0)


# --- radiometry ------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(-32768, 32767), min_size=1, max_size=40), st.sampled_from([(1e-4, 0.0), (2.75e-5, -0.2)]))
def test_reflectance_is_scale_times_stored_plus_offset(stored: list[int], numbers: tuple[float, float]) -> None:
    storage = Storage(*numbers, fill=(-28672,), valid=(-100, 16000))
    plane = plane_of(np.array(stored, dtype=np.int16), fill=-28672.0, scale=numbers[0], offset=numbers[1])
    rho, notes = calibrate(plane, storage, WHERE)
    for value, got in zip(stored, rho[0], strict=True):
        if value == -28672 or not -100 <= value <= 16000:
            assert np.isnan(got)
        else:
            assert got == pytest.approx(numbers[0] * value + numbers[1], abs=2e-7)
    assert rho.dtype == np.float32
    assert notes == ()


def test_nothing_declared_falls_back_on_the_documented_numbers_with_notes() -> None:
    rho, notes = calibrate(plane_of(np.array([1000, -28672], dtype=np.int16)), SR, WHERE)
    assert rho[0, 0] == np.float32(0.1)
    assert np.isnan(rho[0, 1])
    assert len(notes) == 2
    assert "no scale declared" in notes[0]
    assert "no nodata declared" in notes[1]


def test_a_divisor_declared_as_scale_is_recognised() -> None:
    rho, notes = calibrate(plane_of(np.array([1000], dtype=np.int16), fill=-28672.0, scale=10000.0), SR, WHERE)
    assert rho[0, 0] == np.float32(0.1)
    assert "divisor" in notes[0]


@pytest.mark.parametrize(
    ("declared", "storage"),
    [
        ({"scale": 2.75e-5, "offset": -0.2}, SR),  # another collection
        ({"scale": 1e-4, "offset": -0.1}, SR),  # an offset declared although the archive has applied it
        ({"scale": 1e-4}, Storage(1e-4, -0.1, dtypes=("int16",))),  # an offset that should be there and is not
    ],
)
def test_a_declaration_that_contradicts_the_product_is_refused(declared: dict[str, float], storage: Storage) -> None:
    with pytest.raises(SceneError, match="collection"):
        calibrate(plane_of(np.array([1000], dtype=np.int16), **declared), storage, WHERE)


def test_a_doubled_offset_of_a_genuine_item_is_refused(shared: Path) -> None:
    item = pystac.Item.from_dict(json.loads((shared / "data/stac/live_es_item_sentinel-2-l2a.json").read_text()))
    assert item.properties["earthsearch:boa_offset_applied"] is True
    told = item.assets["red"].extra_fields["raster:bands"][0]
    plane = plane_of(np.array([1000], dtype=np.uint16), scale=told["scale"], offset=told["offset"])
    with pytest.raises(SceneError, match="applied twice"):
        calibrate(plane, Storage(1e-4, 0.0, dtypes=("uint16",)), WHERE)


def test_wrong_dtypes() -> None:
    with pytest.raises(SceneError, match="uint8"):
        calibrate(plane_of(np.array([100], dtype=np.uint8), scale=1e-4), SR, WHERE)
    with pytest.raises(SceneError, match="float32"):
        calibrate(plane_of(np.array([0.1234], dtype=np.float32)), SR, WHERE)
    rho, notes = calibrate(plane_of(np.array([1234.0, np.nan], dtype=np.float32), fill=-28672.0, scale=1e-4), SR, WHERE)
    assert rho[0, 0] == np.float32(0.1234)
    assert np.isnan(rho[0, 1])
    assert "float32" in notes[0]


# --- quality bits ----------------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=30),
    st.lists(
        st.tuples(st.integers(0, 28), st.integers(1, 4), st.sets(st.integers(0, 15)), st.sampled_from([None, 2.0, 3.0])),
        max_size=4,
    ),
)
def test_bits_are_judged_as_written(words: list[int], rules: list[tuple[int, int, set[int], float | None]]) -> None:
    flags = [Flag(first, count, tuple(accept), inflate) for first, count, accept, inflate in rules]
    keep, inflate = judge(np.array([words], dtype=np.uint32), flags)
    for n, word in enumerate(words):
        kept, factor = True, 1.0
        text = f"{word:032b}"[::-1]  # bit 0 first
        for first, count, accept, widen in rules:
            value = int(text[first : first + count][::-1], 2)
            if value not in accept:
                kept, factor = (False, factor) if widen is None else (kept, factor * widen)
        assert bool(keep[0, n]) is kept
        assert inflate[0, n] == factor


def test_a_float_quality_layer_is_refused() -> None:
    with pytest.raises(SceneError, match="integers"):
        judge(np.zeros((2, 2)), (Flag(0, 1, (0,)),))


def test_a_coarse_layer_is_looked_up_at_fine_centres() -> None:
    coarse = Plane(np.arange(12).reshape(3, 4), UTM[:6, :8].zoom_out(2))
    assert np.array_equal(onto(coarse, UTM[:6, :8]), np.kron(np.arange(12).reshape(3, 4), np.ones((2, 2), dtype=int)))
    assert np.array_equal(onto(coarse, UTM[1:5, 3:6]), np.kron(np.arange(12).reshape(3, 4), np.ones((2, 2), dtype=int))[1:5, 3:6])
    with pytest.raises(SceneError, match="mixes grids"):
        onto(coarse, GeoBox((2, 2), UTM.transform, "EPSG:32614"))


def test_the_scene_has_the_noise_of_its_bands_and_one_mask() -> None:
    bands = (
        Band("red", Response.gaussian(660, 20.0), Noise(0.01, 0.1)),
        Band("nir08", Response.gaussian(860, 20.0), Noise(0.02, 0.0)),
    )
    rho = np.array([[[0.2, -0.01]], [[0.4, np.nan]]], dtype=np.float32)
    scene = assemble("camera", bands, item_of({}, **{"fusion:simulated": True}), rho, UTM[:1, :2], instant(item_of({})),
                     keep=np.array([[True, True]]), inflate=np.array([[2.0, 3.0]], dtype=np.float32))  # fmt: skip
    assert np.allclose(scene.sigma[0, 0], [2 * (0.01 + 0.1 * 0.2), 3 * 0.01])
    assert scene.sigma[1, 0, 0] == np.float32(0.04)
    assert scene.simulated
    assert scene.when.time == np.datetime64("2020-06-01T17:30")
    hidden = assemble("camera", bands, item_of({}), rho, UTM[:1, :2], instant(item_of({})), keep=np.array([[False, True]]))
    assert np.isnan(hidden.reflectance[:, 0, 0]).all()
    assert np.isfinite(hidden.reflectance[0, 0, 1])


# --- windows that cannot be ----------------------------------------------------------------------------------------


def test_a_window_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LARGEST_PLANE", 100)
    write_tif(tmp_path / "a.tif", np.zeros((40, 50), dtype=np.int16), UTM)
    with pytest.raises(SceneError, match="smaller tiles"):
        planes(item_of({"red": str(tmp_path / "a.tif")}), {"red": ("red",)}, inside(UTM, 1), 0.0, WHERE)


def test_native_modis_cells_lie_on_the_tile_grid_and_cover_the_window() -> None:
    grid = Grid.from_bbox((-105.05, 39.98, -104.95, 40.05))
    box = native(grid)
    left = (box.transform.c + 20015109.354) / (1111950.5196667 / 1200)
    top = (10007554.677 - box.transform.f) / (1111950.5196667 / 1200)
    assert abs(left - round(left)) < 1e-5
    assert abs(top - round(top)) < 1e-5
    assert box.shape[0] % 2 == 0
    assert box.shape[1] % 2 == 0
    assert box.extent.contains(grid.geobox.extent.to_crs(box.crs, resolution=500))
