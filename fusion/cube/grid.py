"""WHERE: the latent pixels, an odc-geo GeoBox with projected coordinates, square north-up pixels, tiles and halos."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo import CRS
from odc.geo.geobox import GeoBox
from odc.geo.geom import BoundingBox, Geometry, box
from pyproj import Transformer

from fusion.errors import JobError


def checked_crs(crs: Any, purpose: str = "the latent grid") -> CRS:
    """The CRS as an odc-geo value, refused with a sentence if it is absent, geographic or not in metres."""
    if crs is None or crs == "":
        raise JobError(f"{purpose} has no CRS: name a projected one in metres, such as the local UTM zone (EPSG:32613)")
    try:
        value = CRS(crs)
    except Exception as error:  # pyproj raises its own family here
        raise JobError(f"{purpose}: CRS {str(crs)[:80]!r} is not understood ({error}): use an EPSG code or WKT2") from error
    if value.geographic:
        raise JobError(
            f"{purpose} asks for {value}, a geographic CRS whose pixels are degrees: footprints need metres; "
            "choose a projected CRS such as the local UTM zone"
        )
    if value.units[0] not in ("metre", "meter", "m"):
        raise JobError(f"{purpose} asks for {value}, measured in {value.units[0]}: choose a CRS in metres")
    return value


def utm_zone_of(lon: float, lat: float) -> CRS:
    """The WGS 84 / UTM zone that holds a point, by the plain 6-degree rule."""
    if not (-180 <= lon <= 180 and -80 <= lat <= 84):
        raise JobError(f"no UTM zone at lon {lon}, lat {lat}: name a projected CRS (polar stereographic, for instance)")
    return CRS(f"EPSG:{(32600 if lat >= 0 else 32700) + min(int((lon + 180) // 6) + 1, 60)}")


@dataclass(frozen=True)
class Grid:
    """The latent pixels: shape (Y, X), a projected CRS in metres, square pixels, row 0 in the north."""

    geobox: GeoBox

    def __post_init__(self) -> None:
        checked_crs(self.geobox.crs)
        a, b, _, d, e, _ = self.geobox.transform[:6]
        if b or d or a <= 0 or e >= 0 or not math.isclose(a, -e, rel_tol=1e-9):
            raise JobError(
                f"the latent grid has transform {tuple(self.geobox.transform)[:6]}: pixels must be square and north-up; "
                "build it with Grid.from_bbox"
            )
        if min(self.geobox.shape) < 1:
            raise JobError(f"the latent grid has shape {tuple(self.geobox.shape)}: make the area at least one pixel wide")

    @classmethod
    def from_bbox(
        cls, bbox: tuple[float, float, float, float], crs: Any = None, resolution: float = 30.0, *,
        bbox_crs: Any = "EPSG:4326", align: float = 0.0,
    ) -> Grid:
        """The grid that covers a box (west, south, east, north).

        crs: projected, in metres; default the UTM zone of the box's centre. resolution: metres.
        align: where pixel edges sit, metres modulo the resolution (USGS Landsat 15, HLS and Sentinel-2 0).
        """
        west, south, east, north = (float(v) for v in bbox)
        if not all(map(math.isfinite, (west, south, east, north))) or south >= north:
            raise JobError(f"area {bbox} is not a box: give west, south, east, north with south < north")
        if west >= east:
            raise JobError(
                f"area {bbox} has west >= east: boxes across the antimeridian are not supported; "
                "split the job at 180 degrees and run both sides"
            )
        if not (math.isfinite(resolution) and resolution > 0):
            raise JobError(f"resolution {resolution}: give a positive number of metres")
        outline = box(west, south, east, north, CRS(bbox_crs))
        if crs is None:
            centre = outline.to_crs("EPSG:4326").centroid.coords[0]
            crs = utm_zone_of(*centre)
        crs = checked_crs(crs)
        span = outline.to_crs("EPSG:4326").boundingbox
        if span.right - span.left > 90:
            raise JobError(f"area {bbox} spans {span.right - span.left:.0f} degrees of longitude: no one projection holds it")
        edge = outline.segmented((east - west) / 20).to_crs(crs).boundingbox

        def snap(value: float, rounding: Any) -> float:
            return float(rounding((value - align) / resolution + (-1e-6 if rounding is math.ceil else 1e-6))) * resolution + align

        left, bottom = snap(edge.left, math.floor), snap(edge.bottom, math.floor)
        right, top = snap(edge.right, math.ceil), snap(edge.top, math.ceil)
        shape = (max(1, round((top - bottom) / resolution)), max(1, round((right - left) / resolution)))
        return cls(GeoBox(shape, Affine(resolution, 0, left, 0, -resolution, top), crs))

    @property
    def crs(self) -> CRS:
        """The projected CRS."""
        crs = self.geobox.crs
        assert crs is not None  # checked at construction
        return crs

    @property
    def shape(self) -> tuple[int, int]:
        """(Y, X)."""
        return int(self.geobox.shape[0]), int(self.geobox.shape[1])

    @property
    def resolution(self) -> float:
        """Pixel edge, metres."""
        return float(self.geobox.transform.a)

    @property
    def transform(self) -> Affine:
        """Pixel (column, row) corner to map coordinates."""
        return self.geobox.transform

    @cached_property
    def x(self) -> NDArray[np.float64]:
        """(X,) pixel centres, metres."""
        return self.transform.c + (np.arange(self.shape[1]) + 0.5) * self.resolution

    @cached_property
    def y(self) -> NDArray[np.float64]:
        """(Y,) pixel centres, metres, decreasing."""
        return self.transform.f - (np.arange(self.shape[0]) + 0.5) * self.resolution

    @property
    def bounds(self) -> BoundingBox:
        """Outer edges in the grid's CRS, metres."""
        return self.geobox.boundingbox

    @cached_property
    def lonlat(self) -> Geometry:
        """The outline in longitude and latitude (WGS 84)."""
        return self.geobox.extent.to_crs("EPSG:4326", resolution=self.resolution * max(self.shape) / 20)

    def to_crs(self, crs: Any) -> Transformer:
        """A pyproj transformer from map coordinates here to `crs`, always (x, y) order."""
        return Transformer.from_crs(self.crs.proj, CRS(crs).proj, always_xy=True)

    def crop(self, rows: slice, cols: slice) -> Grid:
        """The sub-grid of whole pixels; bounds may run outside (a halo does)."""
        affine = self.transform * Affine.translation(cols.start, rows.start)
        return Grid(GeoBox((rows.stop - rows.start, cols.stop - cols.start), affine, self.crs))

    def offset_of(self, other: Grid) -> tuple[int, int]:
        """(row, col) of `other`'s first pixel in this grid; refuses another CRS, pixel size or a broken alignment."""
        if other.crs != self.crs:
            raise JobError(f"two grids in different CRSs ({self.crs} and {other.crs}): reproject the area, never the data")
        if not math.isclose(other.resolution, self.resolution, rel_tol=1e-9):
            raise JobError(f"two grids of {self.resolution} m and {other.resolution} m pixels do not share an address")
        col, row = ~self.transform * (other.transform.c, other.transform.f)
        if abs(col - round(col)) > 1e-4 or abs(row - round(row)) > 1e-4:
            raise JobError(f"the grids are shifted by a fraction of a pixel ({col % 1:.3f}, {row % 1:.3f}): use the same `align`")
        return round(row), round(col)

    def tiles(self, core: int, halo: int) -> list[Tile]:
        """Square tiles in row-major order, all of the same padded shape (one compile serves them all)."""
        if core < 1 or halo < 0:
            raise JobError(f"tiles of {core} pixels with a halo of {halo}: the core must be >= 1 and the halo >= 0")
        return list(self._tiles(core, halo))

    def _tiles(self, core: int, halo: int) -> Iterator[Tile]:
        rows, cols = self.shape
        for i, top in enumerate(range(0, rows, core)):
            for j, left in enumerate(range(0, cols, core)):
                padded = self.crop(slice(top - halo, top + core + halo), slice(left - halo, left + core + halo))
                window = (slice(top, min(top + core, rows)), slice(left, min(left + core, cols)))
                yield Tile((i, j), padded, window, halo)

    def to_attrs(self) -> dict[str, Any]:
        """JSON-ready attributes; floats round-trip exactly."""
        epsg = self.crs.epsg
        return {
            "crs": f"EPSG:{epsg}" if epsg is not None else self.crs.to_wkt(),
            "transform": [float(v) for v in self.transform[:6]],
            "shape": list(self.shape),
        }

    @classmethod
    def from_attrs(cls, attrs: dict[str, Any]) -> Grid:
        """The inverse of `to_attrs`."""
        return cls(GeoBox(tuple(attrs["shape"]), Affine(*attrs["transform"]), attrs["crs"]))


@dataclass(frozen=True)
class Tile:
    """A square piece of a grid with a halo on every side; beyond the edge of the area the halo simply goes on."""

    index: tuple[int, int]
    """(row, column) of the tile"""
    grid: Grid
    """core and halo: shape (core + 2 halo, core + 2 halo) for every tile"""
    window: tuple[slice, slice]
    """rows and columns of the parent grid that this tile answers for (its core, clipped to the area)"""
    halo: int
    """pixels"""

    @property
    def core(self) -> tuple[slice, slice]:
        """Where the window lies inside `grid`."""
        return tuple(slice(self.halo, self.halo + s.stop - s.start) for s in self.window)  # type: ignore[return-value]

    @property
    def origin(self) -> tuple[int, int]:
        """Parent (row, column) of `grid`'s first pixel (may be negative): the global key of random fields."""
        return self.window[0].start - self.halo, self.window[1].start - self.halo


def halo_for(reach: float, grid: Grid) -> int:
    """Pixels of halo that hold half of the coarsest footprint on each side.  reach: its radius, metres."""
    return math.ceil(reach / grid.resolution)
