"""Planned passes against genuine acquisitions, and against the agencies' own rules written out here."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from pyhdf.SD import SD
from pyproj import Transformer

from fusion.errors import JobError
from fusion.observe.sensor import Pass
from sensors import revisit

FACTS = [  # (plan, lon, lat, day) of genuine products: Landsat scene centres, Sentinel-2 tile footprints
    (revisit.LANDSAT[4], -53.3, 48.9, date(1983, 1, 10)),  # LT04 002026
    (revisit.LANDSAT[5], -80.7, -10.1, date(1986, 4, 24)),  # LT05 010067
    (revisit.LANDSAT[5], -179.06, 61.5, date(2009, 6, 21)),  # LT05 087017, across the antimeridian
    (revisit.LANDSAT[7], -84.8, 43.2, date(2010, 1, 9)),  # LE07 021030
    (revisit.LANDSAT[7], -121.8, 38.9, date(2021, 3, 29)),  # LE07 044033
    (revisit.LANDSAT[8], -39.0, 72.2, date(2015, 7, 10)),  # LC08 005009
    (revisit.LANDSAT[8], -75.1, 1.4, date(2019, 12, 1)),  # LC08 008059
    (revisit.LANDSAT[8], -123.4, 47.4, date(2020, 12, 4)),  # LC08 047027
    (revisit.LANDSAT[8], 154.5, -28.9, date(2020, 5, 25)),  # LC08 088080, 23:35 UTC
    (revisit.LANDSAT[8], 104.3, -80.8, date(2020, 1, 1)),  # LC08 081119
    (revisit.LANDSAT[9], -80.0, -7.2, date(2022, 1, 29)),  # LC09 010065
    (revisit.LANDSAT[9], 159.9, -31.7, date(2025, 7, 22)),  # LC09 084082
    (revisit.SENTINEL_2["a"], 27.5, -7.7, date(2020, 6, 1)),  # R078 T35MNM
    (revisit.SENTINEL_2["b"], 27.5, -7.7, date(2020, 6, 6)),  # R078 T35MNM
    (revisit.SENTINEL_2["b"], -147.8, 60.8, date(2019, 6, 29)),  # R043 T06VVN
    (revisit.SENTINEL_2["a"], 167.5, 54.5, date(2019, 1, 1)),  # R116 T58UFF, 00:00 UTC
    (revisit.SENTINEL_2["a"], 15.6, 45.9, date(2025, 12, 27)),  # R122 T33TVF, the slot since March 2025
    (revisit.SENTINEL_2["a"], 121.4, 23.7, date(2025, 6, 15)),  # R046 T51QUG
    (revisit.SENTINEL_2["c"], 121.4, 23.7, date(2025, 9, 11)),  # R046 T51QUG
    (revisit.SENTINEL_2["c"], 54.6, 24.9, date(2025, 2, 1)),  # R020 T40RDN
]


def days(passes: list[Pass]) -> list[date]:
    return [one.day for one in passes]


@pytest.mark.parametrize(("plan", "lon", "lat", "day"), FACTS)
def test_a_genuine_acquisition_is_planned(plan: Any, lon: float, lat: float, day: date) -> None:
    found = plan(lon, lat, day - timedelta(1), day + timedelta(1))
    assert day in days(found)


def test_days_beside_an_acquisition_are_not_planned() -> None:
    """At low latitude neighbouring paths lie days apart: the rule must not be a rule that always says yes."""
    for plan, lon, lat, day in FACTS:
        if abs(lat) < 50:
            found = days(plan(lon, lat, day - timedelta(1), day + timedelta(1)))
            assert len(found) <= 2, (lon, lat, day, found)
    month = revisit.LANDSAT[8](-75.1, 1.4, date(2019, 12, 1), date(2019, 12, 31))
    assert days(month) == [date(2019, 12, 1), date(2019, 12, 17)]
    assert month[0].note == "path 8 row 59"


def items(folder: Path) -> Iterator[dict[str, Any]]:
    def walk(node: Any) -> Iterator[dict[str, Any]]:
        if isinstance(node, dict):
            if node.get("type") == "Feature" and node.get("bbox"):
                yield node
            for value in node.values():
                yield from walk(value)
        elif isinstance(node, list):
            for value in node:
                yield from walk(value)

    for path in sorted([*folder.rglob("*.json"), *folder.rglob("*.geojson")]):
        yield from walk(json.loads(path.read_text()))


def test_every_genuine_item_is_planned(shared: Path) -> None:
    """All Landsat 4-9 and Sentinel-2 items of the genuine catalogs: date and place from the item, path or orbit from its name."""
    seen: dict[str, int] = {}
    unique = {item["id"]: item for item in items(shared / "data")}
    for item in unique.values():
        west, south, east, north = item["bbox"]
        if east < west or east - west > 180:
            continue  # a scene across the antimeridian: its box says nothing about its centre
        landsat = re.match(r"L[CET]0([45789])_L2S[PR]_(\d{3})(\d{3})_(\d{8})", item["id"])
        product = item["id"] if "MSIL2A" in item["id"] else item["properties"].get("s2:product_uri") or ""
        sentinel = re.match(r"S2([ABC])_MSIL2A_(\d{8})T\d{6}_.*?R(\d{3})_", product)
        if landsat:
            stamp, plan = landsat[4], revisit.LANDSAT[int(landsat[1])]
            expected = f"path {int(landsat[2])} "
        elif sentinel:
            stamp, plan = sentinel[2], revisit.SENTINEL_2[sentinel[1].lower()]
            expected = f"relative orbit {int(sentinel[3])}"
        else:
            continue
        day = date(int(stamp[:4]), int(stamp[4:6]), int(stamp[6:8]))
        if day == date(2013, 4, 19):
            continue  # Landsat 8 was still on its way to WRS-2: a whole path off
        places = [((west + east) / 2, (south + north) / 2), (west, south), (west, north), (east, south), (east, north)]
        found = (p.note for place in places for p in plan(*place, day, day))  # a corner where the swath's edge cuts the tile
        if abs(south) > 75:
            expected = ""  # several orbits a day meet here, and a plan names the nearest
        assert any(note.startswith(expected) for note in found), (item["id"], item["bbox"])
        seen["landsat" if landsat else "sentinel"] = seen.get("landsat" if landsat else "sentinel", 0) + 1
    assert seen["landsat"] >= 35
    assert seen["sentinel"] >= 40


@settings(max_examples=40, deadline=None)
@given(
    lon=st.floats(-180, 180), lat=st.floats(-60, 60), number=st.sampled_from([4, 5, 7, 8, 9]), offset=st.integers(0, 400),
)  # fmt: skip
def test_landsat_obeys_the_published_day_rule(lon: float, lat: float, number: int, offset: int) -> None:
    """(ordinal - 7 path - c) mod 16 = 0 with c = 10 (Landsat 5, 8) or 2 (4, 7, 9), one more for the paths behind UTC midnight."""
    starts = {4: date(1985, 1, 1), 5: date(1990, 1, 1), 7: date(2005, 1, 1), 8: date(2015, 1, 1), 9: date(2023, 1, 1)}
    first = starts[number] + timedelta(offset)
    found = revisit.LANDSAT[number](lon, lat, first, first + timedelta(31))
    assert len(found) >= 2  # a path every 16 days at least
    c = 10 if number in (5, 8) else 2
    for one in found:
        match = re.match(r"path (\d+) row (\d+)", one.note)
        assert match is not None
        path = int(match[1])
        assert 1 <= path <= 233
        if 89 <= path <= 98:
            assert (one.day.toordinal() - 7 * path - c) % 16 in (0, 1)
        else:
            assert (one.day.toordinal() - 7 * path - c - (path >= 95)) % 16 == 0
        assert one.view_zenith <= 8.5  # half a swath of 92.5 km from 705 km


def test_landsat_centres_are_where_the_catalog_says() -> None:
    """Nearest path and row over published scene centres (centres of genuine items' boxes, kilometres off at most half a row)."""
    for lon, lat, label in ((-123.4, 47.4, "path 47 row 27"), (-121.6, 37.5, "path 44 row 34"), (-80.0, -7.2, "path 10 row 65")):
        notes = {one.note for one in revisit.LANDSAT[8](lon, lat, date(2020, 1, 1), date(2020, 1, 16))}
        assert label in notes


def test_a_full_cycle_repeats() -> None:
    for plan, period in ((revisit.LANDSAT[8], 16), (revisit.SENTINEL_2["b"], 10), (revisit.TERRA, 16), (revisit.AQUA, 16)):
        one = plan(10.0, 45.0, date(2019, 5, 1), date(2019, 5, period))
        two = plan(10.0, 45.0, date(2019, 5, 1) + timedelta(period), date(2019, 5, period) + timedelta(period))
        assert one
        assert [(p.day + timedelta(period), p.view_zenith) for p in one] == [(p.day, p.view_zenith) for p in two]


def test_terra_view_zenith_matches_genuine_angles(shared: Path, tmp_path: Path) -> None:
    """Three days of MOD09GA over Pamplona: the planned view zenith is within two degrees of the files' SensorZenith layers."""
    for doy, day in (("222", date(2021, 8, 10)), ("223", date(2021, 8, 11)), ("224", date(2021, 8, 12))):
        folder = tmp_path / doy
        with zipfile.ZipFile(shared / f"data/modis_native/MOD09GA_Pamplona_2021{doy}.zip") as archive:
            archive.extractall(folder)
        with rasterio.open(next(folder.rglob("*SensorZenith_1.tif"))) as file:
            measured = float(np.median(file.read(1))) * 0.01
            x, y = file.xy(file.height // 2, file.width // 2)
        lon, lat = np.degrees(x / (6371007.181 * np.cos(y / 6371007.181))), np.degrees(y / 6371007.181)
        (planned,) = revisit.TERRA(lon, lat, day, day)
        assert abs(planned.view_zenith - measured) < 2.0, (day, planned, measured)


def test_terra_view_zenith_matches_the_chosen_days_of_a_composite(shared: Path, tmp_path: Path) -> None:
    """MOD09A1 keeps one day per pixel with its view zenith: planned and stored angles agree for every day that occurs."""
    with zipfile.ZipFile(shared / "data/modis_native/MOD09A1.A2017193.h18v04.006.2017202035302.hdf.zip") as archive:
        archive.extractall(tmp_path)
    file = SD(str(next(tmp_path.rglob("*.hdf"))))
    zenith, doy = (file.select(name).get() for name in ("sur_refl_vzen", "sur_refl_day_of_year"))
    file.end()
    lon, lat = Transformer.from_crs("+proj=sinu +R=6371007.181", "EPSG:4326", always_xy=True).transform(
        753346 + zenith.shape[1] / 2 * 463.3127, 5132115 - zenith.shape[0] / 2 * 463.3127
    )
    checked = 0
    for day in np.unique(doy[doy > 0]):
        here = (doy == day) & (zenith > 0)
        if here.sum() < 30:
            continue
        when = date(2017, 1, 1) + timedelta(int(day) - 1)
        (planned,) = revisit.TERRA(lon, lat, when, when)
        assert abs(planned.view_zenith - 0.01 * float(np.median(zenith[here]))) < 2.0, (when, planned)
        checked += 1
    assert checked >= 2


def test_terra_stood_above_its_narrow_camera() -> None:
    """ASTER, on Terra, sees 60 km near nadir: granules of 2006-12-27 lie on that day's track."""
    for lon, lat in ((136.6, 22.5), (135.98, 19.8), (99.0, -72.3)):
        (one,) = revisit.TERRA(lon, lat, date(2006, 12, 27), date(2006, 12, 27))
        assert one.view_zenith < 10


def test_modis_sees_mid_latitudes_daily_and_leaves_gaps_at_the_equator() -> None:
    assert len(revisit.TERRA(-105.0, 40.0, date(2015, 6, 1), date(2015, 6, 30))) == 30
    equator = revisit.TERRA(-60.0, 0.0, date(2015, 6, 1), date(2015, 6, 30))
    assert 22 <= len(equator) < 30
    assert max(one.view_zenith for one in equator) <= 65.6


def test_angles_end_where_the_orbit_no_longer_repeats() -> None:
    for plan in (revisit.TERRA, revisit.AQUA):
        found = plan(10.0, 45.0, date(2021, 12, 30), date(2022, 1, 2))
        assert [np.isnan(one.view_zenith) for one in found] == [False, False, True, True]
        assert "no longer repeats" in found[-1].note


@pytest.mark.parametrize(
    ("plan", "first", "last"),
    [
        (revisit.LANDSAT[8], date(2013, 3, 1), date(2013, 4, 30)),
        (revisit.LANDSAT[9], date(2021, 9, 1), date(2021, 10, 31)),
        (revisit.LANDSAT[7], date(2022, 4, 6), date(2023, 4, 6)),
        (revisit.LANDSAT[5], date(2012, 6, 1), date(2013, 6, 1)),
        (revisit.SENTINEL_2["b"], date(2016, 1, 1), date(2017, 3, 1)),
        (revisit.SENTINEL_2["a"], date(2025, 1, 25), date(2025, 3, 1)),
        (revisit.never, date(2000, 1, 1), date(2026, 1, 1)),
    ],
)
def test_nothing_is_planned_outside_the_time_of_the_rule(plan: Any, first: date, last: date) -> None:
    assert plan(10.0, 45.0, first, last) == []


def test_a_polar_night_has_no_passes() -> None:
    assert revisit.LANDSAT[8](20.0, 75.0, date(2019, 12, 10), date(2019, 12, 31)) == []
    assert revisit.LANDSAT[8](20.0, 75.0, date(2019, 6, 10), date(2019, 6, 30))


def test_landsat_7_says_that_lines_are_missing() -> None:
    before = revisit.LANDSAT[7](-84.8, 43.2, date(2003, 4, 1), date(2003, 5, 30))
    after = revisit.LANDSAT[7](-84.8, 43.2, date(2003, 6, 1), date(2003, 7, 1))
    assert before
    assert after
    assert not any("gaps" in one.note for one in before)
    assert all("gaps of 22 %" in one.note for one in after)


def test_dates_beside_utc_midnight_are_doubted() -> None:
    """Path 93 crosses the equator within minutes of 00:00 UTC; path 44 at 18:50."""
    near = revisit.LANDSAT[8](152.2, -10.0, date(2020, 1, 1), date(2020, 1, 31))
    assert near
    assert all("may be dated a day off" in one.note for one in near)
    assert not any("day off" in one.note for one in revisit.LANDSAT[8](-121.6, 37.5, date(2020, 1, 1), date(2020, 1, 31)))


def test_a_constellation_merges_its_satellites() -> None:
    both = revisit.Plan((revisit.LANDSAT[8], revisit.LANDSAT[9]))
    period = (-75.1, 1.4, date(2023, 1, 1), date(2023, 3, 1))
    assert days(both(*period)) == sorted({*days(revisit.LANDSAT[8](*period)), *days(revisit.LANDSAT[9](*period))})


def test_a_composite_is_dated_by_the_day_of_the_year() -> None:
    plan = revisit.Composite(8, date(2000, 2, 24))
    found = days(plan(0.0, 0.0, date(2019, 12, 20), date(2020, 1, 10)))
    assert found == [date(2019, 12, 27), date(2020, 1, 1), date(2020, 1, 9)]


@pytest.mark.parametrize(("lon", "lat"), [(40.0, 400.0), (-200.0, 10.0), (0.0, 91.0)])
def test_a_place_that_is_none_is_refused(lon: float, lat: float) -> None:
    with pytest.raises(JobError, match="degrees"):
        revisit.LANDSAT[8](lon, lat, date(2020, 1, 1), date(2020, 2, 1))


def test_a_reversed_period_is_refused() -> None:
    with pytest.raises(JobError, match="swap"):
        revisit.SENTINEL_2["b"](0.0, 0.0, date(2020, 2, 1), date(2020, 1, 1))


def test_plans_travel_to_workers() -> None:
    for plan in (*revisit.LANDSAT.values(), *revisit.SENTINEL_2.values(), revisit.TERRA, revisit.AQUA, revisit.never):
        again = pickle.loads(pickle.dumps(plan))  # noqa: S301
        assert again(1.0, 2.0, date(2020, 1, 1), date(2020, 1, 20)) == plan(1.0, 2.0, date(2020, 1, 1), date(2020, 1, 20))
