"""EMIT Level 2A surface reflectance: an un-orthorectified NetCDF-4 cube and the lookup table that puts it on the map."""

from __future__ import annotations

from datetime import date

import numpy as np
import pystac
from affine import Affine
from odc.geo.geobox import GeoBox

from fusion.cube.calendar import Instant, instant_of
from fusion.cube.grid import Grid
from fusion.errors import SceneError
from fusion.observe.psf import PSF
from fusion.observe.scene import Scene
from fusion.observe.sensor import Collection, Noise, Sensor
from sensors import revisit, sources
from sensors.channels import in_nanometres, measured, spectral_scene, spread, widths
from sensors.emit_files import Lookup, clear, part, uncertainty, write
from sensors.images import opened, text_of
from sensors.reading import crs_of, instant, local_file, reach_of, window_of

DEGREES = 0.000542232520256367  # pixel of the delivered lookup tables, 60 m at the equator


def read(item: pystac.Item, window: Grid) -> Scene:
    """One granule's window on the map grid of its lookup table (GLT: 1-based, 0 = nothing seen)."""
    where = f"emit scene {item.id}"
    asset = part(item, "RFL", where)
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
        rho, _ = measured(look.onto_map(file["reflectance"]))
        channels = file["sensor_band_parameters"]
        centres, notes = in_nanometres(channels["wavelengths"][()], "wavelengths", where)
        fwhm, more = widths(channels["fwhm"][()] if "fwhm" in channels else None, centres, where)
        good = channels["good_wavelengths"][()] > 0 if "good_wavelengths" in channels else None
        started = text_of(file.attrs.get("time_coverage_start", ""))
    sigma, missing = uncertainty(item, look, where)
    ground, unmasked = clear(item, look, where)
    rho[:, ~ground] = np.nan
    level = NOISE.a + NOISE.b * np.clip(rho, 0, None) if sigma is None else np.fmax(sigma, NOISE.a)
    started = started.replace("+0000", "").replace("+00:00", "")
    when = instant(item) if item.datetime or not started else Instant(instant_of(started))
    told_all = (*notes, *more, *missing, *unmasked)
    return spectral_scene(
        "emit", NOISE, item, rho, centres, fwhm, native[rows, cols], when, good=good, sigma=level * look.copies, notes=told_all
    )


def native(window: Grid) -> GeoBox:
    """Geographic pixels of the archive's size that cover the window and two pixels around it."""
    box = window.lonlat.boundingbox
    left, top = np.floor(box.left / DEGREES) - 2, np.ceil(box.top / DEGREES) + 2
    shape = int(top - np.floor(box.bottom / DEGREES) + 2), int(np.ceil(box.right / DEGREES) + 2 - left)
    return GeoBox(shape, Affine(DEGREES, 0, left * DEGREES, 0, -DEGREES, top * DEGREES), "EPSG:4326")


NOISE = Noise(0.003, 0.02)
EMIT_PSF = PSF("gaussian", 60.0, cell=False, geolocation=25.0)
EMIT = Sensor(
    name="emit", title="EMIT Level 2A surface reflectance (International Space Station)", bands=(), psf=EMIT_PSF, pixel=60.0,
    read=read, write=write, native=native, revisit=revisit.never, offset_sd=0.012, gain_sd=0.03, channel_noise=NOISE,
    lifetime=(date(2022, 8, 10), None), example_channels=spread(381.0, 2492.9, 285, 8.5),
    collections=(Collection("https://cmr.earthdata.nasa.gov/stac/LPCLOUD", "EMITL2ARFL_001"),),
    sources=sources.EMIT,
)
