"""Where scenes are listed: a STAC API, a static catalog, or plain files; each yields item documents and where they came from."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urljoin, urlsplit

import numpy as np
import requests
from pystac_client import Client
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from urllib3.util import Retry

from fusion.cube.calendar import DAY, instant_of
from fusion.errors import JobError
from fusion.observe.sensor import Sensor, sensor
from fusion.service.job import Job, Source
from fusion.service.policy import Item, Origin, Refused, safe_href

PAD = 8 * DAY
"""a composite's window may reach into the period from this far outside"""
MAX_DOCUMENTS = 100_000
MAX_DOCUMENT = 256 * 2**20
RETRIES = 5
TIMEOUT = (10.0, 60.0)
"""seconds to connect, to answer"""


def outline(job: Job) -> Any:
    """The job's area in longitude and latitude, as a shapely polygon."""
    return job.grid().lonlat.geom


COMPARE = {
    "eq": lambda a, b: a == b, "neq": lambda a, b: a != b, "lt": lambda a, b: a < b, "lte": lambda a, b: a <= b,
    "gt": lambda a, b: a > b, "gte": lambda a, b: a >= b, "in": lambda a, b: a in b,
    "startsWith": lambda a, b: str(a).startswith(b), "endsWith": lambda a, b: str(a).endswith(b), "contains": lambda a, b: b in a,
}
"""the operators of the STAC query extension"""


def matches(item: Item, query: Mapping[str, Any]) -> bool:
    """Whether an item's properties satisfy a filter; a property that an item lacks does not."""
    for name, wanted in query.items():
        value = item["properties"].get(name)
        tests = wanted.items() if isinstance(wanted, Mapping) else [("eq", wanted)]
        for operator, operand in tests:
            if operator not in COMPARE:
                raise JobError(f"query {name}: no operator {operator!r}; known: {', '.join(COMPARE)}")
            try:
                if value is None or not COMPARE[operator](value, operand):
                    return False
            except TypeError:
                return False
    return True


@dataclass(frozen=True)
class Trouble:
    """Something that a source could not list, said instead of a document."""

    name: str
    reason: str


def documents(job: Job, source: Source, facts: Sensor) -> Iterator[tuple[Any, Origin]]:
    """Every item document that a source lists for a job, unchecked, with the document that it came from."""
    if source.files:
        yield from _files(source)
    elif source.catalog is None:
        if not facts.collections:
            raise JobError(f"{source.name} has no usual catalog: give `catalog` or `files` in the job")
        usual = facts.collections[0]
        filled = source.model_copy(update={
            "catalog": usual.catalog, "collection": source.collection or usual.id, "query": {**usual.query, **source.query},
        })
        yield from _search(job, filled)
    elif source.catalog.startswith(("http://", "https://")):
        host = urlsplit(source.catalog).hostname
        usual_here = next((c for c in facts.collections if urlsplit(c.catalog).hostname == host), None)
        filled = source
        if usual_here is not None and source.collection in (None, usual_here.id):
            filled = source.model_copy(update={"collection": usual_here.id, "query": {**usual_here.query, **source.query}})
        yield from _search(job, filled)
    else:
        yield from _of_sensor(list(_walk(source.catalog)), source, facts)


class GuardedIO(StacApiIO):
    """HTTP for one catalog: retries with backoff, and never leaves its host, whatever links and redirects say."""

    def __init__(self, root: str) -> None:
        retry = Retry(
            total=RETRIES, backoff_factor=0.5, status_forcelist=(408, 429, 500, 502, 503, 504), allowed_methods=None,
            raise_on_status=False, respect_retry_after_header=True,
        )
        super().__init__(timeout=TIMEOUT, max_retries=retry)
        self.root = root
        self.session.max_redirects = 5
        self.session.hooks["response"].append(self._same_host)

    def _guard(self, href: str) -> None:
        here, there = urlsplit(self.root), urlsplit(href)
        downgraded = (here.scheme, there.scheme) == ("https", "http")
        if there.scheme not in ("http", "https") or there.hostname != here.hostname or downgraded:
            raise APIError(f"the catalog at {here.hostname} leads to {href[:80]!r}: not followed")

    def _same_host(self, response: requests.Response, *_: Any, **__: Any) -> requests.Response:
        if response.is_redirect:
            self._guard(urljoin(response.url, response.headers.get("location", "")))
        return response

    def read_text(self, source: Any, *args: Any, **kwargs: Any) -> str:
        """The text of a page, from the catalog's own host only."""
        self._guard(source if isinstance(source, str) else source.absolute_href)
        return super().read_text(source, *args, **kwargs)

    def request(self, href: str, *args: Any, **kwargs: Any) -> str:
        """One request to the catalog's own host."""
        self._guard(href)
        return super().request(href, *args, **kwargs)


def _search(job: Job, source: Source) -> Iterator[tuple[Any, Origin]]:
    assert source.catalog is not None  # the caller fills it in
    client = Client.open(source.catalog, stac_io=GuardedIO(source.catalog))
    if not client.conforms_to("ITEM_SEARCH"):
        yield from _of_sensor(list(_walk(source.catalog)), source, sensor(source.name))
        return
    start, end = instant_of(job.period.start) - PAD, instant_of(job.period.end) + PAD
    ask: dict[str, Any] = {
        "datetime": f"{np.datetime_as_string(start, 's')}Z/{np.datetime_as_string(end, 's')}Z", "bbox": list(outline(job).bounds),
        "limit": 200,
    }
    if source.collection is not None:
        ask["collections"] = [source.collection]
    if source.query and client.conforms_to("QUERY"):
        ask["query"] = {k: v if isinstance(v, Mapping) else {"eq": v} for k, v in source.query.items()}
    pages = client.search(**ask).pages_as_dicts()
    seen = 0
    for page in pages:
        features = page.get("features", [])
        seen += len(features)
        if seen > 10 * source.max_items:
            raise JobError(f"{source.catalog} answered with more than {seen} scenes: narrow the search")
        for feature in features:
            yield feature, Origin(source.catalog)


def _walk(address: str) -> Iterator[tuple[Any, Origin]]:
    """Every item document of a static catalog, collection or ItemCollection, breadth first, each document once."""
    queue, seen = [address if "://" in address else os.path.abspath(address)], set()
    reader = GuardedIO(address) if "://" in address else None
    root = Origin(queue[0])
    while queue:
        href = queue.pop(0)
        if href in seen:
            continue
        seen.add(href)
        if len(seen) > MAX_DOCUMENTS:
            raise JobError(f"{address} links to more than {MAX_DOCUMENTS} documents: name a smaller catalog")
        try:
            document = _read(href, reader)
        except (OSError, ValueError, RecursionError, JobError, APIError) as error:
            if href == root.address:
                raise
            yield Trouble(href, f"not read: {error}"), root
            continue
        here = Origin(href)
        if document.get("type") == "Feature":
            yield document, _within(here, root)
        elif document.get("type") == "FeatureCollection":
            for feature in document.get("features", []):
                yield feature, _within(here, root)
        for link in document.get("links", []) if document.get("type") != "Feature" else []:
            if isinstance(link, dict) and link.get("rel") in ("child", "item", "items", "next"):
                try:
                    queue.append(_linked(link.get("href"), here, root))
                except Refused as reason:
                    yield Trouble(str(link.get("href"))[:80], f"link not followed: {reason}"), root


def _within(here: Origin, root: Origin) -> _Rooted:
    return _Rooted(here.address, root.folder if root.local else "")


@dataclass(frozen=True)
class _Rooted(Origin):
    """A document below a root: relative addresses start at the document, and must stay under the root's folder."""

    root: str = ""

    @property
    def folder(self) -> str:
        return self.root or super().folder


def _linked(href: Any, here: Origin, root: Origin) -> str:
    return safe_href(href, _within(here, root))


def _read(href: str, reader: GuardedIO | None) -> dict[str, Any]:
    if reader is not None:
        text = reader.read_text(href)
    else:
        if os.path.getsize(href) > MAX_DOCUMENT:
            raise JobError(f"{href} has {os.path.getsize(href)} bytes: split the catalog")
        with open(href, encoding="utf-8") as file:
            text = file.read()
    document = json.loads(text)
    if not isinstance(document, dict):
        raise JobError(f"{href} is not a STAC document")
    return document


def _of_sensor(documents: Sequence[tuple[Any, Origin]], source: Source, facts: Sensor) -> Iterator[tuple[Any, Origin]]:
    """Of a catalog without search, the items that belong to one sensor: by its collection, else by the sensor's usual ones."""
    names = {d.get("collection") for d, _ in documents if isinstance(d, Mapping)}
    usual = {c.id: c.query for c in facts.collections}
    if source.collection is not None:
        wanted: dict[Any, Mapping[str, Any]] = {source.collection: usual.get(source.collection, {})}
    elif source.name in names:
        wanted = {source.name: {}}
    elif names & set(usual):
        wanted = {name: query for name, query in usual.items() if name in names}
    else:
        wanted = {name: {} for name in names}
    if documents and not names & set(wanted):
        there = ", ".join(sorted(map(str, names - {None}))) or "none at all"
        yield Trouble(f"collection {source.collection!r}", f"this catalog has no such collection; it has {there}"), documents[0][1]
    for document, origin in documents:
        collection = document.get("collection") if isinstance(document, Mapping) else None
        if isinstance(document, Trouble) or (collection in wanted and _has(document, wanted[collection])):
            yield document, origin


def _has(document: Any, query: Mapping[str, Any]) -> bool:
    return not query or (isinstance(document.get("properties"), dict) and matches(document, query))


DATES = (
    (re.compile(r"(?<!\d)A?((?:19|20)\d{2})([0-3]\d{2})(?!\d)"), "%Y%j"),
    (re.compile(r"(?<!\d)((?:19|20)\d{2})-?([01]\d)-?([0-3]\d)(?:[T_](\d{6}))?(?!\d)"), "%Y%m%d"),
)
"""how file names write their date: year and day of year (MODIS), or year, month, day and perhaps the time"""


def _files(source: Source) -> Iterator[tuple[Any, Origin]]:
    for given in source.files:
        if "://" in given.href:
            yield _bare(given.href, given.datetime), Origin(given.href)
            continue
        paths = sorted(glob.glob(given.href, recursive=True))
        if not paths:
            raise JobError(f"{source.name}: no file matches {given.href}")
        for path in paths:
            yield _bare(os.path.abspath(path), given.datetime), Origin(os.path.abspath(path))


def _bare(href: str, when: str | None) -> Item:
    """An item made from a file alone: its place from the file's own georeferencing, its time from the job or the file's name."""
    name = os.path.basename(urlsplit(href).path if "://" in href else href)
    return {
        "type": "Feature", "stac_version": "1.1.0", "id": name, "geometry": None, "bbox": _place(href), "links": [],
        "properties": {"datetime": when or _date_in(name)}, "assets": {"data": {"href": href}},
    }


def _date_in(name: str) -> str:
    for pattern, layout in DATES:
        for found in pattern.finditer(name):
            text = "".join(g for g in found.groups() if g)
            try:
                return datetime.strptime(text, layout + ("%H%M%S" if len(text) == 14 else "")).isoformat() + "Z"
            except ValueError:
                continue
    example = f'files = [{{ href = "{name}", datetime = "2024-07-01T18:00:00Z" }}]'
    raise JobError(f"the name of {name} holds no date: write {example}")


def _place(href: str) -> list[float]:
    """Longitude and latitude box of a raster, from its header; the whole Earth where a header does not say."""
    import warnings

    import rasterio
    from rasterio.errors import RasterioError
    from rasterio.warp import transform_bounds

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(href) as raster:
                if raster.crs is not None:
                    west, south, east, north = transform_bounds(raster.crs, "EPSG:4326", *raster.bounds)
                    return [west, south, east, north]
    except RasterioError:
        pass  # HDF and NetCDF swaths: the sensor's own reader knows where they are
    return [-180.0, -90.0, 180.0, 90.0]
