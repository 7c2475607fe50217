"""Where an archive's own pixels lie: UTM lattices with the agency's alignment, and layers of several resolutions that nest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo import CRS
from odc.geo.geobox import GeoBox

from fusion.cube.grid import Grid, utm_zone_of
from fusion.errors import SceneError
from sensors.reading import Plane


@dataclass(frozen=True)
class Utm:
    """Square pixels in a UTM zone; calling it gives those that cover a window and `margin` metres around it."""

    resolution: float
    """metres"""
    align: float
    """where pixel edges sit, metres modulo the resolution"""
    margin: float
    """metres: how far beyond the window a pixel can see"""
    always_north: bool = False
    """USGS Landsat uses the northern zone south of the equator too, with negative northings"""

    def __call__(self, window: Grid) -> GeoBox:
        """The pixels that cover the window, in its own UTM zone, else in the zone of its centre."""
        epsg = window.crs.epsg or 0
        if epsg // 100 not in (326, 327):
            epsg = utm_zone_of(*window.lonlat.centroid.coords[0]).epsg or 0
        if self.always_north:
            epsg = 32600 + epsg % 100
        crs = CRS(f"EPSG:{epsg}")
        ring = window.geobox.extent.segmented(8 * window.resolution).to_crs(crs).boundingbox
        padded = (ring.left - self.margin, ring.bottom - self.margin, ring.right + self.margin, ring.top + self.margin)
        return Grid.from_bbox(padded, crs, self.resolution, bbox_crs=crs, align=self.align).geobox


def _corner(box: GeoBox, base: GeoBox, where: str) -> tuple[int, int, int]:
    """(row, col, edge) of a layer's first pixel, and its pixel edge, in half-cells of the base grid; they must nest exactly."""
    col, row = ~base.transform * (box.transform.c, box.transform.f)
    found = np.array([2 * row, 2 * col, 2 * box.transform.a / base.transform.a])
    if box.crs != base.crs or np.abs(found - np.round(found)).max() > 1e-3 or round(found[2]) not in (1, 2, 6):
        raise SceneError(
            f"{where}: a layer's pixels of {box.transform.a:g} m do not nest in those of {base.transform.a:g} m: "
            "use the archive's own files"
        )
    return round(found[0]), round(found[1]), round(found[2])


def shared_cells(base: GeoBox, layers: Sequence[Plane], where: str) -> GeoBox:
    """The cells of `base` that lie wholly inside every layer of at most its pixel size."""
    (bottom, right), top, left = base.shape, 0, 0
    for layer in layers:
        row, col, edge = _corner(layer.geobox, base, where)
        if edge <= 2:
            top, left = max(top, -(-row // 2)), max(left, -(-col // 2))
            bottom = min(bottom, (row + edge * layer.geobox.shape[0]) // 2)
            right = min(right, (col + edge * layer.geobox.shape[1]) // 2)
    return base[top : max(bottom, top + 1), left : max(right, left + 1)]


def nested(layer: Plane, base: GeoBox, where: str) -> NDArray[Any]:
    """(H, W) on cells that `shared_cells` gave: the mean of 2 x 2 pixels of half size, equal pixels as they are, and a pixel of
    triple size at its centre cell alone (NaN around it)."""
    row, col, edge = _corner(layer.geobox, base, where)
    height, width = base.shape
    if edge == 2:
        return layer.values[-row // 2 : -row // 2 + height, -col // 2 : -col // 2 + width]
    if edge == 1:
        inside = layer.values[-row : -row + 2 * height, -col : -col + 2 * width]
        return inside.reshape(height, 2, width, 2).mean(axis=(1, 3), dtype=np.float32)
    out = np.full((height, width), np.nan, dtype=np.float32)
    rows, cols = (np.arange(n) * 3 + start // 2 + 1 for n, start in zip(layer.values.shape, (row, col), strict=True))
    r, c = (rows >= 0) & (rows < height), (cols >= 0) & (cols < width)
    out[np.ix_(rows[r], cols[c])] = layer.values[np.ix_(r, c)]
    return out
