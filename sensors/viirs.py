"""VIIRS on Suomi NPP: nadir BRDF-adjusted (VNP43IA4) and daily (VNP09GA) surface reflectance in the three 500 m imagery bands.

A worked example of an adapter over HDF-EOS5 granules.  The 750 m moderate bands live on a 1 km grid of their own: as a Scene has
one grid they would be a sensor of their own.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import pystac

from fusion.cube.calendar import Instant, Window, instant_of
from fusion.cube.grid import Grid
from fusion.errors import SceneError
from fusion.observe.psf import PSF
from fusion.observe.scene import Scene
from fusion.observe.sensor import Band, Collection, Compositing, Noise, Sensor
from sensors import revisit
from sensors.hdfeos import CELL, Layer, layers, native, sinusoidal, write_hdf5
from sensors.modis_files import sixteen_days
from sensors.reading import Flag, Storage, assemble, calibrate, instant, judge, onto, reach_of
from sensors.responses import responses, source
from sensors.writing import make_item, quantise

NAMES = {"I1": "red", "I2": "nir08", "I3": "swir16"}
BLUR = PSF("gaussian", 500.0, geolocation=50.0)
NBAR = Storage(1e-4, fill=(32767,), valid=(0, 32766))
SURFACE = Storage(1e-4, fill=(-28672,), valid=(-100, 16000))
INVERSION = (Flag(0, 8, (0, 1), why="no inversion"), Flag(0, 8, (0,), inflate=2.0, why="magnitude inversion only"))
QUALITY = {
    "SurfReflect_QF1_1": (Flag(2, 2, (0, 1), why="probably or confidently cloudy"), Flag(4, 1, (0,), why="night")),
    "SurfReflect_QF2_1": (
        Flag(3, 1, (0,), why="cloud shadow"), Flag(4, 1, (0,), why="heavy aerosol"), Flag(6, 1, (0,), why="cirrus, reflective"),
        Flag(7, 1, (0,), why="cirrus, emissive"),
    ),
    "SurfReflect_QF7_1": (Flag(1, 1, (0,), inflate=2.0, why="adjacent to cloud"), Flag(2, 2, (0, 1, 2), why="high aerosol")),
}


def read(name: str, bands: tuple[Band, ...], storage: Storage, item: pystac.Item, window: Grid) -> Scene:
    """The window of one granule; VNP43 is judged by its inversion flags, VNP09 by its quality fields QF1, QF2 and QF7."""
    where, nbar = f"{name} scene {item.id}", storage is NBAR
    wanted = {b.name: b.assets for b in bands}
    quality = {n: (f"BRDF_Albedo_Band_Mandatory_Quality_{n}",) for n in NAMES} if nbar else {k: (k, k[:-2]) for k in QUALITY}
    found = layers(item, {**wanted, **quality}, window, reach_of(BLUR, CELL), where)
    pairs = [calibrate(found[b.name], storage, where) for b in bands]
    rho, notes = np.stack([values for values, _ in pairs]), [note for _, told in pairs for note in told]
    box = found["red"].geobox
    rules = dict.fromkeys(NAMES, INVERSION) if nbar else QUALITY
    judged = [judge(onto(found[key], box), flags) for key, flags in rules.items()]
    keep, inflate = np.stack([k for k, _ in judged]), np.stack([f for _, f in judged])
    if not nbar:
        keep, inflate = np.all(keep, axis=0, keepdims=True), np.prod(inflate, axis=0, keepdims=True)
    when: Window | Instant = instant(item)
    if nbar:
        told = item.properties.get("start_datetime")
        first = instant_of(told) if told else instant(item).time - np.timedelta64(8, "D")
        when = Window(first, first + np.timedelta64(15, "D"), first + np.timedelta64(8, "D"), 8.0)
    return assemble(name, bands, item, rho, box, when, keep=keep, inflate=inflate, notes=notes)


def write(storage: Storage, scene: Scene, folder: Path) -> pystac.Item:
    """One HDF-EOS5 granule; every look is clear and a full inversion."""
    if scene.geobox.crs != sinusoidal():
        raise SceneError(f"{scene.where}: VIIRS land granules are on the sinusoidal grid: use the sensor's native grid")
    nbar, labels = storage is NBAR, {name: label for label, name in NAMES.items()}
    owner = "VIIRS_Grid_BRDF" if nbar else "VNP_Grid_500m_2D"
    attrs = {"_FillValue": np.int16(storage.fill[0]), "scale_factor": storage.scale, "add_offset": 0.0}
    fields: dict[str, Layer] = {}
    for band, rho in zip(scene.bands, scene.reflectance, strict=True):
        key = f"Nadir_Reflectance_{labels[band]}" if nbar else f"SurfReflect_{labels[band]}_1"
        fields[key] = (owner, quantise(rho, storage), attrs)
        if nbar:
            quality = np.where(np.isfinite(rho), 0, 255).astype(np.uint8)
            fields[f"BRDF_Albedo_Band_Mandatory_Quality_{labels[band]}"] = (owner, quality, {"_FillValue": np.uint8(255)})
    if not nbar:
        clear = np.zeros(scene.geobox.shape, dtype=np.uint8)
        fields |= {key: (owner, clear, {}) for key in QUALITY}
    if nbar:
        scene = replace(scene, when=sixteen_days(scene.when))
    granule = write_hdf5(folder / f"{scene.id}.h5", {owner: scene.geobox}, fields)
    return make_item(scene, folder, {"data": (granule, {})}, {"platform": "suomi-npp", "instruments": ["viirs"]})


def _sensor(
    name: str, title: str, key: str, storage: Storage, short: str, plan: revisit.Composite, offset_sd: float, days: float,
) -> Sensor:
    """One of the two products."""
    table = responses("viirs-snpp")
    bands = tuple(Band(band, table[f"I0{label[1]}"], Noise(0.003, 0.03), (key.format(label),)) for label, band in NAMES.items())
    return Sensor(
        name, f"VIIRS Suomi NPP {title} ({short})", bands, BLUR, CELL, read=partial(read, name, bands, storage), revisit=plan,
        offset_sd=offset_sd, discrepancy_sd=0.02, discrepancy_days=days, lifetime=(date(2012, 1, 19), None),
        collections=(Collection("https://cmr.earthdata.nasa.gov/stac/LPCLOUD", f"{short}_002"),), sources=SOURCES,
        write=partial(write, storage), native=native, compositing=Compositing(-8, 7, 8.0) if storage is NBAR else None,
    )


SOURCES = (
    f"response: {source('viirs-snpp')}",
    "blur 500 m: imagery pixels of 375 m at nadir and 800 m at the edge of the swath, aggregated on board; a middle is chosen",
    "noise .003 + .03 rho: taken over from MODIS, whose atmospheric correction VIIRS shares",
    "storage and quality bits: VNP09 and VNP43 user guides, version 2",
)
_START = date(2012, 1, 19)
VNP43 = _sensor(
    "viirs-vnp43", "nadir BRDF-adjusted reflectance, 16-day window", "Nadir_Reflectance_{}", NBAR, "VNP43IA4",
    revisit.Composite(8, _START, "16-day window around this day; the archive repeats it daily"), 0.008, 16.0,
)
VNP09 = _sensor(
    "viirs-vnp09", "surface reflectance, daily", "SurfReflect_{}_1", SURFACE, "VNP09GA",
    revisit.Composite(1, _START, "3060 km swath: every place every day"), 0.02, 5.0,
)
