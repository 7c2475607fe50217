"""A STAC API of this process over a static catalog and its files: the whole path through the network, without a network.

    >>> from fusion.testing import stac_api
    >>> with stac_api("demo/archive/catalog.json") as api:
    ...     job = fusion.Job.of({..., "sensors": [{"name": "landsat-8", "catalog": api.root}]})

Item search by collection, bbox, datetime and property query with paging (https://api.stacspec.org/v1.0.0), and the catalog's folder
with byte ranges (RFC 9110 section 14), on this machine's own address. For trying things out and for tests, not for the internet.
"""

from __future__ import annotations

import json
import operator
import re
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pystac
import shapely
import shapely.geometry

from fusion.errors import JobError

Document = dict[str, Any]
CORE, SEARCH, QUERY = (f"https://api.stacspec.org/v1.0.0/{part}" for part in ("core", "item-search", "item-search#query"))
"""conformance classes"""
TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq, "neq": operator.ne, "lt": operator.lt, "lte": operator.le, "gt": operator.gt, "gte": operator.ge,
    "in": lambda value, wanted: value in wanted,
}


@dataclass
class StacApi:
    """The items and files that are served."""

    folder: Path
    """served under `prefix`"""
    items: list[Document]
    conforms: tuple[str, ...] = (CORE, SEARCH, QUERY)
    page: int = 100
    """most items of one answer"""
    root: str = ""
    """its address, once it is served"""
    prefix: str = field(default_factory=lambda: f"/files/{secrets.token_hex(4)}/")
    """never the same twice: readers (GDAL) remember what an address held, and a later server may get the same port"""

    def landing(self) -> Document:
        """The root document; without item search, the items are linked like a static catalog's."""
        search = {"rel": "search", "href": f"{self.root}/search", "method": "POST", "type": "application/geo+json"}
        links = [search if SEARCH in self.conforms else {"rel": "items", "href": f"{self.root}/items"}]
        about = {"type": "Catalog", "id": "local", "stac_version": "1.1.0", "description": "A static catalog, served"}
        return {**about, "conformsTo": list(self.conforms), "links": links}

    def search(self, asked: Document) -> Document:
        """One page of an item search."""
        found = [item for item in self.items if _matches(item, asked)]
        start, size = int(asked.get("token", 0)), min(int(asked.get("limit", 10)), self.page)
        more = {"rel": "next", "href": f"{self.root}/search", "method": "POST", "merge": True, "body": {"token": start + size}}
        links = [more] if start + size < len(found) else []
        return {"type": "FeatureCollection", "features": found[start : start + size], "links": links}


def _matches(item: Document, asked: Document) -> bool:
    properties = item["properties"]
    if asked.get("collections") and item.get("collection") not in asked["collections"]:
        return False
    if asked.get("bbox") and not shapely.box(*asked["bbox"]).intersects(shapely.geometry.shape(item["geometry"])):
        return False
    if asked.get("datetime"):
        wanted = [_moment(part) for part in asked["datetime"].split("/")]
        first = _moment(properties.get("start_datetime") or properties.get("datetime"))
        last = _moment(properties.get("end_datetime") or properties.get("datetime"))
        if last < wanted[0] or first > wanted[-1]:
            return False
    tests = ((name, test, value) for name, given in (asked.get("query") or {}).items() for test, value in given.items())
    return all(name in properties and TESTS[test](properties[name], value) for name, test, value in tests)


def _moment(text: Any) -> datetime:
    found = datetime.fromisoformat(str(text))
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


class Handler(BaseHTTPRequestHandler):
    """HTTP over one `StacApi`."""

    protocol_version = "HTTP/1.1"
    api: StacApi

    def log_message(self, *_: Any) -> None:
        """Silent: the caller sees what it asked."""

    def do_GET(self) -> None:
        """Landing page, items, files."""
        path = unquote(urlsplit(self.path).path)
        if path in ("", "/"):
            self.tell(self.api.landing())
        elif path == "/items":
            self.tell({"type": "FeatureCollection", "features": self.api.items, "links": []})
        else:
            file = (self.api.folder / path.removeprefix(self.api.prefix)).resolve()
            known = path.startswith(self.api.prefix) and self.api.folder.resolve() in file.parents and file.is_file()
            self.send(file.read_bytes()) if known else self.answer(404)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Searches."""
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        try:
            self.searched(json.loads(body or b"{}"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self.answer(400, json.dumps({"code": "BadRequest", "description": str(error)}).encode())

    def searched(self, asked: Document) -> None:
        """The answer to a search."""
        self.tell(self.api.search(asked))

    def tell(self, document: Document) -> None:
        """A JSON answer."""
        self.answer(200, json.dumps(document).encode(), Content_Type="application/json")

    def send(self, data: bytes) -> None:
        """A file, or the range of it that was asked for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if asked is None:
            self.answer(200, data, Accept_Ranges="bytes")
        elif (start := int(asked[1])) >= len(data):
            self.answer(416, Content_Range=f"bytes */{len(data)}")
        else:
            end = min(int(asked[2] or len(data)), len(data) - 1)
            self.answer(206, data[start : end + 1], Content_Range=f"bytes {start}-{end}/{len(data)}")

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """One complete answer."""
        self.send_response(status)
        for key, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def stac_api(catalog: str | Path, *, handler: type[Handler] = Handler, **settings: Any) -> Iterator[StacApi]:
    """Serves a static catalog or ItemCollection, whose assets lie beside or below it, until the block ends.

    handler: a subclass that answers otherwise, for tests. settings: fields of `StacApi`. Raises JobError for a catalog that
    cannot be read or that names files outside its folder.
    """
    path = Path(catalog).resolve()
    try:
        items = list(_items(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pystac.STACError, pystac.STACTypeError) as error:
        told = f"{path} is no static catalog that can be served ({error!r})"
        raise JobError(f"{told}: give a catalog.json or an ItemCollection") from error
    api = StacApi(path.parent, [], **settings)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (handler,), {"api": api}))
    server.daemon_threads = True
    api.root = f"http://127.0.0.1:{server.server_address[1]}"
    api.items += [_served(item, api) for item in items]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _items(path: Path) -> Iterable[pystac.Item]:
    if json.loads(path.read_text())["type"] == "FeatureCollection":
        return pystac.ItemCollection.from_file(str(path)).items
    return pystac.Catalog.from_file(str(path)).get_items(recursive=True)


def _served(item: pystac.Item, api: StacApi) -> Document:
    """The item's document with its assets' addresses on the server."""
    item.make_asset_hrefs_absolute()
    document = item.to_dict(include_self_link=False, transform_hrefs=False)
    document["links"] = []
    for asset in document["assets"].values():
        file = Path(asset["href"])
        if not file.is_relative_to(api.folder):
            raise JobError(f"item {item.id} names {file}, which is outside {api.folder}: serve a catalog that lies above its files")
        asset["href"] = f"{api.root}{api.prefix}{quote(str(file.relative_to(api.folder)))}"
    return document
