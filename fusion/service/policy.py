"""Which items may enter a job: a catalog is a stranger's text, and what it says is checked before anything is opened.

`admit` returns a clean copy of one STAC item, or raises `Refused` with one sentence. What it guarantees:

- an asset address is https, s3, gs or az; http or an address inside a private network only if the catalog itself is there or
  is a local file, a link-local address never; a local path only if the catalog is local and the file lies under its folder
  (links followed); nothing with a password in it, no GDAL virtual file system, no other scheme;
- signatures are cut off, so that no access key is ever stored;
- times, geometry, bounding box and raster shapes are finite and of this planet; documents are of bounded size.
"""

from __future__ import annotations

import ipaddress
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urljoin, urlsplit, urlunsplit

import numpy as np
import shapely
import shapely.geometry

from fusion.cube.calendar import instant_of
from fusion.errors import JobError

Item = dict[str, Any]
"""a STAC item as plain JSON"""

MAX_ITEM = 4 * 2**20
MAX_ASSETS = 500
MAX_EDGE = 1_000_000
MAX_RASTER = 10**11
SCHEMES = {"https", "http", "s3", "gs", "az", "abfs", "abfss"}
SIGNATURES = re.compile(
    r"^(x-amz-.*|x-goog-.*|awsaccesskeyid|googleaccessid|signature|expires|sig|se|sp|sv|sr|st|spr|ske|skt|sks|skv|skoid|sktid|token|"
    r"access_token|api_?key|key|auth|authorization|password|secret)$", re.IGNORECASE,
)
SHORT_IPV4 = re.compile(r"(0x[0-9a-f]+|\d+)(\.(0x[0-9a-f]+|\d+)){0,2}")
"""integer and short spellings of an IPv4 address, which name resolvers still accept"""
STEPS = re.compile(r"(^|[/\\])\.\.([/\\]|$)")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Refused(Exception):
    """An item that may not enter the job; the message says why."""


@dataclass(frozen=True)
class Origin:
    """Where a catalog was read from, which decides where its items may point."""

    address: str
    """absolute path of a local document, or its URL"""

    @property
    def local(self) -> bool:
        """Whether it is a local file."""
        return "://" not in self.address

    @property
    def folder(self) -> str:
        """The real folder that local assets must lie under."""
        return os.path.realpath(os.path.dirname(self.address))

    @property
    def host(self) -> str:
        """Host name of a remote catalog; empty for a local one."""
        return "" if self.local else (urlsplit(self.address).hostname or "")


def private(host: str) -> bool:
    """Whether a host name is this machine or an address that only exists inside a network."""
    host = host.rstrip(".").lower()
    if host in ("", "localhost") or host.endswith((".localhost", ".local", ".internal")):
        return True
    try:
        if SHORT_IPV4.fullmatch(host):
            return True
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return any(part.startswith("0x") for part in host.split("."))


def link_local(host: str) -> bool:
    """Whether a host is an address of this link alone: where clouds hand machines their credentials (169.254.169.254)."""
    try:
        return ipaddress.ip_address(host).is_link_local
    except ValueError:
        return False


def safe_href(href: Any, origin: Origin) -> str:
    """The absolute, unsigned address behind an item's href; Refused if it leads where this catalog may not point."""
    if not isinstance(href, str) or not href or len(href) > 8192:
        raise Refused("an asset has no usable address")
    if CONTROL.search(href):
        raise Refused(f"address {href[:60]!r} holds control characters")
    try:
        if not re.match(r"^[A-Za-z][A-Za-z0-9+.-]*:", href) and not href.startswith(("/vsi", "//")):
            if origin.local:
                return _safe_path(os.path.join(os.path.dirname(origin.address), href), origin)
            href = urljoin(origin.address, href)
        if href.startswith("file://"):
            if not origin.local:
                raise Refused(f"address {href[:80]!r} is a file of this machine, named by a remote catalog")
            return _safe_path(unquote(urlsplit(href).path), origin)
        parts = urlsplit(href)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError as error:
        raise Refused(f"address {href[:80]!r} is malformed ({error})") from error
    scheme = parts.scheme.lower()
    if scheme not in SCHEMES:
        raise Refused(f"address {href[:80]!r}: only https, s3, gs and az addresses are opened")
    if parts.username is not None or parts.password is not None:
        raise Refused(f"an address at {host!r} carries a password")
    if not host or STEPS.search(unquote(parts.path)) or "|" in href:
        raise Refused(f"address {href[:80]!r} is not a plain object address")
    trusted = (origin.local or host == origin.host) and not link_local(host)
    if scheme in ("http", "https") and private(host) and not trusted:
        raise Refused(f"address {href[:80]!r} points into a private network")
    if scheme == "http" and not (origin.local or origin.address.startswith("http://")):
        raise Refused(f"address {href[:80]!r} is not encrypted, its catalog is")
    query = [(k, v) for k, v in parse_qsl(parts.query, keep_blank_values=True) if not SIGNATURES.match(k)]
    return urlunsplit((scheme, parts.netloc, parts.path, urlencode(query) if parts.query else "", ""))


def _safe_path(path: str, origin: Origin) -> str:
    real = os.path.realpath(path)
    if os.path.commonpath([real, origin.folder]) != origin.folder:
        raise Refused(f"path {path[:120]!r} leads out of its catalog's folder")
    return real


def admit(document: Any, origin: Origin) -> tuple[Item, tuple[str, ...]]:
    """A clean copy of a STAC item, and what was dropped from it (one sentence each); Refused if it cannot be used."""
    if not isinstance(document, Mapping) or document.get("type") != "Feature":
        raise Refused("not a STAC item (a GeoJSON Feature)")
    try:
        text = json.dumps(document)
    except (TypeError, ValueError, RecursionError) as error:
        raise Refused(f"not plain JSON ({type(error).__name__})") from error
    if len(text) > MAX_ITEM:
        raise Refused(f"{len(text)} bytes of metadata, at most {MAX_ITEM} are read")
    item: Item = json.loads(text)
    name = item.get("id")
    if not isinstance(name, str) or not 0 < len(name) <= 512 or CONTROL.search(name) or STEPS.search(name):
        raise Refused(f"id {str(name)[:60]!r} is not a plain name")
    if not isinstance(item.get("properties"), dict):
        raise Refused("no properties")
    if not isinstance(item.get("collection", ""), str | None):
        raise Refused("its collection is not a name")
    interval(item)
    _check_geometry(item)
    notes = _clean_assets(item, origin)
    _check_raster(item["properties"], "the item")
    item["links"] = []
    return item, notes


def _clean_assets(item: Item, origin: Origin) -> tuple[str, ...]:
    assets = item.get("assets")
    if not isinstance(assets, dict) or not assets:
        raise Refused("no assets")
    if len(assets) > MAX_ASSETS:
        raise Refused(f"{len(assets)} assets, at most {MAX_ASSETS} are read")
    kept, notes = {}, []
    for key, asset in assets.items():
        try:
            if not isinstance(asset, dict):
                raise Refused("it is not an object")
            asset["href"] = safe_href(asset.get("href"), origin)
            asset.pop("alternate", None)  # other addresses of the same file, unchecked
            _check_raster(asset, "it")
            kept[key] = asset
        except Refused as reason:
            notes.append(f"asset {str(key)[:60]!r} left out: {reason}")
    if not kept:
        raise Refused(f"none of its assets may be opened: {notes[0]}")
    item["assets"] = kept
    return tuple(notes)


def interval(item: Item) -> tuple[np.datetime64, np.datetime64]:
    """First and last instant of an item; Refused if it has none on this side of 1960 and 2100."""
    properties = item["properties"]
    first = properties.get("start_datetime") or properties.get("datetime")
    last = properties.get("end_datetime") or properties.get("datetime") or first
    found = []
    for value in (first or last, last):
        if not isinstance(value, str) or len(value) > 40:
            raise Refused(f"its time {str(value)[:40]!r} is not an ISO date")
        try:
            found.append(_instant(value))
        except (JobError, ValueError, OverflowError) as error:
            raise Refused(f"its time {value[:40]!r} is not an ISO date") from error
    if not np.datetime64("1960-01-01") <= found[0] <= found[1] <= np.datetime64("2100-01-01"):
        raise Refused(f"its time {found[0]} to {found[1]} is not one of earth observation")
    return found[0], found[1]


def _instant(text: str) -> np.datetime64:
    """RFC 3339 with any zone."""
    from datetime import datetime

    return instant_of(datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text.strip())))


def _check_geometry(item: Item) -> None:
    """Geometry and box finite and on the Earth; a lost geometry is rebuilt from the box, a lost box from the geometry."""
    box, geometry = item.get("bbox"), item.get("geometry")
    if box is not None:
        numbers = isinstance(box, list) and len(box) in (4, 6) and all(_number(v) for v in box)
        if not numbers:
            raise Refused("its bounding box is not four finite numbers")
        box = [*box[:2], *box[3:5]] if len(box) == 6 else box
        if not (-180.001 <= box[0] <= 180.001 and -180.001 <= box[2] <= 180.001 and -90.001 <= box[1] <= box[3] <= 90.001):
            raise Refused(f"its bounding box {box} is not on the Earth")
        item["bbox"] = box
    if geometry is None:
        if box is None:
            raise Refused("neither geometry nor bounding box: nobody knows where it is")
        item["geometry"] = shapely.geometry.mapping(shapely.box(*box))
        return
    try:
        shape = shapely.geometry.shape(geometry)
        bounds = shape.bounds
        vertices = shapely.get_num_coordinates(shape)
    except Exception as error:  # shapely raises its own family, and KeyError, TypeError ... on malformed documents
        raise Refused(f"its geometry cannot be read ({type(error).__name__})") from error
    if shape.is_empty or not all(map(math.isfinite, bounds)) or vertices > 100_000:
        raise Refused("its geometry is empty, not finite or absurdly detailed")
    if bounds[0] < -360.001 or bounds[2] > 360.001 or bounds[1] < -90.001 or bounds[3] > 90.001:
        raise Refused(f"its geometry {bounds} is not on the Earth")
    if not np.isfinite(shapely.get_coordinates(shape)).all():
        raise Refused("its geometry is not finite")
    if box is None:
        item["bbox"] = list(bounds)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def _check_raster(fields: Mapping[str, Any], who: str) -> None:
    shape, transform = fields.get("proj:shape"), fields.get("proj:transform")
    if shape is not None:
        good = isinstance(shape, list) and len(shape) == 2 and all(_number(v) and 1 <= v <= MAX_EDGE for v in shape)
        if not good or shape[0] * shape[1] > MAX_RASTER:
            raise Refused(f"{who} claims a raster of {str(shape)[:60]} pixels")
    if transform is not None:
        good = isinstance(transform, list) and len(transform) in (6, 9) and all(_number(v) for v in transform)
        if not good or transform[0] * transform[4] - transform[1] * transform[3] == 0:
            raise Refused(f"{who} has a transform that is not one: {str(transform)[:60]}")
    code = fields.get("proj:code", fields.get("proj:epsg"))
    if code is not None and not isinstance(code, str | int):
        raise Refused(f"{who} has a CRS code that is not one: {str(code)[:40]}")
