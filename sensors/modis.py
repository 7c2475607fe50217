"""MODIS on Terra and Aqua: nadir BRDF-adjusted composites (MCD43A4), 8-day (MOD09A1) and daily (MOD09GA) surface reflectance.

MCD43A4 is the default: it is published as COG and its view effects are removed.  MOD09GA exists only as HDF4 granules, which
are fetched whole.
"""

from __future__ import annotations

from datetime import date
from functools import partial

from fusion.observe.psf import PSF
from fusion.observe.sensor import Band, Collection, Compositing, Noise, Sensor
from sensors import modis_files, revisit, sources
from sensors.hdfeos import CELL, native
from sensors.modis_layers import DAYS_DECAY, NAMES, read_nbar, read_surface
from sensors.responses import responses, source

NOISE = Noise(0.003, 0.03)
PLANETARY = "https://planetarycomputer.microsoft.com/api/stac/v1"
CMR = "https://cmr.earthdata.nasa.gov/stac/LPCLOUD"
SCANNER = PSF("scanner", 500.0, geolocation=50.0)
TERRA_LIFE, AQUA_LIFE = (date(2000, 2, 24), None), (date(2002, 7, 4), None)


def bands_of(*assets: str, left_out: str = "") -> tuple[Band, ...]:
    """The seven land bands with their true responses; assets: candidate keys with {} for the band number."""
    table = responses("modis")
    kept = {n: name for n, name in NAMES.items() if n not in left_out}
    return tuple(Band(name, table[n], NOISE, tuple(a.format(n) for a in assets)) for n, name in kept.items())


_nbar = bands_of("Nadir_Reflectance_Band{}")
MCD43A4 = Sensor(
    "modis-mcd43a4", "MODIS Terra+Aqua nadir BRDF-adjusted reflectance, 16-day window (MCD43A4)", _nbar, SCANNER, CELL,
    read=partial(read_nbar, "modis-mcd43a4", _nbar, SCANNER),
    revisit=revisit.Composite(8, date(2000, 2, 24), "16-day window around this day; the archive repeats it daily"),
    offset_sd=0.008, discrepancy_sd=0.02, discrepancy_days=16.0, lifetime=TERRA_LIFE,
    collections=(Collection(PLANETARY, "modis-43A4-061"), Collection(CMR, "MCD43A4_061")),
    write=modis_files.write_nbar, native=native, compositing=Compositing(-8, 7, DAYS_DECAY),
    sources=(source("modis"), *sources.MCD43),
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
        sources=(source("modis"), *sources.MODIS),
    )


MOD09A1 = _surface("modis-terra-mod09a1", "Terra surface reflectance, best of 8 days", False, False, 8.0, 0.015)
MYD09A1 = _surface("modis-aqua-myd09a1", "Aqua surface reflectance, best of 8 days", True, False, 8.0, 0.015)
MOD09GA = _surface("modis-terra-mod09ga", "Terra surface reflectance, daily", False, True, 5.0, 0.02)
MYD09GA = _surface("modis-aqua-myd09ga", "Aqua surface reflectance, daily", True, True, 5.0, 0.02)
