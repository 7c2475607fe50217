"""WHEN an instrument passes a place, predicted from the geometry of repeating orbits, without any network.

A repeating sun-synchronous orbit flies N tracks in D days.  Track n crosses the equator in daylight at

    longitude  L_n = L_0 - n 360 D / N          time  t_n = t_0 + n D / N   (days, modulo D)

and at argument u from that node (degrees, in flight direction) the sub-satellite point is (spherical Earth, geocentric
latitude, i = inclination)

    latitude = -+ asin(sin i sin u)             longitude = L_n + atan2(cos i sin u, cos u) - u D / N

with - for daylight on the descending half.  A place is seen when its distance to the track is within half the swath; the
UTC date is the whole part of t_n + u D / (360 N).  Landsat's published rule, (date.toordinal() - 7 path - c) mod 16 = 0 with c
one larger on the paths behind UTC midnight, is this same statement: 16 paths westward are one orbit later.

Sources.  WRS-2: 233 paths, 248 rows, 16 days, 98.2 degrees, path 1 at 64.6 W, descending node at 10.19 h local time (USGS
Landsat handbooks; day constants c checked on 797 scene identifiers without an exception, centres within 4 km).  Sentinel-2:
143 orbits, 10 days, 98.62 degrees, node of relative orbit 1 at 168.45 E (ESA; checked on 128 product names, the 2025 slots of 2A
and 2C on 20 of them).  Terra and Aqua fly the WRS-2 tracks: phases from two-line elements of 2011-2021 (five for Aqua, three for
Terra) agree within .0004 day, nodes within .1 path.  Neither keeps its track any more: Terra stopped its inclination
manoeuvres in February 2020 and left its orbit in October 2022, Aqua manoeuvred last in March 2021 (modis.gsfc.nasa.gov), hence
no angles after 2021.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.errors import JobError
from fusion.observe.sensor import Pass, Revisit

EARTH_KM = 6371.0
FLATTENING = 1 / 298.257223563
MIDNIGHT_DAYS = 0.03  # orbits drift by up to three quarters of an hour of local time over a mission (Landsat 5, 7)


@dataclass(frozen=True)
class Orbit:
    """A repeating orbit seen from the ground; calling it plans the passes over a place, the nearest track of each day."""

    name: str
    days: int
    """D, repeat period"""
    tracks: int
    """N, orbits in a period"""
    inclination: float
    longitude: float
    """L_0, degrees east, of the daylight node of track 0"""
    time: float
    """t_0, days since 0000-12-31T00Z (`date.toordinal`), modulo D"""
    half_swath: float
    """kilometres across track from the sub-satellite point"""
    altitude: float
    """kilometres"""
    first: date
    """the phase holds from this day ..."""
    last: date | None = None
    """... to this day"""
    ascending: bool = False
    """daylight half of the orbit (Aqua)"""
    note: str = ""

    def __call__(self, lon: float, lat: float, first: date, last: date) -> list[Pass]:
        """The planned daylight passes over (lon, lat) from `first` to `last`, both included."""
        start, stop = max(first, self.first), min(last, self.last or last)
        if not (-180 <= lon <= 360 and -90 <= lat <= 90):
            raise JobError(f"asked for the passes over lon {lon}, lat {lat}: give degrees east and north, lon first")
        if first > last:
            raise JobError(f"the period ends ({last}) before it starts ({first}): swap the two dates")
        if start > stop:
            return []
        distance, argument = self._nearest(lon, lat)
        best: dict[date, tuple[float, str]] = {}
        for track in np.flatnonzero(distance <= self.half_swath):
            moment = self.time + (track + argument[track] / 360) * self.days / self.tracks
            cycles = np.arange((start.toordinal() - moment) // self.days, (stop.toordinal() - moment) // self.days + 2)
            for when in moment + self.days * cycles:
                day = date.fromordinal(int(when))
                known = day in best and best[day][0] <= distance[track]
                if start <= day <= stop and not known and _sun_is_up(lon, lat, when):
                    best[day] = (float(distance[track]), self._note(int(track), float(argument[track]), float(when)))
        return [Pass(day, round(self._view_zenith(km), 1), note) for day, (km, note) in sorted(best.items())]

    def _nearest(self, lon: float, lat: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(N,) distance, km, of every track to the place, and (N,) the argument u there, degrees."""
        geocentric = np.arctan((1 - FLATTENING) ** 2 * np.tan(np.radians(lat)))
        place = _unit(np.radians(lon), geocentric)
        node = np.radians(self.longitude - np.arange(self.tracks) * 360 * self.days / self.tracks)[:, None]
        nearest = np.zeros(self.tracks)
        for window in (90.0, 0.5):  # degrees: find within 55 km, then refine to 300 m
            argument = np.clip(nearest[:, None] + window * np.linspace(-1, 1, 361), -90, 90)
            u, i = np.radians(argument), np.radians(self.inclination)
            latitude = (1 if self.ascending else -1) * np.arcsin(np.sin(i) * np.sin(u))
            longitude = node + np.arctan2(np.cos(i) * np.sin(u), np.cos(u)) - u * self.days / self.tracks
            chord = np.linalg.norm(_unit(longitude, latitude) - place, axis=-1)
            nearest = np.take_along_axis(argument, chord.argmin(axis=1)[:, None], axis=1)[:, 0]
        return 2 * EARTH_KM * np.arcsin(chord.min(axis=1) / 2), nearest

    def _view_zenith(self, km: float) -> float:
        """Degrees, from the distance to the track: tan(scan) = sin g / (1 + h/R - cos g), zenith = scan + g."""
        g = km / EARTH_KM
        return float(np.degrees(g + np.arctan2(np.sin(g), 1 + self.altitude / EARTH_KM - np.cos(g))))

    def _note(self, track: int, argument: float, when: float) -> str:
        """The pass's address in the mission's own words, and a warning where the UTC date may be off by one."""
        wrs = (self.days, self.tracks) == (16, 233) and not self.ascending
        label = f"path {1 + 16 * track % 233} row {60 + round(argument * 248 / 360)}" if wrs else ""
        label = label or (f"relative orbit {track + 1}" if self.tracks == 143 else "")
        near = min(when % 1, 1 - when % 1) < MIDNIGHT_DAYS
        return "; ".join(part for part in (label, self.note, "near 00:00 UTC, may be dated a day off" if near else "") if part)


@dataclass(frozen=True)
class Plan:
    """Several calendars as one (successive slots of a satellite, a constellation): the nearest pass of each day."""

    orbits: tuple[Revisit, ...]
    adrift: date | None = None
    """from this day on the satellite passes daily at angles that no repeat cycle predicts"""

    def __call__(self, lon: float, lat: float, first: date, last: date) -> list[Pass]:
        """The planned passes; view zenith NaN where it cannot be predicted."""
        best: dict[date, Pass] = {}
        for orbit in self.orbits:
            for one in orbit(lon, lat, first, last):
                if one.day not in best or one.view_zenith < best[one.day].view_zenith:
                    best[one.day] = one
        if self.adrift and last >= self.adrift:
            day = max(first, self.adrift)
            drifted = "orbit no longer repeats: the view angle is known from the file only"
            best |= {d: Pass(d, float("nan"), drifted) for d in _days(day, last, 1)}
        return [best[day] for day in sorted(best)]


@dataclass(frozen=True)
class Composite:
    """A gridded product published for every `step` days of the year, everywhere."""

    step: int
    first: date
    note: str = ""

    def __call__(self, lon: float, lat: float, first: date, last: date) -> list[Pass]:
        """The nominal dates; the view zenith of a composite is NaN."""
        start = max(first, self.first)
        days = [d for d in _days(start, last, 1) if (d.timetuple().tm_yday - 1) % self.step == 0]
        return [Pass(day, float("nan"), self.note) for day in days]


def never(lon: float, lat: float, first: date, last: date) -> list[Pass]:
    """No plan can be computed (aircraft, the space station): an empty calendar."""
    return []


def _days(first: date, last: date, step: int) -> list[date]:
    return [first + timedelta(n) for n in range(0, (last - first).days + 1, step)]


def _unit(longitude: Any, latitude: Any) -> NDArray[np.float64]:
    """(..., 3) unit vectors; radians."""
    z = np.sin(latitude)
    return np.stack([np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), z], axis=-1)


def _sun_is_up(lon: float, lat: float, when: float) -> bool:
    """Whether there is light to reflect: solar position to half a degree, one degree of slack."""
    declination = np.radians(-23.44 * np.cos(2 * np.pi * ((when - date(2000, 12, 21).toordinal()) % 365.2422) / 365.2422))
    hour = np.radians((when % 1) * 360 + lon - 180)
    height = np.sin(np.radians(lat)) * np.sin(declination) + np.cos(np.radians(lat)) * np.cos(declination) * np.cos(hour)
    return bool(height > np.sin(np.radians(-1.0)))


def _landsat(number: int, c: int, first: date, last: date | None, note: str = "") -> Orbit:
    node = 7 + c + (10.19 + 64.6 / 15) / 24  # path 1 is flown on ordinal days 7 + c modulo 16, at 10.19 h local time
    return Orbit(f"landsat-{number}", 16, 233, 98.2, -64.6, node % 16, 92.5, 705.0, first, last, note=note)


def _sentinel2(letter: str, slot: float, first: date, last: date | None, note: str = "") -> Orbit:
    node = date(2015, 1, 1).toordinal() + 2.9695 + slot
    return Orbit(f"sentinel-2{letter}", 10, 143, 98.62, 168.45, node % 10, 145.0, 786.0, first, last, note=note)


LANDSAT: dict[int, Revisit] = {
    4: _landsat(4, 2, date(1982, 8, 22), date(1993, 12, 14)),
    5: _landsat(5, 10, date(1984, 3, 16), date(2012, 5, 5)),
    7: Plan((
        _landsat(7, 2, date(1999, 7, 1), date(2003, 5, 30)),
        _landsat(7, 2, date(2003, 5, 31), date(2022, 4, 5), "scan-line corrector off: gaps of 22 %"),
    )),
    8: _landsat(8, 10, date(2013, 5, 1), None),
    9: _landsat(9, 2, date(2021, 11, 1), None),
}
"""By number.  The rule holds while a satellite keeps WRS-2: Landsat 8 from May 2013 (a scene of 19 April is a whole path off),
Landsat 9 from November 2021, Landsat 7 until April 2022."""

SENTINEL_2: dict[str, Revisit] = {
    "a": Plan((
        _sentinel2("a", 0.0, date(2015, 6, 27), date(2025, 1, 21)),
        _sentinel2("a", 2.0, date(2025, 3, 13), None, "extension campaign: only part of the passes is acquired"),
    )),
    "b": _sentinel2("b", 5.0, date(2017, 3, 15), None),
    "c": _sentinel2("c", 0.0, date(2025, 1, 21), None),
}
"""By letter.  Sentinel-2C took the slot of 2A in January 2025; 2A now flies two days behind it."""

_MODIS: dict[str, Any] = {"half_swath": 1165.0, "altitude": 705.0, "last": date(2021, 12, 31)}  # view zenith to 65.5 degrees
TERRA = Plan((Orbit("terra", 16, 233, 98.2, -64.6, 9.6170, first=date(2000, 2, 24), **_MODIS),), adrift=date(2022, 1, 1))
AQUA = Plan((Orbit("aqua", 16, 233, 98.2, -65.357, 7.7478, first=date(2002, 7, 4), ascending=True, **_MODIS),), date(2022, 1, 1))
