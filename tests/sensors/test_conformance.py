"""Every installed sensor satisfies every law, and every law catches the sensor that breaks it."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pystac
import pytest

from fusion.cube.grid import Grid
from fusion.cube.spectrum import Response
from fusion.observe.observation import looks
from fusion.observe.psf import PSF
from fusion.observe.scene import Scene
from fusion.observe.sensor import Band, Noise, Pass, Sensor, sensor, sensors
from fusion.testing import Check, check_sensor, default_window, example_scene, laws

NAMES = (
    "airborne", "emit", "hls-l30", "hls-s30", "landsat-4", "landsat-5", "landsat-7", "landsat-8", "landsat-9",
    "modis-aqua-myd09a1", "modis-aqua-myd09ga", "modis-mcd43a4", "modis-terra-mod09a1", "modis-terra-mod09ga", "neon-aop",
    "sentinel-2a", "sentinel-2b", "sentinel-2c", "viirs-vnp09", "viirs-vnp43",
)  # fmt: skip


def test_all_built_in_sensors_are_installed() -> None:
    assert set(NAMES) <= set(sensors())


@pytest.mark.parametrize("name", NAMES)
def test_every_sensor_obeys_every_law(name: str) -> None:
    checks = check_sensor(name)
    assert len(checks) == 12
    assert not [c for c in checks if not c.passed]


LANDSAT_8: Any = sensor("landsat-8")


def failing(one: Sensor, **options: Any) -> list[Check]:
    return [c for c in check_sensor(one, **options) if not c.passed]


def band(**changes: Any) -> tuple[Band, ...]:
    """Landsat 8's bands with the first one changed."""
    first, *rest = LANDSAT_8.bands
    return replace(first, **changes), *rest


def micrometres() -> Any:
    """A response in micrometres, as a foreign class that does not look at its own units."""
    fake = SimpleNamespace(wavelengths=np.linspace(0.6, 0.7, 11), values=np.ones(11), centroid=0.65)
    fake.on = lambda nodes: np.full(nodes.size, 1 / nodes.size)
    return fake


def backwards(lon: float, lat: float, first: date, last: date) -> list[Pass]:
    return [Pass(last, 0.0), Pass(first, 0.0)]


def immortal(lon: float, lat: float, first: date, last: date) -> list[Pass]:
    return [Pass(first + timedelta(n), 0.0) for n in range((last - first).days + 1)]


NEGATIVE = Response(np.array([430.0, 440.0, 450.0]), np.array([-0.2, 1.0, 0.1]))


@pytest.mark.parametrize(
    ("changes", "law", "told"),
    [
        ({"name": "My_Camera"}, "name", "lower-case"),
        ({"title": " "}, "name", "title"),
        ({"bands": band(name="blue")}, "bands", "own name"),
        ({"bands": band(name="Coastal")}, "bands", "lower case"),
        ({"bands": band(assets=())}, "bands", "asset keys"),
        ({"bands": ()}, "bands", "channel_noise"),
        ({"bands": band(response=micrometres())}, "wavelengths", "micrometres"),
        ({"bands": band(response=Response.gaussian(11_000.0, 500.0))}, "wavelengths", "400-2500"),
        ({"bands": band(response=NEGATIVE)}, "wavelengths", "negative"),
        ({"opaque": ((1.325, 1.465),)}, "wavelengths", "in nm"),
        ({"opaque": ((1465.0, 1325.0),)}, "wavelengths", "(low, high)"),
        ({"bands": band(noise=Noise(0.0, 0.02))}, "noise", "sigma = a"),
        ({"bands": band(noise=Noise(50.0, 0.02))}, "noise", "reflectance"),
        ({"offset_sd": 0.0}, "noise", "common error"),
        ({"offset_relative": 0.9}, "noise", "share of the brightness"),
        ({"discrepancy_days": 0.0}, "noise", "positive"),
        ({"pixel": 0.0}, "pixel", "metres"),
        ({"psf": PSF("gaussian", 4e4)}, "pixel", "metres"),
        ({"psf": PSF("gaussian", 40.0, geolocation=-1.0)}, "pixel", "sigma"),
        ({"sources": ()}, "facts", "comes from"),
        ({"revisit": backwards}, "revisit", "sort"),
        ({"revisit": immortal}, "revisit", "lifetime"),
        ({"lifetime": (date(2020, 1, 1), date(2019, 1, 1))}, "revisit", "swap"),
        ({"native": lambda grid: LANDSAT_8.native(grid)[4:8, 4:8]}, "native", "cover"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
def test_each_law_catches_its_offender(changes: dict[str, Any], law: str, told: str) -> None:
    found = failing(replace(LANDSAT_8, **changes), only=law)
    assert any(told in c.todo + c.got for c in found)


def test_a_layer_that_does_not_see_a_constant_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def doubled(*pair: Any) -> tuple[Any, ...]:
        return tuple(replace(look, layer=lambda z, look=look: 2 * look.layer(z)) for look in looks(*pair))

    monkeypatch.setattr(laws, "looks", doubled)
    (check,) = failing(LANDSAT_8, only="constant cube")
    assert "off by" in check.got


def altered(how: str) -> Sensor:
    """Landsat 8 with a read that spoils the scene in one way."""
    good = LANDSAT_8

    def read(item: pystac.Item, window: Grid) -> Scene:
        scene = good.read(item, window)
        rho = scene.reflectance
        if how == "upside down":
            return replace(scene, reflectance=rho[:, ::-1].copy(), sigma=scene.sigma[:, ::-1].copy())
        if how == "bands swapped":
            order = [1, 0, *range(2, len(rho))]
            return replace(scene, reflectance=rho[order], sigma=scene.sigma[order])
        if how == "fill as value":
            return replace(scene, reflectance=np.nan_to_num(rho), sigma=np.full_like(rho, 0.01))
        if how == "half a pixel":
            return replace(scene, geobox=scene.geobox.translate_pix(0.5, 0.5))
        if how == "not said to be simulated":
            return replace(scene, simulated=False)
        if how == "scaled":
            return replace(scene, reflectance=rho * np.float32(1.1))
        if how == "nothing seen":
            return replace(scene, reflectance=np.full_like(rho, np.nan))
        raise OSError("disk on fire")

    return replace(good, read=read)


@pytest.mark.parametrize(
    ("how", "told"),
    [("upside down", "came back as values"), ("bands swapped", "off by"), ("fill as value", "came back as values"),
     ("half a pixel", "moved"), ("not said to be simulated", "simulated"), ("scaled", "off by"), ("nothing seen", "only 0%"),
     ("raises", "disk on fire")],
)  # fmt: skip
def test_a_read_that_spoils_the_scene_is_caught(how: str, told: str) -> None:
    (check,) = failing(altered(how), only="written")
    assert check.law == "what is written is read back"
    assert told in check.got
    assert check.todo


def test_a_real_item_is_read_as_well(tmp_path: Path) -> None:
    one = sensor("modis-mcd43a4")
    grid = default_window(one)
    assert one.write is not None
    item = one.write(example_scene(one, grid), tmp_path)
    (last,) = check_sensor(one, item=item, only=item.id)
    assert last.passed
    assert "7 bands" in last.got
    item.assets.pop("Nadir_Reflectance_Band3")
    (check,) = failing(one, item=item, only=item.id)
    assert "asked for asset Nadir_Reflectance_Band3" in check.got
