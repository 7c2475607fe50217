"""Images of many channels (ENVI, NetCDF-4, HDF5), opened in pieces: the parts an adapter needs, wherever a file keeps them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pystac
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.windows import Window as Pixels

from fusion.cube.calendar import PixelDay, When
from fusion.cube.grid import Grid
from fusion.errors import SceneError
from fusion.observe.scene import Scene, View
from fusion.observe.sensor import Noise, Sensor
from sensors.channels import in_nanometres, measured, spectral_scene, widths
from sensors.reading import crs_of, instant, reach_of, window_of
from sensors.sealed import sealed

WhenOf = Callable[[slice, slice], tuple[When, tuple[str, ...]]]
LARGEST = 1 << 29
"""values of one Scene (2 GiB); more is a mistake in the window"""
STRIP = 1 << 21
"""values read at a time"""


@dataclass(frozen=True, eq=False)
class Image:
    """An open image: geometry, channels, and a function that reads a window."""

    shape: tuple[int, int]
    transform: Affine
    crs: Any
    wavelengths: Any
    fwhm: Any
    unit: str
    read: Callable[[slice, slice], NDArray[Any]]
    """(rows, cols) -> (N, H, W) stored numbers"""
    fill: float | None = None
    scale: float | None = None
    """factor, or a divisor where above 1"""
    good: NDArray[np.bool_] | None = None


@contextmanager
def opened(path: Path, where: str) -> Iterator[h5py.File]:
    """An HDF5 file; what h5py says of a damaged one becomes a SceneError."""
    try:
        with h5py.File(path, "r", rdcc_nbytes=1 << 26) as file:  # a row of chunks stays in memory between strips
            sealed(file, where)
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        told = f"{where}: {path.name} cannot be read ({str(error)[:160]}): truncated or another layout; fetch it again"
        raise SceneError(told) from error


def text_of(value: Any) -> str:
    """A string from what HDF5 stores strings as: bytes, str, or an array of one."""
    value = np.asarray(value).ravel()[0] if np.asarray(value).size else ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def affine_of_map_info(map_info: str, where: str) -> Affine:
    """Pixel corner to map coordinates from ENVI's `map info`: projection, reference pixel (1-based), its corner, pixel size.

    With a rotation R (degrees; `rotation=`, or the last number of NEON's notation), as GDAL's ENVI driver reads it,
    (x, y) = corner + ((c cos R + r sin R) dx, (c sin R - r cos R) dy) for column c and row r.
    """
    parts = [part.strip() for part in map_info.strip("{} ").split(",")]
    try:
        column, row, x, y, dx, dy = (float(part) for part in parts[1:7])
        named = [part.split("=")[1] for part in parts if part.lower().startswith("rotation=")]
        turn = float(named[0]) if named else float(parts[-1]) if len(parts) > 11 and "=" not in parts[-1] else 0.0
    except (ValueError, IndexError) as error:
        told = f"{where}: map info {map_info[:90]!r} is not understood: it must hold six numbers after the projection"
        raise SceneError(told) from error
    cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    return Affine(dx * cos, dx * sin, x, dy * sin, -dy * cos, y) * Affine.translation(1 - column, 1 - row)


def scene_of(
    sensor: Sensor, image: Image, item: pystac.Item, asset: pystac.Asset, window: Grid, where: str, *,
    when: WhenOf | None = None,
    view: Callable[[slice, slice], View | None] | None = None,
) -> Scene:
    """The window of an image as a Scene.  when, view: what a file knows per pixel, by (rows, cols); default the item's time."""
    native = GeoBox(image.shape, image.transform, crs_of(item, asset, image.crs, where))
    rows, cols = window_of(native, window, reach_of(sensor.psf, abs(native.transform.determinant) ** 0.5), where)
    centres, notes = in_nanometres(image.wavelengths, "wavelengths", where, image.unit)
    fwhm, more = widths(image.fwhm, centres, where)
    n, rows, cols = _blocks(native, window, rows, cols)
    high, wide = (rows.stop - rows.start) // n, (cols.stop - cols.start) // n
    if high * wide * centres.size > LARGEST:
        raise SceneError(f"{where}: the window needs {high} x {wide} pixels of {centres.size} channels: fuse in smaller tiles")
    rho, count, told = _averaged(image, rows, cols, n, centres.size, where)
    moment, dated = when(rows, cols) if when else (instant(item), ())
    angles = view(rows, cols) if view else None
    middle = (slice(n // 2, n * high, n), slice(n // 2, n * wide, n))
    if isinstance(moment, PixelDay):
        moment = PixelDay(moment.days[middle])
    undeclared = ("no fill declared: -9999 is taken as one",) if image.fill is None else ()
    blocks = (f"means of {n} x {n} pixels were read, a third of the latent pixel or less",) if n > 1 else ()
    corner = native[rows.start : rows.start + 1, cols.start : cols.start + 1].transform
    return spectral_scene(
        sensor.name, sensor.channel_noise or Noise(0.002, 0.02), item, rho, centres, fwhm,
        GeoBox((high, wide), corner * Affine.scale(n), native.crs), moment, good=image.good, count=count,
        view=angles and View(angles.zenith[middle], angles.azimuth[middle]),
        notes=(*notes, *more, *told, *undeclared, *blocks, *dated),
    )  # fmt: skip


def _blocks(native: GeoBox, window: Grid, rows: slice, cols: slice) -> tuple[int, slice, slice]:
    """(n, rows, cols): n x n pixels may be averaged while reading, at most a third of a latent pixel wide, and whole blocks.

    A mean of pixels is a footprint (cell n times wider (*) the same blur), so nothing is lost that the latent grid could show;
    one square kilometre at 1 m in 426 channels would be 1.7 GB.  Where edges agree, blocks tile the latent pixels.
    """
    pixel = abs(native.transform.determinant) ** 0.5
    ratio = window.resolution / pixel if native.crs == window.crs else 0.9 * window.resolution / pixel  # another map's scale
    n = max(1, min(int(ratio / 3 + 1e-6), rows.stop - rows.start, cols.stop - cols.start))
    whole = abs(ratio - round(ratio)) < 1e-6
    n = next(k for k in range(n, 0, -1) if k == 1 or not whole or round(ratio) % k == 0)
    col, row = ~native.transform * (window.bounds.left, window.bounds.top)

    def cut(span: slice, edge: float) -> slice:
        start = span.start + (round(edge) - span.start) % n
        start = start if start + n <= span.stop else span.start
        return slice(start, start + (span.stop - start) // n * n)

    return n, cut(rows, row), cut(cols, col)


def _averaged(
    image: Image, rows: slice, cols: slice, n: int, channels: int, where: str
) -> tuple[NDArray[np.float32], NDArray[np.float32], tuple[str, ...]]:
    """((N, H, W) block means, NaN where less than half is seen; (N, H, W) how many pixels entered; notes), read in strips."""
    high, wide = (rows.stop - rows.start) // n, (cols.stop - cols.start) // n
    means, counts = np.full((channels, high, wide), np.nan, np.float32), np.zeros((channels, high, wide), np.float32)
    scale, empty, step = None, 0, max(1, STRIP // (channels * (cols.stop - cols.start) * n))
    notes: tuple[str, ...] = ()
    for top in range(0, high, step):
        bottom = min(high, top + step)
        stored = np.asarray(image.read(slice(rows.start + n * top, rows.start + n * bottom), cols))
        if stored.shape[0] != channels:
            raise SceneError(f"{where}: {stored.shape[0]} channels and {channels} wavelengths: the header is of another file")
        gone = ~np.isfinite(stored) | (stored == (-9999 if image.fill is None else image.fill))
        if scale is None and not gone.all():
            scale, notes = _scale(image, stored, gone, where)
        numbers = stored.astype(np.float32, order="C") * np.float32(scale or 1.0)
        rho, blank = measured(np.where(gone, np.float32(np.nan), numbers))
        empty += blank
        tiles = rho.reshape(channels, bottom - top, n, wide, n)
        seen = np.isfinite(tiles)
        count = seen.sum(axis=(2, 4), dtype=np.float32)
        total = np.where(seen, tiles, 0).sum(axis=(2, 4), dtype=np.float32)
        enough = count >= 0.5 * n * n
        means[:, top:bottom] = np.where(enough, total / np.maximum(count, 1), np.nan)
        counts[:, top:bottom] = count
    told = (f"{empty} pixels are zero in every channel: an undeclared fill, no look",) if empty else ()
    return means, np.maximum(counts, 1), (*notes, *told)


def _scale(image: Image, stored: NDArray[Any], gone: NDArray[np.bool_], where: str) -> tuple[float, tuple[str, ...]]:
    """(factor to reflectance, notes): the declared one; else told by the size of the numbers, 0..1 or counts of 1/10000."""
    if image.scale is not None:
        return (1 / image.scale if image.scale > 1 else image.scale), ()
    seen = stored[~gone]
    high = float(np.percentile(seen, 99)) if seen.size else 0.0
    if high <= 2:
        return 1.0, ()
    if 50 <= high <= 32767:
        return 1e-4, ("no scale declared and numbers in the thousands: taken as reflectance x 10000",)
    raise SceneError(f"{where}: no scale declared, 99th percentile {high:g}: add 'reflectance scale factor' to the header")


def envi_image(file: Any, where: str) -> Image:
    """The parts of an open ENVI file; header fields by GDAL's names."""
    header = {key.lower(): text for key, text in file.tags(ns="ENVI").items()}
    if "wavelength" not in header:
        raise SceneError(f"{where}: the ENVI header has no wavelengths: add 'wavelength = {{...}}' and 'fwhm = {{...}}'")

    def numbers(key: str) -> NDArray[np.float64] | None:
        text = header.get(key, "").strip("{} \n")
        try:
            return np.array([float(part) for part in text.split(",")]) if text else None
        except ValueError as error:
            raise SceneError(f"{where}: '{key}' in the ENVI header is not a list of numbers: {text[:60]!r}") from error

    def values(rows: slice, cols: slice) -> NDArray[Any]:
        return np.asarray(file.read(window=Pixels.from_slices(rows, cols)))

    scale, bad = numbers("reflectance_scale_factor"), numbers("bbl")
    return Image(
        file.shape, file.transform, file.crs, numbers("wavelength"), numbers("fwhm"), header.get("wavelength_units", ""), values,
        fill=file.nodata, scale=None if scale is None else float(scale[0]), good=None if bad is None else bad > 0,
    )


def netcdf_image(file: h5py.File, where: str) -> Image:
    """The reflectance of a CF NetCDF-4 file: a 3-D variable named *reflectance*, 1-D *wavelength* and *fwhm*, a grid mapping."""
    found: dict[str, h5py.Dataset] = {}
    mapping: h5py.Dataset | None = None

    def visit(name: str, node: Any) -> None:
        nonlocal mapping
        last = name.rsplit("/", 1)[-1].lower()
        if isinstance(node, h5py.Dataset):
            for key, rank in (("reflectance", 3), ("wavelength", 1), ("fwhm", 1)):
                if last.startswith(key) and node.ndim == rank:
                    found.setdefault(key, node)
            if "GeoTransform" in node.attrs:
                mapping = node

    file.visititems(visit)
    if not {"reflectance", "wavelength"} <= found.keys():
        raise SceneError(f"{where}: no 3-D 'reflectance' and 1-D 'wavelength' in {list(file)[:8]}: it is in no known layout")
    if mapping is None:
        raise SceneError(f"{where}: no grid mapping with a GeoTransform: orthorectify the image first")
    cube, wavelengths = found["reflectance"], found["wavelength"]
    axis = [n for n, size in enumerate(cube.shape) if size == wavelengths.size]
    if not axis:
        raise SceneError(f"{where}: reflectance {cube.shape} has no axis of {wavelengths.size} wavelengths")
    first = axis[0] == 0

    def values(rows: slice, cols: slice) -> NDArray[Any]:
        return cube[:, rows, cols] if first else np.moveaxis(cube[rows, cols, :], -1, 0)

    numbers = [float(part) for part in text_of(mapping.attrs["GeoTransform"]).split()]
    attrs = mapping.attrs
    told = next((text_of(attrs[key]) for key in ("crs_wkt", "spatial_ref") if key in attrs), None)
    fill, scale = (cube.attrs.get(key) for key in ("_FillValue", "scale_factor"))
    return Image(
        cube.shape[1:] if first else cube.shape[:2], Affine.from_gdal(*numbers), told, wavelengths[()],
        found["fwhm"][()] if "fwhm" in found else None, text_of(wavelengths.attrs.get("units", "")), values,
        fill=None if fill is None else float(np.ravel(fill)[0]), scale=None if scale is None else float(np.ravel(scale)[0]),
    )
