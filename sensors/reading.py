"""Shared reading for all sensor adapters: a window of a file, its radiometry, its quality bits, and the Scene they make.

An adapter is facts; everything that can go wrong with somebody's file is handled here once:

    layers = planes(item, {"red": ("red", "SR_B4.TIF")}, grid, reach, where)     only the pixels the window needs
    rho, notes = calibrate(layers["red"], STORAGE, where)                        stored numbers -> reflectance, NaN = no look
    keep, inflate = judge(layers["qa"].values, QA)                               quality bits -> reject or widen
    return assemble(NAME, BANDS, item, rho[None], layers["red"].geobox, instant(item), keep=keep, inflate=inflate)

All planes are (H, W) on the sensor's own pixels; nothing is ever resampled.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pystac
import rasterio
from affine import Affine
from numpy.typing import NDArray
from odc.geo import CRS
from odc.geo.geobox import GeoBox
from odc.geo.geom import box
from rasterio.errors import RasterioError
from rasterio.windows import Window as Pixels

from fusion.cube.calendar import Instant, When, instant_of
from fusion.cube.grid import Grid
from fusion.errors import JobError, SceneError
from fusion.observe.psf import PSF
from fusion.observe.scene import Scene, View
from fusion.observe.sensor import Band
from sensors.hrefs import asked_anew, asset_of, gdal_env, href_of, plain
from sensors.hrefs import local_file as local_file
from sensors.hrefs import signers as signers

LARGEST_PLANE = 1 << 28
"""Pixels of one layer that are read at once; more is a mistake in the window."""

DRIVERS = {".jp2": "JP2OpenJPEG"}
"""GDAL driver by suffix, else GTiff.  A VRT could name any other file, so what a catalog names is never opened as one."""


@dataclass(frozen=True, eq=False)
class Plane:
    """One layer of a file cropped to the window: the numbers as stored, and what the file or its item declares about them."""

    values: NDArray[Any]
    """(H, W)"""
    geobox: GeoBox
    fill: float | None = None
    scale: float | None = None
    offset: float | None = None
    href: str = ""
    """without signature"""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Storage:
    """How a product stores reflectance: rho = scale x stored + offset."""

    scale: float
    offset: float = 0.0
    fill: tuple[float, ...] = ()
    """stored numbers that mean "no look", whether or not the file declares them"""
    valid: tuple[float, float] | None = None
    """stored numbers outside this closed range are no look"""
    dtypes: tuple[str, ...] = ("int16",)
    """what the archive writes"""


@dataclass(frozen=True)
class Flag:
    """One rule over a bit field: the value of `count` bits from bit `first` must be in `accept`, or else."""

    first: int
    count: int
    accept: tuple[int, ...]
    inflate: float | None = None
    """None: the pixel is rejected; a number: its sigma is multiplied"""
    why: str = ""


def judge(qa: NDArray[Any], flags: Sequence[Flag]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """(keep, inflate), both shaped like `qa`: which pixels are looks, and the factor on their sigma (factors multiply)."""
    if not np.issubdtype(qa.dtype, np.integer):
        raise SceneError(f"a quality layer holds {qa.dtype} numbers, bits need integers: is it the right asset?")
    bits = qa.astype(np.int64)
    keep, inflate = np.ones(qa.shape, dtype=bool), np.ones(qa.shape, dtype=np.float32)
    for flag in flags:
        good = np.isin((bits >> flag.first) & ((1 << flag.count) - 1), flag.accept)
        if flag.inflate is None:
            keep &= good
        else:
            inflate[~good] *= flag.inflate
    return keep, inflate


def reach_of(psf: PSF, pixel: float) -> float:
    """How far from the window a pixel's centre may lie and its footprint still touch it, metres."""
    return psf.reach(pixel)


def window_of(native: GeoBox, grid: Grid, reach: float, where: str = "scene") -> tuple[slice, slice]:
    """(rows, cols) of the native pixels whose centres lie within `reach` metres of the window.

    The padded outline is densified before it is projected (edges bend).  A scene that does not touch the window gives its
    nearest pixel: a footprint with nothing inside the grid, so that "nothing seen" is no special case anywhere.
    """
    west, south, east, north = grid.bounds
    outline = box(west - reach, south - reach, east + reach, north + reach, grid.crs)
    step = max(east - west, north - south) / 32 + reach / 8
    if native.crs is None:
        raise SceneError(f"{where}: no CRS: the file and its STAC item must say one (proj:code or proj:wkt2)")
    ring = outline.segmented(step).to_crs(native.crs)
    cols, rows = zip(*((~native.transform) * point[:2] for point in ring.exterior.points), strict=True)
    if not np.isfinite([*cols, *rows]).all():
        raise SceneError(f"{where}: the window cannot be projected to {str(native.crs)[:60]!r}: it lies outside that projection")

    def span(low: float, high: float, size: int) -> slice:
        start = min(max(math.floor(low), 0), size - 1)
        return slice(start, min(max(math.ceil(high), start + 1), size))

    return span(min(rows), max(rows), native.shape[0]), span(min(cols), max(cols), native.shape[1])


def crs_of(item: pystac.Item, asset: pystac.Asset | None, file_crs: Any, where: str) -> CRS:
    """The CRS of a layer: the file's own; else proj:code, epsg, wkt2 or projjson of the asset, then of the item."""
    candidates: list[Any] = [file_crs]
    for holder in (asset.extra_fields if asset else {}, item.properties):
        candidates += [holder.get(f"proj:{key}") for key in ("code", "epsg", "wkt2", "projjson")]
    for value in candidates:
        if not value:
            continue
        try:
            crs = CRS(value.to_wkt() if hasattr(value, "to_wkt") else value)
        except Exception as error:  # pyproj raises its own family
            told = f"{where}: CRS {str(value)[:80]!r} is not understood ({error}): correct the item's proj: fields"
            raise SceneError(told) from error
        if crs.geographic or crs.projected:
            return crs
    raise SceneError(f"{where}: no CRS in the file, nor proj:code, proj:epsg or proj:wkt2 in its STAC item: add one to the item")


def _georeference(file: Any, item: pystac.Item, asset: pystac.Asset, where: str) -> tuple[GeoBox, tuple[str, ...]]:
    """The native pixels of an open file, georeferenced by its item where the file itself is silent."""
    notes = () if file.crs else (f"{asset.title or 'file'} has no CRS of its own: the item's is used",)
    crs, transform = crs_of(item, asset, file.crs, where), file.transform
    if transform == Affine.identity():
        fields = {**item.properties, **asset.extra_fields}
        told, shape = fields.get("proj:transform"), fields.get("proj:shape")
        if told is None or (shape is not None and tuple(shape) != tuple(file.shape)):
            raise SceneError(f"{where}: {plain(asset.href)} has no geotransform, its item no matching proj:transform: add one")
        transform, notes = Affine(*told[:6]), (*notes, "no geotransform in the file: the item's is used")
    return GeoBox(file.shape, transform, crs), notes


def _declared(file: Any, asset: pystac.Asset) -> tuple[float | None, float | None, float | None]:
    """(fill, scale, offset): the file's, else STAC raster:bands (1.x) or the asset's own fields (STAC 1.1); None = not said."""
    told = {**(asset.extra_fields.get("raster:bands") or [{}])[0]}
    for name in ("nodata", "scale", "offset"):
        for key in (name, f"raster:{name}"):
            if key in asset.extra_fields:
                told.setdefault(name, asset.extra_fields[key])
    fill = file.nodata if file.nodata is not None else told.get("nodata")
    silent = file.scales[0] == 1.0 and file.offsets[0] == 0.0  # GDAL's way of saying nothing
    scale, offset = (told.get("scale"), told.get("offset")) if silent else (file.scales[0], file.offsets[0])
    return tuple(None if v is None else float(v) for v in (fill, scale, offset))  # type: ignore[return-value]


def _read(item: pystac.Item, keys: Sequence[str], grid: Grid, reach: float, where: str) -> Plane:
    asset = asset_of(item, keys, where)
    href = href_of(item, asset, where)
    shown = plain(asset.href)
    try:
        driver = DRIVERS.get(shown[-4:].lower(), "GTiff")
        with asked_anew(shown) as options, gdal_env(**options), rasterio.open(href, driver=driver) as file:
            native, notes = _georeference(file, item, asset, where)
            rows, cols = window_of(native, grid, reach, where)
            if (rows.stop - rows.start) * (cols.stop - cols.start) > LARGEST_PLANE:
                raise SceneError(f"{where}: the window needs {rows} x {cols} pixels of {shown}: fuse in smaller tiles")
            fill, scale, offset = _declared(file, asset)
            values = file.read(1, window=Pixels.from_slices(rows, cols))
    except RasterioError as error:
        raise _read_error(error, f"{where}: asked for {shown}", shown) from error
    return Plane(values, native[rows, cols], fill, scale, offset, shown, notes)


def _read_error(error: RasterioError, asked: str, address: str) -> Exception:
    """SceneError where trying again cannot help; ConnectionError (an OSError: callers retry it) where it may.

    GDAL tells in prose alone. The address is cut out of it first: names of files hold numbers too.
    """
    cause = f"{error}: {error.__cause__}" if error.__cause__ else str(error)
    told = cause.replace(address, "").replace(address.rsplit("/", 1)[-1], "").replace("/vsicurl/", "")
    found = re.search(r"(?:response|error) code ?: ?(\d{3})", told)
    status = int(found[1]) if found else 0
    if status in (401, 403, 404, 410) or any(sign in told for sign in ("No such file", "does not exist")):
        return SceneError(f"{asked}, got {cause[:200]!r}: check the address and your credentials")
    if status in (408, 429) or status >= 500 or any(sign in told.lower() for sign in ("curl", "timed out", "timeout", "connect")):
        return ConnectionError(f"{asked}, got {cause[:200]!r}: the network or the server failed; try again later")
    if "://" in address and "Read failed" in told:  # a cut answer and a cut file look the same
        return ConnectionError(f"{asked}, got {cause[:200]!r}: the answer was cut off, or the file itself is truncated")
    return SceneError(f"{asked}, got {cause[:200]!r}: the file is truncated or not an image; fetch it again")


def planes(
    item: pystac.Item, wanted: Mapping[str, Sequence[str]], grid: Grid, reach: float, where: str, *, optional: Sequence[str] = (),
) -> dict[str, Plane]:
    """The window of several layers, read side by side.  wanted: our name -> candidate asset keys.

    `optional` names are left out where the item has no such asset; any other missing asset is a SceneError.
    """
    names = [n for n, keys in wanted.items() if n not in optional or any(key in item.assets for key in keys)]
    with ThreadPoolExecutor(8) as pool:
        futures = {name: pool.submit(_read, item, wanted[name], grid, reach, where) for name in names}
        return {name: future.result() for name, future in futures.items()}


def calibrate(plane: Plane, storage: Storage, where: str) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """(reflectance (H, W) float32, NaN = no look; notes): rho = scale x stored + offset, checked against the file's declarations.

    Recovered and noted: nothing declared (the product's documented numbers are used); a divisor declared as the scale
    (10000 for 0.0001); an offset without which the declared scale cannot be meant; integers kept as float.
    Refused: any other scale or offset than the product documents, and 8-bit or complex numbers.
    """
    notes = list(plane.notes)
    shown = plane.href.rsplit("/", 1)[-1] or "layer"
    values, dtype = plane.values, plane.values.dtype
    if str(dtype) not in storage.dtypes:
        finite = values[np.isfinite(values)]
        whole = np.issubdtype(dtype, np.floating) and np.array_equal(finite, np.round(finite))
        if not (whole or str(dtype) in ("int16", "uint16", "int32", "uint32")):
            raise SceneError(
                f"{where}: {shown} holds {dtype}, the product is stored as {' or '.join(storage.dtypes)}: "
                "it looks converted or rendered; use the archive's own file"
            )
        notes.append(f"{shown} holds {dtype} instead of {storage.dtypes[0]}: taken as the same stored numbers")
    notes += _check_scale(plane, storage, shown, where)
    stored = values.astype(np.float64)
    gone = ~np.isfinite(stored) | np.isin(stored, storage.fill)
    if plane.fill is not None and math.isfinite(plane.fill):
        gone |= stored == plane.fill
    elif plane.fill is None and storage.fill:
        notes.append(f"no nodata declared: the product's {', '.join(f'{f:g}' for f in storage.fill)} is used")
    if storage.valid is not None:
        gone |= (stored < storage.valid[0]) | (stored > storage.valid[1])
    rho = (storage.scale * stored + storage.offset).astype(np.float32)
    rho[gone] = np.nan
    return rho, tuple(dict.fromkeys(notes))


def _check_scale(plane: Plane, storage: Storage, shown: str, where: str) -> list[str]:
    """Notes on scale and offset, or a SceneError where the declaration contradicts the product's documented numbers."""
    if plane.scale is None or (plane.scale == 1.0 and not plane.offset):
        return [f"no scale declared: the product's documented {storage.scale:g} is used"]
    told = f"{shown} declares scale {plane.scale:g}" + (f" and offset {plane.offset:g}" if plane.offset else "")
    documented = f"scale {storage.scale:g} and offset {storage.offset:g}"
    if math.isclose(plane.scale * storage.scale, 1.0, rel_tol=1e-3):
        return [f"scale {plane.scale:g} declared, a divisor: read as {documented}"]
    if not math.isclose(plane.scale, storage.scale, rel_tol=1e-3):
        raise SceneError(f"{where}: {told}, the product documents {documented}: is it another collection or version?")
    if not math.isclose(plane.offset or 0.0, storage.offset, rel_tol=1e-3, abs_tol=1e-6):
        raise SceneError(f"{where}: {told}, expected {documented}: the offset is absent or applied twice; use another collection")
    return []


def onto(plane: Plane, geobox: GeoBox) -> NDArray[Any]:
    """The values at the pixel centres of another, equal or finer, geobox in the same CRS (1 km on 500 m): a lookup, no mean."""
    if plane.geobox.crs != geobox.crs:
        raise SceneError(f"layers of a scene are in {str(plane.geobox.crs)[:40]!r} and {str(geobox.crs)[:40]!r}: it mixes grids")
    cols, rows = np.meshgrid(np.arange(geobox.shape[1]) + 0.5, np.arange(geobox.shape[0]) + 0.5)
    x, y = (~plane.geobox.transform * geobox.transform) * (cols, rows)
    height, width = plane.values.shape
    return plane.values[np.clip(np.floor(y), 0, height - 1).astype(int), np.clip(np.floor(x), 0, width - 1).astype(int)]


def as_plane(values: NDArray[Any], native: GeoBox, grid: Grid, reach: float, where: str, **declared: Any) -> Plane:
    """A layer in memory, or one that can be sliced lazily (h5py dataset, pyhdf SDS), cropped to the window like a file's."""
    rows, cols = window_of(native, grid, reach, where)
    return Plane(np.asarray(values[rows, cols]), native[rows, cols], **declared)


def instant(item: pystac.Item) -> Instant:
    """The moment of an acquisition: the item's datetime, else its start_datetime."""
    when = item.datetime or item.properties.get("start_datetime")
    if when is None:
        raise SceneError(f"item {item.id} has neither datetime nor start_datetime: add one")
    try:
        return Instant(instant_of(when))
    except JobError as error:
        raise SceneError(f"item {item.id}: {error}") from error


def assemble(
    name: str, bands: Sequence[Band], item: pystac.Item, reflectance: NDArray[np.float32], geobox: GeoBox, when: When, *,
    keep: NDArray[np.bool_] | None = None, inflate: NDArray[np.float32] | None = None, view: View | None = None,
    notes: Sequence[str] = (),
) -> Scene:
    """The Scene of one look.  reflectance: (B, H, W); keep, inflate: (H, W) or (B, H, W).  sigma = (a + b rho) x inflate."""
    rho = np.array(reflectance, dtype=np.float32)
    if keep is not None:
        rho[~np.broadcast_to(keep, rho.shape)] = np.nan
    level = np.array([[b.noise.a, b.noise.b] for b in bands], dtype=np.float32)[:, :, None, None]
    sigma = level[:, 0] + level[:, 1] * np.clip(rho, 0.0, None)
    if inflate is not None:
        sigma = sigma * inflate
    own = item.get_self_href()
    return Scene(
        name, item.id, tuple(b.name for b in bands), rho, sigma.astype(np.float32), geobox, when, view=view,
        notes=tuple(dict.fromkeys(notes)), simulated=bool(item.properties.get("fusion:simulated", False)),
        attrs={"item": plain(own)} if own else {},
    )
