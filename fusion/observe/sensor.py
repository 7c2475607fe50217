"""What an instrument IS: numbers with their sources, and one function that reads a file.

A sensor is facts, not behaviour: operator, adjoint, noise, simulation and plan all derive from them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pystac
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from fusion.cube.grid import Grid
from fusion.cube.response import DROPPED, Response
from fusion.errors import SensorError
from fusion.observe.psf import PSF
from fusion.observe.scene import Scene


@dataclass(frozen=True)
class Noise:
    """White noise per pixel: sigma = a + b rho (reflectance)."""

    a: float
    b: float


@dataclass(frozen=True, eq=False)
class Band:
    """One band of a multispectral instrument."""

    name: str
    """the field's usual name: blue, green, red, nir08, swir16 ... (lower case, unique in the sensor)"""
    response: Response
    noise: Noise
    assets: tuple[str, ...] = ()
    """STAC asset keys under which catalogs publish it, most common first"""
    psf: PSF | None = None
    """if it differs from the sensor's"""


@dataclass(frozen=True)
class Collection:
    """Where a catalog keeps the sensor."""

    catalog: str
    """STAC API root, e.g. https://planetarycomputer.microsoft.com/api/stac/v1"""
    id: str
    query: Mapping[str, object] = field(default_factory=dict)
    """extra property filter, e.g. {"platform": {"in": ["landsat-8"]}}"""


@dataclass(frozen=True)
class Pass:
    """One planned acquisition."""

    day: date
    view_zenith: float
    """degrees; NaN = not predictable"""
    note: str = ""


@dataclass(frozen=True)
class Compositing:
    """How a product makes one value from the clear looks of several days, counted from the day of its `Pass`."""

    first: int
    last: int
    """inclusive"""
    decay_days: float = float("inf")
    """days are weighted by exp(-|day - pass day| / decay_days)"""
    one_day: bool = False
    """each pixel takes one of the days and says which (MOD09A1); otherwise it is the weighted mean"""


Read = Callable[[pystac.Item, Grid], Scene]
Write = Callable[[Scene, Path], pystac.Item]
Revisit = Callable[[float, float, date, date], list[Pass]]
Native = Callable[[Grid], GeoBox]
Blind = Callable[[GeoBox, Pass], NDArray[np.bool_]]


@dataclass(frozen=True, eq=False)
class Sensor:
    """An instrument and its product: everything that the model needs to know of it."""

    name: str
    """lower-case, hyphenated, unique: landsat-8, modis-terra-mcd43a4"""
    title: str
    bands: tuple[Band, ...]
    """empty for imaging spectrometers, whose channels come with each file"""
    psf: PSF
    pixel: float
    """nominal native pixel, metres"""
    read: Read
    """(item, window) -> Scene: only the pixels whose footprints reach the window (a Grid in the latent CRS)"""
    revisit: Revisit
    """(lon, lat, first, last) -> planned passes, without network; empty list = not predictable (aircraft)"""
    offset_sd: float
    """prior sd of an acquisition's common error per band (aerosol, BRDF, calibration), reflectance, on black ground"""
    gain_sd: float = 0.02
    """prior sd of the sensor's relative gain error per band"""
    offset_relative: float = 0.0
    """what `offset_sd` rises by with the brightness of the ground, as a share of it"""
    discrepancy_sd: float = 0.0
    """prior sd of the temporally correlated error of a coarse sensor on its own cells, reflectance; 0 = none"""
    discrepancy_days: float = 10.0
    """its correlation time, days"""
    channel_noise: Noise | None = None
    """for imaging spectrometers: noise of every channel"""
    opaque: tuple[tuple[float, float], ...] = DROPPED
    """nm: a spectrometer's channels in these windows are left out, whatever they say; () = the air between is known not to matter"""
    lifetime: tuple[date, date | None] = (date(1970, 1, 1), None)
    collections: tuple[Collection, ...] = ()
    sources: tuple[str, ...] = ()
    """where each fact above comes from"""
    write: Write | None = None
    """(scene, folder) -> item: the inverse of read, the same files that the real instrument's archive has; used by simulation"""
    native: Native | None = None
    """(window) -> the sensor's own pixels (its CRS, its grid alignment) that cover the window; used by simulation.
    None = north-up pixels of size `pixel` in the window's CRS"""
    compositing: Compositing | None = None
    """None = every look is one instant"""
    blind: Blind | None = None
    """(native pixels, pass) -> (H, W) pixels that a fault of the instrument leaves out (Landsat 7 since 2003); used by simulation"""
    example_channels: tuple[tuple[float, float], ...] = ()
    """(centre, fwhm) nm of a typical file, for spectrometers: display, planning and simulation only"""

    def offset_of(self, brightness: NDArray[np.floating]) -> NDArray[np.float64]:
        """Prior sd of an acquisition's common error where the mean reflectance is `brightness`: offset_sd + offset_relative rho."""
        return self.offset_sd + self.offset_relative * np.maximum(np.asarray(brightness, np.float64), 0.0)

    def band(self, name: str) -> Band:
        """The band of that name; SensorError with the nearest name if there is none."""
        for band in self.bands:
            if band.name == name:
                return band
        from difflib import get_close_matches

        names = [b.name for b in self.bands]
        near = get_close_matches(name, names, 1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise SensorError(f"{self.name} has no band {name!r}{hint} Its bands: {', '.join(names)}")


@cache
def sensors() -> dict[str, Sensor]:
    """All installed sensors by name, found by the entry-point group `fusion.sensors`; a broken one warns and is left out."""
    found: dict[str, Sensor] = {}
    for entry in sorted(entry_points(group="fusion.sensors"), key=lambda e: e.name):
        try:
            value = entry.load()
            if not isinstance(value, Sensor):
                raise SensorError(f"it is a {type(value).__name__}, not a fusion.Sensor")
            if value.name != entry.name:
                raise SensorError(f"it calls itself {value.name!r}")
        except Exception as error:  # a stranger's module may raise anything: never let it break `import fusion`
            warnings.warn(f"sensor plug-in {entry.name!r} ({entry.value}) is left out: {error}", stacklevel=2)
            continue
        found[value.name] = value
    return found


def sensor(name: str) -> Sensor:
    """The installed sensor of that name; SensorError with the nearest names if there is none."""
    from difflib import get_close_matches

    table = sensors()
    if name in table:
        return table[name]
    near = get_close_matches(name, table, 3) or [known for known in table if name and name in known][:5]
    hint = f"did you mean {' or '.join(near)}?" if near else "`fusion sensors` lists the installed ones"
    raise SensorError(f"no sensor is called {name!r}: {hint}")
