"""Reading: any number of readers give the same observations in the same order; what may pass is tried again, the rest costs a scene."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from fusion.cube.cube import Cube
from fusion.errors import SceneError
from fusion.observe.sensor import Sensor, sensor
from fusion.service import reading
from fusion.service import run as running
from fusion.service.plan import Coverage, tile_at
from fusion.service.reading import Unreadable, look, read
from fusion.service.store import CubeStore
from fusion.service.tile import fuse_tile
from tests.service.worlds import archive, quick_fit, small_job

MANY = tuple(f"2024-05-{day:02d}" for day in range(2, 24, 2))


@pytest.fixture
def prepared(catalog: Path, tmp_path: Path) -> CubeStore:
    return running.prepare(small_job(catalog, tmp_path / "cube.zarr"))


class Watched:
    """A sensor that counts who reads it at the same time, and takes longer for earlier scenes."""

    def __init__(self, facts: Sensor) -> None:
        self.facts, self.lock, self.now, self.most, self.begun = facts, threading.Lock(), 0, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.facts, name)

    def read(self, item: Any, window: Any) -> Any:
        with self.lock:
            self.now += 1
            self.begun += 1
            self.most = max(self.most, self.now)
            pause = 0.05 / self.begun
        time.sleep(pause)
        try:
            if item.id.endswith("2024-05-06"):
                raise SceneError("a scene that cannot be read")
            return self.facts.read(item, window)
        finally:
            with self.lock:
                self.now -= 1


def test_readers_change_neither_results_nor_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = running.prepare(small_job(archive(tmp_path / "archive", days=MANY), tmp_path / "cube.zarr"))
    tile = tile_at(store.cube.grid, 32, 4, (0, 0))
    cube = Cube(tile.grid, store.cube.calendar, store.cube.basis)
    items = Coverage(store.items()).of(tile)
    found = {}
    for readers in (1, 4):
        watched = Watched(sensor("landsat-8"))
        monkeypatch.setattr(reading, "sensor", lambda _, watched=watched: watched)
        found[readers] = look(items, tile, cube, 0, readers)
        assert 1 < watched.most <= readers if readers > 1 else watched.most == 1
        assert watched.begun == len(MANY)
    (one, record), (many, same) = found[1], found[4]
    assert record == same
    assert [f["id"] for f in record["failed_scenes"]] == ["landsat-8-2024-05-06"]
    assert record["scenes"]["landsat-8"] == [f"landsat-8-{day}" for day in MANY if day != "2024-05-06"]
    for a, b in zip(one, many, strict=True):
        np.testing.assert_array_equal(a.data, b.data)
        assert (a.scene_id, a.when) == (b.scene_id, b.when)


@pytest.mark.parametrize(("name", "together"), [("a.tif", True), ("a.JP2", True), ("a.hdf", False), ("a.h5", False), ("a", False)])
def test_only_formats_that_allow_it_are_read_side_by_side(
    name: str, together: bool, prepared: CubeStore
) -> None:
    assets = {"data": {"href": f"https://example.com/{name}?x=1.tif"}, "metadata": {"href": "https://example.com/a.xml"}}
    tile = tile_at(prepared.cube.grid, 32, 4, (0, 0))
    document = {**prepared.items()["landsat-8"][0], "assets": assets}

    class Slow(Watched):
        def read(self, item: Any, window: Any) -> Any:
            with self.lock:
                self.now += 1
                self.most = max(self.most, self.now)
            time.sleep(0.05)
            with self.lock:
                self.now -= 1

    slow: Any = Slow(sensor("landsat-8"))
    threads = [threading.Thread(target=read, args=(slow, document, tile, 0)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert slow.most == (3 if together else 1)


class Faulty:
    """A sensor whose reads raise what they are told, then go on."""

    def __init__(self, errors: list[BaseException]) -> None:
        self.facts, self.errors, self.calls = sensor("landsat-8"), list(errors), 0
        self.name = "landsat-8"

    def read(self, item: Any, window: Any) -> Any:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.facts.read(item, window)


PASSING = [ConnectionError("reset"), TimeoutError("slow"), OSError(5, "I/O error"), rasterio.errors.RasterioIOError("HTTP 500")]
LASTING = [SceneError("wrong content"), FileNotFoundError("gone"), ValueError("a bug"), PermissionError("403"), KeyError("band")]


@pytest.mark.parametrize("error", PASSING)
def test_what_may_pass_is_tried_again(prepared: CubeStore, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading.time, "sleep", lambda _: None)
    faulty = Faulty([error, error])
    tile = tile_at(prepared.cube.grid, 32, 4, (0, 0))
    item = prepared.items()["landsat-8"][0]
    assert read(faulty, item, tile, 3).id == item["id"]  # type: ignore[arg-type]
    assert faulty.calls == 3
    with pytest.raises(Unreadable, match=type(error).__name__):
        read(Faulty([error] * 9), item, tile, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", LASTING)
def test_what_lasts_is_not(prepared: CubeStore, error: Exception) -> None:
    faulty = Faulty([error])
    with pytest.raises(Unreadable, match=type(error).__name__):
        read(faulty, prepared.items()["landsat-8"][0], tile_at(prepared.cube.grid, 32, 4, (0, 0)), 3)  # type: ignore[arg-type]
    assert faulty.calls == 1


@pytest.mark.parametrize("damage", ["missing", "truncated", "other content", "empty"])
def test_a_damaged_file_costs_one_scene(damage: str, tmp_path: Path) -> None:
    catalog = archive(tmp_path / "archive")
    bad = next(p for p in (tmp_path / "archive").iterdir() if "2024-05-05" in p.name and "SR_B4" in p.name)
    if damage == "missing":
        bad.unlink()
    elif damage == "truncated":
        bad.write_bytes(bad.read_bytes()[:500])
    else:
        bad.write_bytes(b"" if damage == "empty" else b"<html>404 not found</html>")
    store = running.prepare(small_job(catalog, tmp_path / "cube.zarr"))
    brief = fuse_tile(store.url, store.about["fingerprint"], (0, 0), fit=quick_fit, read_retries=0)
    assert brief["status"] == "READ_FAILED"
    record = store.record((0, 0))
    assert [s["id"] for s in record["failed_scenes"]] == ["landsat-8-2024-05-05"]
    assert record["looks"] == {"landsat-8": 1}
    assert "could not be read" in record["message"]
