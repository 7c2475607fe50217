"""Harmonized Landsat Sentinel-2 version 2 (L30, S30): nadir-adjusted reflectance on the 30 m MGRS grid.

Its pixel edges sit at multiples of 30 m, half a pixel off the Landsat archive's. The seven common bands of S30 are adjusted to
the OLI responses by the producer, so those describe both products; its red-edge bands and B08 keep the MSI responses.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import pystac

from fusion.cube.grid import Grid
from fusion.errors import SceneError
from fusion.observe.psf import PSF
from fusion.observe.scene import Scene, View
from fusion.observe.sensor import Band, Collection, Noise, Sensor
from sensors import revisit
from sensors.lattice import Utm
from sensors.reading import Flag, Plane, Storage, assemble, calibrate, instant, judge, planes, reach_of
from sensors.responses import responses, source
from sensors.writing import make_item, quantise, write_tif

STORAGE = Storage(1e-4, fill=(-9999,), valid=(-2000, 16000), dtypes=("int16",))
FMASK = (
    *(Flag(bit, 1, (0,), why=why) for bit, why in ((1, "cloud"), (2, "near cloud or shadow"), (3, "cloud shadow"))),
    Flag(4, 1, (0,), inflate=2.0, why="snow is a look, but clouds pass for it"),
    Flag(6, 2, (0, 1, 2), inflate=2.5, why="high aerosol"),
)
CLEAR, BLANK = 64, 255  # land with low aerosol; fill, all bits of which reject
L30_BANDS = {"coastal": "B01", "blue": "B02", "green": "B03", "red": "B04", "nir08": "B05", "swir16": "B06", "swir22": "B07"}
S30_BANDS = {
    "coastal": "B01", "blue": "B02", "green": "B03", "red": "B04", "rededge1": "B05", "rededge2": "B06", "rededge3": "B07",
    "nir": "B08", "nir08": "B8A", "swir16": "B11", "swir22": "B12",
}  # fmt: skip
FWHM = 2.354820045
L30_PSF = PSF("gaussian", 44.0, cell=False, geolocation=2.8)
S30_PSF = {  # blur beside the 30 m cell: native blur of .4 pixel, and what regridding adds to the second moment of the cell (see SOURCES)
    10: PSF("gaussian", FWHM * 4.0, geolocation=2.4),
    20: PSF("gaussian", FWHM * float(np.sqrt(8.0**2 + 122.2 - 75)), geolocation=2.4),
    60: PSF("gaussian", FWHM * float(np.sqrt(24.0**2 + 300 + 15**2 - 75)), geolocation=2.4),
}  # fmt: skip
NATIVE = {"coastal": 60, "blue": 10, "green": 10, "red": 10, "nir": 10}  # S30; the other bands are 20 m


def read(name: str, labels: Mapping[str, str], item: pystac.Item, window: Grid) -> Scene:
    """One tile's window; view angles where the catalog lists them."""
    where, sensor = f"{name} scene {item.id}", SENSORS[name]
    if f".{'S30' if name == 'hls-l30' else 'L30'}." in item.id:
        raise SceneError(f"{where}: the item is of the other HLS product: its bands differ, read it with that sensor")
    wanted = {band: (label,) for band, label in labels.items()} | {"fmask": ("Fmask",), "zenith": ("VZA",), "azimuth": ("VAA",)}
    found = planes(item, wanted, window, reach_of(sensor.psf, 30.0), where, optional=("zenith", "azimuth"))
    radiometry = [calibrate(found[band], STORAGE, where) for band in labels]
    keep, inflate = judge(found["fmask"].values, FMASK)
    view = View(_degrees(found["zenith"]), _degrees(found["azimuth"])) if {"zenith", "azimuth"} <= found.keys() else None
    rho, notes = np.stack([values for values, _ in radiometry]), [note for _, told in radiometry for note in told]
    return assemble(
        name, sensor.bands, item, rho, found["fmask"].geobox, instant(item), keep=keep, inflate=inflate, view=view, notes=notes
    )


def _degrees(plane: Plane) -> np.ndarray:
    """(H, W) angles, stored in hundredths; 40000 = unknown."""
    return np.where(plane.values == 40000, np.nan, plane.values * 0.01).astype(np.float32)


def write(labels: Mapping[str, str], scene: Scene, folder: Path) -> pystac.Item:
    """The files of one tile; a pixel without any look is fill in Fmask too."""
    blank = ~np.isfinite(scene.reflectance).any(axis=0)
    layers = {labels[b]: quantise(rho, STORAGE) for b, rho in zip(scene.bands, scene.reflectance, strict=True)}
    layers["Fmask"] = np.where(blank, BLANK, CLEAR).astype("uint8")
    files = {}
    for key, values in layers.items():
        path = folder / f"{scene.id}.{key}.tif"
        write_tif(path, values, scene.geobox, fill=BLANK if key == "Fmask" else STORAGE.fill[0])
        files[key] = (path, {} if key == "Fmask" else {"raster:bands": [{"nodata": STORAGE.fill[0], "scale": STORAGE.scale}]})
    return make_item(scene, folder, files, {"gsd": 30})


SOURCES = (
    "Scale, fill, Fmask bits, regridding (10 m averaged, 20 m area-weighted, 60 m replicated): HLS User Guide 2.0 (hls.gsfc.nasa.gov).",
    "L30 PSF: Landsat's 40 m, the cell included, widened by a second cubic resampling across half a pixel; S30: 30 m cell and .4-pixel blur; "
    "1.5 pixels of 20 m have a variance of 122.2 m2 per axis where the cell has 75, one of 60 m has 300 and its centre lies 15 m off.",
    "Noise: the white part of the error .005 + 5 % of each source product; S30 coastal doubled because each value is stored four times.",
    "Angles: hundredths of a degree, 40000 = fill (NASA-IMPACT/hls-science-container).",
)


def _sensor(product: str, labels: Mapping[str, str], orbits: tuple[revisit.Orbit, ...], first: date) -> Sensor:
    name, l30 = f"hls-{product}", product == "l30"
    oli, msi = responses("landsat-8"), responses("sentinel-2a")
    bands = []
    for band, label in labels.items():
        table = oli[L30_BANDS[band][2:]] if band in L30_BANDS else msi[label[1:].lstrip("0")]
        noise = Noise(0.002, 0.01) if l30 else Noise(0.006, 0.03) if band == "coastal" else Noise(0.003, 0.015)
        bands.append(Band(band, table, noise, (label,), None if l30 else S30_PSF[NATIVE.get(band, 20)]))
    psf = L30_PSF if l30 else S30_PSF[20]
    return Sensor(
        name=name, title=f"HLS {product.upper()} version 2 nadir-adjusted reflectance", bands=tuple(bands), psf=psf, pixel=30.0,
        read=partial(read, name, labels), write=partial(write, labels), native=Utm(30.0, 0.0, reach_of(psf, 30.0)),
        revisit=revisit.Plan(orbits), offset_sd=0.008, lifetime=(first, None),
        collections=(
            Collection("https://planetarycomputer.microsoft.com/api/stac/v1", f"hls2-{product}"),
            Collection("https://cmr.earthdata.nasa.gov/stac/LPCLOUD", f"HLS{product.upper()}_2.0"),
        ),
        sources=(source("landsat-8"), *(() if l30 else (source("sentinel-2a"),)), *SOURCES),
    )


L30 = _sensor("l30", L30_BANDS, (revisit.LANDSAT[8], revisit.LANDSAT[9]), date(2013, 4, 11))
S30 = _sensor(
    "s30", S30_BANDS, (*revisit.SENTINEL_2["a"].orbits, revisit.SENTINEL_2["b"], revisit.SENTINEL_2["c"]), date(2015, 11, 28)
)
SENSORS = {s.name: s for s in (L30, S30)}
