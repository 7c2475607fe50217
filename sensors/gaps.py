"""What Landsat 7 no longer sees: the wedges between scan lines since its scan-line corrector failed on 31 May 2003."""

from __future__ import annotations

from datetime import date

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from fusion.cube.grid import Grid
from fusion.observe.sensor import Pass
from sensors.modis_layers import scan_azimuth

FAILED = date(2003, 5, 31)
PERIOD = 960.0
"""metres along the track from gap to gap: two scans of 16 lines"""
CENTRE, EDGE, WIDEST = 11.0, 92.5, 420.0
"""km from the track up to which nothing is missing; km to the edge of a scene; metres that are missing there (14 lines)"""
ALTITUDE, RADIUS = 705.0, 6371.0  # km


def slc_off(geobox: GeoBox, planned: Pass) -> NDArray[np.bool_]:
    """(H, W) pixels in a gap: stripes across the track, wider with the distance from it (a fifth of a scene in all).

    The distance is that of the pass, one for the whole window; half way to the edge where the pass does not say. The phase
    changes from look to look. USGS Landsat 7 handbook: no loss in the 22 km around the centre, up to 14 lines at both edges.
    """
    if planned.day < FAILED:
        return np.zeros(tuple(map(int, geobox.shape)), bool)
    zenith = np.radians(planned.view_zenith)
    away = ALTITUDE * np.tan(zenith / (1 + ALTITUDE / RADIUS)) if np.isfinite(zenith) else EDGE / 2
    width = WIDEST * np.clip((away - CENTRE) / (EDGE - CENTRE), 0.0, 1.0)
    heading = np.radians(scan_azimuth(Grid(geobox), ascending=False) + 90.0)
    cols, rows = np.meshgrid(np.arange(geobox.shape[1]) + 0.5, np.arange(geobox.shape[0]) + 0.5)
    x, y = geobox.transform * (cols, rows)
    along = x * np.sin(heading) + y * np.cos(heading) + 137.0 * planned.day.toordinal()
    return np.asarray(along % PERIOD < width)
