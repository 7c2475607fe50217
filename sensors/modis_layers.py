"""How MODIS land products are laid out and judged: layers, storage, quality bits and the scenes they make."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pystac
from numpy.typing import NDArray

from fusion.cube.calendar import DAY, Instant, PixelDay, Window, instant_of
from fusion.cube.grid import Grid
from fusion.errors import SceneError
from fusion.observe.psf import PSF, scan_growth
from fusion.observe.scene import Scene, View
from fusion.observe.sensor import Band
from sensors.hdfeos import CELL, layers
from sensors.reading import Flag, Plane, Storage, assemble, calibrate, judge, onto, reach_of

NAMES = {"1": "red", "2": "nir08", "3": "blue", "4": "green", "5": "nir12", "6": "swir16", "7": "swir21"}
NBAR = Storage(1e-4, fill=(32767,), valid=(0, 32766))
SURFACE = Storage(1e-4, fill=(-28672,), valid=(-100, 16000))
DAYS_DECAY = 8.0

EIGHT_DAY = {
    "qc": ("sur_refl_qc_500m",), "state": ("sur_refl_state_500m",), "day": ("sur_refl_day_of_year",),
    "zenith": ("sur_refl_vzen",),
}
DAILY = {
    "qc": ("QC_500m_1", "QC_500m"), "state": ("state_1km_1", "state_1km"), "zenith": ("SensorZenith_1", "SensorZenith"),
    "azimuth": ("SensorAzimuth_1", "SensorAzimuth"), "coverage": ("obscov_500m_1", "obscov_500m"),
}

STATE = (
    Flag(0, 2, (0, 3), why="cloud state: clear, or not set and assumed clear"), Flag(2, 1, (0,), why="cloud shadow"),
    Flag(6, 2, (0, 1, 2), why="high aerosol"), Flag(8, 2, (0, 1), why="cirrus average or high"),
    Flag(10, 1, (0,), why="internal cloud flag"), Flag(13, 1, (0,), why="adjacent to cloud"),
)
PRODUCED = Flag(0, 2, (0, 1), why="MODLAND: product not made")
INVERSION = (Flag(0, 8, (0, 1), why="no inversion"), Flag(0, 8, (0,), inflate=2.0, why="magnitude inversion only"))


def band_quality(number: str) -> tuple[Flag, ...]:
    """The four bits of one band in QC_500m: 0 best, 7 noisy detector, 8 dead and interpolated, 9-10 low sun, above: no value."""
    first = 4 * int(number) - 2
    return Flag(first, 4, (0, 7, 8, 9, 10)), Flag(first, 4, (0,), inflate=2.0)


def _first_day(item: pystac.Item) -> np.datetime64:
    """The item's first day, from start_datetime, datetime or the granule's name (A2022032)."""
    told = item.properties.get("start_datetime") or item.datetime
    name = re.search(r"\.A(\d{4})(\d{3})", item.id)
    if told is None and name is None:
        raise SceneError(f"item {item.id} has no start_datetime, datetime or .AYYYYDDD in its name: add one")
    if told is not None:
        return instant_of(told).astype("datetime64[D]")
    return np.datetime64(f"{name[1]}-01-01") + int(name[2]) - 1 if name else np.datetime64("NaT")


def _stack(
    found: dict[str, Plane], bands: tuple[Band, ...], storage: Storage, where: str,
) -> tuple[NDArray[np.float32], list[str]]:
    """(B, H, W) reflectance and the notes."""
    pairs = [calibrate(found[b.name], storage, where) for b in bands]
    return np.stack([rho for rho, _ in pairs]), [note for _, notes in pairs for note in notes]


def read_nbar(name: str, bands: tuple[Band, ...], psf: PSF, item: pystac.Item, window: Grid) -> Scene:
    """MCD43A4: 16 days weighted around day 9; full inversions as they are, magnitude inversions with twice the sigma."""
    where = f"{name} scene {item.id}"
    wanted = {b.name: b.assets for b in bands} | {n: (f"BRDF_Albedo_Band_Mandatory_Quality_Band{n}",) for n in NAMES}
    found = layers(item, wanted, window, reach_of(psf, CELL), where)
    rho, notes = _stack(found, bands, NBAR, where)
    keep, inflate = zip(*(judge(found[n].values, INVERSION) for n in NAMES), strict=True)
    ends = [item.properties.get(f"{end}_datetime") for end in ("start", "end")]
    sixteen = all(ends) and (instant_of(ends[1]) - instant_of(ends[0])) / DAY > 14
    start = _first_day(item) if sixteen else _first_day(item) - 8  # one date only: the file's own, day 9 of the window
    first, last, centre = (day.astype("datetime64[us]") for day in (start, start + 15, start + 8))
    when, box = Window(first, last, centre, DAYS_DECAY), found["red"].geobox
    return assemble(name, bands, item, rho, box, when, keep=np.stack(keep), inflate=np.stack(inflate), notes=notes)


def read_surface(
    name: str, bands: tuple[Band, ...], psf: PSF, aqua: bool, daily: bool, item: pystac.Item, window: Grid
) -> Scene:
    """MOD09A1 (each pixel's best day of eight) and MOD09GA (one overpass): state and band-quality bits, own view angles.

    The gridding repeats an oblique observation in every cell it covers, so each cell may count only for its share. MOD09GA
    says that share itself (`View.coverage`); elsewhere the variance is multiplied by the footprint's growth in area.
    """
    where = f"{name} scene {item.id}"
    wanted = {**{b.name: b.assets for b in bands}, **(DAILY if daily else EIGHT_DAY)}
    found = layers(item, wanted, window, reach_of(psf, CELL), where, optional=("coverage",))
    box = found["red"].geobox
    rho, notes = _stack(found, bands, SURFACE, where)
    numbers = [n for n, band in NAMES.items() if band in found]
    keep, inflate = (np.stack(part) for part in zip(*(judge(found["qc"].values, band_quality(n)) for n in numbers), strict=True))
    keep &= judge(onto(found["state"], box), STATE)[0] & judge(found["qc"].values, (PRODUCED,))[0]
    if aqua:
        notes.append("band 6 (1628 nm) is left out: most of Aqua's detectors for it are dead")
    zenith = _angle(onto(found["zenith"], box), found["zenith"].fill)
    first = _first_day(item)
    if daily:
        azimuth = _angle(onto(found["azimuth"], box), found["azimuth"].fill)
        when: Instant | PixelDay = Instant(_overpass(item, first, window, 13.5 if aqua else 10.5))
    else:
        ordinal = found["day"].values.astype(np.int64)
        days = first.astype("datetime64[Y]").astype("datetime64[D]") + (ordinal - 1)
        inside = (days >= first) & (days <= first + 7)
        keep &= inside
        when = PixelDay(np.where(inside, days, np.datetime64("NaT")))
        azimuth = np.full_like(zenith, scan_azimuth(window, aqua))
    view = View(zenith, azimuth, _coverage(found.get("coverage")))
    if view.coverage is None:
        inflate = inflate * np.sqrt(np.prod(scan_growth(zenith.astype(np.float64)), axis=0)).astype(np.float32)
    return assemble(name, bands, item, rho, box, when, keep=keep, inflate=inflate, view=view, notes=notes)


def _overpass(item: pystac.Item, day: np.datetime64, window: Grid, hour: float) -> np.datetime64:
    """The item's datetime if it has a time of day, else the satellite's local solar hour at the window, on the same UTC day."""
    told = item.datetime and instant_of(item.datetime)
    if told and told != told.astype("datetime64[D]"):
        return told
    local = (hour - window.lonlat.centroid.coords[0][0] / 15) % 24
    return day.astype("datetime64[us]") + np.timedelta64(round(local * 3600), "s")


def _angle(stored: NDArray[Any], fill: float | None) -> NDArray[np.float32]:
    """Degrees from hundredths; NaN where the file has none.  (MOD09A1 declares 0 as fill: a nadir view all the same.)"""
    return np.where((stored == fill) & (stored != 0), np.nan, stored * 0.01).astype(np.float32)


def _coverage(plane: Plane | None) -> NDArray[np.float32] | None:
    """Fraction of an observation that falls on its cell, from per cent; NaN where the file has none."""
    if plane is None:
        return None
    return np.where((plane.values < 0) | (plane.values > 100), np.nan, plane.values * 0.01).astype(np.float32)


def scan_azimuth(window: Grid, ascending: bool) -> float:
    """Degrees from north of the scan line, across the track: sin(heading) = cos(98.2) / cos(lat), plus Earth's turn."""
    latitude = np.radians(window.lonlat.centroid.coords[0][1])
    tilt = np.degrees(np.arcsin(np.clip(np.cos(np.radians(98.2)) / np.cos(latitude), -1, 1)))  # negative: west of north
    turn = np.degrees(np.arctan2(np.cos(latitude) * 0.4651, 6.74))  # Earth's surface speed over the ground speed, km/s
    heading = tilt - turn if ascending else 180.0 - tilt + turn
    return float((heading + 90.0) % 180.0)
