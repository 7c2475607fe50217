"""Landsat 4-9 Collection 2 Level 2 surface reflectance: TM, ETM+, OLI and OLI-2 at 30 m."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import pystac
from numpy.typing import NDArray

from fusion.cube.grid import Grid
from fusion.observe.psf import PSF
from fusion.observe.scene import Scene
from fusion.observe.sensor import Band, Collection, Noise, Sensor
from sensors import revisit, sources
from sensors.archive import File, checked_platform, doubts, reflectances, write_files
from sensors.gaps import slc_off
from sensors.lattice import Utm
from sensors.reading import Flag, Storage, assemble, instant, judge, planes, reach_of
from sensors.responses import responses, source
from sensors.writing import quantise

STORAGE = Storage(2.75e-5, -0.2, fill=(0,), valid=(7273, 43636), dtypes=("uint16",))
TM = {"blue": "1", "green": "2", "red": "3", "nir08": "4", "swir16": "5", "swir22": "7"}
OLI = {"coastal": "1", "blue": "2", "green": "3", "red": "4", "nir08": "5", "swir16": "6", "swir22": "7"}
QA_PIXEL = (
    *(Flag(bit, 1, (0,), why=why) for bit, why in ((0, "fill"), (1, "near cloud"), (3, "cloud"), (4, "cloud shadow"))),
    Flag(5, 1, (0,), inflate=2.0, why="snow is a look, but clouds pass for it"),
)
CIRRUS = Flag(2, 1, (0,), why="cirrus, seen by OLI only")
HAZY = 2.5  # factor on sigma: the aerosol error of a hazy look against a clear one
AEROSOL = (Flag(6, 2, (0, 1, 2), inflate=HAZY, why="high aerosol"),)
CLOUD_QA = (Flag(1, 1, (0,), inflate=2.0, why="cloud in the older LEDAPS mask, a second opinion"),)
EXTRA = {"qa_radsat": "QA_RADSAT", "qa_aerosol": "SR_QA_AEROSOL", "atmos_opacity": "SR_ATMOS_OPACITY", "cloud_qa": "SR_CLOUD_QA"}
LAYERS = {"qa_pixel": "QA_PIXEL"} | EXTRA


def read(name: str, labels: Mapping[str, str], item: pystac.Item, window: Grid) -> Scene:
    """One scene; quality layers beyond QA_PIXEL where the catalog lists them."""
    where, sensor, oli = checked_platform(item, name), SENSORS[name], "coastal" in labels
    wanted = {b: (b, f"SR_B{n}", f"SR_B{n}.TIF") for b, n in labels.items()}
    wanted |= {key: (key, stem, f"{stem}.TIF") for key, stem in LAYERS.items()}
    found = planes(item, wanted, window, reach_of(sensor.psf, sensor.pixel), where, optional=tuple(EXTRA))
    rho, notes = reflectances(found, labels, STORAGE, where)
    keep, inflate = judge(found["qa_pixel"].values, (*QA_PIXEL, CIRRUS) if oli else QA_PIXEL)
    good: NDArray[np.bool_] = np.broadcast_to(keep, rho.shape)
    if "qa_radsat" in found:  # bit n - 1: band n saturated; for all bands 9 dropped pixel (TM, ETM+), 11 terrain occlusion (OLI)
        bits, lost = found["qa_radsat"].values, Flag(11 if oli else 9, 1, (0,))
        good = good & np.stack([judge(bits, (Flag(int(n) - 1, 1, (0,)), lost))[0] for n in labels.values()])
    else:
        notes = (*notes, "no saturation layer: saturated pixels cannot be told")
    for key, flags in (("qa_aerosol", AEROSOL), ("cloud_qa", CLOUD_QA)):
        if key in found:
            inflate = inflate * judge(found[key].values, flags)[1]
    if "atmos_opacity" in found:  # stored x 1000
        inflate = np.where(found["atmos_opacity"].values > 300, HAZY * inflate, inflate)
    notes, box = (*notes, *doubts(item)), found["qa_pixel"].geobox
    return assemble(name, sensor.bands, item, rho, box, instant(item), keep=good, inflate=inflate, notes=notes)


def write(labels: Mapping[str, str], scene: Scene, folder: Path) -> pystac.Item:
    """The files of one scene as the archive has them; a pixel without any look is fill, every other one clear."""
    blank = ~np.isfinite(scene.reflectance).any(axis=0)
    qa = {"qa_pixel": (1, 21824 if "coastal" in labels else 5440), "qa_radsat": (0, 0)}  # (fill, clear with low confidences)
    files = {
        band: File(f"{scene.id}_SR_B{labels[band]}.TIF", quantise(rho, STORAGE), 0, STORAGE)
        for band, rho in zip(scene.bands, scene.reflectance, strict=True)
    }
    files |= {k: File(f"{scene.id}_{LAYERS[k]}.TIF", np.where(blank, *v).astype("uint16")) for k, v in qa.items()}
    return write_files(scene, folder, files, {"platform": scene.sensor, "gsd": 30})


def _sensor(number: int, first: date, last: date | None) -> Sensor:
    name, oli, tables = f"landsat-{number}", number > 7, responses(f"landsat-{number}")
    labels = OLI if oli else TM
    noise = Noise(0.002, 0.01) if oli else Noise(0.004, 0.02)
    psf = PSF("gaussian", 40.0 if oli else 46.0, cell=False, geolocation=2.8 if oli else 5.6)
    roots = {"planetarycomputer.microsoft.com/api/stac/v1": "landsat-c2-l2", "earth-search.aws.element84.com/v1": "landsat-c2-l2"}
    usgs = Collection("https://landsatlook.usgs.gov/stac-server", "landsat-c2l2-sr", {"platform": {"eq": f"LANDSAT_{number}"}})
    return Sensor(
        name=name, title=f"Landsat {number} {'OLI' if oli else 'ETM+' if number == 7 else 'TM'} Collection 2 Level 2",
        bands=tuple(Band(b, tables[n], noise, (b, f"SR_B{n}", f"SR_B{n}.TIF")) for b, n in labels.items()), psf=psf, pixel=30.0,
        read=partial(read, name, labels), write=partial(write, labels), revisit=revisit.LANDSAT[number], lifetime=(first, last),
        blind=slc_off if number == 7 else None, offset_sd=0.004 if oli else 0.005, offset_relative=0.03 if oli else 0.04,
        native=Utm(30.0, 15.0, reach_of(psf, 30.0), always_north=True), sources=(source(name), *sources.LANDSAT),
        collections=(*(Collection(f"https://{root}", c, {"platform": {"eq": name}}) for root, c in roots.items()), usgs),
    )  # fmt: skip


LANDSAT_4 = _sensor(4, date(1982, 8, 22), date(1993, 12, 14))
LANDSAT_5 = _sensor(5, date(1984, 3, 16), date(2012, 5, 5))
LANDSAT_7 = _sensor(7, date(1999, 5, 28), date(2024, 1, 19))
LANDSAT_8 = _sensor(8, date(2013, 3, 18), None)
LANDSAT_9 = _sensor(9, date(2021, 10, 31), None)
SENSORS = {s.name: s for s in (LANDSAT_4, LANDSAT_5, LANDSAT_7, LANDSAT_8, LANDSAT_9)}
