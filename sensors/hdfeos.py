"""HDF-EOS granules (HDF4 through pyhdf, HDF5 through h5py) and the MODIS sinusoidal grid they share.

GDAL as the rasterio wheels ship it has no HDF4 driver, and its HDF-EOS subdatasets hide the georeferencing, so the grid is
taken from the text `StructMetadata.0` that every HDF-EOS granule carries.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pystac
from affine import Affine
from numpy.typing import NDArray
from odc.geo import CRS
from odc.geo.geobox import GeoBox
from pyhdf.error import HDF4Error
from pyhdf.SD import SD, SDC

from fusion.cube.grid import Grid
from fusion.errors import SceneError
from sensors.reading import Plane, as_plane, local_file, planes, window_of
from sensors.sealed import sealed

RADIUS = 6371007.181
"""Metres; the MODIS sphere (MODIS Land product metadata, ProjParams)."""
TILE = 1111950.5196667
"""Metres; edge of a 10-degree tile as the product metadata round it."""
CELL = TILE / 2400
"""Metres; the "500 m" cell, 463.3127."""
_LOCK = threading.Lock()  # the HDF4 library is not thread-safe
_TYPES = {"int8": SDC.INT8, "uint8": SDC.UINT8, "int16": SDC.INT16, "uint16": SDC.UINT16, "uint32": SDC.UINT32}


@cache
def sinusoidal() -> CRS:
    """The MODIS sinusoidal projection: x = R lon cos(lat), y = R lat, with geodetic latitude used as it is on the sphere."""
    return CRS(f"+proj=sinu +lon_0=0 +x_0=0 +y_0=0 +R={RADIUS} +units=m +no_defs")


def native(grid: Grid) -> GeoBox:
    """The 500 m sinusoidal cells that cover a window, in whole 1 km cells (pairs), on the global tile grid."""
    whole = GeoBox((18 * 2400, 36 * 2400), Affine(CELL, 0, -18 * TILE, 0, -CELL, 9 * TILE), sinusoidal())
    rows, cols = window_of(whole, grid, 0.0)
    return whole[rows.start // 2 * 2 : -(-rows.stop // 2) * 2, cols.start // 2 * 2 : -(-cols.stop // 2) * 2]


def tile_name(geobox: GeoBox) -> str:
    """hHHvVV of the tile that holds the centre of a geobox."""
    x, y = geobox.transform * (geobox.shape[1] / 2, geobox.shape[0] / 2)
    return f"h{math.floor((x + 18 * TILE) / TILE):02d}v{math.floor((9 * TILE - y) / TILE):02d}"


@dataclass(frozen=True)
class EosGrid:
    """One grid of a granule."""

    name: str
    geobox: GeoBox
    fields: tuple[str, ...]


def parse_structure(text: str, where: str) -> tuple[EosGrid, ...]:
    """The grids that `StructMetadata.0` describes; only the sinusoidal projection is known."""
    found = []
    for block in re.findall(r"GROUP=GRID_\d+\s(.*?)END_GROUP=GRID_\d+\s", text, flags=re.S):
        def value(key: str, block: str = block) -> str:
            match = re.search(rf"\b{key}=(.*)", block)
            if match is None:
                raise SceneError(f"{where}: StructMetadata.0 lacks {key}: the granule is damaged, fetch it again")
            return match[1].strip().strip('"')

        if not value("Projection").endswith("GCTP_SNSOID"):
            raise SceneError(f"{where}: the granule is in {value('Projection')}, only the sinusoidal grid (GCTP_SNSOID) is read")
        width, height = int(value("XDim")), int(value("YDim"))
        (left, top), (right, bottom) = (
            [float(v) for v in value(key).strip("()").split(",")] for key in ("UpperLeftPointMtrs", "LowerRightMtrs")
        )
        affine = Affine((right - left) / width, 0, left, 0, (bottom - top) / height, top)
        names = tuple(re.findall(r'DataFieldName="(.*?)"', block))
        found.append(EosGrid(value("GridName"), GeoBox((height, width), affine, sinusoidal()), names))
    if not found:
        raise SceneError(f"{where}: StructMetadata.0 describes no grid: is it a swath product?")
    return tuple(found)


@dataclass(frozen=True)
class _Request:
    wanted: Mapping[str, Sequence[str]]
    grid: Grid
    reach: float
    where: str
    optional: Sequence[str]

    def choose(self, grids: Sequence[EosGrid]) -> dict[str, tuple[str, EosGrid]]:
        """Our name -> (field, its grid)."""
        chosen = {}
        for name, keys in self.wanted.items():
            hits = [(key, one) for key in keys for one in grids if key in one.fields]
            if hits:
                chosen[name] = hits[0]
            elif name not in self.optional:
                have = ", ".join(f for g in grids for f in g.fields)[:300]
                asked = f"{self.where}: asked for layer {' or '.join(keys)}"
                raise SceneError(f"{asked}, the granule has: {have}. Is it another product?")
        return chosen

    def crop(self, layer: Any, attrs: Mapping[str, Any], key: str, one: EosGrid, shape: tuple[int, ...]) -> Plane:
        """The window of one field."""
        where = f"{self.where} {key}"
        if tuple(shape) != tuple(one.geobox.shape):
            told = tuple(one.geobox.shape)
            raise SceneError(f"{where}: it is {shape}, StructMetadata.0 says {told}: the granule is damaged, fetch it again")
        names = (("fill", "_FillValue"), ("scale", "scale_factor"), ("offset", "add_offset"))
        told_ = {ours: float(np.ravel(attrs[theirs])[0]) for ours, theirs in names if theirs in attrs}
        return as_plane(layer, one.geobox, self.grid, self.reach, where, href=key, **told_)


def granule_planes(
    path: Path, wanted: Mapping[str, Sequence[str]], grid: Grid, reach: float, where: str, *, optional: Sequence[str] = (),
) -> dict[str, Plane]:
    """The window of several layers of a local granule.  wanted: our name -> candidate field names."""
    reader = _hdf5 if path.suffix.lower() in (".h5", ".he5", ".hdf5", ".nc") else _hdf4
    try:
        return reader(path, _Request(wanted, grid, reach, where, optional))
    except (HDF4Error, OSError, KeyError, ValueError) as error:
        raise SceneError(f"{where}: {path.name} cannot be read ({error}): it is truncated or not an HDF-EOS granule") from error


def _hdf4(path: Path, request: _Request) -> dict[str, Plane]:
    with _LOCK:
        file = SD(str(path), SDC.READ)
        try:
            grids = parse_structure(str(file.attributes()["StructMetadata.0"]), request.where)
            out = {}
            for name, (key, one) in request.choose(grids).items():
                layer = file.select(key)
                out[name] = request.crop(layer, layer.attributes(), key, one, tuple(np.atleast_1d(layer.info()[2]).tolist()))
                layer.endaccess()
            return out
        finally:
            file.end()


def _hdf5(path: Path, request: _Request) -> dict[str, Plane]:
    with h5py.File(path) as file:
        sealed(file, request.where)
        text = np.ravel(file["HDFEOS INFORMATION/StructMetadata.0"][()])[0]
        grids = parse_structure(text.decode() if isinstance(text, bytes) else str(text), request.where)
        out = {}
        for name, (key, one) in request.choose(grids).items():
            layer = file[f"HDFEOS/GRIDS/{one.name}/Data Fields/{key}"]
            out[name] = request.crop(layer, dict(layer.attrs), key, one, layer.shape)
        return out


def layers(
    item: pystac.Item, wanted: Mapping[str, Sequence[str]], grid: Grid, reach: float, where: str, *, optional: Sequence[str] = (),
) -> dict[str, Plane]:
    """The window of several layers, from one image asset per layer or, where the item has none, from its whole granule.

    The candidate names serve both as asset keys and as field names of the granule.
    """
    if any(key in item.assets for keys in wanted.values() for key in keys):
        return planes(item, wanted, grid, reach, where, optional=optional)
    for key, asset in item.assets.items():
        if key in ("hdf", "data", "h5") or asset.href.split("?")[0].lower().endswith((".hdf", ".h5", ".he5")):
            return granule_planes(local_file(item, asset, where), wanted, grid, reach, where, optional=optional)
    have = ", ".join(sorted(item.assets)) or "none"
    asked = ", ".join(keys[0] for keys in wanted.values())
    raise SceneError(f"{where}: no asset is a layer ({asked}) or a granule; the item has: {have}. Is it another collection?")


Layer = tuple[str, NDArray[Any], Mapping[str, Any]]
"""(grid name, (H, W) values, attributes)"""


def structure(grids: Mapping[str, GeoBox], fields: Mapping[str, Layer]) -> str:
    """The `StructMetadata.0` text of a granule."""
    lines = ["GROUP=SwathStructure", "END_GROUP=SwathStructure", "GROUP=GridStructure"]
    for n, (name, geobox) in enumerate(grids.items(), 1):
        right, bottom = geobox.transform * (geobox.shape[1], geobox.shape[0])
        lines += [
            f"\tGROUP=GRID_{n}", f'\t\tGridName="{name}"', f"\t\tXDim={geobox.shape[1]}", f"\t\tYDim={geobox.shape[0]}",
            f"\t\tUpperLeftPointMtrs=({geobox.transform.c:.6f},{geobox.transform.f:.6f})",
            f"\t\tLowerRightMtrs=({right:.6f},{bottom:.6f})", "\t\tProjection=GCTP_SNSOID",
            f"\t\tProjParams=({RADIUS:.6f},0,0,0,0,0,0,0,0,0,0,0,0)", "\t\tSphereCode=-1", "\t\tGridOrigin=HDFE_GD_UL",
            "\t\tGROUP=DataField",
        ]
        own = {field: values.dtype.name.upper() for field, (owner, values, _) in fields.items() if owner == name}
        for m, (field, kind) in enumerate(own.items(), 1):
            lines += [
                f"\t\t\tOBJECT=DataField_{m}", f'\t\t\t\tDataFieldName="{field}"', f"\t\t\t\tDataType=DFNT_{kind}",
                '\t\t\t\tDimList=("YDim","XDim")', f"\t\t\tEND_OBJECT=DataField_{m}",
            ]
        lines += ["\t\tEND_GROUP=DataField", f"\tEND_GROUP=GRID_{n}"]
    return "\n".join([*lines, "END_GROUP=GridStructure", "END", ""])


def write_hdf4(path: Path, grids: Mapping[str, GeoBox], fields: Mapping[str, Layer]) -> Path:
    """An HDF-EOS2 granule: every field with its attributes (numbers keep their type) and StructMetadata.0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _LOCK:
        file = SD(str(path), SDC.WRITE | SDC.CREATE | SDC.TRUNC)
        for name, (owner, values, attrs) in fields.items():
            layer = file.create(name, _TYPES[values.dtype.name], values.shape)
            for axis, dim in enumerate(("YDim", "XDim")):
                layer.dim(axis).setname(f"{dim}:{owner}")
            layer[:] = values
            for key, value in attrs.items():
                setattr(layer, key, value) if key != "_FillValue" else layer.setfillvalue(value)
            layer.endaccess()
        file.HDFEOSVersion = "HDFEOS_V2.19"
        setattr(file, "StructMetadata.0", structure(grids, fields))
        file.end()
    return path


def write_hdf5(path: Path, grids: Mapping[str, GeoBox], fields: Mapping[str, Layer]) -> Path:
    """An HDF-EOS5 granule."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["HDFEOS INFORMATION/StructMetadata.0"] = structure(grids, fields).encode()
        for name, (owner, values, attrs) in fields.items():
            layer = file.create_dataset(f"HDFEOS/GRIDS/{owner}/Data Fields/{name}", data=values, compression="gzip")
            layer.attrs.update(attrs)
    return path
