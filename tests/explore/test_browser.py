"""The report and the interactive views in a real browser: painted, complete without a network, without a complaint, alive.

Needs chromium and chromium-driver (apt). The pictures are left in the folder FUSION_SHOTS, or pytest's own.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import xarray as xr

import fusion
from fusion.cube.calendar import centre_of
from fusion.explore import interactive
from fusion.observe.scene import Scene
from fusion.service.report import write_report
from tests.explore.browser import CANVASES, MODELS, Browser, free_port, listening
from tests.explore.worlds import demo

matplotlib.use("Agg")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
SENSORS = ("modis-mcd43a4", "landsat-8")


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    return fusion.open_cube(demo(tmp_path_factory.mktemp("browser"), SENSORS, core=16))


@pytest.fixture(scope="module")
def scenes(cube: xr.Dataset) -> list[Scene]:
    return [scene for name in SENSORS for scene in cube.fusion.scenes(name)]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as window:
        yield window


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(os.environ.get("FUSION_SHOTS") or tmp_path_factory.mktemp("shots"))


@pytest.fixture(scope="module")
def place(cube: xr.Dataset) -> tuple[float, float]:
    lon, lat = cube.fusion.cube.grid.lonlat.centroid.coords[0]
    return float(lon), float(lat)


Make = Callable[[xr.Dataset, list[Scene], tuple[float, float]], Any]
RNG = np.random.default_rng(0)
ERRORS = {"honest": RNG.normal(size=4000), "sd too small by half": 2 * RNG.normal(size=4000)}


def looks(scenes: list[Scene]) -> dict[str, list[Any]]:
    return {name: [centre_of(s.when) for s in scenes if s.sensor == name] for name in SENSORS}


VIEWS: dict[str, tuple[Make, int, list[str]]] = {
    "maps": (lambda c, s, p: interactive.maps(c.fusion.index("NDVI"), "NDVI", "NDVI"), 2, ["easting (m)", "northing (m)"]),
    "series": (lambda c, s, p: interactive.point(c, *p, scenes=s), 1, ["date (UTC)", "surface reflectance"]),
    "spectrum": (
        lambda c, s, p: interactive.spectrum(c, *p, "2024-06-02", SENSORS, s), 1,
        ["wavelength (nm); grey: hidden by water vapour", "surface reflectance"],
    ),
    "calendar": (lambda c, s, p: interactive.calendar(looks(s)), 1, ["date (UTC)"]),
    "tiles": (lambda c, s, p: interactive.tile_status(c), 1, ["tile column", "tile row"]),
    "calibration": (
        lambda c, s, p: interactive.calibration(ERRORS), 2, ["share of truth inside", "density", "stated probability of the interval"],
    ),
    "shrinkage": (
        lambda c, s, p: interactive.shrinkage(*RNG.uniform(0.2, 1, (4, 12)), 0.6, "log noise"), 1, ["log noise"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(VIEWS))
def test_a_view_is_a_page_that_paints_itself_without_a_network(
    name: str, cube: xr.Dataset, scenes: list[Scene], place: tuple[float, float], browser: Browser, tmp_path: Path, shots: Path
) -> None:
    make, figures, labels = VIEWS[name]
    page = interactive.save(make(cube, scenes, place), tmp_path / f"{name}.html", name)
    browser.open(page.as_uri())
    browser.rendered(figures)
    seen = browser.picture(shots / f"{name}.png")
    assert (seen.min(-1) < 240).mean() > 0.005, "an empty page"
    said = browser.ask(MODELS + "return all.filter(m => m.axis_label).map(m => m.axis_label)")
    assert set(labels) <= set(said)
    assert all(label.strip() for label in said)
    asked = browser.ask("return performance.getEntriesByType('resource').map(r => r.name).filter(n => /^https?:/.test(n))")
    assert asked == [], "the page asks the network for something"
    assert browser.complaints() == []


def test_the_slider_of_a_saved_map_moves_the_map(cube: xr.Dataset, browser: Browser, tmp_path: Path, shots: Path) -> None:
    page = interactive.save(interactive.maps(cube.fusion.band("landsat-8", "nir08"), "nir08"), tmp_path / "maps.html")
    browser.open(page.as_uri())
    browser.rendered(2)
    before = browser.picture()
    browser.ask(MODELS + "const s = all.find(m => m.type.endsWith('Slider')); s.value = s.end; return s.end")
    browser.wait(MODELS + f"return all.some(m => (m.text || '').includes('{str(cube.time.values[-1])[:10]}'))")
    time.sleep(1)
    after = browser.picture(shots / "maps_last.png")
    assert (before != after).any(-1).mean() > 0.02, "the pictures are the same on the first and the last date"
    assert browser.complaints() == []


def test_a_click_on_the_map_brings_that_pixel(cube: xr.Dataset, scenes: list[Scene], browser: Browser, shots: Path) -> None:
    import panel

    port = free_port()
    server = panel.serve(
        lambda: interactive.browse(cube, scenes=scenes), port=port, show=False, threaded=True, websocket_origin=f"127.0.0.1:{port}",
    )  # fmt: skip
    try:
        listening(port)
        browser.open(f"http://127.0.0.1:{port}/")
        browser.rendered(4)
        titles = MODELS + "return all.filter(m => m.type === 'Title').map(m => m.text)"
        before = browser.ask(titles)
        box = browser.ask(
            CANVASES + "const b = canvases.filter(painted)[0].getBoundingClientRect(); return [b.x, b.y, b.width, b.height]"
        )
        browser.click(int(box[0] + 0.35 * box[2]), int(box[1] + 0.35 * box[3]))
        browser.wait(titles.replace("return all", f"return JSON.stringify({json.dumps(before)}) !== JSON.stringify(all") + ")")
        browser.rendered(4)
        browser.picture(shots / "browse.png")
        assert browser.ask(titles) != before
        assert [c for c in browser.complaints() if "favicon" not in c] == []
    finally:
        server.stop()


def test_the_report_is_whole(cube: xr.Dataset, browser: Browser, tmp_path: Path, shots: Path) -> None:
    page = write_report(cube.attrs["url"], tmp_path / "report.html")
    browser.open(page.as_uri())
    browser.wait("return document.readyState === 'complete'")
    sizes = browser.ask("return [...document.images].map(i => [i.complete, i.naturalWidth, i.alt])")
    assert len(sizes) == 4
    assert all(done and width > 300 and alt for done, width, alt in sizes)
    assert browser.ask("return document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"
    text = browser.ask("return document.body.innerText")
    for word in ("simulated", "MISFIT", "OK", "landsat-8", "chi-square", "fusion.open_cube"):
        assert word in text, word
    assert "nan" not in text.lower().split()
    assert browser.complaints() == []
    height = browser.ask("return document.body.scrollHeight")
    for part in range(0, int(height), 900):
        browser.ask(f"window.scrollTo(0, {part}); return 1")
        seen = browser.picture(shots / f"report_{part // 900}.png")
        assert seen.std() > 3
