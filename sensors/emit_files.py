"""EMIT's NetCDF-4 layout: the lookup table onto the map, the companion files, and a whole granule out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pystac
from numpy.typing import NDArray

from fusion.cube.calendar import Instant
from fusion.errors import SceneError
from fusion.observe.scene import Scene
from sensors.channels import channels_of
from sensors.images import opened, text_of
from sensors.reading import local_file
from sensors.writing import make_item

FILL = -9999.0
REJECTED = ("cloud flag", "cirrus flag", "spacecraft flag", "dilated cloud flag")


@dataclass(frozen=True, eq=False)
class Lookup:
    """Where each map pixel's value lies in the raw image."""

    rows: NDArray[np.intp]
    """(H, W) raw line, 0-based; -1 = nothing seen"""
    cols: NDArray[np.intp]
    copies: NDArray[np.float32]
    """(H, W) sqrt(how many map pixels repeat the same raw value): the factor on sigma that keeps it from counting twice"""
    span: tuple[slice, slice]
    """the raw rows and columns that are needed at all"""

    @classmethod
    def of(cls, glt_x: NDArray[Any], glt_y: NDArray[Any], raw: tuple[int, int], where: str) -> Lookup:
        """From the 1-based tables; negative entries (interpolated neighbours in ENVI's convention) count by their size."""
        cols, rows = np.abs(glt_x.astype(np.intp)) - 1, np.abs(glt_y.astype(np.intp)) - 1
        seen = (cols >= 0) & (rows >= 0)
        if seen.any() and (rows.max() >= raw[0] or cols.max() >= raw[1]):
            raise SceneError(f"{where}: the lookup table points outside the image of {raw[0]} x {raw[1]}: the file is damaged")
        rows, cols = np.where(seen, rows, -1), np.where(seen, cols, -1)
        keys = rows * raw[1] + cols
        _, back, counts = np.unique(keys, return_inverse=True, return_counts=True)
        span = tuple(slice(int(a[seen].min()), int(a[seen].max()) + 1) if seen.any() else slice(0, 1) for a in (rows, cols))
        return cls(rows, cols, np.sqrt(counts[back.reshape(keys.shape)]).astype(np.float32), (span[0], span[1]))

    def onto_map(self, layer: h5py.Dataset) -> NDArray[np.float32]:
        """(N, H, W) on the map grid, NaN where nothing is seen.  layer: (downtrack, crosstrack, N)."""
        raw = layer[self.span[0], self.span[1]]
        seen = self.rows >= 0
        values = raw[np.where(seen, self.rows - self.span[0].start, 0), np.where(seen, self.cols - self.span[1].start, 0)]
        values = np.where(seen[..., None] & (values != FILL), values, np.nan)
        return np.moveaxis(values, -1, 0).astype(np.float32)


def part(item: pystac.Item, name: str, where: str, needed: bool = True) -> Any:
    """The asset whose file is the RFL, RFLUNCERT or MASK part of the granule (catalogs differ in their keys)."""
    for asset in item.assets.values():
        if f"_{name}_" in (file := asset.href.rsplit("/", 1)[-1]) and file.endswith(".nc"):
            return asset
    if needed and "data" in item.assets:  # a bare file
        return item.assets["data"]
    if needed:
        have = ", ".join(item.assets) or "none"
        raise SceneError(f"{where}: no EMIT_L2A_{name}_*.nc among its assets ({have}): is it another product?")
    return None


def uncertainty(item: pystac.Item, look: Lookup, where: str) -> tuple[NDArray[np.float32] | None, tuple[str, ...]]:
    """((N, H, W) the product's own sigma, or None; notes)."""
    asset = part(item, "RFLUNCERT", where, needed=False)
    if asset is None:
        return None, ("no RFLUNCERT file: the sensor's general noise is used",)
    with opened(local_file(item, asset, where), where) as file:
        return look.onto_map(file["reflectance_uncertainty"]), ()


def clear(item: pystac.Item, look: Lookup, where: str) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """((H, W) neither cloud, cirrus nor spacecraft; notes)."""
    asset = part(item, "MASK", where, needed=False)
    if asset is None:
        return np.ones(look.rows.shape, dtype=bool), ("no MASK file: clouds are not screened",)
    with opened(local_file(item, asset, where), where) as file:
        names = [text_of(name).strip().lower() for name in file["sensor_band_parameters/mask_bands"][()]]
        flags = look.onto_map(file["mask"])
    chosen = [i for i, name in enumerate(names) if name in REJECTED]
    if not chosen:
        raise SceneError(f"{where}: the MASK file has {', '.join(names)}, none of {', '.join(REJECTED)}: another version?")
    return np.asarray(~(np.nan_to_num(flags[chosen]) > 0).any(axis=0)), ()


def write(scene: Scene, folder: Path) -> pystac.Item:
    """RFL, RFLUNCERT and MASK files; the raw image is the map image, so that the lookup table is the identity."""
    centres, fwhm = channels_of(scene)
    folder.mkdir(parents=True, exist_ok=True)
    seen = np.isfinite(scene.reflectance).any(axis=0)
    rows, cols = np.indices(seen.shape)
    stamp = str(scene.when.time.astype("datetime64[s]")) if isinstance(scene.when, Instant) else ""
    mask = np.zeros((*seen.shape, len(REJECTED)), dtype=np.float32)
    layers = {
        "RFL": ("reflectance", np.nan_to_num(np.moveaxis(scene.reflectance, 0, -1), nan=FILL)),
        "RFLUNCERT": ("reflectance_uncertainty", np.nan_to_num(np.moveaxis(scene.sigma, 0, -1), nan=FILL)),
        "MASK": ("mask", mask),
    }
    files: dict[str, tuple[Path, dict[str, Any]]] = {}
    for part, (name, values) in layers.items():
        path = folder / f"{scene.id}_EMIT_L2A_{part}_001.nc"
        with h5py.File(path, "w") as file:
            file.create_dataset(name, data=values, compression="gzip", compression_opts=1).attrs["_FillValue"] = np.float32(FILL)
            file.attrs["geotransform"] = np.array(scene.geobox.transform.to_gdal())
            file.attrs["spatial_ref"] = scene.geobox.crs.to_wkt() if scene.geobox.crs else ""
            file.attrs["time_coverage_start"] = f"{stamp}+0000"
            file["location/glt_x"], file["location/glt_y"] = (np.where(seen, a + 1, 0).astype(np.int32) for a in (cols, rows))
            if part == "MASK":
                file["sensor_band_parameters/mask_bands"] = [name.title() for name in REJECTED]
            else:
                file["sensor_band_parameters/wavelengths"], file["sensor_band_parameters/fwhm"] = centres, fwhm
                file["sensor_band_parameters/good_wavelengths"] = np.ones(centres.size, dtype=np.uint8)
        files[part] = (path, {})
    return make_item(scene, folder, files)
