"""`fusion sensors`, `fusion revisit`, `fusion check-sensor` as a user types them."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from fusion.cube.spectrum import Response
from fusion.observe.sensor import sensor, sensors
from fusion.service.cli_sensors import register, sparkline, width_of
from fusion.testing import default_window, example_scene

APP = typer.Typer()
register(APP)
PLACE = ("--lon", "9", "--lat", "46")
PASSES = ("revisit", "--sensor", "landsat-8")


@pytest.fixture
def fusion(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """The program: fusion("sensors", "landsat-8") -> result."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: str) -> Result:
        return CliRunner().invoke(APP, list(words))

    return call


def test_all_sensors_are_listed(fusion) -> None:  # type: ignore[no-untyped-def]
    shown = fusion("sensors")
    assert shown.exit_code == 0
    assert f"{len(sensors())} installed sensors" in shown.stdout
    for name, one in sensors().items():
        (line,) = [line for line in shown.stdout.splitlines() if f" {name} " in line]
        assert f"{one.pixel:.4g} m" in line
        assert str(one.lifetime[0].year) in line


@pytest.mark.parametrize("name", ["landsat-8", "modis-terra-mod09ga", "airborne"])
def test_one_sensor_is_described_with_its_facts(fusion, name: str) -> None:  # type: ignore[no-untyped-def]
    one, shown = sensor(name), fusion("sensors", name)
    assert shown.exit_code == 0
    for band in one.bands:
        assert band.name in shown.stdout
        assert f"{band.response.centroid:.1f}" in shown.stdout
    assert f"{one.psf.fwhm:g} m" in shown.stdout
    for source in one.sources:
        assert source in shown.stdout
    assert "passes in" in shown.stdout or "not predictable" in shown.stdout


def test_responses_are_drawn(fusion, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for name in ("landsat-8", "neon-aop"):
        path = tmp_path / f"{name}.png"
        assert fusion("sensors", name, "--plot", str(path)).exit_code == 0
        picture = matplotlib.image.imread(path)
        assert picture.shape[1] > 1000
        assert len({tuple(pixel) for pixel in picture[::5, ::5].reshape(-1, picture.shape[2])}) > 20
    assert fusion("sensors", "landsat-8", "--plot", str(tmp_path / "a.nonsense")).exit_code == 2
    assert fusion("sensors", "--plot", str(tmp_path / "a.png")).exit_code == 2


def test_a_calendar_is_the_sensors_revisit(fusion) -> None:  # type: ignore[no-untyped-def]
    where = ("--lon", "-105", "--lat", "40", "--from", "2020-06-01", "--to", "2020-06-30")
    both = ("--sensor", "landsat-8", "--sensor", "modis-terra-mod09ga")
    shown = fusion("revisit", *both, *where)
    assert shown.exit_code == 0
    told = json.loads(fusion("revisit", *both, *where, "--json").stdout)
    june = date(2020, 6, 1), date(2020, 6, 30)
    expected = {(p.day.isoformat(), name) for name in both[1::2] for p in sensor(name).revisit(-105.0, 40.0, *june)}
    assert {(p["day"], p["sensor"]) for p in told} == expected
    assert [p["day"] for p in told] == sorted(p["day"] for p in told)
    assert ("2020-06-09", "landsat-8") in expected  # path 33 row 32, 2020-06-09
    assert all(p["day"] in shown.stdout for p in told)


def test_unpredictable_sensors_say_so(fusion) -> None:  # type: ignore[no-untyped-def]
    shown = fusion("revisit", "--sensor", "emit", *PLACE, "--from", "2024-06-01", "--to", "2024-06-09")
    assert shown.exit_code == 0
    assert "not predictable" in shown.stdout
    later = fusion("revisit", "--sensor", "modis-terra-mod09ga", *PLACE, "--from", "2024-06-01", "--to", "2024-06-02")
    assert "known from the file only" in later.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("sensors", "landsat8"), "did you mean landsat-8"),
        (("sensors", "zzz"), "fusion sensors"),
        (("check-sensor", "modis"), "did you mean modis-aqua-myd09a1 or"),
        ((*PASSES, *PLACE, "--from", "June", "--to", "2024-06-09"), "write it as 2024-06-01"),
        ((*PASSES, *PLACE, "--from", "2024-06-09", "--to", "2024-06-01"), "swap"),
        ((*PASSES, "--lon", "999", "--lat", "46", "--from", "2024-06-01", "--to", "2024-06-09"), "lon -180..180"),
        ((*PASSES, *PLACE, "--from", "1990-06-01", "--to", "2024-06-09"), "ten years"),
        (("check-sensor", "landsat-8", "--item", "none.json", "--area", "9", "46", "9.1", "46.1"), "not a STAC item"),
    ],
    ids=lambda v: " ".join(v[:2]) if isinstance(v, tuple) else v,
)
def test_mistakes_end_in_one_sentence_and_exit_code_2(fusion, words: tuple[str, ...], told: str) -> None:  # type: ignore[no-untyped-def]
    done = fusion(*words)
    assert done.exit_code == 2
    assert told in " ".join(done.stderr.split())
    assert "Traceback" not in done.output


def test_check_sensor_reads_a_real_scene_and_its_exit_code_tells(fusion, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    one = sensor("landsat-8")
    grid = default_window(one)
    assert one.write is not None
    item = one.write(example_scene(one, grid), tmp_path)
    item.save_object(dest_href=str(tmp_path / "item.json"))
    box = grid.lonlat.boundingbox
    area = ("--area", *(f"{v:.6f}" for v in (box.left, box.bottom, box.right, box.top)))
    done = fusion("check-sensor", "landsat-8", "--item", str(tmp_path / "item.json"), *area)
    assert done.exit_code == 0, done.output
    assert "13 of 13 laws hold" in done.stdout
    Path(item.assets["red"].href).unlink()
    done = fusion("check-sensor", "landsat-8", "--item", str(tmp_path / "item.json"), *area)
    assert done.exit_code == 1
    assert "12 of 13 laws hold" in done.stdout
    assert fusion("check-sensor", "landsat-8", "--item", str(tmp_path / "item.json")).exit_code == 2


def test_help_names_every_option(fusion) -> None:  # type: ignore[no-untyped-def]
    every = {"sensors": ["--plot"], "revisit": ["--sensor", "--lon", "--from", "--json"], "check-sensor": ["--item", "--area"]}
    for command, options in every.items():
        shown = fusion(command, "--help")
        assert shown.exit_code == 0
        assert all(option in shown.stdout for option in options)


def test_the_width_is_that_of_the_half_maximum() -> None:
    assert width_of(Response.gaussian(800.0, 42.0)) == pytest.approx(42.0, rel=0.01)
    box = Response(np.array([600.0, 601.0, 650.0, 651.0]), np.array([0.0, 2.0, 2.0, 0.0]))
    assert width_of(box) == pytest.approx(50.0)


def test_a_sparkline_has_the_shape_of_its_response() -> None:
    triangle = Response(np.array([500.0, 600.0, 700.0]), np.array([0.0, 1.0, 0.0]))
    line = sparkline(triangle, 500.0, 700.0, columns=8)
    assert line == "▂▄▆██▆▄▂"
    assert sparkline(triangle, 700.0, 900.0, columns=3) == "   "
