"""MODIS: genuine files against direct reads, quality bits against the guides, written scenes against themselves."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from datetime import date, datetime, timezone
from pathlib import Path

import numpy as np
import pyproj
import pystac
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyhdf.SD import SD

from fusion.cube.calendar import Instant, PixelDay, Window
from fusion.cube.grid import Grid
from fusion.errors import SceneError
from fusion.observe.scene import Scene, View
from fusion.observe.sensor import Sensor
from fusion.testing import example_scene
from sensors import modis
from sensors.hdfeos import granule_planes, native, parse_structure, sinusoidal, structure, tile_name, write_hdf4
from sensors.modis_files import write_daily, write_nbar
from sensors.modis_layers import scan_azimuth

ALL = (modis.MCD43A4, modis.MOD09A1, modis.MYD09A1, modis.MOD09GA, modis.MYD09GA)
HERE = Grid.from_bbox((-105.03, 40.0, -105.0, 40.02))


def item_of(name: str, day: str, assets: dict[str, Path], **properties: object) -> pystac.Item:
    item = pystac.Item(name, None, None, datetime.fromisoformat(day).replace(tzinfo=timezone.utc), dict(properties))
    for key, path in assets.items():
        item.add_asset(key, pystac.Asset(str(path)))
    return item


def patch(geobox: GeoBox, rows: slice, cols: slice) -> Grid:
    """A latent grid over a block of sinusoidal cells: UTM where the block lies, 100 m pixels."""
    box = geobox[rows, cols].extent.to_crs("EPSG:4326").boundingbox
    return Grid.from_bbox((box.left, box.bottom, box.right, box.top), resolution=100.0)


# --- genuine files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def pamplona(shared: Path, tmp_path: Path) -> pystac.Item:
    """One day of MOD09GA as GeoTIFFs (10 August 2021, near Pamplona)."""
    with zipfile.ZipFile(shared / "data/modis_native/MOD09GA_Pamplona_2021222.zip") as archive:
        archive.extractall(tmp_path / "day")
    assets = {path.stem.split("2D_")[1]: path for path in (tmp_path / "day").rglob("*.tif")}
    return item_of("MOD09GA.A2021222.h17v04.006", "2021-08-10", assets)


def test_daily_geotiffs_are_read_as_they_are(pamplona: pystac.Item) -> None:
    grid = Grid.from_bbox((-1.75, 42.75, -1.65, 42.8))
    scene = modis.MOD09GA.read(pamplona, grid)
    for n, label in ((0, "b01"), (5, "b06")):
        with rasterio.open(pamplona.assets[f"sur_refl_{label}_1"].href) as file:
            stored = file.read(1)
            col, row = ~file.transform * (scene.geobox.transform.c, scene.geobox.transform.f)
        h, w = scene.geobox.shape
        direct = stored[round(row) : round(row) + h, round(col) : round(col) + w] / 10_000
        seen = np.isfinite(scene.reflectance[n])
        assert seen.mean() > 0.7
        assert np.abs(scene.reflectance[n] - direct)[seen].max() < 1e-6
    assert any("divisor" in note for note in scene.notes)
    assert scene.view is not None
    assert scene.view.zenith.min() > 53
    assert scene.view.coverage is not None
    assert scene.view.coverage.min() >= 0.05
    assert scene.view.coverage.max() <= 0.20
    assert isinstance(scene.when, Instant)
    assert scene.when.time.astype("datetime64[h]") == np.datetime64("2021-08-10T10")


def test_an_oblique_look_counts_once_though_it_fills_many_cells(pamplona: pystac.Item) -> None:
    """By the file's own share of an observation per cell; where a file has none, by the footprint's growth, which agrees."""
    grid = Grid.from_bbox((-1.75, 42.75, -1.65, 42.8))
    told = modis.MOD09GA.read(pamplona, grid)
    assert told.view is not None
    assert told.view.coverage is not None
    del pamplona.assets["obscov_500m_1"]
    silent = modis.MOD09GA.read(pamplona, grid)
    assert silent.view is not None
    assert silent.view.coverage is None
    widened = float(np.nanmedian((silent.sigma / told.sigma) ** 2))
    whole = float(np.nanquantile(told.view.coverage, 0.95))  # a footprint that holds its whole cell: cell area / its own area
    assert widened == pytest.approx(463.3**2 / 500**2 / whole, rel=0.15)


def test_the_scan_azimuth_agrees_with_the_files(pamplona: pystac.Item) -> None:
    grid = Grid.from_bbox((-1.75, 42.75, -1.65, 42.8))
    scene = modis.MOD09GA.read(pamplona, grid)
    assert scene.view is not None
    told = float(np.nanmean(scene.view.azimuth)) % 180
    assert scan_azimuth(grid, ascending=False) == pytest.approx(told, abs=6)


def test_eight_day_granule_pixels_keep_their_own_day(shared: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(next((shared / "data/modis_native").glob("MOD09A1*.zip"))) as archive:
        archive.extractall(tmp_path)
    path = next(tmp_path.glob("*.hdf"))
    grid = Grid.from_bbox((9.8, 46.0, 9.95, 46.1))
    scene = modis.MOD09A1.read(item_of("MOD09A1.A2017193.h18v04.006", "2017-07-12", {"hdf": path}), grid)
    file = SD(str(path))
    stored, days, state, qc = (file.select(f"sur_refl_{n}")[:] for n in ("b02", "day_of_year", "state_500m", "qc_500m"))
    left, top = 753346.477074, 5132114.960978
    col, row = round((scene.geobox.transform.c - left) / 463.3127), round((top - scene.geobox.transform.f) / 463.3127)
    block = (slice(row, row + scene.geobox.shape[0]), slice(col, col + scene.geobox.shape[1]))
    bits, q = state[block].astype(int), qc[block].astype(np.int64)
    good = np.isin(bits & 3, (0, 3)) & (bits >> 2 & 1 == 0) & (bits >> 6 & 3 != 3) & (bits >> 8 & 3 < 2) & (bits >> 10 & 1 == 0)
    good &= (bits >> 13 & 1 == 0) & (q & 3 < 2) & np.isin(q >> 6 & 15, (0, 7, 8, 9, 10))
    good &= (stored[block] >= -100) & (stored[block] <= 16000)
    assert 0.3 < good.mean() < 1.0
    assert np.array_equal(np.isfinite(scene.reflectance[1]), good)
    assert np.abs(scene.reflectance[1] - stored[block] * 1e-4)[good].max() < 1e-6
    assert isinstance(scene.when, PixelDay)
    assert np.array_equal(scene.when.days[good], (np.datetime64("2017-01-01") + days[block].astype(int) - 1)[good])
    assert len(np.unique(scene.when.days[good])) > 1


def test_a_whole_daily_granule_in_antarctica(shared: Path) -> None:
    """Three pixels of 5.8 million pass: row 88, columns 2373-2375."""
    path = next((shared / "data/modis_native").glob("MOD09GA*.hdf"))
    item = item_of("MOD09GA.A2008296.h14v17.006", "2008-10-22", {"hdf": path})
    tile = GeoBox((2400, 2400), Affine(463.3127165279, 0, -4447802.078667, 0, -463.3127165279, -8895604.157333), sinusoidal())
    assert tile_name(tile) == "h14v17"
    x, y = pyproj.Transformer.from_crs(tile.crs.proj, "EPSG:3031", always_xy=True).transform(*(tile.transform * (2374.5, 88.5)))
    grid = Grid(GeoBox((10, 10), Affine(200, 0, x - 1000, 0, -200, y + 1000), "EPSG:3031"))
    scene = modis.MOD09GA.read(item, grid)
    row, col = np.nonzero(np.isfinite(scene.reflectance[0]))
    shift = ~tile.transform * (scene.geobox.transform.c, scene.geobox.transform.f)
    assert list(zip(row + round(shift[1]), col + round(shift[0]), strict=True)) == [(88, 2373), (88, 2374), (88, 2375)]
    direct = SD(str(path)).select("sur_refl_b01_1")[:][88, 2373:2376] / 10_000
    assert scene.reflectance[0][row, col] == pytest.approx(direct, abs=1e-6)


def test_the_genuine_composite_item_is_read_with_its_own_projection_and_window(shared: Path, tmp_path: Path) -> None:
    """The Planetary Computer's item: CRS in proj:wkt2 only, no nodata anywhere; files made here under its asset keys."""
    item = pystac.Item.from_dict(json.loads((shared / "data/stac/pc_modis-43A4-061_MCD43A4.A2022032.h14v10.json").read_text()))
    rng = np.random.default_rng(1)
    made: dict[str, NDArray[np.int16]] = {}
    for key, asset in item.assets.items():
        if "Band" in key:
            quality = "Quality" in key
            made[key] = rng.integers(0, 2 if quality else 6000, (2400, 2400)).astype(np.uint8 if quality else np.int16)
            made[key][100, 100] = 255 if quality else 32767
            profile = {"driver": "GTiff", "height": 2400, "width": 2400, "count": 1, "dtype": made[key].dtype, "tiled": True}
            with rasterio.open(tmp_path / f"{key}.tif", "w", **profile) as file:  # no CRS, no transform, no nodata
                file.write(made[key], 1)
            asset.href = str(tmp_path / f"{key}.tif")
    item.set_self_href(str(tmp_path / "item.json"))
    corner = Affine(463.3127165279167, 0, -4447802.078667, 0, -463.3127165274999, -1111950.519667)
    tile = GeoBox((2400, 2400), corner, sinusoidal())
    scene = modis.MCD43A4.read(item, patch(tile, slice(95, 106), slice(95, 106)))
    col, row = (round(v) for v in ~tile.transform * (scene.geobox.transform.c, scene.geobox.transform.f))
    block = (slice(row, row + scene.geobox.shape[0]), slice(col, col + scene.geobox.shape[1]))
    expected = made["Nadir_Reflectance_Band6"][block] * 1e-4
    expected[100 - row, 100 - col] = np.nan
    assert scene.reflectance[5] == pytest.approx(expected, abs=1e-6, nan_ok=True)
    magnitude = made["BRDF_Albedo_Band_Mandatory_Quality_Band6"][block] == 1
    ratio = scene.sigma[5] / (0.003 + 0.03 * scene.reflectance[5])
    assert np.nanmax(np.abs(ratio - np.where(magnitude, 2, 1))) < 1e-5
    assert scene.when == Window(*(np.datetime64(day, "us") for day in ("2022-01-24", "2022-02-08", "2022-02-01")), 8.0)
    assert any("nodata" in note for note in scene.notes)
    assert any("geotransform" in note for note in scene.notes)


# --- facts -----------------------------------------------------------------------------------------------------------


def test_bands_have_their_true_centres_and_aqua_lacks_band_6() -> None:
    names = ["red", "nir08", "blue", "green", "nir12", "swir16", "swir21"]
    assert [b.name for b in modis.MCD43A4.bands] == names
    assert [b.name for b in modis.MYD09GA.bands] == [n for n in names if n != "swir16"]
    assert modis.MOD09GA.band("swir16").response.centroid == pytest.approx(1628, abs=1)
    assert modis.MOD09GA.band("swir21").response.centroid == pytest.approx(2114, abs=1)


def test_daily_angles_repeat_until_2021_and_are_unknown_after() -> None:
    before = modis.MOD09GA.revisit(-105.0, 40.0, date(2019, 6, 1), date(2019, 7, 2))
    zenith = {p.day: p.view_zenith for p in before}
    repeats = [abs(zenith[d] - zenith[e]) for d in zenith for e in zenith if (e - d).days == 16]
    assert repeats
    assert max(repeats) < 0.5
    after = modis.MOD09GA.revisit(-105.0, 40.0, date(2023, 6, 1), date(2023, 6, 9))
    assert len(after) == 9
    assert all(np.isnan(p.view_zenith) and p.note for p in after)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 2**16 - 1), min_size=8, max_size=8), st.lists(st.integers(0, 2**32 - 1), min_size=8, max_size=8))
def test_daily_quality_bits_follow_the_user_guide(
    tmp_path_factory: pytest.TempPathFactory, states: list[int], words: list[int],
) -> None:
    """State and QC words at random: kept exactly where the guide's table says, in every band."""
    tile = GeoBox((4, 8), Affine(463.3127165, 0, -7783654.0, 0, -463.3127165, 4447802.0), sinusoidal())
    coarse, fine = "MODIS_Grid_1km_2D", "MODIS_Grid_500m_2D"
    state = np.array(states, dtype=np.uint16).reshape(2, 4)
    qc = np.resize(np.array(words, dtype=np.uint32), (4, 8))
    fields = {"state_1km_1": (coarse, state, {}), "QC_500m_1": (fine, qc, {})}
    fields |= {f"Sensor{k}_1": (coarse, np.zeros((2, 4), dtype=np.int16), {}) for k in ("Zenith", "Azimuth")}
    fields |= {f"sur_refl_b0{n}_1": (fine, np.full((4, 8), 1000, dtype=np.int16), {}) for n in range(1, 8)}
    path = tmp_path_factory.mktemp("qa") / "a.hdf"
    write_hdf4(path, {coarse: tile.zoom_out(2), fine: tile}, fields)
    scene = modis.MOD09GA.read(item_of("MOD09GA.A2020153", "2020-06-01", {"hdf": path}), patch(tile, slice(0, 4), slice(0, 8)))
    assert scene.geobox.shape == tile.shape
    for i in range(4):
        for j in range(8):
            word, quality = f"{state[i // 2, j // 2]:016b}"[::-1], f"{qc[i, j]:032b}"[::-1]
            clear = word[0:2] in ("00", "11") and word[6:8] != "11" and all(word[bit] == "0" for bit in (2, 9, 10, 13))
            made = quality[1] == "0"
            for b in range(7):
                value = int(quality[2 + 4 * b : 6 + 4 * b][::-1], 2)
                kept = clear and made and value in (0, 7, 8, 9, 10)
                assert np.isfinite(scene.reflectance[b, i, j]) == kept
                if kept:
                    assert scene.sigma[b, i, j] == pytest.approx((0.003 + 0.03 * 0.1) * (1 if value == 0 else 2), rel=1e-5)


# --- write and read --------------------------------------------------------------------------------------------------


def random_scene(sensor: Sensor, seed: int) -> Scene:
    rng = np.random.default_rng(seed)
    base = example_scene(sensor, HERE)
    rho = rng.uniform(-0.005, 1.2, base.reflectance.shape).astype(np.float32)
    rho[rng.uniform(size=rho.shape) < 0.2] = np.nan
    day = np.datetime64("2020-06-09")
    us = "datetime64[us]"
    view, when = None, Instant(np.datetime64("2020-06-10T17:31:12.345678"))
    if "43a4" in sensor.name:
        rho = np.abs(rho)
        when = Window((day - 8).astype(us), (day + 7).astype(us), day.astype(us), 8.0)
    elif "a1" in sensor.name:
        when = PixelDay(day - 8 + rng.integers(0, 8, base.geobox.shape))
    if "09" in sensor.name:
        pairs = np.ones((2, 2))
        angles = [np.kron(rng.uniform(0, 60, np.array(base.geobox.shape) // 2), pairs).astype(np.float32) for _ in range(2)]
        view = View(*angles, coverage=rng.uniform(0.1, 1, base.geobox.shape).astype(np.float32))
    return replace(base, reflectance=rho, sigma=np.full_like(rho, 0.01), when=when, view=view)


@pytest.mark.parametrize("sensor", ALL, ids=lambda s: s.name)
def test_read_of_write_is_the_scene_up_to_quantisation(sensor: Sensor, tmp_path: Path) -> None:
    scene = random_scene(sensor, 3)
    back = sensor.read(sensor.write(scene, tmp_path), HERE)
    assert (back.sensor, back.id, back.bands, back.simulated) == (scene.sensor, scene.id, scene.bands, True)
    assert back.reflectance == pytest.approx(scene.reflectance, abs=5.01e-5, nan_ok=True)
    assert np.array_equal(np.isnan(back.reflectance), np.isnan(scene.reflectance))
    assert back.geobox.shape == scene.geobox.shape
    assert np.allclose(back.geobox.transform, scene.geobox.transform, rtol=0, atol=1e-5)
    if isinstance(scene.when, PixelDay):
        assert isinstance(back.when, PixelDay)
        assert np.array_equal(back.when.days, scene.when.days)
    else:
        assert back.when == scene.when
    if scene.view is not None:
        assert back.view is not None
        assert np.abs(back.view.zenith - scene.view.zenith).max() < 0.0051
    if sensor in (modis.MOD09GA, modis.MYD09GA):
        assert back.view is not None
        assert back.view.coverage == pytest.approx(scene.view.coverage, abs=0.0051)


def test_the_composite_reads_alike_from_cogs_and_from_its_hdf4_granule(tmp_path: Path) -> None:
    item = modis.MCD43A4.write(random_scene(modis.MCD43A4, 4), tmp_path)
    grid, fields = "MOD_Grid_BRDF", {}
    for key, asset in item.assets.items():
        with rasterio.open(asset.href) as file:
            fill = {"_FillValue": 255 if "Quality" in key else 32767}
            fields[key] = (grid, file.read(1), fill | ({} if "Quality" in key else {"scale_factor": 1e-4, "add_offset": 0.0}))
            box = GeoBox(file.shape, file.transform, sinusoidal())
    path = write_hdf4(tmp_path / "MCD43A4.A2020161.h09v05.061.hdf", {grid: box}, fields)
    granule = item_of("MCD43A4.A2020161.h09v05.061", "2020-06-09", {"hdf": path})
    cogs, hdf = modis.MCD43A4.read(item, HERE), modis.MCD43A4.read(granule, HERE)
    assert np.array_equal(hdf.reflectance, cogs.reflectance, equal_nan=True)
    assert np.array_equal(hdf.sigma, cogs.sigma, equal_nan=True)
    assert hdf.when == cogs.when  # one date only: day 9 of its sixteen
    assert np.allclose(hdf.geobox.transform, cogs.geobox.transform, rtol=0, atol=1e-5)


def test_a_scene_off_the_sinusoidal_grid_is_not_written(tmp_path: Path) -> None:
    scene = random_scene(modis.MCD43A4, 0)
    scene = replace(scene, geobox=GeoBox(scene.geobox.shape, HERE.transform, HERE.crs))
    with pytest.raises(SceneError, match="sinusoidal"):
        write_nbar(scene, tmp_path)


def test_an_odd_number_of_cells_cannot_be_paired(tmp_path: Path) -> None:
    scene = random_scene(modis.MOD09GA, 0)
    odd = replace(scene, reflectance=scene.reflectance[:, 1:], sigma=scene.sigma[:, 1:], geobox=scene.geobox[1:, :], view=None)
    with pytest.raises(SceneError, match="odd"):
        write_daily(odd, tmp_path)


# --- bad granules ----------------------------------------------------------------------------------------------------


def test_bad_granules_are_said_to_be_bad(tmp_path: Path) -> None:
    item = modis.MOD09GA.write(random_scene(modis.MOD09GA, 1), tmp_path)
    whole = Path(item.assets["hdf"].href)
    cut = tmp_path / "cut.hdf"
    cut.write_bytes(whole.read_bytes()[:3000])
    for name, message in ((cut, "truncated"), (tmp_path / "text.hdf", "truncated"), (tmp_path / "none.hdf", "does not exist")):
        if name.name == "text.hdf":
            name.write_text("please log in")
        item.assets["hdf"].href = str(name)
        with pytest.raises(SceneError, match=message):
            modis.MOD09GA.read(item, HERE)
    item.assets["hdf"].href = str(whole)
    with pytest.raises(SceneError, match=r"asked for layer Nadir_Reflectance_Band1.*the granule has"):
        modis.MCD43A4.read(item, HERE)
    with pytest.raises(SceneError, match="no asset is a layer"):
        modis.MCD43A4.read(item_of("X", "2020-06-01", {"thumbnail": whole.with_suffix(".jpg")}), HERE)


def test_structure_metadata_round_trips_and_knows_only_the_sinusoidal_grid(tmp_path: Path) -> None:
    box = native(HERE)
    text = structure({"A": box}, {"x": ("A", np.zeros(box.shape, dtype=np.int16), {})})
    (grid,) = parse_structure(text, "here")
    assert (grid.name, grid.fields, grid.geobox.shape) == ("A", ("x",), box.shape)
    assert np.allclose(grid.geobox.transform, box.transform, rtol=0, atol=1e-5)
    with pytest.raises(SceneError, match="GCTP_GEO"):
        parse_structure(text.replace("GCTP_SNSOID", "GCTP_GEO"), "here")
    with pytest.raises(SceneError, match="lacks XDim"):
        parse_structure(text.replace("XDim=", "YYY="), "here")
    with pytest.raises(SceneError, match="no grid"):
        parse_structure("GROUP=SwathStructure", "here")
    wrong = structure({"A": box[:-1]}, {"x": ("A", np.zeros((2, 2), dtype=np.int16), {})})
    assert "YDim" in wrong
    write_hdf4(tmp_path / "a.hdf", {"A": box}, {"x": ("A", np.zeros((4, 4), dtype=np.int16), {})})
    with pytest.raises(SceneError, match="damaged"):
        granule_planes(tmp_path / "a.hdf", {"x": ("x",)}, HERE, 0.0, "here")
