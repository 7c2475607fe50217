"""Faults in real reads and writes: over HTTP, on a full disk, on an object store behind a proxy that breaks things.

The law of reads: each scene that cannot be read is counted and named with its reason, all others are used, nothing crashes.
The law of writes: a run that cannot write stops with what to do; what is committed stays readable, and `resume` ends in the cube
that an undisturbed run leaves.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import s3fs

from fusion.errors import StoreError
from fusion.service import objects
from fusion.service import run as running
from fusion.service.progress import Summary
from fusion.service.store import CubeStore
from fusion.service.tile import fuse_tile
from tests.service.faults import FaultProxy, faulty
from tests.service.servers import recording
from tests.service.test_run import on, same_cube
from tests.service.test_store import CORE, HALO, create, write_all
from tests.service.worlds import archive, quick_fit, small_cube, small_job

IMPATIENT = {"GDAL_HTTP_TIMEOUT": "2", "GDAL_HTTP_CONNECTTIMEOUT": "2", "GDAL_HTTP_MAX_RETRY": "1", "GDAL_HTTP_RETRY_DELAY": "0.1"}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads that give up in seconds instead of minutes."""
    for key, value in IMPATIENT.items():
        monkeypatch.setenv(key, value)


# --- reads over HTTP ------------------------------------------------------------------------------------------------------

ORDERS: dict[str, tuple[Any, str]] = {
    "404": (404, "SceneError"), "403": (403, "SceneError"), "500": (500, "ConnectionError"), "503": (503, "ConnectionError"),
    "time-out": ("hang", "ConnectionError"), "truncated": ("half", "ConnectionError"),
    "a web page": (b"<html><body>Sign in</body></html>", "SceneError"), "nothing": (b"", "Error"),
    "another format": (b"\x89HDF\r\n\x1a\n" + bytes(3000), "SceneError"),
}


@pytest.mark.parametrize("fault", ORDERS)
def test_a_read_over_http_that_fails_is_counted_and_named(fault: str, tmp_path: Path, impatient: None) -> None:
    order, kind = ORDERS[fault]
    static = archive(tmp_path / "archive")
    with recording(static) as (api, traffic):
        bad = next(u for i in api.items for a in i["assets"].values() if "05-05_SR_B4" in (u := urlsplit(a["href"]).path))
        # a number is used up by one request, so it is ordered for as many as there may be
        traffic.orders[bad] = [order] * (1000 if isinstance(order, int) else 1)
        job = small_job(api.root, tmp_path / "cube.zarr", sensors=[{"name": "landsat-8", "catalog": api.root, "collection": "landsat-8"}])
        store = running.prepare(job)
        brief = fuse_tile(store.url, store.about["fingerprint"], (0, 0), fit=quick_fit, read_retries=0)
    assert brief["failed"] == 1
    assert brief["status"] == "READ_FAILED"
    record = store.record((0, 0))
    (failed,) = record["failed_scenes"]
    assert failed["id"] == "landsat-8-2024-05-05"
    assert kind in failed["reason"]
    assert record["looks"] == {"landsat-8": 1}
    assert "could not be read" in record["message"]
    summary = Summary(store.url, 1)
    summary.add(brief)
    assert "1 scenes unread" in summary.line()


def test_a_server_that_comes_back_costs_no_scene(tmp_path: Path, impatient: None) -> None:
    """More failures than GDAL itself retries: the tile's own attempts go on, and GDAL must not remember that the file was gone."""
    static = archive(tmp_path / "archive")
    with recording(static) as (api, traffic):
        for item in api.items:
            for asset in item["assets"].values():
                traffic.orders[urlsplit(asset["href"]).path] = [500] * 5
        job = small_job(api.root, tmp_path / "cube.zarr", sensors=[{"name": "landsat-8", "catalog": api.root, "collection": "landsat-8"}])
        store = running.prepare(job)
        brief = fuse_tile(store.url, store.about["fingerprint"], (0, 0), fit=quick_fit, read_retries=6)
    assert traffic.answers[500] > 0
    assert (brief["status"], brief["failed"]) == ("OK", 0)


def test_reads_behind_a_proxy_that_breaks_things(tmp_path: Path, catalog: Path, impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """15 % of the requests meet a 503 or a reset; with the retries that a run has, not one scene is lost and the values are the same."""
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "4")
    wanted = running.prepare(small_job(catalog, tmp_path / "wanted.zarr"))
    with recording(catalog) as (api, _):
        parts = urlsplit(api.root)
        with faulty((str(parts.hostname), parts.port or 0), rate=0.15, seed=1) as proxy:
            text = json.dumps(api.items).replace(api.root, f"http://127.0.0.1:{proxy.port}")
            api.items[:] = json.loads(text)
            root = f"http://127.0.0.1:{proxy.port}"
            job = small_job(root, tmp_path / "cube.zarr", sensors=[{"name": "landsat-8", "catalog": root, "collection": "landsat-8"}])
            store = running.prepare(job)
            for index in ((0, 0), (1, 1)):
                brief = fuse_tile(store.url, store.about["fingerprint"], index, fit=quick_fit, read_retries=3)
                assert (brief["status"], brief["failed"]) == ("OK", 0), store.record(index)["failed_scenes"]
                fuse_tile(wanted.url, wanted.about["fingerprint"], index, fit=quick_fit)
            assert proxy.faults.total() > 0
    np.testing.assert_array_equal(store.group["mean"][...], wanted.group["mean"][...])


# --- writes on a disk that is full ----------------------------------------------------------------------------------------

FULL = """
import resource, signal, sys
import numpy as np
from fusion.errors import StoreError
from fusion.service import objects
from fusion.service.store import CubeStore
from tests.service.test_store import write_all
store = CubeStore.open(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    write_all(store)
except StoreError as error:
    print(error)
    sys.exit(7)
"""


@pytest.mark.parametrize("limit", [0, 20_000])
def test_files_that_may_not_grow(tmp_path: Path, limit: int) -> None:
    """The kernel itself refuses, in another process, in the middle of a file."""
    store = create(tmp_path / "c.zarr")
    done = store.cube.grid.tiles(CORE, HALO)[:2]
    write_all(store, done)
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FULL, store.url, str(limit)], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert ended.returncode == 7, ended.stderr[-2000:]
    assert "File too large" in ended.stdout
    assert "resume" in ended.stdout
    again = CubeStore.open(store.url)
    assert again.committed() >= {t.index for t in done}
    assert {f.kind for f in again.verify()} == {"hole"}
    write_all(again)
    assert again.verify() == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 700 kB: room for the template and some tiles."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(folder)], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)


@pytest.mark.slow
def test_a_run_on_a_full_disk_stops_and_is_resumed_when_there_is_room(
    tiny_disk: Path, catalog: Path, tmp_path: Path, workers: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Needs the right to mount. The whole run with worker processes; then the disk grows and the run goes on."""
    logging.getLogger("fusion").propagate = True
    wanted = small_job(catalog, tmp_path / "wanted.zarr", cluster=on(workers))
    running.run(wanted, fit=quick_fit, progress="none")
    job = small_job(catalog, tiny_disk / "cube.zarr", cluster=on(workers))
    with pytest.raises(StoreError, match=r"No space left.*resume"):
        running.run(job, fit=quick_fit, progress="none")
    store = CubeStore.open(job.output.store)
    kept = store.committed()
    assert len(kept) < 9
    assert {f.kind for f in store.verify()} <= {"hole", "failed"}
    subprocess.run(["mount", "-o", "remount,size=50m", str(tiny_disk)], check=True)
    summary = running.resume(job.output.store, scheduler=workers.scheduler_address, fit=quick_fit, progress="none")
    assert (summary.before, summary.done, summary.failed) == (len(kept), 9 - len(kept), {})
    assert store.verify() == []
    assert same_cube(store, CubeStore.open(wanted.output.store))


# --- an object store that breaks things -----------------------------------------------------------------------------------


@pytest.fixture(params=["obstore", pytest.param("fsspec", marks=pytest.mark.slow)])
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "fsspec":
        monkeypatch.setitem(sys.modules, "obstore.store", None)  # as where obstore is not installed
    return str(request.param)


@contextmanager
def behind(endpoint: str, **settings: Any) -> Iterator[FaultProxy]:
    """A fault proxy before an S3 endpoint, with the environment pointing to it."""
    parts = urlsplit(endpoint)
    with faulty((str(parts.hostname), parts.port or 80), **settings) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        yield proxy
    s3fs.S3FileSystem.clear_instance_cache()  # which remembers the endpoint


def test_a_bucket_behind_faults(bucket: str, client: str) -> None:
    """503 and resets at 15 %, some of them after the server did what it was asked: retried, and the cube is whole."""
    url, cube = f"{bucket}/faults-{client}/cube.zarr", small_cube((40, 40), 2, 2)
    with behind(os.environ["AWS_ENDPOINT_URL"], rate=0.15, seed=3) as proxy:
        store = create(url, cube)
        for tile in store.cube.grid.tiles(CORE, HALO):
            persist(lambda tile=tile: write_all(store, [tile]))
        persist(store.finish)
        assert proxy.faults.total() > 3, proxy.faults
    quiet = CubeStore.open(url)
    assert quiet.verify() == []
    clean = create(f"{bucket}/clean-{client}/cube.zarr", cube)
    write_all(clean)
    clean.finish()
    assert same_cube(quiet, clean)


def persist(call: Callable[[], Any], attempts: int = 6) -> None:
    """As a run does: what the client's own retries did not mend is tried again, because writing a tile may be repeated."""
    for attempt in range(attempts):
        try:
            call()
            return
        except StoreError:
            if attempt == attempts - 1:
                raise


def test_a_bucket_that_refuses_for_good(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request fails: the error says so and what to do, in bounded time; afterwards all is as before."""
    url = f"{bucket}/refused/cube.zarr"
    store = create(url, small_cube((40, 40), 1, 1))
    tiles = store.cube.grid.tiles(CORE, HALO)
    write_all(store, tiles[:1])
    monkeypatch.setattr(objects, "PAUSES", (0.1,))
    with behind(os.environ["AWS_ENDPOINT_URL"], rate=1.0, kinds=("503",)):
        began = time.monotonic()
        with pytest.raises(StoreError, match="resume"):
            CubeStore.open(url)
        assert time.monotonic() - began < 60
    again = CubeStore.open(url)
    assert again.committed() == {tiles[0].index}
    write_all(again)
    assert again.verify() == []
