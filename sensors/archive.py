"""What the band-per-file archives have in common (Landsat, Sentinel-2, HLS): many layers in, one stack out, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pystac
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from fusion.errors import SceneError
from fusion.observe.scene import Scene
from sensors.reading import Plane, Storage, calibrate
from sensors.writing import make_item, write_tif


def checked_platform(item: pystac.Item, name: str) -> str:
    """How errors call the scene; SceneError where the item is of another satellite (its responses differ)."""
    where = f"{name} scene {item.id}"
    told = str(item.properties.get("platform") or item.properties.get("eo:platform") or name).lower().replace("_", "-")
    if told != name:
        raise SceneError(f"{where}: the item is of {told}: read it with that sensor, its bands differ")
    return where


def doubts(item: pystac.Item) -> tuple[str, ...]:
    """Notes on what an item leaves open: the time of day, registration (Landsat Tier 2)."""
    told = []
    if item.datetime is not None and (item.datetime.hour, item.datetime.minute, item.datetime.second) == (0, 0, 0):
        told.append("the item gives a day without a time of day: 00:00 UTC is taken")
    if item.properties.get("landsat:collection_category") == "T2" or "_02_T2" in item.id:
        told.append("Tier 2: registration may be off by more than 12 m")
    return tuple(told)


def reflectances(
    found: Mapping[str, Plane], bands: Iterable[str], storage: Storage, where: str
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """((B, H, W) reflectance, NaN = no look; notes) of layers that share one grid."""
    done = [calibrate(found[band], storage, where) for band in bands]
    return np.stack([values for values, _ in done]), tuple(note for _, notes in done for note in notes)


@dataclass(frozen=True, eq=False)
class File:
    """One layer to be written."""

    name: str
    values: NDArray[Any]
    fill: float | None = None
    storage: Storage | None = None
    """what its item declares, for reflectance"""
    geobox: GeoBox | None = None
    """if it differs from the scene's"""


def write_files(scene: Scene, folder: Path, files: Mapping[str, File], properties: Mapping[str, Any]) -> pystac.Item:
    """GeoTIFFs and their item, declared as the catalogs do (raster:bands)."""
    assets: dict[str, tuple[Path, dict[str, Any]]] = {}
    for key, file in files.items():
        path = write_tif(folder / file.name, file.values, file.geobox or scene.geobox, fill=file.fill)
        told = {"nodata": file.fill, "scale": file.storage.scale, "offset": file.storage.offset} if file.storage else None
        assets[key] = (path, {"raster:bands": [told]} if told else {})
    return make_item(scene, folder, assets, properties)
