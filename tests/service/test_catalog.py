"""Catalogs: searches page, retry, filter again, go on when a source fails, and never leave their host."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from fusion.errors import JobError
from fusion.service import sources
from fusion.service.catalog import find, thinned
from fusion.service.sources import matches
from tests.service.test_policy import GOOD
from tests.service.worlds import BBOX, small_job


@pytest.mark.parametrize(("query", "wanted"), [
    ({"platform": "landsat-8"}, True), ({"platform": {"in": ["landsat-9"]}}, False),
    ({"eo:cloud_cover": {"lt": 20, "gte": 10}}, True),
    ({"eo:cloud_cover": {"gt": 10}}, False), ({"missing": {"lt": 1}}, False), ({"platform": {"startsWith": "land"}}, True),
    ({"platform": {"lt": 3}}, False), ({"platform": {"neq": "x"}}, True),
])
def test_filters(query: dict[str, Any], wanted: bool) -> None:
    assert matches(GOOD, query) is wanted


def test_an_unknown_operator_is_explained() -> None:
    with pytest.raises(JobError, match="operator"):
        matches(GOOD, {"platform": {"like": "x"}})


def test_composites_that_share_their_window_are_thinned() -> None:
    def composite(day: int, width: int, lon: float = 0.0) -> dict[str, Any]:
        item = copy.deepcopy(GOOD)
        for corner in item["geometry"]["coordinates"][0]:
            corner[0] -= lon
        start = f"2024-05-{day:02d}T00:00:00Z"
        end = f"2024-05-{day + width - 1:02d}T23:59:59Z"
        return {**item, "id": f"{day}-{lon}", "properties": {"datetime": None, "start_datetime": start, "end_datetime": end}}

    def kept(items: list[dict[str, Any]], *days: str) -> list[str]:
        return [i["id"] for i in thinned(items, np.array([f"2024-05-{day}" for day in days], "M8[us]"))]

    daily = [composite(day, 16) for day in range(1, 16)]
    assert kept(daily, "01") == ["1-0.0", "9-0.0"]  # none shares more than half of its window
    assert kept(daily, "12", "15T12", "23") == ["4-0.0", "8-0.0", "15-0.0"]  # the centres nearest to the latent times; 16 days overlap from 12 on
    every_day = [f"{day:02d}" for day in range(9, 24)]
    assert kept(daily, *every_day) == [f"{day}-0.0" for day in range(1, 16, 2)]  # never closer than an eighth of the window
    assert len(kept([composite(day, 16, lon) for day in range(1, 10) for lon in (0.0, 5.0)], "01")) == 4
    eight_day = [composite(day, 8) for day in (1, 9, 17)]
    assert kept(eight_day, "05") == [i["id"] for i in eight_day]
    instants = [{**GOOD, "id": str(n)} for n in range(3)]
    assert thinned(instants, np.array(["2024-05-01"], "M8[us]")) == instants


# --- a STAC API that pages, fails, lies and wanders off ---------------------------------------------------------------


class Api(BaseHTTPRequestHandler):
    """A small STAC API over a list of items; `behaviour` makes it misbehave."""

    items: ClassVar[list[dict[str, Any]]] = []
    behaviour: ClassVar[dict[str, Any]] = {}
    requests: ClassVar[list[str]] = []

    def log_message(self, *_: Any) -> None:
        return

    def reply(self, document: Any, status: int = 200, **headers: str) -> None:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response(status)
        for key, value in {"content-type": "application/json", "content-length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length", 0))
        self.answer(json.loads(self.rfile.read(length) or b"{}"))

    def do_GET(self) -> None:
        self.answer({k: v[0] for k, v in parse_qs(urlsplit(self.path).query).items()})

    def answer(self, asked: dict[str, Any]) -> None:
        root = f"http://{self.headers['host']}"
        path = urlsplit(self.path).path
        self.requests.append(path)
        if path == "/":
            conforms = ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"]
            self.reply({
                "type": "Catalog", "id": "api", "stac_version": "1.0.0", "description": "test", "conformsTo": conforms,
                "links": [{"rel": "search", "href": f"{root}/search", "method": "POST", "type": "application/geo+json"}],
            })
            return
        start = int(asked.get("token", 0))
        failing = self.behaviour.get("fail", {})
        if failing.get(start, 0) > 0:
            failing[start] -= 1
            self.reply(b"busy", self.behaviour.get("status", 503))
            return
        if "redirect" in self.behaviour:
            self.reply({}, 307, location=self.behaviour["redirect"])
            return
        page = self.items[start:start + 2]
        links = []
        if start + 2 < len(self.items):
            href = self.behaviour.get("next", f"{root}/search")
            links = [{"rel": "next", "href": href, "method": "POST", "body": {"token": start + 2}, "merge": True}]
        self.reply({"type": "FeatureCollection", "features": page, "links": links})


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(sources, "RETRIES", 2)
    root = f"http://127.0.0.1:{server.server_address[1]}/"
    Api.items = [
        {**copy.deepcopy(GOOD), "id": f"s{n}", "assets": {"red": {"href": f"{root}red{n}.tif"}}} for n in range(5)
    ]
    Api.behaviour, Api.requests = {}, []
    yield root
    server.shutdown()
    server.server_close()
    thread.join()


def search(root: str, **source: Any) -> Any:
    return find(small_job("x", "unused.zarr", sensors=[{"name": "landsat-8", "catalog": root, "collection": "c", **source}]))


def test_a_search_pages_to_the_end(api: str) -> None:
    found = search(api)
    assert [i["id"] for i in found.items["landsat-8"]] == ["s0", "s1", "s2", "s3", "s4"]
    assert Api.requests.count("/search") == 3


def test_a_search_filters_again_what_the_server_did_not(api: str) -> None:
    Api.items[0]["properties"]["eo:cloud_cover"] = 99
    Api.items[1]["properties"]["datetime"] = "2020-01-01T00:00:00Z"
    Api.items[2]["geometry"], Api.items[2]["bbox"] = None, [10, 10, 11, 11]
    assert [i["id"] for i in search(api, query={"eo:cloud_cover": {"lt": 50}}).items["landsat-8"]] == ["s3", "s4"]


def test_a_failing_page_is_tried_again(api: str) -> None:
    Api.behaviour = {"fail": {2: 2}}
    assert len(search(api).items["landsat-8"]) == 5


def test_a_page_that_never_comes_is_recorded_and_the_rest_is_kept(api: str) -> None:
    Api.behaviour = {"fail": {2: 99}}
    found = search(api)
    assert [i["id"] for i in found.items["landsat-8"]] == ["s0", "s1"]
    assert any("ended early after 2 scenes" in note for note in found.notes)


@pytest.mark.parametrize("href", ["http://evil.example/search", "file:///etc/passwd", "http://127.0.0.2:1/x"])
def test_a_search_never_leaves_its_host(api: str, href: str) -> None:
    Api.behaviour = {"next": href}
    found = search(api)
    assert len(found.items["landsat-8"]) == 2
    assert any("not followed" in note for note in found.notes)
    Api.behaviour = {"redirect": href}
    with pytest.raises(JobError, match="not followed"):
        search(api)


def test_hostile_items_of_a_search_are_listed_with_their_reason(api: str) -> None:
    Api.items[0]["assets"] = {"red": {"href": "file:///etc/passwd"}}
    Api.items[1]["bbox"] = [float("nan")] * 4
    Api.items[2]["assets"]["qa"] = {"href": "https://10.1.2.3/qa"}
    found = search(api)
    assert [i["id"] for i in found.items["landsat-8"]] == ["s2", "s3", "s4"]
    assert list(found.items["landsat-8"][0]["assets"]) == ["red"]
    assert sum("refused" in note for note in found.notes) == 2
    assert any("'qa' left out" in note for note in found.notes)


def test_too_many_scenes_and_none_at_all(api: str) -> None:
    found = search(api, max_items=3)
    assert len(found.items["landsat-8"]) == 3
    assert any("max_items" in note for note in found.notes)
    Api.items = []
    with pytest.raises(JobError, match="no sensor has a scene"):
        search(api)


def test_a_server_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "RETRIES", 0)
    with pytest.raises(JobError, match="ended early"):
        search("http://127.0.0.1:9/")


def test_a_static_catalog_with_a_loop_and_a_trap(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_text("x")
    item = {**copy.deepcopy(GOOD), "assets": {"red": {"href": "../a.tif"}}}
    targets = ["items/one.json", "catalog.json", "/etc/passwd", "../../../etc/passwd", "missing.json"]
    links = [{"rel": "item", "href": target} for target in targets]
    (tmp_path / "items").mkdir()
    (tmp_path / "items" / "one.json").write_text(json.dumps(item))
    (tmp_path / "catalog.json").write_text(json.dumps({"type": "Catalog", "id": "c", "links": links}))
    found = find(small_job(tmp_path / "catalog.json", "unused.zarr"))
    assert [i["id"] for i in found.items["landsat-8"]] == ["scene-1"]
    assert found.items["landsat-8"][0]["assets"]["red"]["href"] == str((tmp_path / "a.tif").resolve())
    assert sum("not followed" in note for note in found.notes) == 2
    assert any("missing.json" in note for note in found.notes)


def test_plain_files(tmp_path: Path) -> None:
    import numpy as np
    import rasterio

    path = tmp_path / "flight_20240505T173000.tif"
    with rasterio.open(path, "w", driver="GTiff", width=4, height=4, count=1, dtype="uint8", crs="EPSG:4326",
                       transform=rasterio.transform.from_bounds(*BBOX, 4, 4)) as raster:
        raster.write(np.ones((1, 4, 4), np.uint8))
    job = small_job("x", "unused.zarr", sensors=[{"name": "airborne", "files": [str(tmp_path / "*.tif")]}])
    item = find(job).items["airborne"][0]
    assert item["properties"]["datetime"] == "2024-05-05T17:30:00Z"
    assert item["bbox"] == pytest.approx(BBOX)
    (tmp_path / "nodate.tif").write_bytes(path.read_bytes())
    with pytest.raises(JobError, match="holds no date"):
        find(small_job("x", "unused.zarr", sensors=[{"name": "airborne", "files": [str(tmp_path / "nodate.tif")]}]))
