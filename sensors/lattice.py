"""Where an archive's own pixels lie: UTM lattices with the agency's alignment, for planning and simulation."""

from __future__ import annotations

from dataclasses import dataclass

from odc.geo import CRS
from odc.geo.geobox import GeoBox

from fusion.cube.grid import Grid, utm_zone_of


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
