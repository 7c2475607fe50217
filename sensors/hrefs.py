"""Where an item's files are: asset lookup, what may be opened, signing at read time, and whole-granule downloads.

A catalog is somebody else's text. What it may make this machine open is decided here, in one place: an item that came
over the network never reaches the local disk, GDAL's virtual file systems or a private host of the reader's network.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

import pystac
import rasterio

from fusion.errors import SceneError

REMOTE = {
    "http": "/vsicurl/{}", "https": "/vsicurl/{}", "s3": "/vsis3/{}", "gs": "/vsigs/{}", "az": "/vsiaz/{}", "abfs": "/vsiaz/{}",
}
"""Schemes that may be opened, and GDAL's name for them."""

_failed: set[str] = set()
"""Addresses whose last reading in this process failed."""

GRANULE_LIMIT = 4 << 30
"""Largest granule that is downloaded whole, bytes (a MOD09GA tile is 60-120 MB)."""

Signer = Callable[[str], str]


def _planetary_computer(href: str) -> str:
    """Adds the short-lived token that the Planetary Computer's blob storage asks for; other addresses pass unchanged."""
    if not (urlsplit(href).hostname or "").endswith(".blob.core.windows.net") or "sig=" in href:
        return href
    try:
        import planetary_computer
    except ModuleNotFoundError:  # an optional extra: without it public containers still open
        return href
    return str(planetary_computer.sign(href))


signers: list[Signer] = [_planetary_computer]
"""Functions href -> href applied in turn when a file is opened, on the worker (tokens expire): append your own."""


def asset_of(item: pystac.Item, keys: Sequence[str], where: str) -> pystac.Asset:
    """The first asset of the item under one of the candidate keys; SceneError that lists the keys there are."""
    for key in keys:
        if key in item.assets:
            return item.assets[key]
    have = ", ".join(sorted(item.assets)[:40]) or "none"
    raise SceneError(f"{where}: asked for asset {' or '.join(keys)}, the item has: {have}. Is it another collection?")


def _remote_host(item: pystac.Item) -> str | None:
    """The host of the catalog that the item came from, None if the item is local."""
    own = urlsplit(item.get_self_href() or "")
    return (own.hostname or own.netloc or "?") if own.scheme in REMOTE else None


def _check_host(host: str, catalog: str, where: str) -> None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return
    if not address.is_global and host != catalog:
        raise SceneError(
            f"{where}: an item of {catalog} points to the private address {host}: refused; mirror the item to a local "
            "catalog if you trust it"
        )


def absolute_href(item: pystac.Item, asset: pystac.Asset, where: str) -> str:
    """The asset's address, unsigned: a local path or a URL of an allowed scheme; SceneError where the policy refuses it."""
    raw, catalog = asset.href, _remote_host(item)
    if raw.startswith("/vsi") or "<" in raw or "\0" in raw:
        raise SceneError(f"{where}: href {raw[:80]!r} is a GDAL virtual file: give a plain path or URL")
    href = asset.get_absolute_href() or raw
    parts = urlsplit(href)
    if parts.scheme in REMOTE:
        if catalog:
            _check_host(parts.hostname or "", catalog, where)
        return href
    if parts.scheme not in ("", "file"):
        allowed = ", ".join(REMOTE)
        raise SceneError(f"{where}: href {href[:80]!r} has scheme {parts.scheme!r}: use one of {allowed} or a local path")
    if catalog:
        raise SceneError(
            f"{where}: an item of {catalog} points to the local file {href[:80]!r}: refused, a remote catalog must not choose "
            "what is read from this disk; save the item locally if that is what you want"
        )
    return unquote(parts.path) if parts.scheme == "file" else href


def href_of(item: pystac.Item, asset: pystac.Asset, where: str) -> str:
    """What rasterio opens: a local path, or a signed URL in GDAL's notation."""
    href = absolute_href(item, asset, where)
    scheme = urlsplit(href).scheme
    if scheme not in REMOTE:
        return href
    for sign in signers:
        href = sign(href)
    bare = href if scheme in ("http", "https") else href.split("://", 1)[1]
    return REMOTE[scheme].format(bare)


def plain(href: str) -> str:
    """The address without its query, where tokens live: safe for logs and provenance."""
    parts = urlsplit(href)
    return urlunsplit((parts.scheme, parts.netloc.rsplit("@", 1)[-1], parts.path, "", "")) if parts.scheme in REMOTE else href


@contextmanager
def gdal_env(**options: object) -> Iterator[None]:
    """GDAL settings for reading pieces of remote files: retries on every error, no directory listings, merged ranges.

    A setting of the same name in the environment wins; `options` win over both.
    """
    settings = {
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_HTTP_MAX_RETRY": 3, "GDAL_HTTP_RETRY_DELAY": 0.3,
        "GDAL_HTTP_RETRY_CODES": "ALL", "GDAL_HTTP_TIMEOUT": 120, "GDAL_HTTP_CONNECTTIMEOUT": 20, "GDAL_HTTP_VERSION": "2",
        "GDAL_HTTP_MULTIPLEX": "YES", "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES", "VSI_CACHE": True, "GDAL_PAM_ENABLED": "NO",
    }
    with rasterio.Env(**{key: value for key, value in settings.items() if key not in os.environ} | options):
        yield


@contextmanager
def asked_anew(address: str) -> Iterator[dict[str, str]]:
    """GDAL options for one reading of an address.

    GDAL remembers for the life of a process that a remote file could not be read, and never asks again. An address whose last
    reading failed is therefore opened past its cache.
    """
    try:
        yield {"CPL_VSIL_CURL_NON_CACHED": ":".join({name.format("") for name in REMOTE.values()})} if address in _failed else {}
    except Exception:
        _failed.add(address)
        raise
    _failed.discard(address)


def local_file(item: pystac.Item, asset: pystac.Asset, where: str) -> Path:
    """The asset as a file on this disk, downloaded once into a cache if it is remote (formats that cannot be read in pieces).

    The cache is the folder of the environment variable FUSION_CACHE, by default `fusion-cache` under the system's
    temporary folder; deleting it is safe.  Only http(s) is downloaded: mirror granules of other stores first.
    """
    href = absolute_href(item, asset, where)
    parts = urlsplit(href)
    if parts.scheme not in REMOTE:
        if not Path(href).is_file():
            raise SceneError(f"{where}: file {href} does not exist: check the catalog's asset links")
        return Path(href)
    for sign in signers:
        href = sign(href)
    if urlsplit(href).scheme not in ("http", "https"):
        raise SceneError(f"{where}: {plain(href)} must be read whole and is not on http(s): copy it to a local catalog first")
    folder = Path(os.environ.get("FUSION_CACHE", Path(tempfile.gettempdir()) / "fusion-cache"))
    target = folder / f"{hashlib.sha256(plain(href).encode()).hexdigest()[:16]}-{Path(parts.path).name}"
    if not target.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _download(href, target, where)
    return target


def _download(href: str, target: Path, where: str, attempts: int = 3) -> None:
    """One file, complete or not at all: written beside the target and renamed."""
    for attempt in range(attempts):
        part = target.with_name(f"{target.name}.{os.getpid()}.{time.monotonic_ns()}.part")
        try:
            with urllib.request.urlopen(href, timeout=60) as answer, part.open("wb") as out:  # noqa: S310 (scheme checked by the caller)
                promised = int(answer.headers.get("Content-Length") or 0)
                size = 0
                while piece := answer.read(1 << 20):
                    size += len(piece)
                    if size > GRANULE_LIMIT:
                        raise SceneError(f"{where}: {plain(href)} is larger than {GRANULE_LIMIT >> 30} GiB: refused")
                    out.write(piece)
            if promised and size != promised:
                raise OSError(f"{size} of {promised} bytes arrived")
            part.replace(target)
            return
        except (urllib.error.URLError, OSError) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code in (401, 403, 404, 410):
                told = f"{where}: {plain(href)} could not be downloaded ({error}): check the address and your credentials"
                raise SceneError(told) from error
            if attempt == attempts - 1:
                raise ConnectionError(f"{where}: {plain(href)} could not be downloaded ({error}): try again later") from error
            time.sleep(0.5 * 2**attempt)
        finally:
            part.unlink(missing_ok=True)
