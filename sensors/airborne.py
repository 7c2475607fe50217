"""Any airborne reflectance image with wavelengths: ENVI (AVIRIS-C, AVIRIS-NG, HyMap, APEX ...) or NetCDF-4 / HDF5 (AVIRIS-3)."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pystac
import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.errors import RasterioError
from rasterio.windows import Window as Pixels

from fusion.cube.grid import Grid
from fusion.errors import SceneError
from fusion.observe.psf import PSF
from fusion.observe.scene import Scene
from fusion.observe.sensor import Noise, Sensor
from sensors import revisit
from sensors.channels import channels_of, in_nanometres, spectral_scene, spread, widths
from sensors.cubefile import Image, netcdf_image, opened
from sensors.reading import asset_of, crs_of, instant, local_file, reach_of, window_of
from sensors.writing import make_item

KEYS = ("reflectance", "rfl", "data", "image")
UNIT_SCALE, COUNTS = 1.0, 1e-4


def read(item: pystac.Item, window: Grid) -> Scene:
    """One image's window; the format is told by the file itself."""
    where = f"airborne scene {item.id}"
    asset = asset_of(item, KEYS, where)
    path = local_file(item, asset, where)
    if h5py.is_hdf5(path):
        with opened(path, where) as file:
            return _scene(netcdf_image(file, where), item, asset, window, where)
    try:
        with rasterio.open(path, driver="ENVI") as file:
            return _scene(_envi_image(file, where), item, asset, window, where)
    except RasterioError as error:
        raise SceneError(f"{where}: {path.name} is neither NetCDF, HDF5 nor ENVI with its .hdr beside it ({error})") from error


def _scene(image: Image, item: pystac.Item, asset: pystac.Asset, window: Grid, where: str) -> Scene:
    native = GeoBox(image.shape, image.transform, crs_of(item, asset, image.crs, where))
    rows, cols = window_of(native, window, reach_of(PSF_AIR, abs(native.transform.determinant) ** 0.5), where)
    centres, told = in_nanometres(image.wavelengths, "wavelengths", where, image.unit)
    fwhm, more = widths(image.fwhm, centres, where)
    stored = np.asarray(image.read(rows, cols))
    if stored.shape[0] != centres.size:
        raise SceneError(f"{where}: {stored.shape[0]} channels and {centres.size} wavelengths: the header is of another file")
    gone = ~np.isfinite(stored) | (stored == (image.fill if image.fill is not None else -9999))
    scale, last = _scale(image, stored, gone, where)
    rho = np.where(gone, np.nan, stored * scale).astype(np.float32)
    notes = (*told, *more, *last, *(("no fill declared: -9999 is taken as one",) if image.fill is None else ()))
    noise = AIRBORNE.channel_noise or Noise(0.002, 0.02)
    return spectral_scene(
        "airborne", noise, item, rho, centres, fwhm, native[rows, cols], instant(item), good=image.good, notes=notes
    )


def _scale(image: Image, stored: NDArray[Any], gone: NDArray[np.bool_], where: str) -> tuple[float, tuple[str, ...]]:
    """(factor to reflectance, notes): the declared one; else told by the size of the numbers, 0..1 or counts of 1/10000."""
    if image.scale is not None:
        return (1 / image.scale if image.scale > 1 else image.scale), ()
    seen = stored[~gone]
    high = float(np.percentile(seen, 99)) if seen.size else 0.0
    if high <= 2:
        return UNIT_SCALE, ()
    if 50 <= high <= 32767:
        return COUNTS, ("no scale declared and numbers in the thousands: taken as reflectance x 10000",)
    raise SceneError(f"{where}: no scale declared and the 99th percentile is {high:g}: add 'reflectance scale factor' to the header")


def _envi_image(file: Any, where: str) -> Image:
    """The parts of an open ENVI file; header fields by GDAL's names."""
    header = {key.lower(): text for key, text in file.tags(ns="ENVI").items()}
    if "wavelength" not in header:
        raise SceneError(f"{where}: the ENVI header has no wavelengths: add 'wavelength = {{...}}' and 'fwhm = {{...}}'")

    def numbers(key: str) -> NDArray[np.float64] | None:
        text = header.get(key, "").strip("{} \n")
        try:
            return np.array([float(part) for part in text.split(",")]) if text else None
        except ValueError as error:
            raise SceneError(f"{where}: '{key}' in the ENVI header is not a list of numbers: {text[:60]!r}") from error

    def values(rows: slice, cols: slice) -> NDArray[Any]:
        return np.asarray(file.read(window=Pixels.from_slices(rows, cols)))

    scale, bad = numbers("reflectance_scale_factor"), numbers("bbl")
    return Image(
        file.shape, file.transform, file.crs, numbers("wavelength"), numbers("fwhm"), header.get("wavelength_units", ""), values,
        fill=file.nodata, scale=None if scale is None else float(scale[0]), good=None if bad is None else bad > 0,
    )


def write(scene: Scene, folder: Path) -> pystac.Item:
    """ENVI, float32, band-interleaved by line, -9999 where there is no look."""
    centres, fwhm = channels_of(scene)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{scene.id}_rfl.img"
    profile = {
        "driver": "ENVI", "height": scene.reflectance.shape[1], "width": scene.reflectance.shape[2], "count": centres.size,
        "dtype": "float32", "crs": scene.geobox.crs.to_wkt() if scene.geobox.crs else None, "transform": scene.geobox.transform,
        "nodata": -9999.0, "interleave": "bil",
    }  # fmt: skip
    text = {"wavelength": centres, "fwhm": fwhm}
    with rasterio.open(path, "w", **profile) as file:
        file.write(np.nan_to_num(scene.reflectance, nan=-9999.0))
        file.update_tags(ns="ENVI", wavelength_units="Nanometers", reflectance_scale_factor="1", **{
            key: "{" + ", ".join(repr(float(v)) for v in values) + "}" for key, values in text.items()
        })  # fmt: skip
    return make_item(scene, folder, {"reflectance": (path, {})})


PSF_AIR = PSF("gaussian", 3.0, geolocation=2.0, fwhm_prior=0.5)
AIRBORNE = Sensor(
    name="airborne", title="Airborne imaging spectrometer, any ENVI or NetCDF reflectance image", bands=(), psf=PSF_AIR, pixel=5.0,
    read=read, write=write, revisit=revisit.never, offset_sd=0.015, gain_sd=0.03, channel_noise=Noise(0.002, 0.02),
    lifetime=(date(1987, 1, 1), None), example_channels=spread(376.9, 2500.5, 425, 5.8),
    sources=(
        "Channels: from each file; the example is AVIRIS-NG, 425 channels of 5.01 nm, FWHM 5.6-6.0 nm (isofit calibration file).",
        "PSF: cell of the file and a blur of 3 m, between APEX (.5 mrad), AVIRIS-NG (1 mrad) and HyMap (2.5 mrad) at 2-5 km; learnable by half.",
        "Noise: 30-35 dB against the mean spectrum; shoulders of water vapour tripled.",
        "Offset: BRDF at 17 degrees from nadir changes reflectance by 8-10 % (Roy et al. 2016 coefficients), aerosol by .005 + 3-5 %.",
    ),
)
