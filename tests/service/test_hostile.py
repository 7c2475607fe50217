"""Hostile text in catalogs, jobs and stores: nothing crashes, and nothing outside what was allowed is opened (`hostile.py`)."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
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
from tests.service.hostile import Forbidden, addresses, damaged, mutated, watched
from tests.service.servers import recording
from tests.service.worlds import archive, job_document, quick_fit, small_cube, small_job

Law = Callable[[st.DataObject], None]


@pytest.fixture(params=[120, pytest.param(4_000, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])], ids=["quick", "many"])
def throw(request: pytest.FixtureRequest) -> Callable[[Law], None]:
    """Throws drawn cases at a law: 120 of them, 4,000 in the long study."""
    thrown = settings(max_examples=request.param, deadline=None, suppress_health_check=list(HealthCheck))
    return lambda law: thrown(given(data=st.data())(law))()


@pytest.fixture(scope="module")
def forbidden(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forbidden]:
    with watched(tmp_path_factory.mktemp("forbidden")) as made:
        yield made


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


def test_hostile_items(throw: Callable[[Law], None], world: World, forbidden: Forbidden) -> None:
    """A catalog of one mutated item, searched and read as a run would."""

    def no_harm(data: st.DataObject) -> None:
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

    throw(no_harm)


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


def test_hostile_jobs(throw: Callable[[Law], None], tmp_path: Path) -> None:
    """A mutated job is a FusionError or a job whose grid and calendar are bounded; TOML text may be cut and damaged too."""
    template = (Path(__file__).parents[2] / "fusion" / "service" / "job.toml").read_bytes()
    pool = ["s3://k:s@b/c", "\x00", "../../x", "memory://x", "ftp://a/b", "landsat-8", "EPSG:32613", "0.1", "-5"]

    def explained(data: st.DataObject) -> None:
        document = copy.deepcopy(job_document("items.json", "cube.zarr", engine={"settings": {"a": 1}}, output={"store": "c.zarr", "draws": 2}))
        for _ in range(data.draw(st.integers(1, 3))):
            mutated(document, data, pool)
        with suppress(FusionError):  # said in one sentence, which is what is asked
            job = Job.of(document)
            check(job)
            assert len(job.fingerprint) == 64
            assert np.prod(job.grid().shape, dtype=float) <= 1e11
        (tmp_path / "job.toml").write_bytes(damaged(template, data))
        with suppress(FusionError):
            check(Job.load(tmp_path / "job.toml"))

    throw(explained)


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


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # zarr's, of a fill value that is no float32
def test_hostile_stores(throw: Callable[[Law], None], store: CubeStore, forbidden: Forbidden) -> None:
    """One file of a cube is mutated as JSON, or damaged as bytes; everything that reads or resumes it ends in a FusionError or well."""
    folder = Path(store.url)
    texts = sorted(folder.rglob("*.json"))
    files = texts + texts + sorted(p for p in folder.rglob("*") if p.is_file())
    record = folder / "status" / "tiles" / "0.0.json"
    told = record.read_bytes()

    def no_harm(data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(files))
        kept = path.read_bytes()
        if path.suffix == ".json" and data.draw(st.integers(0, 4)):
            document = json.loads(kept)
            for _ in range(data.draw(st.integers(1, 2))):
                mutated(document, data, addresses(forbidden))
            sent = json.dumps(document).encode()
        else:
            sent = damaged(kept, data)
        try:
            path.write_bytes(sent)
            for act in (_read_all, _open_desk):
                with suppress(FusionError):  # said in one sentence, which is what is asked
                    act(store)
            assert forbidden.touched() == [] or path.name == "items.json"
        finally:
            path.write_bytes(kept)
            record.write_bytes(told)

    throw(no_harm)


def _read_all(store: CubeStore) -> None:
    opened = CubeStore.open(store.url, read_only=True)
    opened.verify()
    opened.records()
    opened.items()


def _open_desk(store: CubeStore) -> None:
    desk.cache_clear()
    desk(store.url, store.about["fingerprint"])
