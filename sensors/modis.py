"""MODIS on Terra and Aqua: nadir BRDF-adjusted composites (MCD43A4), 8-day (MOD09A1) and daily (MOD09GA) surface reflectance.

MCD43A4 is the default: it is published as COG and its view effects are removed.  MOD09GA exists only as HDF4 granules, which
are fetched whole.
"""

from __future__ import annotations

import re
from datetime import date
from functools import partial
from typing import Any

import numpy as np
import pystac
from numpy.typing import NDArray

from fusion.cube.calendar import DAY, Instant, PixelDay, Window, instant_of
from fusion.cube.grid import Grid
from fusion.errors import SceneError
from fusion.observe.psf import PSF, scan_growth
from fusion.observe.scene import Scene, View
from fusion.observe.sensor import Band, Collection, Compositing, Noise, Sensor
from sensors import modis_files, revisit
from sensors.hdfeos import CELL, layers, native
from sensors.reading import Flag, Plane, Storage, assemble, calibrate, judge, onto, reach_of
from sensors.responses import responses, source

NOISE = Noise(0.003, 0.03)
NAMES = {"1": "red", "2": "nir08", "3": "blue", "4": "green", "5": "nir12", "6": "swir16", "7": "swir21"}
NBAR = Storage(1e-4, fill=(32767,), valid=(0, 32766))
SURFACE = Storage(1e-4, fill=(-28672,), valid=(-100, 16000))
DAYS_DECAY = 8.0

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


def bands_of(*assets: str, left_out: str = "") -> tuple[Band, ...]:
    """The seven land bands with their true responses; assets: candidate keys with {} for the band number."""
    table = responses("modis")
    kept = {n: name for n, name in NAMES.items() if n not in left_out}
    return tuple(Band(name, table[n], NOISE, tuple(a.format(n) for a in assets)) for n, name in kept.items())


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

    The gridding repeats an oblique observation in every cell it covers, so each cell counts for 1 / (their number).
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
    cells = np.prod(scan_growth(zenith.astype(np.float64)), axis=0)
    inflate = (inflate * np.sqrt(cells)).astype(np.float32)
    view = View(zenith, azimuth, _coverage(found.get("coverage")))
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


EIGHT_DAY = {
    "qc": ("sur_refl_qc_500m",), "state": ("sur_refl_state_500m",), "day": ("sur_refl_day_of_year",),
    "zenith": ("sur_refl_vzen",),
}
DAILY = {
    "qc": ("QC_500m_1", "QC_500m"), "state": ("state_1km_1", "state_1km"), "zenith": ("SensorZenith_1", "SensorZenith"),
    "azimuth": ("SensorAzimuth_1", "SensorAzimuth"), "coverage": ("obscov_500m_1", "obscov_500m"),
}
PLANETARY = "https://planetarycomputer.microsoft.com/api/stac/v1"
CMR = "https://cmr.earthdata.nasa.gov/stac/LPCLOUD"
SCANNER = PSF("scanner", 500.0, geolocation=50.0)
SOURCES = (
    f"response: {source('modis')}; bands 6 and 7 centre on 1628 and 2114 nm, not on the nominal 1640 and 2130",
    "footprint: triangle along scan, twice the pixel wide; rectangle along track: Rojas, Schowengerdt, Biggar 2002, RSE 83:50-61",
    "geolocation 50 m (1 sigma): Wolfe et al. 2002, RSE 83:31-49",
    "noise .003 + .03 rho: the error bar .005 + 5 % of modis-sr.ltdri.org holds 87-94 % of good samples, so it is 1.5-1.9 sigma",
    "storage, fill and quality bits: MOD09 and MCD43 user guides, collection 6.1, and the attributes of genuine granules",
)
TERRA_LIFE, AQUA_LIFE = (date(2000, 2, 24), None), (date(2002, 7, 4), None)

_nbar = bands_of("Nadir_Reflectance_Band{}")
MCD43A4 = Sensor(
    "modis-mcd43a4", "MODIS Terra+Aqua nadir BRDF-adjusted reflectance, 16-day window (MCD43A4)", _nbar, SCANNER, CELL,
    read=partial(read_nbar, "modis-mcd43a4", _nbar, SCANNER),
    revisit=revisit.Composite(8, date(2000, 2, 24), "16-day window around this day; the archive repeats it daily"),
    offset_sd=0.008, discrepancy_sd=0.02, discrepancy_days=16.0, lifetime=TERRA_LIFE,
    collections=(Collection(PLANETARY, "modis-43A4-061"), Collection(CMR, "MCD43A4_061")),
    write=modis_files.write_nbar, native=native, compositing=Compositing(-8, 7, DAYS_DECAY),
    sources=(
        *SOURCES,
        "window: observations weighted by quality, coverage and distance from day 9 (product abstract); decay 8 days chosen",
        "its looks reach 45 degrees of view zenith on average: a mean footprint of 720 x 576 m with the cell",
        "discrepancy: measured against Landsat on real pairs, sd about .02",
    ),
)


def _surface(name: str, title: str, aqua: bool, daily: bool, days: float, offset_sd: float) -> Sensor:
    """One of the four surface-reflectance products."""
    bands = bands_of(*(("sur_refl_b0{}_1", "sur_refl_b0{}") if daily else ("sur_refl_b0{}",)), left_out="6" if aqua else "")
    product = f"{'MYD' if aqua else 'MOD'}09{'GA' if daily else 'A1'}"
    query = {"platform": {"eq": "aqua" if aqua else "terra"}}
    homes = (Collection(CMR, f"{product}_061"),) if daily else (
        Collection(PLANETARY, "modis-09A1-061", query), Collection(CMR, f"{product}_061"),
    )
    orbit = revisit.AQUA if aqua else revisit.TERRA
    return Sensor(
        name, f"MODIS {title} ({product})", bands, SCANNER, CELL, read=partial(read_surface, name, bands, SCANNER, aqua, daily),
        revisit=orbit if daily else revisit.Composite(8, (AQUA_LIFE if aqua else TERRA_LIFE)[0], "best day of eight, per pixel"),
        offset_sd=offset_sd, discrepancy_sd=0.02, discrepancy_days=days, lifetime=AQUA_LIFE if aqua else TERRA_LIFE,
        collections=homes, write=modis_files.write_daily if daily else modis_files.write_8day, native=native,
        compositing=None if daily else Compositing(0, 7, one_day=True),
        sources=(*SOURCES, "offset: aerosol errors of .003-.018 per band (modis-sr.ltdri.org), more for one uncorrected view"),
    )


MOD09A1 = _surface("modis-terra-mod09a1", "Terra surface reflectance, best of 8 days", False, False, 8.0, 0.015)
MYD09A1 = _surface("modis-aqua-myd09a1", "Aqua surface reflectance, best of 8 days", True, False, 8.0, 0.015)
MOD09GA = _surface("modis-terra-mod09ga", "Terra surface reflectance, daily", False, True, 5.0, 0.02)
MYD09GA = _surface("modis-aqua-myd09ga", "Aqua surface reflectance, daily", True, True, 5.0, 0.02)
