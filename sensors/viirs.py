"""VIIRS on Suomi NPP: nadir BRDF-adjusted (VNP43IA4) and daily (VNP09GA) surface reflectance in the three 500 m imagery bands.

A worked example of an adapter over HDF-EOS5 granules.  The 750 m moderate bands live on a 1 km grid of their own: as a Scene has
one grid they would be a sensor of their own.
"""

from __future__ import annotations

from datetime import date
from functools import partial

import numpy as np
import pystac

from fusion.cube.calendar import Instant, Window, instant_of
from fusion.cube.grid import Grid
from fusion.observe.psf import PSF
from fusion.observe.scene import Scene
from fusion.observe.sensor import Band, Collection, Compositing, Noise, Sensor
from sensors import revisit, sources, viirs_files
from sensors.hdfeos import CELL, layers, native
from sensors.modis_layers import DAYS_DECAY, INVERSION, NBAR, SURFACE
from sensors.reading import Flag, Storage, assemble, calibrate, instant, judge, onto, reach_of
from sensors.responses import responses, source

NAMES = {"I1": "red", "I2": "nir08", "I3": "swir16"}
_START = date(2012, 1, 19)
BLUR = PSF("gaussian", 500.0, geolocation=50.0)
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
        when = Window(first, first + np.timedelta64(15, "D"), first + np.timedelta64(8, "D"), DAYS_DECAY)
    return assemble(name, bands, item, rho, box, when, keep=keep, inflate=inflate, notes=notes)


def _sensor(
    name: str, title: str, key: str, storage: Storage, short: str, plan: revisit.Composite, offset_sd: float, days: float,
) -> Sensor:
    """One of the two products."""
    table = responses("viirs-snpp")
    bands = tuple(Band(band, table[f"I0{label[1]}"], Noise(0.003, 0.03), (key.format(label),)) for label, band in NAMES.items())
    return Sensor(
        name, f"VIIRS Suomi NPP {title} ({short})", bands, BLUR, CELL, read=partial(read, name, bands, storage), revisit=plan,
        offset_sd=offset_sd, discrepancy_sd=0.02, discrepancy_days=days, lifetime=(_START, None), native=native,
        collections=(Collection("https://cmr.earthdata.nasa.gov/stac/LPCLOUD", f"{short}_002"),),
        write=viirs_files.write_nbar if storage is NBAR else viirs_files.write_daily,
        compositing=Compositing(-8, 7, DAYS_DECAY) if storage is NBAR else None, sources=(source("viirs-snpp"), *sources.VIIRS),
    )


VNP43 = _sensor(
    "viirs-vnp43", "nadir BRDF-adjusted reflectance, 16-day window", "Nadir_Reflectance_{}", NBAR, "VNP43IA4",
    revisit.Composite(8, _START, "16-day window around this day; the archive repeats it daily"), 0.008, 16.0,
)
VNP09 = _sensor(
    "viirs-vnp09", "surface reflectance, daily", "SurfReflect_{}_1", SURFACE, "VNP09GA",
    revisit.Composite(1, _START, "3060 km swath: every place every day"), 0.02, 5.0,
)
