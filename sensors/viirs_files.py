"""A Scene written back as a VIIRS granule (HDF-EOS5): the inverse of `sensors.viirs`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pystac

from fusion.errors import SceneError
from fusion.observe.scene import Scene
from sensors.hdfeos import Layer, sinusoidal, write_hdf5
from sensors.modis_files import sixteen_days
from sensors.modis_layers import NBAR, SURFACE
from sensors.reading import Storage
from sensors.writing import make_item, quantise

LABELS = {"red": "I1", "nir08": "I2", "swir16": "I3"}
QUALITY_FIELDS = ("SurfReflect_QF1_1", "SurfReflect_QF2_1", "SurfReflect_QF7_1")


def write_nbar(scene: Scene, folder: Path) -> pystac.Item:
    """VNP43IA4: a look is a full inversion, no look is fill."""
    owner, fields = "VIIRS_Grid_BRDF", _reflectance(scene, "VIIRS_Grid_BRDF", "Nadir_Reflectance_{}", NBAR)
    for band, rho in zip(scene.bands, scene.reflectance, strict=True):
        quality = np.where(np.isfinite(rho), 0, 255).astype(np.uint8)
        fields[f"BRDF_Albedo_Band_Mandatory_Quality_{LABELS[band]}"] = (owner, quality, {"_FillValue": np.uint8(255)})
    return _granule(replace(scene, when=sixteen_days(scene.when)), folder, owner, fields)


def write_daily(scene: Scene, folder: Path) -> pystac.Item:
    """VNP09GA: every look is clear."""
    owner = "VNP_Grid_500m_2D"
    clear = np.zeros(scene.geobox.shape, dtype=np.uint8)
    fields = _reflectance(scene, owner, "SurfReflect_{}_1", SURFACE) | {key: (owner, clear, {}) for key in QUALITY_FIELDS}
    return _granule(scene, folder, owner, fields)


def _reflectance(scene: Scene, owner: str, key: str, storage: Storage) -> dict[str, Layer]:
    if scene.geobox.crs != sinusoidal():
        raise SceneError(f"{scene.where}: VIIRS land granules are on the sinusoidal grid: use the sensor's native grid")
    attrs = {"_FillValue": np.int16(storage.fill[0]), "scale_factor": storage.scale, "add_offset": 0.0}
    pairs = zip(scene.bands, scene.reflectance, strict=True)
    return {key.format(LABELS[band]): (owner, quantise(rho, storage), attrs) for band, rho in pairs}


def _granule(scene: Scene, folder: Path, owner: str, fields: dict[str, Layer]) -> pystac.Item:
    path = write_hdf5(folder / f"{scene.id}.h5", {owner: scene.geobox}, fields)
    return make_item(scene, folder, {"data": (path, {})}, {"platform": "suomi-npp", "instruments": ["viirs"]})
