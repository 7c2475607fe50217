"""A land-cover map in a job: any projection, checked before anything is fitted, read on the tile's own pixels, and lost without the job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from fusion.errors import JobError, SceneError
from fusion.service import land_cover
from fusion.service import run as running
from fusion.service import tile as tiling
from fusion.service.job import Job
from fusion.service.validation import _of_job, examine
from tests.service.servers import recording
from tests.service.worlds import BBOX, archive, honest_measure, job_document, quick_fit, small_cube, small_job

GRID = small_cube().grid
STEP = 0.0001
"""degrees: about 10 m"""


def written(path: Path, codes: Any, *, west: float = BBOX[0] - 0.01, north: float = BBOX[3] + 0.01, crs: Any = "EPSG:4326", **more: Any) -> str:
    """A map in longitude and latitude, of ten-metre pixels."""
    codes = np.asarray(codes)
    profile = {"driver": "GTiff", "count": 1, "dtype": codes.dtype, "height": codes.shape[0], "width": codes.shape[1]}
    with rasterio.open(path, "w", **profile, crs=crs, transform=Affine(STEP, 0, west, 0, -STEP, north), **more) as file:
        file.write(codes, 1)
    return str(path)


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> str:
    """10 in the west, 20 in the east of the area, a single pixel in sixteen another code, nothing known in the north."""
    codes = np.full((400, 500), 10, np.uint8)
    codes[:, 250:] = 20
    codes[::4, ::4] = 99
    codes[:180] = 0
    return written(tmp_path_factory.mktemp("map") / "cover.tif", codes, nodata=0)


def test_a_pixel_has_the_code_that_most_of_it_has(halves: str) -> None:
    found = land_cover.codes(halves, GRID)
    lon, lat = _lonlat()
    edge, top = BBOX[0] - 0.01 + 250 * STEP, BBOX[3] + 0.01 - 180 * STEP
    clear = (np.abs(lon - edge) > 6 * STEP) & (np.abs(lat - top) > 6 * STEP)
    expected = np.where(lat > top, land_cover.UNKNOWN, np.where(lon < edge, 10, 20))
    assert {10, 20, land_cover.UNKNOWN} == set(np.unique(expected[clear]).tolist())
    np.testing.assert_array_equal(found[clear], expected[clear])


def _lonlat() -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude of the centres of GRID's pixels."""
    from pyproj import Transformer

    cols, rows = np.meshgrid(np.arange(GRID.shape[1]) + 0.5, np.arange(GRID.shape[0]) + 0.5)
    x, y = GRID.geobox.transform * (cols, rows)
    return Transformer.from_crs(GRID.crs.to_wkt(), "EPSG:4326", always_xy=True).transform(x, y)


def test_beyond_a_map_without_fill_nothing_is_known(tmp_path: Path) -> None:
    path = written(tmp_path / "west.tif", np.full((400, 250), 3, np.uint8))
    found = land_cover.codes(path, GRID)
    assert set(np.unique(found).tolist()) == {land_cover.UNKNOWN, 3}


def test_a_map_of_the_whole_earth_is_a_map_of_the_area(tmp_path: Path) -> None:
    path = tmp_path / "earth.tif"
    profile = {"driver": "GTiff", "count": 1, "dtype": "int16", "height": 180, "width": 360, "crs": "EPSG:4326"}
    with rasterio.open(path, "w", **profile, transform=Affine(1, 0, -180, 0, -1, 90)) as file:
        file.write(np.arange(180 * 360, dtype=np.int16).reshape(180, 360) % 1000, 1)
    land_cover.check(str(path), GRID)
    assert np.unique(land_cover.codes(str(path), GRID)).tolist() == [((90 - 41) * 360 + (180 - 106)) % 1000]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("missing", "cannot be opened"), ("float", "float32"), ("unplaced", "no coordinate system"), ("elsewhere", "it covers"),
        ("https://maps.test/c.tif?sig=secret", "signature"), ("https://me:secret@maps.test/c.tif", "password"),
        ("ftp://maps.test/c.tif", "only https"),
    ],
)
def test_what_is_no_map_of_the_area_is_said_before_anything_is_fitted(wrong: str, told: str, catalog: Path, tmp_path: Path) -> None:
    codes = np.ones((400, 500), np.uint8)
    path = str(tmp_path / "map.tif")
    if wrong == "float":
        written(tmp_path / "map.tif", codes.astype(np.float32))
    elif wrong == "unplaced":
        written(tmp_path / "map.tif", codes, crs=CRS())
    elif wrong == "elsewhere":
        written(tmp_path / "map.tif", codes, west=10.0)
    elif "://" in wrong:
        path = wrong
    job = small_job(catalog, tmp_path / "cube.zarr", land_cover=path)
    with pytest.raises(JobError, match=told) as error:
        running.prepare(job)
    assert "secret" not in str(error.value)
    assert not (tmp_path / "cube.zarr").exists()


def test_the_job_knows_its_map(catalog: Path, tmp_path: Path) -> None:
    document = job_document(catalog, tmp_path / "cube.zarr")
    plain, told = (Job.of(document | more) for more in ({}, {"land_cover": "/maps/cover.tif"}))
    assert plain.fingerprint != told.fingerprint
    assert plain.fingerprint == Job.of({k: v for k, v in plain.document().items() if k != "land_cover"}).fingerprint
    (tmp_path / "job.toml").write_text(
        'land_cover = "cover.tif"\n[area]\nbbox = [0, 0, 1, 1]\n[period]\nstart = "2024-05-01"\nend = "2024-05-09"\n'
        '[[sensors]]\nname = "landsat-8"\n[output]\nstore = "cube.zarr"\n'
    )
    assert Job.load(tmp_path / "job.toml").land_cover == str(tmp_path / "cover.tif")


def test_a_tile_is_fitted_with_its_part_of_the_map_and_without_one_that_is_lost(catalog: Path, halves: str, tmp_path: Path) -> None:
    path = tmp_path / "cover.tif"
    path.write_bytes(Path(halves).read_bytes())
    store = running.prepare(small_job(catalog, tmp_path / "cube.zarr", land_cover=str(path)))
    at = tiling.desk(store.url, store.about["fingerprint"])
    tile, seen = at.tile((1, 1)), []

    def spy(*given: Any, land_cover: Any = None, **more: Any) -> Any:
        seen.append(land_cover)
        return quick_fit(*given, **more)

    _, record = tiling.fused(at, tile, spy, 0, None)
    np.testing.assert_array_equal(seen[-1], land_cover.codes(halves, tile.grid))
    assert record["status"] == "OK"
    path.unlink()
    with pytest.raises(SceneError, match="cover"):
        land_cover.codes(str(path), tile.grid, retries=0)
    _, record = tiling.fused(at, tile, spy, 0, None)
    assert seen[-1] is None
    assert record["status"] == "READ_FAILED"
    assert "cover.tif" in record["message"]


def test_a_server_that_comes_back_costs_no_map(halves: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More failures than GDAL itself retries: GDAL must not remember that the file was gone."""
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "1")
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.1")
    with recording(archive(tmp_path / "archive")) as (api, traffic):
        (api.folder / "cover.tif").write_bytes(Path(halves).read_bytes())
        path = f"{api.prefix}cover.tif"
        traffic.orders[path] = [500] * 5
        found = land_cover.codes(f"{api.root}{path}", GRID, retries=6)
    assert traffic.answers[500] == 5
    np.testing.assert_array_equal(found, land_cover.codes(halves, GRID))


def test_a_job_is_validated_with_its_map(catalog: Path, halves: str, tmp_path: Path) -> None:
    _, _, (exam,) = _of_job(small_job(catalog, tmp_path / "cube.zarr", land_cover=halves), 1, 2)
    seen = []

    def spy(*given: Any, land_cover: Any, **more: Any) -> Any:
        seen.append(land_cover)
        return honest_measure(*given, **more)

    examine(exam, spy)
    np.testing.assert_array_equal(seen[0], land_cover.codes(halves, exam.tile.grid))
