"""Shared writing for adapters: a Scene as the files and the STAC item of the instrument's own archive (used by simulation)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timezone
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from shapely.geometry import mapping

from fusion.cube.calendar import PixelDay, Window, centre_of
from fusion.errors import SceneError
from fusion.observe.scene import Scene
from sensors.reading import Storage


def quantise(reflectance: NDArray[Any], storage: Storage, dtype: str | None = None) -> NDArray[Any]:
    """Stored integers, round((rho - offset) / scale) clipped to the valid range; NaN becomes the fill value."""
    kind = np.dtype(dtype or storage.dtypes[0])
    if not storage.fill:
        raise SceneError("a product without a fill value cannot store a missing look: give Storage.fill")
    limit = np.iinfo(kind)
    low, high = storage.valid or (limit.min, limit.max)
    stored = np.clip(np.round((np.nan_to_num(reflectance).astype(np.float64) - storage.offset) / storage.scale), low, high)
    return np.where(np.isfinite(reflectance), stored, storage.fill[0]).astype(kind)


def write_tif(
    path: Path, values: NDArray[Any], geobox: GeoBox, *, fill: float | None = None, scale: float | None = None,
    offset: float | None = None,
) -> Path:
    """One (H, W) layer as a cloud-optimised GeoTIFF; fill, scale and offset are declared only if given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        "driver": "COG", "height": values.shape[0], "width": values.shape[1], "count": 1, "dtype": values.dtype.name,
        "crs": geobox.crs.to_wkt() if geobox.crs else None, "transform": geobox.transform, "nodata": fill, "compress": "DEFLATE",
        "blocksize": 512, "overviews": "NONE",
    }
    with rasterio.open(path, "w", **profile) as file:
        file.write(values, 1)
        if scale is not None:
            file.scales = (scale,)
        if offset is not None:
            file.offsets = (offset,)
    return path


def make_item(
    scene: Scene, folder: Path, assets: Mapping[str, tuple[Path, Mapping[str, Any]]], properties: Mapping[str, Any] | None = None,
) -> pystac.Item:
    """The STAC item of a written scene: local hrefs, projection fields, time; it says whether the scene is simulated.

    assets: key -> (file, extra fields such as raster:bands).  The caller saves the item (its self link is folder/id.json).
    """
    if scene.geobox.crs is None:
        raise SceneError(f"{scene.where}: no CRS to write")
    outline = scene.geobox.extent.to_crs("EPSG:4326", resolution=abs(scene.geobox.transform.a) * max(scene.geobox.shape) / 8)
    epsg = scene.geobox.crs.epsg
    fields: dict[str, Any] = {
        "proj:epsg": epsg, "proj:shape": [int(n) for n in scene.geobox.shape], "proj:transform": list(scene.geobox.transform[:6]),
        "fusion:simulated": scene.simulated,
    }
    if epsg is None:
        fields["proj:wkt2"] = scene.geobox.crs.proj.to_wkt("WKT2_2019")
    when = scene.when
    if isinstance(when, Window):
        ends = when.start, when.end + np.timedelta64(86_399, "s")
        fields |= {"start_datetime": _iso(ends[0]), "end_datetime": _iso(ends[1])}
    fields |= properties or {}
    moment = None if isinstance(when, PixelDay) else centre_of(when).astype("datetime64[us]").item().replace(tzinfo=timezone.utc)
    box = outline.boundingbox
    item = pystac.Item(scene.id, mapping(outline.geom), [box.left, box.bottom, box.right, box.top], moment, fields)
    for key, (path, extra) in assets.items():
        item.add_asset(key, pystac.Asset(str(path.resolve()), roles=["data"], extra_fields=dict(extra)))
    item.set_self_href(str((folder / f"{scene.id}.json").resolve()))
    return item


def _iso(moment: np.datetime64) -> str:
    return f"{moment.astype('datetime64[s]')}Z"
