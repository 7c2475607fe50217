"""HDF5 and NetCDF-4 images of many channels, opened in pieces: the parts an adapter needs, wherever a file keeps them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from affine import Affine
from numpy.typing import NDArray

from fusion.errors import SceneError


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
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        raise SceneError(f"{where}: {path.name} cannot be read ({str(error)[:160]}): truncated or another layout; fetch it again") from error


def text_of(value: Any) -> str:
    """A string from what HDF5 stores strings as: bytes, str, or an array of one."""
    value = np.asarray(value).ravel()[0] if np.asarray(value).size else ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def affine_of_map_info(map_info: str, where: str) -> Affine:
    """Pixel corner to map coordinates from ENVI's `map info`: projection, reference pixel (1-based), its corner, pixel size, rotation.

    With rotation R (degrees, a `rotation=` field, or the last number of NEON's notation): (x, y) = corner + ((c cos R + r sin R) dx,
    (c sin R - r cos R) dy), as GDAL's ENVI driver reads it.
    """
    parts = [part.strip() for part in map_info.strip("{} ").split(",")]
    try:
        column, row, x, y, dx, dy = (float(part) for part in parts[1:7])
        named = [part.split("=")[1] for part in parts if part.lower().startswith("rotation=")]
        turn = float(named[0]) if named else float(parts[-1]) if len(parts) > 11 and "=" not in parts[-1] else 0.0
    except (ValueError, IndexError) as error:
        raise SceneError(f"{where}: map info {map_info[:100]!r} is not understood: it must hold six numbers after the projection") from error
    cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    return Affine(dx * cos, dx * sin, x, dy * sin, -dy * cos, y) * Affine.translation(1 - column, 1 - row)


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
        raise SceneError(f"{where}: no 3-D 'reflectance' and 1-D 'wavelength' in {list(file)[:8]}: convert it to one of the known layouts")
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
