"""Hostile text in catalogs, jobs and stores: nothing crashes, and nothing outside what was allowed is opened.

"Opened" is asked of the kernel (inotify on files that no one may touch) and of a second server that no one may call, so that what
GDAL and HDF5 do counts as much as what Python does.
"""

from __future__ import annotations

import copy
import ctypes
import json
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import h5py
import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusion.cube.cube import Cube
from fusion.errors import FusionError
from fusion.service import catalog as catalogs
from fusion.service import run as running
from fusion.service import sources
from fusion.service.catalog import find
from fusion.service.job import Job, check
from fusion.service.plan import Coverage, make_plan, tile_at
from fusion.service.policy import Origin, Refused, admit
from fusion.service.reading import look
from fusion.service.store import CubeStore
from fusion.service.tile import desk, fuse_tile
from sensors.hrefs import gdal_env
from tests.service.servers import recording
from tests.service.worlds import archive, job_document, quick_fit, small_cube, small_job

QUICK = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(max_examples=4_000, deadline=None, suppress_health_check=list(HealthCheck))


# --- what may not be touched ----------------------------------------------------------------------------------------------


@dataclass
class Forbidden:
    """Files that the kernel watches, and a server that counts who calls."""

    folder: Path
    address: str = ""
    calls: list[str] = field(default_factory=list)
    watch: int = -1

    def touched(self) -> list[str]:
        """What was opened or called since the last time."""
        found = []
        try:
            data = os.read(self.watch, 1 << 16)
            while data:
                _, mask, _, size = struct.unpack_from("iIII", data)
                found.append(f"{data[16 : 16 + size].rstrip(bytes(1)).decode()} (event {mask:#x})")
                data = data[16 + size :]
        except BlockingIOError:
            pass  # nothing happened
        found += self.calls
        self.calls.clear()
        return found


@pytest.fixture(scope="module")
def forbidden(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forbidden]:
    folder = tmp_path_factory.mktemp("forbidden")
    made = Forbidden(folder)
    (folder / "secret.txt").write_text("secret")
    with rasterio.open(folder / "secret.tif", "w", driver="GTiff", width=8, height=8, count=1, dtype="uint16") as file:
        file.write(np.full((1, 8, 8), 77, np.uint16))
    with h5py.File(folder / "secret.h5", "w") as file:
        file["secret"] = np.full((8, 8), 77)

    class Spy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.calls.append(f"{self.command} {self.path} {dict(self.headers)}")
            self.send_response(404)
            self.end_headers()

        do_HEAD = do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.2", 0), Spy)  # another host of this machine
    made.address = f"http://127.0.0.2:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    libc = ctypes.CDLL(None, use_errno=True)
    made.watch = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(made.watch, bytes(folder), 0x1 | 0x20) > 0  # accessed, opened
    yield made
    os.close(made.watch)
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_watch_sees_what_it_should(forbidden: Forbidden) -> None:
    """The instrument itself: Python, GDAL and HDF5 opening a file, and a call, are each seen."""
    forbidden.touched()
    (forbidden.folder / "secret.txt").read_text()
    assert any("secret.txt" in t for t in forbidden.touched())
    with gdal_env(), rasterio.open(forbidden.folder / "secret.tif") as file:
        file.read(1)
    assert any("secret.tif" in t for t in forbidden.touched())
    with h5py.File(forbidden.folder / "secret.h5"):
        assert any("secret.h5" in t for t in forbidden.touched())
    with gdal_env(GDAL_HTTP_MAX_RETRY=0), pytest.raises(rasterio.errors.RasterioIOError):
        rasterio.open(f"{forbidden.address}/x.tif")
    assert forbidden.touched()
    assert forbidden.touched() == []


# --- hostile items --------------------------------------------------------------------------------------------------------


def addresses(forbidden: Forbidden) -> list[str]:
    """Ways to name what may not be opened."""
    secrets = [str(forbidden.folder / name) for name in ("secret.txt", "secret.tif", "secret.h5")]
    out = [f"//{urlsplit(forbidden.address).netloc}/x.tif", "http://169.254.169.254/latest/meta-data"]
    for path in secrets:
        dots, coded = "../" * 12 + path, path.replace("/", "%2f")
        out += [
            path, dots, f"file://{path}", f"file://localhost{path}", f"FILE://{path}", f"file:{path}", coded, dots.replace(".", "%2e"),
            f"/vsicurl/file://{path}", f"/vsizip/{path}", f"/vsisubfile/0_10,{path}", f"/vsigzip/{path}", f"vrt://{path}", f"GTIFF_RAW:{path}",
            f"GTIFF_DIR:1:{path}", f'NETCDF:"{path}":x', f'HDF5:"{path}"://secret', f"zip+file://{path}!x", f".{path}", f"\\\\?{path}",
            f"<VRTDataset rasterXSize='8' rasterYSize='8'><VRTRasterBand dataType='UInt16' band='1'><SimpleSource>"
            f"<SourceFilename>{path}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>", "link.tif", "evil.vrt", "evil.h5",
            f"http://user:pass@{urlsplit(forbidden.address).netloc}/x", f"./link.tif?{path}", f"{path}\x00.tif",
        ]
    return out


LEAF = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
    | st.sampled_from([1e308, -1e308, 2**80, -1, 0, float("inf"), float("nan"), "NaN", "1e400", "9999-99-99", "\x00", "EPSG:999999", "EPSG:4326"])
    | st.just("x" * 10_000)
)
TREE = st.recursive(LEAF, lambda t: st.lists(t, max_size=4) | st.dictionaries(st.text(max_size=8), t, max_size=4), max_leaves=8)
KEYS = ("proj:shape", "proj:transform", "proj:code", "proj:epsg", "proj:wkt2", "href", "bbox", "geometry", "raster:bands", "alternate", "links",
        "nodata", "raster:scale", "type", "datetime", "start_datetime", "platform", "collection", "stac_extensions", "__class__")


def mutated(document: Any, data: st.DataObject, pool: list[str]) -> None:
    """Replaces, drops or adds one node of a JSON tree; every third time a string becomes a forbidden address."""
    if isinstance(document, dict) and isinstance(document.get("assets"), dict) and document["assets"] and data.draw(st.integers(0, 2)) == 0:
        asset = document["assets"][data.draw(st.sampled_from(sorted(document["assets"], key=str)))]
        if isinstance(asset, dict):
            asset[data.draw(st.sampled_from(["href", "href", "href", "alternate", "title"]))] = data.draw(st.sampled_from(pool))
            return
    node, key, parent = document, None, None
    while isinstance(node, dict | list) and node and (parent is None or data.draw(st.integers(0, 3))):
        parent = node
        key = data.draw(st.sampled_from(sorted(node, key=str) if isinstance(node, dict) else range(len(node))))
        node = node[key]
    if parent is None:
        return
    action = data.draw(st.sampled_from(["replace", "replace", "drop", "add"]))
    value = data.draw(TREE | st.sampled_from(pool))
    if action == "drop":
        del parent[key]
    elif action == "replace" or isinstance(parent, list):
        parent[key] = value
    else:
        parent[data.draw(st.sampled_from(KEYS))] = value


@dataclass(frozen=True)
class World:
    """A folder with genuine files and with traps."""

    folder: Path
    items: list[dict[str, Any]]
    job: Job


@pytest.fixture(scope="module")
def world(forbidden: Forbidden, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("hostile") / "archive"
    items = json.loads(archive(folder, days=("2024-05-05",)).read_text())["features"]
    os.symlink(forbidden.folder / "secret.tif", folder / "link.tif")
    (folder / "evil.vrt").write_text(
        f"<VRTDataset rasterXSize='8' rasterYSize='8'><VRTRasterBand dataType='UInt16' band='1'><SimpleSource><SourceFilename>"
        f"{forbidden.folder / 'secret.tif'}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with h5py.File(folder / "evil.h5", "w") as file:
        file["SITE"] = h5py.ExternalLink(str(forbidden.folder / "secret.h5"), "/secret")
    return World(folder, items, small_job(folder / "case.json", folder.parent / "cube.zarr"))


def items_do_no_harm(data: st.DataObject, world: World, forbidden: Forbidden) -> None:
    """A catalog of one mutated item, searched and read as a run would."""
    document = copy.deepcopy(world.items[0])
    for _ in range(data.draw(st.integers(1, 3))):
        mutated(document, data, addresses(forbidden))
    wrapped = data.draw(st.sampled_from([{"type": "FeatureCollection", "features": [document]}, document, [document]]))
    (world.folder / "case.json").write_text(json.dumps(wrapped))
    try:
        found = find(world.job)
        planned = make_plan(world.job, Cube(world.job.grid(), world.job.calendar(), small_cube().basis), found)
    except FusionError:
        assert forbidden.touched() == []
        return
    tile = tile_at(planned.cube.grid, 32, 4, (0, 0))
    cube = Cube(tile.grid, planned.cube.calendar, planned.cube.basis)
    _, record = look(Coverage(found.items).of(tile), tile, cube, 0)
    assert forbidden.touched() == [], (document, record)
    json.dumps(record)


@QUICK
@given(data=st.data())
def test_hostile_items(data: st.DataObject, world: World, forbidden: Forbidden) -> None:
    items_do_no_harm(data, world, forbidden)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@LONG
@given(data=st.data())
def test_hostile_items_many(data: st.DataObject, world: World, forbidden: Forbidden) -> None:
    items_do_no_harm(data, world, forbidden)


def test_every_forbidden_address_in_every_place(world: World, forbidden: Forbidden) -> None:
    """Without luck: each address as an asset of an item and as a link of a catalog, local and remote."""
    for address in addresses(forbidden):
        document = copy.deepcopy(world.items[0])
        document["assets"]["red"]["href"] = address
        with suppress(Refused):  # a remote catalog may not name it either, or only as an object below itself
            href = admit(document, Origin("https://data.example.com/items"))[0]["assets"].get("red", {}).get("href", "https://data.example.com")
            assert href.startswith("https://data.example.com"), href
        (world.folder / "case.json").write_text(json.dumps(document))
        tile = tile_at(world.job.grid(), 32, 4, (0, 0))
        cube = Cube(tile.grid, world.job.calendar(), small_cube().basis)
        found = catalogs.find(world.job)
        look(Coverage(found.items).of(tile), tile, cube, 0)
        links = [{"rel": rel, "href": address} for rel in ("child", "item", "items", "next", "self", "root")]
        (world.folder / "case.json").write_text(json.dumps({"type": "Catalog", "id": "c", "links": links}))
        with pytest.raises(FusionError):
            catalogs.find(world.job)
        assert forbidden.touched() == [], address


def test_hdf5_files_that_name_other_files(forbidden: Forbidden, tmp_path: Path) -> None:
    from sensors.images import opened

    secret = str(forbidden.folder / "secret.h5")
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["a/b"] = h5py.ExternalLink(secret, "/secret")
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        layout = h5py.VirtualLayout((8, 8), "i8")
        layout[:] = h5py.VirtualSource(secret, "secret", (8, 8))
        file.create_virtual_dataset("a", layout)
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file.create_dataset("a", (6,), "u1", external=[(str(forbidden.folder / "secret.txt"), 0, 6)])
    with h5py.File(tmp_path / "good.h5", "w") as file:
        file["a"] = np.arange(4)
        file["b"] = h5py.SoftLink("/a")
    forbidden.touched()
    for name in ("link", "virtual", "raw"):
        with pytest.raises(FusionError, match="another file"), opened(tmp_path / f"{name}.h5", "here"):
            pass
    assert forbidden.touched() == []
    with opened(tmp_path / "good.h5", "here") as file:
        assert file["b"][3] == 3


def test_credentials_do_not_follow_a_redirect_to_another_host(
    world: World, forbidden: Forbidden, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whether a search, GDAL or a download of whole files: the other host is not called, or without the credentials."""
    monkeypatch.setenv("GDAL_HTTP_HEADERS", "Authorization: Bearer SECRET")
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")
    monkeypatch.setenv("FUSION_CACHE", str(tmp_path))
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password SECRET\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    forbidden.touched()
    (world.folder / "served.json").write_text(json.dumps({"type": "FeatureCollection", "features": world.items}))
    with recording(world.folder / "served.json") as (api, traffic):
        for asset in api.items[0]["assets"].values():
            traffic.orders[urlsplit(asset["href"]).path] = [f"{forbidden.address}/x.tif"]
        job = small_job(api.root, tmp_path / "cube.zarr", sensors=[{"name": "landsat-8", "catalog": api.root, "collection": "landsat-8"}])
        store = running.prepare(job)
        brief = fuse_tile(store.url, store.about["fingerprint"], (0, 0), fit=quick_fit, read_retries=0)
        assert brief["failed"] == 1
        told = forbidden.touched()
        assert told, "the redirect was not followed: the test shows nothing of GDAL"
        assert not any("SECRET" in t or "bWU6U0VDUkVU" in t for t in told)
        monkeypatch.setattr(sources, "RETRIES", 1)
        for path in ("/search", "/"):
            traffic.orders[path] = [f"{forbidden.address}/search"]
            with pytest.raises(FusionError, match="not followed"):
                find(job)
        assert forbidden.touched() == []


# --- hostile jobs ---------------------------------------------------------------------------------------------------------


def jobs_are_explained(data: st.DataObject, folder: Path) -> None:
    """A mutated job is a FusionError or a job whose grid and calendar are bounded; TOML text may be cut and damaged too."""
    document = copy.deepcopy(job_document("items.json", "cube.zarr", engine={"settings": {"a": 1}}, output={"store": "c.zarr", "draws": 2}))
    for _ in range(data.draw(st.integers(1, 3))):
        mutated(document, data, ["s3://k:s@b/c", "\x00", "../../x", "memory://x", "ftp://a/b", "landsat-8", "EPSG:32613", "0.1", "-5"])
    with suppress(FusionError):  # said in one sentence, which is what is asked
        job = Job.of(document)
        check(job)
        assert len(job.fingerprint) == 64
        assert np.prod(job.grid().shape, dtype=float) <= 1e11
    text = bytearray((Path(__file__).parents[2] / "fusion" / "service" / "job.toml").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        spot = data.draw(st.integers(0, len(text) - 1))
        text[spot : spot + data.draw(st.integers(0, 30))] = data.draw(st.binary(max_size=8))
    (folder / "job.toml").write_bytes(text)
    with suppress(FusionError):
        check(Job.load(folder / "job.toml"))


@QUICK
@given(data=st.data())
def test_hostile_jobs(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    jobs_are_explained(data, tmp_path_factory.getbasetemp())


@pytest.mark.slow
@pytest.mark.timeout(7200)
@LONG
@given(data=st.data())
def test_hostile_jobs_many(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    jobs_are_explained(data, tmp_path_factory.getbasetemp())


# --- hostile stores -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(world: World) -> CubeStore:
    """A whole cube of one tile over the world's scenes."""
    (world.folder / "case.json").write_text(json.dumps(world.items[0]))
    job = small_job(world.folder / "case.json", world.folder.parent / "store.zarr", tiles={"core": 96, "halo": 0})
    made = running.prepare(job)
    fuse_tile(made.url, made.about["fingerprint"], (0, 0), fit=quick_fit)
    made.finish()
    return made


def stores_do_no_harm(data: st.DataObject, store: CubeStore, forbidden: Forbidden) -> None:
    """One file of a cube is mutated as JSON, or damaged as bytes; everything that reads or resumes it ends in a FusionError or well."""
    folder = Path(store.url)
    texts = sorted(p for p in folder.rglob("*.json"))
    path = data.draw(st.sampled_from(texts + texts + sorted(p for p in folder.rglob("*") if p.is_file())))
    kept = path.read_bytes()
    if path.suffix == ".json" and data.draw(st.integers(0, 4)):
        document = json.loads(kept)
        for _ in range(data.draw(st.integers(1, 2))):
            mutated(document, data, addresses(forbidden))
        damaged = json.dumps(document).encode()
    else:
        damaged = bytearray(kept)
        for _ in range(data.draw(st.integers(1, 4))):
            spot = data.draw(st.integers(0, max(0, len(damaged) - 1)))
            damaged[spot : spot + data.draw(st.integers(0, 20))] = data.draw(st.binary(max_size=20))
    record = folder / "status" / "tiles" / "0.0.json"
    told = record.read_bytes()
    try:
        path.write_bytes(damaged)
        for act in (_read_all, _fuse_again):
            with suppress(FusionError):  # said in one sentence, which is what is asked
                act(store, record)
        assert forbidden.touched() == [] or path.name == "items.json"
    finally:
        path.write_bytes(kept)
        if not record.exists() or record.read_bytes() != told:
            record.write_bytes(told)


def _read_all(store: CubeStore, _: Path) -> None:
    opened = CubeStore.open(store.url, read_only=True)
    opened.verify()
    opened.records()
    opened.items()


def _fuse_again(store: CubeStore, record: Path) -> None:
    desk.cache_clear()
    desk(store.url, store.about["fingerprint"])


@QUICK
@given(data=st.data())
def test_hostile_stores(data: st.DataObject, store: CubeStore, forbidden: Forbidden) -> None:
    stores_do_no_harm(data, store, forbidden)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@LONG
@given(data=st.data())
def test_hostile_stores_many(data: st.DataObject, store: CubeStore, forbidden: Forbidden) -> None:
    stores_do_no_harm(data, store, forbidden)
