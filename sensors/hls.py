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
from fusion.observe.psf import FWHM_PER_SD, PSF
from fusion.observe.scene import Scene, View
from fusion.observe.sensor import Band, Collection, Noise, Revisit, Sensor
from sensors import revisit, sources
from sensors.archive import File, reflectances, write_files
from sensors.lattice import Utm
from sensors.reading import Flag, Storage, assemble, instant, judge, planes, reach_of
from sensors.responses import responses, source
from sensors.writing import quantise

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
L30_PSF = PSF("gaussian", 44.0, cell=False, geolocation=2.8)
EXCESS = {10: 0.0, 20: 122.2 - 75.0, 60: 300.0 + 15.0**2 - 75.0}  # variance per axis, m2, that regridding adds to the 30 m cell
S30_PSF = {e: PSF("gaussian", FWHM_PER_SD * ((0.4 * e) ** 2 + more) ** 0.5, geolocation=2.4) for e, more in EXCESS.items()}
NATIVE = {"coastal": 60, "blue": 10, "green": 10, "red": 10, "nir": 10}  # metres, S30; its other bands are 20 m


def read(name: str, labels: Mapping[str, str], item: pystac.Item, window: Grid) -> Scene:
    """One tile's window; view angles where the catalog lists them."""
    where, sensor = f"{name} scene {item.id}", SENSORS[name]
    if f".{'S30' if name == 'hls-l30' else 'L30'}." in item.id:
        raise SceneError(f"{where}: the item is of the other HLS product: its bands differ, read it with that sensor")
    wanted = {band: (label,) for band, label in labels.items()} | {"fmask": ("Fmask",), "zenith": ("VZA",), "azimuth": ("VAA",)}
    reach = max(reach_of(band.psf or sensor.psf, 30.0) for band in sensor.bands)
    found = planes(item, wanted, window, reach, where, optional=("zenith", "azimuth"))
    rho, notes = reflectances(found, labels, STORAGE, where)
    keep, inflate = judge(found["fmask"].values, FMASK)
    angles = [
        np.where(found[key].values == 40000, np.nan, found[key].values * 0.01).astype(np.float32)
        for key in ("zenith", "azimuth") if key in found
    ]  # fmt: skip
    box, view = found["fmask"].geobox, View(*angles) if len(angles) == 2 else None
    return assemble(name, sensor.bands, item, rho, box, instant(item), keep=keep, inflate=inflate, view=view, notes=notes)


def write(labels: Mapping[str, str], scene: Scene, folder: Path) -> pystac.Item:
    """The files of one tile; a pixel without any look is fill in Fmask too."""
    blank = ~np.isfinite(scene.reflectance).any(axis=0)
    files = {
        labels[band]: File(f"{scene.id}.{labels[band]}.tif", quantise(rho, STORAGE), -9999, STORAGE)
        for band, rho in zip(scene.bands, scene.reflectance, strict=True)
    }
    files["Fmask"] = File(f"{scene.id}.Fmask.tif", np.where(blank, BLANK, CLEAR).astype("uint8"), BLANK)
    return write_files(scene, folder, files, {"gsd": 30})


def _sensor(product: str, labels: Mapping[str, str], orbits: tuple[Revisit, ...], first: date) -> Sensor:
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
        revisit=revisit.Plan(orbits), offset_sd=0.004, offset_relative=0.03, lifetime=(first, None),
        collections=(
            Collection("https://planetarycomputer.microsoft.com/api/stac/v1", f"hls2-{product}"),
            Collection("https://cmr.earthdata.nasa.gov/stac/LPCLOUD", f"HLS{product.upper()}_2.0"),
        ),
        sources=(source("landsat-8"), *(() if l30 else (source("sentinel-2a"),)), *sources.HLS),
    )


L30 = _sensor("l30", L30_BANDS, (revisit.LANDSAT[8], revisit.LANDSAT[9]), date(2013, 4, 11))
S30 = _sensor("s30", S30_BANDS, tuple(revisit.SENTINEL_2.values()), date(2015, 11, 28))
SENSORS = {s.name: s for s in (L30, S30)}
