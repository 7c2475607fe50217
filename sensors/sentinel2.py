"""Sentinel-2A, 2B and 2C Level 2A, read on the 20 m grid of each tile.

A Scene has one grid, the instrument three (10, 20 and 60 m). Nothing is resampled: a 10 m band becomes the exact mean of the
2 x 2 pixels of each 20 m cell, itself a footprint (box 10 (*) blur, four times, is box 20 (*) blur); a 60 m pixel is kept once,
in the 20 m cell at its centre, and the eight cells around it hold no look, so that no value is counted twice.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from functools import partial

import numpy as np
import pystac

from fusion.cube.grid import Grid
from fusion.errors import SceneError
from fusion.observe.psf import FWHM_PER_SD, PSF
from fusion.observe.scene import Scene
from fusion.observe.sensor import Band, Collection, Noise, Sensor
from sensors import revisit, sources
from sensors.archive import checked_platform
from sensors.lattice import Utm, nested, shared_cells
from sensors.reading import assemble, calibrate, instant, planes
from sensors.responses import responses, source
from sensors.sentinel2_files import BANDS, NEW, write

SIXTY = float(np.sqrt((60**2 - 20**2) / 12 + (0.4 * 60) ** 2))  # sd beside the 20 m cell that carries a 60 m pixel
PSFS = {edge: PSF("gaussian", FWHM_PER_SD * sd, geolocation=2.4) for edge, sd in ((10, 4.0), (20, 8.0), (60, SIXTY))}
REACH = 150.0  # metres: beyond the 60 m band's cell and blur
KEEP, UNSURE = (4, 5, 6, 7, 11), (7, 11)  # scene classes: vegetation, soil, water, unclassified, snow; sigma doubled in two
NOISE = Noise(0.003, 0.015)
COLLECTION_1 = "sentinel-2-c1-l2a"


def offset_of(item: pystac.Item, where: str) -> tuple[float, tuple[str, ...]]:
    """(reflectance offset, notes): -0.1 from processing baseline 04.00 on, 0 before, 0 where an archive has applied it already.

    Decided by baseline, never by date (old dates are reprocessed) and never by `raster:bands`: Earth Search's
    sentinel-2-l2a declares there an offset that its files have applied already.
    """
    told = item.properties.get("s2:processing_baseline") or item.properties.get("processing:version")
    try:
        new = float(str(told)) >= 4.0
    except ValueError as error:
        raise SceneError(
            f"{where}: s2:processing_baseline is {told!r}, so the offset (-0.1 from 04.00 on) cannot be told: add it to the item"
        ) from error
    if new and item.properties.get("earthsearch:boa_offset_applied") and item.collection_id != COLLECTION_1:
        return 0.0, (f"the archive says that it applied the offset itself; prefer {COLLECTION_1}, whose numbers are untouched",)
    return (-0.1 if new else 0.0), ()


def read(name: str, item: pystac.Item, window: Grid) -> Scene:
    """One tile's window on its 20 m grid."""
    where = checked_platform(item, name)
    offset, notes = offset_of(item, where)
    storage = replace(NEW, offset=offset)
    found = planes(item, {"scl": ("scl", "SCL"), **{b: (b, n) for b, (n, _) in BANDS.items()}}, window, REACH, where)
    layers = []
    for band in BANDS:  # a declared offset is not believed (see offset_of), a declared scale is checked
        plane = replace(found[band], offset=None if found[band].scale in (None, 1.0) else offset)
        values, told = calibrate(plane, storage, where)
        layers.append(replace(plane, values=values))
        notes += told
    box = shared_cells(found["scl"].geobox, layers, where)
    scl = nested(found["scl"], box, where)
    rho = np.stack([nested(layer, box, where) for layer in layers])
    keep, inflate = np.isin(scl, KEEP), np.where(np.isin(scl, UNSURE), np.float32(2), np.float32(1))
    return assemble(name, SENSORS[name].bands, item, rho, box, instant(item), keep=keep, inflate=inflate, notes=notes)


def _sensor(letter: str, first: date) -> Sensor:
    name, tables = f"sentinel-2{letter}", responses(f"sentinel-2{letter}")
    title = f"Sentinel-2{letter.upper()}"
    pc = Collection("https://planetarycomputer.microsoft.com/api/stac/v1", "sentinel-2-l2a", {"platform": {"eq": title}})
    return Sensor(
        name=name, title=f"{title} MSI Level 2A", psf=PSFS[20], pixel=20.0, lifetime=(first, None),
        bands=tuple(Band(b, tables[n[1:].lstrip("0")], NOISE, (b, n), PSFS[edge]) for b, (n, edge) in BANDS.items()),
        read=partial(read, name), write=write, native=Utm(20.0, 0.0, REACH), revisit=revisit.SENTINEL_2[letter],
        offset_sd=0.004, offset_relative=0.04,
        collections=(Collection("https://earth-search.aws.element84.com/v1", COLLECTION_1, {"platform": {"eq": name}}), pc),
        sources=(source(name), *sources.SENTINEL_2),
    )  # fmt: skip


SENTINEL_2A, SENTINEL_2B = _sensor("a", date(2015, 6, 27)), _sensor("b", date(2017, 3, 15))
SENTINEL_2C = _sensor("c", date(2025, 1, 21))
SENSORS = {s.name: s for s in (SENTINEL_2A, SENTINEL_2B, SENTINEL_2C)}
