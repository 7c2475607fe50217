"""Live search: the same laws over a small STAC API of this process and, as a long test, over pgstac with files on nginx."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
from distributed import LocalCluster

from fusion.errors import JobError
from fusion.observe.sensor import sensor
from fusion.service import run as running
from fusion.service import sources
from fusion.service.catalog import find
from fusion.service.store import CubeStore
from fusion.testing.api import CORE, SEARCH, stac_api
from tests.service.faults import faulty
from tests.service.servers import Document, nginx, pgstac, recording
from tests.service.test_run import on, same_cube
from tests.service.worlds import archive, quick_fit, small_job

MANY = 450
"""more than two of the pages that a search asks for"""


@dataclass(frozen=True)
class Served:
    """One catalog behind one server."""

    root: str
    static: Path
    """the same scenes as a static catalog"""
    items: list[Document]
    log: Path | None = None
    """of nginx"""


def many(first: Document) -> list[Document]:
    """Copies of an item spread over days, places and cloudiness, in a collection of their own."""
    out = []
    for n in range(MANY):
        item = copy.deepcopy(first)
        item |= {"id": f"many-{n:03d}", "collection": "many"}
        item["properties"] |= {"datetime": f"2024-05-{1 + n % 24:02d}T17:{n % 60:02d}:00Z", "eo:cloud_cover": n % 100}
        if n % 10 == 3:  # outside the place
            item["bbox"] = [v + s for v, s in zip(item["bbox"], (2.0, 1.0, 2.0, 1.0), strict=True)]
            item["geometry"]["coordinates"] = [[[x + 2.0, y + 1.0] for x, y in item["geometry"]["coordinates"][0]]]
        if n % 10 == 7:  # outside the period
            item["properties"]["datetime"] = "2021-05-05T17:00:00Z"
        out.append(item)
    return out


def silent(folder: Path, item: Document, name: str, fields: dict[str, Any]) -> Document:
    """A copy of a scene whose files say no CRS; its item says it in `fields` alone."""
    out = copy.deepcopy(item)
    out |= {"id": name, "collection": name}
    for key in ("proj:epsg", "proj:code", "proj:wkt2"):
        out["properties"].pop(key, None)
    out["properties"] |= fields
    for asset in out["assets"].values():
        path = Path(asset["href"])
        asset["href"] = str(folder / f"{name}-{path.name}")
        with rasterio.open(path) as old:
            profile = old.profile | {"crs": None, "driver": "GTiff"}
            with rasterio.open(asset["href"], "w", **profile) as new:
                new.write(old.read())
    return out


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Document]]:
    """Files and items: two simulated scenes, the same without CRS in the files, and many copies for paging."""
    folder = tmp_path_factory.mktemp("served") / "archive"
    items = json.loads(archive(folder).read_text())["features"]
    code = silent(folder, items[0], "by-code", {"proj:code": "EPSG:32613"})
    epsg = silent(folder, items[0], "by-epsg", {"proj:epsg": 32613})
    items += [code, epsg, *many(items[0])]
    path = folder / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    return path, items


@pytest.fixture(scope="module", params=["small", pytest.param("pgstac", marks=pytest.mark.slow)])
def served(request: pytest.FixtureRequest, world: tuple[Path, list[Document]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    static, items = world
    if request.param == "small":
        with stac_api(static) as api:
            yield Served(api.root, static, items)
        return
    work = tmp_path_factory.mktemp("servers")
    with nginx(static.parent, work) as (files, log):
        public = json.loads(json.dumps(items).replace(str(static.parent), files))
        with pgstac([collection(name) for name in sorted({i["collection"] for i in items})], public, work) as root:
            yield Served(root, static, items, log)


def collection(name: str) -> Document:
    """A minimal STAC collection."""
    extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [["2020-01-01T00:00:00Z", None]]}}
    about = {"type": "Collection", "stac_version": "1.1.0", "id": name, "description": name, "license": "CC0-1.0"}
    return {**about, "extent": extent, "links": []}


def job_at(root: str | Path, store: str | Path = "unused.zarr", **source: Any) -> Any:
    return small_job(root, store, sensors=[{"name": "landsat-8", "catalog": str(root), "collection": "many", **source}])


def expected(items: list[Document], keep: Any = lambda _: True) -> set[str]:
    """The ids of `many` that are in place and period, from how they were made."""
    inside = (n for n in range(MANY) if n % 10 not in (3, 7))
    return {f"many-{n:03d}" for n in inside if keep(items[4 + n])}


def test_a_search_pages_to_the_end_and_takes_what_is_in_place_and_period(served: Served) -> None:
    found = find(job_at(served.root))
    assert {i["id"] for i in found.items["landsat-8"]} == expected(served.items)
    assert found.notes == []


def test_the_server_is_asked_for_place_and_period(served: Served) -> None:
    """Not only the client filters: what the server sends is already near."""
    job = job_at(served.root)
    raw = [d["id"] for d, _ in sources.documents(job, job.sensors[0], sensor("landsat-8"))]
    assert len(raw) == len(set(raw))
    assert set(raw) == expected(served.items)


def test_a_property_filter_is_the_servers_work_where_it_conforms(served: Served) -> None:
    job = job_at(served.root, query={"eo:cloud_cover": {"lt": 20}})
    raw = {d["id"] for d, _ in sources.documents(job, job.sensors[0], sensor("landsat-8"))}
    wanted = expected(served.items, lambda i: i["properties"]["eo:cloud_cover"] < 20)
    assert raw == wanted
    assert {i["id"] for i in find(job).items["landsat-8"]} == wanted


@pytest.mark.parametrize("name", ["by-code", "by-epsg"])
def test_a_crs_that_only_the_item_knows(served: Served, name: str) -> None:
    job = job_at(served.root, collection=name)
    item = find(job).items["landsat-8"][0]
    got = sensor("landsat-8").read(pystac.Item.from_dict(item), job.grid())
    wanted = sensor("landsat-8").read(pystac.Item.from_dict(served.items[0]), job.grid())
    np.testing.assert_array_equal(got.reflectance, wanted.reflectance)
    assert got.geobox.crs == wanted.geobox.crs


def test_a_run_from_a_server_equals_the_run_from_files(served: Served, tmp_path: Path, workers: LocalCluster) -> None:
    stores = []
    for name, root in (("live", served.root), ("static", served.static)):
        job = small_job(root, tmp_path / f"{name}.zarr", cluster=on(workers), sensors=[
            {"name": "landsat-8", "catalog": str(root), "collection": "landsat-8"}
        ])
        summary = running.run(job, fit=quick_fit, progress="none")
        assert (summary.done, summary.failed, summary.unread) == (9, {}, 0)
        stores.append(CubeStore.open(job.output.store))
    assert same_cube(*stores)
    hrefs = [a["href"] for i in stores[0].items()["landsat-8"] for a in i["assets"].values()]
    assert all(href.startswith("http://127.0.0.1") for href in hrefs)
    if served.log is not None:  # every read of a file was one of ranges
        asked = [line.split(" ", 1) for line in served.log.read_text().splitlines()]
        ranges = [r for _, r in asked if re.match(r"bytes=\d+-\d+", r)]
        assert len(ranges) >= 9
        assert {status for status, r in asked if r in ranges} == {"206"}


def test_a_search_survives_503_and_resets(served: Served) -> None:
    host, port = served.root.removeprefix("http://").split(":")
    wanted = {i["id"] for i in find(job_at(served.root)).items["landsat-8"]}
    faults = 0
    for seed in range(2):
        with faulty((host, int(port)), rate=0.3, seed=seed) as proxy:
            found = find(job_at(f"http://127.0.0.1:{proxy.port}"))
            assert {i["id"] for i in found.items["landsat-8"]} == wanted
            assert found.notes == []
            faults += proxy.faults.total()
    assert faults > 0, "the proxy broke nothing: the test shows nothing"


def test_pauses_between_attempts_grow(world: tuple[Path, list[Document]]) -> None:
    with recording(world[0]) as (api, traffic):
        traffic.orders["/search"] = [503, 503, 503]
        assert len(find(job_at(api.root)).items["landsat-8"]) == len(expected(world[1]))
    pauses = np.diff(traffic.when[:4])
    assert (pauses[1:] > [0.9, 1.8]).all(), pauses  # the first attempt after a failure is immediate, then 1, 2, 4 ... seconds


@pytest.mark.parametrize("conforms", [(CORE,), (CORE, SEARCH)])
def test_what_a_server_does_not_conform_to_is_not_asked_of_it(world: tuple[Path, list[Document]], conforms: tuple[str, ...]) -> None:
    with recording(world[0], conforms=conforms) as (api, traffic):
        found = find(job_at(api.root, query={"eo:cloud_cover": {"lt": 20}}))
    wanted = expected(world[1], lambda i: i["properties"]["eo:cloud_cover"] < 20)
    assert {i["id"] for i in found.items["landsat-8"]} == wanted
    if SEARCH in conforms:
        assert traffic.searches
        assert not any("query" in asked for asked in traffic.searches)
    else:
        assert traffic.searches == []


def test_only_the_window_is_fetched(tmp_path: Path) -> None:
    """A tile reads a small part of a large file."""
    from fusion.cube.calendar import Instant
    from fusion.cube.grid import Grid
    from fusion.observe.scene import Scene

    facts = sensor("landsat-8")
    grid = Grid.from_bbox((-105.30, 40.00, -104.98, 40.26), align=15)
    assert facts.native is not None
    assert facts.write is not None
    box = facts.native(grid)
    shape = (len(facts.bands), *map(int, box.shape))
    values = np.random.default_rng(0).uniform(0.1, 0.4, shape).astype(np.float32)
    when = Instant(np.datetime64("2024-05-05T17:30:00"))
    scene = Scene("landsat-8", "large", tuple(b.name for b in facts.bands), values, np.full(shape, 0.01, np.float32), box, when, simulated=True)
    item = facts.write(scene, tmp_path).to_dict(include_self_link=False)
    (tmp_path / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": [item]}))
    window = grid.crop(slice(100, 132), slice(100, 132))
    with recording(tmp_path / "items.json") as (api, traffic):
        got = facts.read(pystac.Item.from_dict(api.items[0]), window)
    size = sum(p.stat().st_size for p in tmp_path.glob("*.TIF"))
    assert got.reflectance.shape[1] < 60
    assert traffic.answers[206] > 0
    assert traffic.sent < 0.4 * size, (traffic.sent, size)


def test_a_catalog_that_cannot_be_served_is_explained(tmp_path: Path) -> None:
    for text in ("", "[]", '{"type": "Catalog"}', '{"type": "FeatureCollection", "features": [1]}'):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(JobError, match="static catalog"), stac_api(tmp_path / "c.json"):
            pass
    other = archive(tmp_path / "elsewhere")
    (tmp_path / "here").mkdir()
    shutil.copy(other, tmp_path / "here" / "items.json")
    with pytest.raises(JobError, match="outside"), stac_api(tmp_path / "here" / "items.json"):
        pass
