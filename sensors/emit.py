"""EMIT Level 2A surface reflectance: an un-orthorectified NetCDF-4 cube and the lookup table that puts it on the map."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pystac
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from fusion.cube.calendar import Instant, instant_of
from fusion.cube.grid import Grid
from fusion.errors import SceneError
from fusion.observe.psf import PSF
from fusion.observe.scene import Scene
from fusion.observe.sensor import Collection, Noise, Sensor
from sensors import revisit
from sensors.channels import channels_of, in_nanometres, spectral_scene, spread, widths
from sensors.cubefile import opened, text_of
from sensors.reading import crs_of, instant, local_file, reach_of, window_of
from sensors.writing import make_item

FILL = -9999.0
REJECTED = ("cloud flag", "cirrus flag", "spacecraft flag", "dilated cloud flag")
DEGREES = 0.000542232520256367  # pixel of the delivered lookup tables, 60 m at the equator


def read(item: pystac.Item, window: Grid) -> Scene:
    """One granule's window on the map grid of its lookup table (GLT: 1-based, 0 = nothing seen)."""
    where = f"emit scene {item.id}"
    asset = _asset(item, "RFL", where)
    path = local_file(item, asset, where)
    with opened(path, where) as file:
        for need in ("reflectance", "location/glt_x", "location/glt_y", "sensor_band_parameters/wavelengths"):
            if need not in file:
                raise SceneError(f"{where}: {path.name} has no {need}: is it an EMIT L2A reflectance file?")
        table = file["location/glt_x"]
        numbers = np.ravel(file.attrs["geotransform"]) if "geotransform" in file.attrs else None
        if numbers is None:
            raise SceneError(f"{where}: {path.name} has no geotransform attribute: download it again from the archive")
        told = text_of(file.attrs.get("spatial_ref", "EPSG:4326"))
        native = GeoBox(table.shape, Affine.from_gdal(*map(float, numbers)), crs_of(item, asset, told, where))
        rows, cols = window_of(native, window, reach_of(EMIT_PSF, 60.0), where)
        look = Lookup.of(table[rows, cols], file["location/glt_y"][rows, cols], file["reflectance"].shape[:2], where)
        rho = look.onto_map(file["reflectance"])
        channels = file["sensor_band_parameters"]
        centres, notes = in_nanometres(channels["wavelengths"][()], "wavelengths", where)
        fwhm, more = widths(channels["fwhm"][()] if "fwhm" in channels else None, centres, where)
        good = channels["good_wavelengths"][()] > 0 if "good_wavelengths" in channels else None
        started = text_of(file.attrs.get("time_coverage_start", ""))
    sigma, missing = _uncertainty(item, look, where)
    clear, unmasked = _clear(item, look, where)
    rho[:, ~clear] = np.nan
    level = NOISE.a + NOISE.b * np.clip(rho, 0, None) if sigma is None else np.fmax(sigma, NOISE.a)
    when = instant(item) if item.datetime or not started else Instant(instant_of(started.replace("+0000", "").replace("+00:00", "")))
    told_all = (*notes, *more, *missing, *unmasked)
    return spectral_scene(
        "emit", NOISE, item, rho, centres, fwhm, native[rows, cols], when, good=good, sigma=level * look.copies, notes=told_all
    )


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
            raise SceneError(f"{where}: the lookup table points outside the image of {raw[0]} x {raw[1]}: files of different granules")
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


def _asset(item: pystac.Item, part: str, where: str, needed: bool = True) -> Any:
    """The asset whose file is the RFL, RFLUNCERT or MASK part of the granule (catalogs differ in their keys)."""
    for key, asset in item.assets.items():
        name = asset.href.rsplit("/", 1)[-1]
        if name.endswith(".nc") and (f"_{part}_" in name or key.lower() == {"RFL": "reflectance"}.get(part, part.lower())):
            return asset
    if needed:
        raise SceneError(f"{where}: no EMIT_L2A_{part}_*.nc among its assets {', '.join(item.assets) or 'none'}: is it another product?")
    return None


def _uncertainty(item: pystac.Item, look: Lookup, where: str) -> tuple[NDArray[np.float32] | None, tuple[str, ...]]:
    asset = _asset(item, "RFLUNCERT", where, needed=False)
    if asset is None:
        return None, ("no RFLUNCERT file: the sensor's general noise is used",)
    with opened(local_file(item, asset, where), where) as file:
        return look.onto_map(file["reflectance_uncertainty"]), ()


def _clear(item: pystac.Item, look: Lookup, where: str) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    asset = _asset(item, "MASK", where, needed=False)
    if asset is None:
        return np.ones(look.rows.shape, dtype=bool), ("no MASK file: clouds are not screened",)
    with opened(local_file(item, asset, where), where) as file:
        names = [text_of(name).strip().lower() for name in file["sensor_band_parameters/mask_bands"][()]]
        flags = look.onto_map(file["mask"])
    chosen = [i for i, name in enumerate(names) if name in REJECTED]
    if not chosen:
        raise SceneError(f"{where}: the MASK file has none of {', '.join(REJECTED)} but {', '.join(names)}: another version of the product")
    return ~(np.nan_to_num(flags[chosen]) > 0).any(axis=0), ()


def native(window: Grid) -> GeoBox:
    """Geographic pixels of the archive's size that cover the window and two pixels around it."""
    box = window.lonlat.boundingbox
    left, top = np.floor(box.left / DEGREES) - 2, np.ceil(box.top / DEGREES) + 2
    shape = int(top - np.floor(box.bottom / DEGREES) + 2), int(np.ceil(box.right / DEGREES) + 2 - left)
    return GeoBox(shape, Affine(DEGREES, 0, left * DEGREES, 0, -DEGREES, top * DEGREES), "EPSG:4326")


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


NOISE = Noise(0.003, 0.02)
EMIT_PSF = PSF("gaussian", 60.0, cell=False, geolocation=25.0)
EMIT = Sensor(
    name="emit", title="EMIT Level 2A surface reflectance (International Space Station)", bands=(), psf=EMIT_PSF, pixel=60.0,
    read=read, write=write, native=native, revisit=revisit.never, offset_sd=0.012, gain_sd=0.03, channel_noise=NOISE,
    lifetime=(date(2022, 8, 10), None), example_channels=spread(381.0, 2492.9, 285, 8.5),
    collections=(Collection("https://cmr.earthdata.nasa.gov/stac/LPCLOUD", "EMITL2ARFL_001"),),
    sources=(
        "Layout, GLT convention, flags: EMIT L2A Algorithm and User Guide (LP DAAC); channels 381-2493 nm, 7.44 nm steps, FWHM 8.4-8.8 nm "
        "(emit-sds-l1b calibration file).",
        "PSF: 60 m field of view and nearest-neighbour orthorectification (a second 60 m box), second moments summed: FWHM 58 m, rounded up, "
        "the cell INCLUDED (hence cell=False).  Geolocation: under half a pixel.",
        "Noise: the product's own per-pixel uncertainty where it exceeds .003 + 2 %; a value repeated on the map counts once.",
        "Revisit: the station's orbit has no ground-track cycle; none is predicted.",
    ),
)
