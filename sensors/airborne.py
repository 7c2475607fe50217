"""Any airborne reflectance image with wavelengths: ENVI (AVIRIS-C, AVIRIS-NG, HyMap, APEX ...) or NetCDF-4 / HDF5 (AVIRIS-3)."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import h5py
import numpy as np
import pystac
import rasterio
from rasterio.errors import RasterioError

from fusion.cube.grid import Grid
from fusion.errors import SceneError
from fusion.observe.psf import PSF
from fusion.observe.scene import Scene
from fusion.observe.sensor import Noise, Sensor
from sensors import revisit, sources
from sensors.channels import channels_of, spread
from sensors.images import envi_image, netcdf_image, opened, scene_of
from sensors.reading import asset_of, local_file
from sensors.writing import make_item

KEYS = ("reflectance", "rfl", "data", "image")


def read(item: pystac.Item, window: Grid) -> Scene:
    """One image's window; the file itself tells its format."""
    where = f"airborne scene {item.id}"
    asset = asset_of(item, KEYS, where)
    path = local_file(item, asset, where)
    if h5py.is_hdf5(path):
        with opened(path, where) as file:
            return scene_of(AIRBORNE, netcdf_image(file, where), item, asset, window, where)
    try:
        with rasterio.open(path, driver="ENVI") as file:
            return scene_of(AIRBORNE, envi_image(file, where), item, asset, window, where)
    except RasterioError as error:
        told = f"{where}: {path.name} cannot be read as NetCDF, HDF5 or ENVI with its .hdr beside it ({error}): "
        raise SceneError(told + "fetch it again, both files") from error


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
    name="airborne", title="Airborne imaging spectrometer, any ENVI or NetCDF reflectance image", bands=(), pixel=5.0,
    psf=PSF_AIR, read=read, write=write, revisit=revisit.never, offset_sd=0.015, gain_sd=0.03, channel_noise=Noise(0.002, 0.02),
    lifetime=(date(1987, 1, 1), None), example_channels=spread(376.9, 2500.5, 425, 5.8),
    sources=sources.AIRBORNE,
)
