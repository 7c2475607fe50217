"""How a sensor's native pixels lie on the latent grid: centres, cell outlines and ground axes in latent map metres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer

from fusion.cube.grid import Grid
from fusion.errors import JobError, SceneError

Array = NDArray[np.float64]
WGS84 = CRS("EPSG:4326")
EQUATORIAL, FLATTENING = 6378137.0, 1 / 298.257223563
"""metres; WGS 84 (NIMA TR8350.2)"""


@dataclass(frozen=True, eq=False)
class Frame:
    """Native pixels in the latent map, metres, x east and y north of the map; NaN where the projection has no answer."""

    centre: Array
    """(H, W, 2) pixel centres"""
    column: Array
    """(H, W, 2) one step along a native row: one side of the cell"""
    row: Array
    """(H, W, 2) one step down a native column: the other side"""
    east: Array
    """(H, W, 2) one metre of ground towards true east"""
    north: Array
    """(H, W, 2) one metre of ground towards true north"""


def refuse_antimeridian(grid: Grid) -> None:
    """Refuse a latent grid whose outline crosses 180 degrees of longitude: JobError that says to split the job."""
    lon, _ = Transformer.from_crs(grid.crs.proj, WGS84, always_xy=True).transform(*_outline(grid))
    if not np.isfinite(lon).all() or lon.max() - lon.min() > 180:
        raise JobError(
            f"the latent grid {tuple(round(v) for v in grid.bounds.bbox)} in {grid.crs} crosses the antimeridian: "
            "native projections are cut there; split the job at 180 degrees and run both sides"
        )


def _outline(grid: Grid, points: int = 33) -> tuple[Array, Array]:
    """Map coordinates along the outer edge of a grid."""
    left, bottom, right, top = grid.bounds.bbox
    along = np.linspace(0.0, 1.0, points)
    x, y = left + along * (right - left), bottom + along * (top - bottom)
    full = np.ones(points)
    return np.concatenate([x, x, left * full, right * full]), np.concatenate([bottom * full, top * full, y, y])


def window(geobox: GeoBox, grid: Grid) -> GeoBox:
    """The canonical native window: every pixel of the sensor's own raster whose centre lies in the grid's outline.

    It follows from the raster's CRS, affine and phase alone, not from how a file was cropped, so that all looks on one raster
    share one shape and one footprint. At least one pixel; it may run beyond the scene on any side.
    """
    refuse_antimeridian(grid)
    col, row = _native_index(geobox, grid)
    low = [int(np.ceil(v.min() - 0.5 - 1e-6)) for v in (col, row)]
    high = [max(a, int(np.floor(v.max() - 0.5 + 1e-6))) for a, v in zip(low, (col, row), strict=True)]
    shape = (high[1] - low[1] + 1, high[0] - low[0] + 1)
    return GeoBox(shape, geobox.transform * Affine.translation(low[0], low[1]), geobox.crs)


def _native_index(geobox: GeoBox, grid: Grid) -> tuple[Array, Array]:
    assert geobox.crs is not None  # a Scene checks it
    x, y = grid.to_crs(geobox.crs).transform(*_outline(grid))
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise SceneError(f"the latent grid has no coordinates in the scene's CRS ({str(geobox.crs)[:60]}): check the scene's CRS")
    col, row = ~geobox.transform * (np.asarray(x), np.asarray(y))
    return col, row


def centres(geobox: GeoBox, grid: Grid) -> Array:
    """(H, W, 2) native pixel centres on the latent map, metres; NaN where there is no answer."""
    return _finite(_to_map(geobox, grid).transform(*(geobox.transform * _indices(geobox))))


def _to_map(geobox: GeoBox, grid: Grid) -> Transformer:
    assert geobox.crs is not None  # a Scene checks it
    return Transformer.from_crs(geobox.crs.proj, grid.crs.proj, always_xy=True)


def _indices(geobox: GeoBox) -> tuple[Array, Array]:
    """(column, row) of every pixel centre, in pixels from the corner."""
    height, width = map(int, geobox.shape)
    row, col = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    return col, row


def frame(geobox: GeoBox, grid: Grid) -> Frame:
    """Native pixels on the latent map by central differences: half a pixel for the cell, about 60 m for the ground axes."""
    to_map, index = _to_map(geobox, grid), _indices(geobox)

    def at(dc: float, dr: float) -> Array:
        return _finite(to_map.transform(*(geobox.transform * (index[0] + dc, index[1] + dr))))

    centre = at(0.0, 0.0)
    inside = np.isfinite(centre).all(axis=-1)
    # beyond the edge of the world a projection may wrap: a pixel is used only if its centre comes back where it was
    back = _finite(to_map.transform(centre[..., 0], centre[..., 1], direction="INVERSE"))
    native = np.stack(geobox.transform * index, axis=-1)
    size = np.sqrt(abs(geobox.transform.determinant))
    centre[~(inside & (np.abs(back - native).max(axis=-1, initial=0.0) < 0.5 * size))] = np.nan
    east, north = ground_axes(centre, grid)
    return Frame(centre, at(0.5, 0.0) - at(-0.5, 0.0), at(0.0, 0.5) - at(0.0, -0.5), east, north)


def ground_axes(centre: Array, grid: Grid) -> tuple[Array, Array]:
    """(..., 2) twice: one metre of ground towards true east and north at map points, in map metres (scale factor included)."""
    to_map = Transformer.from_crs(WGS84, grid.crs.proj, always_xy=True)
    lon, lat = (v for v in np.moveaxis(_finite(to_map.transform(centre[..., 0], centre[..., 1], direction="INVERSE")), -1, 0))
    step = np.degrees(1e-5)
    eccentricity2 = FLATTENING * (2 - FLATTENING)
    sine2 = np.sin(np.radians(lat)) ** 2
    meridian = EQUATORIAL * (1 - eccentricity2) / (1 - eccentricity2 * sine2) ** 1.5
    parallel = EQUATORIAL / np.sqrt(1 - eccentricity2 * sine2) * np.cos(np.radians(lat))
    east = _finite(to_map.transform(lon + step, lat)) - _finite(to_map.transform(lon - step, lat))
    north = _finite(to_map.transform(lon, lat + step)) - _finite(to_map.transform(lon, lat - step))
    return east / (2e-5 * parallel[..., None]), north / (2e-5 * meridian[..., None])


def _finite(xy: tuple[Array, Array]) -> Array:
    """(..., 2) from a transformer's pair, infinities (no answer) as NaN."""
    points = np.stack([np.asarray(v, dtype=np.float64) for v in xy], axis=-1)
    points[~np.isfinite(points)] = np.nan
    return points
