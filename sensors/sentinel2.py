"""Sentinel-2A, 2B and 2C Level 2A, read on the 20 m grid of each tile.

A Scene has one grid, the instrument three (10, 20 and 60 m). Nothing is resampled: a 10 m band becomes the exact mean of the
2 x 2 pixels of each 20 m cell, which is itself a footprint, (box 10 (*) blur) (*) 2 x 2 comb = box 20 (*) blur; a 60 m pixel is kept once, in the
20 m cell at its centre, and the eight cells around it hold no look, so that no value is counted twice.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pystac
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from fusion.cube.grid import Grid
from fusion.errors import SceneError
from fusion.observe.psf import PSF
from fusion.observe.scene import Scene
from fusion.observe.sensor import Band, Collection, Noise, Sensor
from sensors import revisit
from sensors.lattice import Utm
from sensors.reading import Plane, Storage, assemble, calibrate, instant, planes
from sensors.responses import responses, source
from sensors.writing import make_item, quantise, write_tif

BANDS = {  # our name: (label, native metres)
    "coastal": ("B01", 60), "blue": ("B02", 10), "green": ("B03", 10), "red": ("B04", 10), "rededge1": ("B05", 20), "rededge2": ("B06", 20),
    "rededge3": ("B07", 20), "nir": ("B08", 10), "nir08": ("B8A", 20), "swir16": ("B11", 20), "swir22": ("B12", 20),
}  # fmt: skip
BLUR = 0.4 * 2.354820045  # FWHM of the blur apart from the cell, native pixels
PSFS = {
    10: PSF("gaussian", 10 * BLUR, geolocation=2.4), 20: PSF("gaussian", 20 * BLUR, geolocation=2.4),
    # box 60 (*) blur by its second moment beyond the 20 m cell that carries it: 60^2/12 - 20^2/12 + (.4 60)^2
    60: PSF("gaussian", 2.354820045 * float(np.sqrt((60**2 - 20**2) / 12 + (0.4 * 60) ** 2)), geolocation=2.4),
}  # fmt: skip
REACH = 150.0  # metres: beyond the 60 m band's cell and blur
KEEP, UNSURE = (4, 5, 6, 7, 11), (7, 11)  # scene classes: vegetation, soil, water, unclassified, snow
COLLECTION_1 = "sentinel-2-c1-l2a"


def offset_of(item: pystac.Item, where: str) -> tuple[float, tuple[str, ...]]:
    """(reflectance offset, notes): -0.1 from processing baseline 04.00 on, 0 before, 0 where an archive has applied it already.

    Decided by baseline, never by date (old dates are reprocessed), and never by `raster:bands` (Earth Search's
    sentinel-2-l2a declares an offset that its files have applied already, and the flag that says so is known to err).
    """
    told = item.properties.get("s2:processing_baseline") or item.properties.get("processing:version")
    if told is None:
        raise SceneError(f"{where}: no s2:processing_baseline: the offset (-0.1 from 04.00 on) cannot be told; add it to the item")
    try:
        new = float(str(told)) >= 4.0
    except ValueError as error:
        raise SceneError(f"{where}: s2:processing_baseline {told!r} is not a number such as 05.09") from error
    if new and item.properties.get("earthsearch:boa_offset_applied") and item.collection_id != COLLECTION_1:
        return 0.0, (f"the archive says that it has applied the offset itself; prefer {COLLECTION_1}, whose numbers are untouched",)
    return (-0.1 if new else 0.0), ()


def read(name: str, item: pystac.Item, window: Grid) -> Scene:
    """One tile's window on its 20 m grid."""
    where = f"{name} scene {item.id}"
    platform = str(item.properties.get("platform", name)).lower()
    if platform != name:
        raise SceneError(f"{where}: the item is of {platform}: read it with that sensor, its bands differ")
    offset, told = offset_of(item, where)
    storage = Storage(1e-4, offset, fill=(0,), valid=(1, 65534), dtypes=("uint16",))
    found = planes(item, {"scl": ("scl", "SCL"), **{b: (b, label) for b, (label, _) in BANDS.items()}}, window, REACH, where)
    notes, layers = list(told), {}
    for band in BANDS:
        plane = found[band]  # a declared offset is not believed (see offset_of), a declared scale is checked
        values, more = calibrate(replace(plane, offset=None if plane.scale in (None, 1.0) else offset), storage, where)
        layers[band] = replace(plane, values=values)
        notes += more
    geobox = _common(found["scl"].geobox, [plane.geobox for plane in layers.values()], where)
    scl = on_20m(found["scl"], geobox, where)
    keep, inflate = np.isin(scl, KEEP), np.where(np.isin(scl, UNSURE), np.float32(2), np.float32(1))
    rho = np.stack([on_20m(plane, geobox, where) for plane in layers.values()])
    return assemble(name, SENSORS[name].bands, item, rho, geobox, instant(item), keep=keep, inflate=inflate, notes=notes)


def _corner(box: GeoBox, base: GeoBox, where: str) -> tuple[int, int, int]:
    """(row, col, edge) of a layer's first pixel and its pixel edge, in half-cells (10 m) of the 20 m grid; they must nest exactly."""
    col, row = ~base.transform * (box.transform.c, box.transform.f)
    found = np.array([2 * row, 2 * col, 2 * box.transform.a / base.transform.a])
    if box.crs != base.crs or np.abs(found - np.round(found)).max() > 1e-3 or round(found[2]) not in (1, 2, 6):
        raise SceneError(f"{where}: a layer's pixels ({box.transform.a:g} m) do not nest in the 20 m grid: use the archive's own files")
    return round(found[0]), round(found[1]), round(found[2])


def _common(base: GeoBox, boxes: list[GeoBox], where: str) -> GeoBox:
    """The 20 m cells of `base` that lie wholly inside the window of every 10 and 20 m layer."""
    top, left, (bottom, right) = 0, 0, base.shape
    for box in boxes:
        row, col, edge = _corner(box, base, where)
        if edge < 6:
            top, left = max(top, -(-row // 2)), max(left, -(-col // 2))
            bottom, right = min(bottom, (row + edge * box.shape[0]) // 2), min(right, (col + edge * box.shape[1]) // 2)
    return base[top : max(bottom, top + 1), left : max(right, left + 1)]


def on_20m(plane: Plane, base: GeoBox, where: str) -> NDArray[Any]:
    """(H, W) on the 20 m grid: the mean of 2 x 2 pixels of 10 m, pixels of 20 m as they are, one of 60 m at its centre."""
    row, col, edge = _corner(plane.geobox, base, where)
    height, width = base.shape
    if edge == 2:
        return plane.values[-row // 2 : -row // 2 + height, -col // 2 : -col // 2 + width]
    if edge == 1:
        inside = plane.values[-row : -row + 2 * height, -col : -col + 2 * width]
        return inside.reshape(height, 2, width, 2).mean(axis=(1, 3), dtype=np.float32)
    out = np.full((height, width), np.nan, dtype=np.float32)
    rows, cols = (np.arange(n) * 3 + start // 2 + 1 for n, start in zip(plane.values.shape, (row, col), strict=True))
    r, c = (rows >= 0) & (rows < height), (cols >= 0) & (cols < width)
    out[np.ix_(rows[r], cols[c])] = plane.values[np.ix_(r, c)]
    return out


def write(scene: Scene, folder: Path) -> pystac.Item:
    """The files of one tile, baseline 05.00: each band at its own resolution (60 m edges at multiples of 60 m)."""
    storage, box, files = Storage(1e-4, -0.1, fill=(0,), valid=(1, 65534), dtypes=("uint16",)), scene.geobox, {}
    blank = ~np.isfinite(scene.reflectance).any(axis=0)
    layers = {b: (*BANDS[b], quantise(rho, storage)) for b, rho in zip(scene.bands, scene.reflectance, strict=True)}
    layers["scl"] = ("SCL", 20, np.where(blank, 0, 4).astype("uint8"))
    for key, (label, edge, values) in layers.items():
        step, transform = edge / 20, box.transform * Affine.scale(edge / 20)
        if edge == 10:
            values = values.repeat(2, axis=0).repeat(2, axis=1)
        elif edge == 60:
            skip = [round(-start / 20) % 3 for start in (-box.transform.f, box.transform.c)]
            values, transform = values[skip[0] + 1 :: 3, skip[1] + 1 :: 3], box.transform * Affine.translation(skip[1], skip[0]) * Affine.scale(step)
        path = write_tif(folder / f"{scene.id}_{label}_{edge}m.tif", values, GeoBox(values.shape, transform, box.crs), fill=0)
        files[key] = (path, {"raster:bands": [{"nodata": 0, "scale": 1e-4, "offset": -0.1}]} if key != "scl" else {})
    return make_item(scene, folder, files, {"platform": scene.sensor, "s2:processing_baseline": "05.00"})


SOURCES = (
    "Offset, fill, scene classes: Sentinel-2 Products Specification Document, issue 14.9 (processing baseline 04.00 of 25 January 2022).",
    "PSF: modulation .28 at Nyquist (requirement .15-.30) is a blur of .4 native pixel (sd) beside the cell: FWHM 12 m at 10 m, 24 m at 20 m.",
    "Geolocation: 5.1 m CE90 between dates with the global reference image; CE90 = 2.15 sd (Rengarajan et al. 2024, USGS 70254589).",
    "Noise: signal-to-noise ratios of 50-170 (ESA) and the white part of the atmospheric error .005 + 5 % (Doxani et al. 2018, Remote "
    "Sensing 10:352); its common part is offset_sd and gain_sd.",
)


def _sensor(letter: str, lifetime: tuple[date, date | None]) -> Sensor:
    name = f"sentinel-2{letter}"
    tables = responses(name)
    return Sensor(
        name=name, title=f"Sentinel-2{letter.upper()} MSI Level 2A",
        bands=tuple(Band(b, tables[label[1:].lstrip("0")], Noise(0.003, 0.015), (b, label), PSFS[edge]) for b, (label, edge) in BANDS.items()),
        psf=PSFS[20], pixel=20.0, read=partial(read, name), write=write, native=Utm(20.0, 0.0, REACH), revisit=revisit.SENTINEL_2[letter],
        offset_sd=0.010, lifetime=lifetime,
        collections=(
            Collection("https://earth-search.aws.element84.com/v1", COLLECTION_1, {"platform": {"eq": name}}),
            Collection("https://planetarycomputer.microsoft.com/api/stac/v1", "sentinel-2-l2a", {"platform": {"eq": f"Sentinel-2{letter.upper()}"}}),
        ),
        sources=(source(name), *SOURCES),
    )  # fmt: skip


SENTINEL_2A = _sensor("a", (date(2015, 6, 27), None))
SENTINEL_2B = _sensor("b", (date(2017, 3, 15), None))
SENTINEL_2C = _sensor("c", (date(2025, 1, 21), None))
SENSORS = {s.name: s for s in (SENTINEL_2A, SENTINEL_2B, SENTINEL_2C)}
