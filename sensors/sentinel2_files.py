"""A Scene written back as the files of a Sentinel-2 Level 2A tile: the inverse of `sensors.sentinel2`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pystac
from affine import Affine
from odc.geo.geobox import GeoBox

from fusion.observe.scene import Scene
from sensors.archive import File, write_files
from sensors.reading import Storage
from sensors.writing import quantise

BANDS = {  # our name: (label, native metres)
    "coastal": ("B01", 60), "blue": ("B02", 10), "green": ("B03", 10), "red": ("B04", 10), "rededge1": ("B05", 20),
    "rededge2": ("B06", 20), "rededge3": ("B07", 20), "nir": ("B08", 10), "nir08": ("B8A", 20), "swir16": ("B11", 20),
    "swir22": ("B12", 20),
}  # fmt: skip
NEW = Storage(1e-4, -0.1, fill=(0,), valid=(1, 65534), dtypes=("uint16",))


def write(scene: Scene, folder: Path) -> pystac.Item:
    """The files of one tile, baseline 05.00: each band at its own resolution (60 m edges at multiples of 60 m)."""
    box, blank = scene.geobox, ~np.isfinite(scene.reflectance).any(axis=0)
    row, col = round(box.transform.f / 20) % 3, round(-box.transform.c / 20) % 3  # 20 m cells to the first 60 m edge
    files = {"scl": File(f"{scene.id}_SCL_20m.tif", np.where(blank, 0, 4).astype("uint8"), 0)}
    for band, rho in zip(scene.bands, scene.reflectance, strict=True):
        (label, edge), values, corner = BANDS[band], quantise(rho, NEW), (0, 0)
        if edge == 10:
            values = values.repeat(2, axis=0).repeat(2, axis=1)
        elif edge == 60:
            values, corner = values[row + 1 :: 3, col + 1 :: 3], (col, row)
        own = GeoBox(values.shape, box.transform * Affine.translation(*corner) * Affine.scale(edge / 20), box.crs)
        files[band] = File(f"{scene.id}_{label}_{edge}m.tif", values, 0, NEW, own)
    return write_files(scene, folder, files, {"platform": scene.sensor, "s2:processing_baseline": "05.00"})
