"""Space-time fusion on real pairs: root mean square error and honesty of the product beside naive lines and published methods.

    python -m benchmarks.accuracy [--data ../shared/data] [--only cia_west salton_north boreas_west] [--engine gaussian]
        [--next | --cells 3]

One fine image is hidden; the product sees the other given ones and the coarse series. ONE setting serves all files;
hyperparameters never see the hidden image. Error: mean over cases (and bands) of the root mean square over the pixels where the
hidden image is clear. An interval is for the observed value: posterior, the fine sensor's offset and its noise together.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.pairs import Case, cases, forecasts, observations, read, sensors, small
from benchmarks.peers import naive
from benchmarks.peers.published import BOREAS, PEERS
from fusion.cube.cube import Cube
from fusion.cube.grid import Grid
from fusion.cube.spectrum import SpectralBasis
from fusion.infer import Posterior, fit
from fusion.observe.footprint import footprint
from fusion.observe.sensor import Sensor
from fusion.process import tails

Array = NDArray[np.float64]
FILES = ("cia_west", "salton_north", "boreas_west")
SETTING: dict[str, Any] = {"ranks": {"class": 24, "object": 24, "place": 24, "pixel": 24}, "samples": 16}
"""one setting for all: no truncation in time"""
LEVELS = (0.5, 0.9, 0.95)
DRAWS = 8
PLACES = 6
"""of each file, if it is to be cut"""


@dataclass(frozen=True)
class Score:
    """One prediction against the hidden image."""

    rmse: Array
    """(B,)"""
    cover: Array
    """(3,) share of clear pixels inside the central intervals of LEVELS, or NaN without an sd"""
    crps: float
    seconds: float


def score(mean: Array, truth: Array, sd: Array | None = None, seconds: float = float("nan"), tail: float = 0.0) -> Score:
    """rmse, coverage and continuous ranked probability score over clear pixels of errors with this sd and tail index.

    Source of the score: Gneiting & Raftery 2007, JASA 102, eq. 21. Without an sd it is the mean absolute error.
    """
    error = np.where(np.isfinite(truth), mean - truth, np.nan)
    rmse = np.sqrt(np.nanmean(error**2, axis=(1, 2)))
    if sd is None:
        return Score(rmse, np.full(len(LEVELS), np.nan), float(np.nanmean(np.abs(error))), seconds)
    z = error / sd
    clear = np.isfinite(z)
    cover = np.array([(np.abs(z[clear]) < tails.quantile(0.5 + level / 2, tail)).mean() for level in LEVELS])
    return Score(rmse, cover, float(tails.crps(error, sd, tail)[clear].mean()), seconds)


def predicted(posterior: Posterior, case: Case, cube: Cube) -> tuple[Array, Array]:
    """(mean, sd), each (B, Y, X), of what the fine sensor would observe on the target date: through its blur, with its noise and offset."""
    sensor = sensors(case.pair)[0]
    when = [np.datetime64(case.pair.fine_dates[case.target], "us") + np.timedelta64(12, "h")]
    mean, sd = (a[0].astype(np.float64) for a in posterior.predict(sensor, when))
    draws = np.stack([replace(posterior, mean=draw).predict(sensor, when)[0][0] for draw in posterior.draws])
    mean, sd = blurred(sensor, cube.grid, mean, sd, draws)
    facts = sensor.bands[0].noise
    names = list(posterior.hyper.sensors)
    noise, offset = (float(np.asarray(v)[names.index("fine")]) for v in (posterior.hyper.noise, posterior.hyper.offset))
    own = noise * (facts.a + facts.b * np.abs(mean))
    return mean, np.sqrt(sd**2 + own**2 + (offset * sensor.offset_sd) ** 2)


def blurred(sensor: Sensor, grid: Grid, mean: Array, sd: Array, draws: Array) -> tuple[Array, Array]:
    """Posterior mean and sd (B, Y, X) of the ground -> of what a sensor on the same pixels makes of it.

    draws: (S, B, Y, X); they say how much of a band's variance the blur leaves, one number for the image.
    """
    see = footprint(grid.geobox, sensor.psf, grid)

    def seen(planes: Array) -> Array:
        return np.asarray(see(np.asarray(planes, np.float32)), np.float64)

    off = draws - mean
    left = (seen(off) ** 2).mean((0, 2, 3)) / (off**2).mean((0, 2, 3))
    return seen(mean), np.sqrt(left[:, None, None] * seen(sd**2))


def ours(case: Case, engine: str, setting: dict[str, Any], basis: SpectralBasis | None = None) -> Score:
    """The product's own score on a case; learning of the coarse sensor is part of the fit and timed with it.  basis: as of `fused`."""
    mean, sd, tail, seconds = fused(case, engine, setting, basis)
    return score(mean, case.truth, sd, seconds, tail)


def fused(case: Case, engine: str, setting: dict[str, Any], basis: SpectralBasis | None = None) -> tuple[Array, Array, float, float]:
    """(mean, sd, tail index, seconds of the fit) of the hidden image of a case, as `predicted`.

    basis: of the latent field, instead of the bands themselves.
    """
    looks, cube = observations(case, basis)
    start = time.perf_counter()
    posterior = fit(looks, cube, engine=engine, draws=DRAWS, **setting)
    seconds = time.perf_counter() - start
    return *predicted(posterior, case, cube), posterior.tail, seconds


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--only", nargs="+", choices=FILES, default=FILES)
    parser.add_argument("--engine", default="gaussian")
    parser.add_argument("--next", action="store_true", help="instead of images between others, those after the last given one")
    parser.add_argument("--cells", type=int, help=f"instead of the whole files, squares of so many coarse cells at {PLACES} places of each")
    parser.add_argument("--naive", action="store_true", help="the naive lines alone")
    options = parser.parse_args()
    console = Console(width=140)
    scores: dict[str, dict[str, list[Score]]] = {}
    bands: dict[str, tuple[str, ...]] = {}
    for name in options.only:
        pair = read(options.data, name)
        given = forecasts(pair) if options.next else small(pair, options.cells, PLACES) if options.cells else cases(pair)
        for case in given:
            bands[case.protocol] = pair.bands
            table = scores.setdefault(case.protocol, {})
            for method, mean in naive.predictions(case).items():
                table.setdefault(method, []).append(score(mean, case.truth))
            if not options.naive:
                table.setdefault("ours", []).append(ours(case, options.engine, SETTING))
                last = table["ours"][-1]
                line = f"{case.protocol} {pair.fine_dates[case.target]}: {last.rmse.mean():.4f}, CRPS {last.crps:.4f}, in {last.seconds:.0f} s"
                console.print(line, style="dim")
    for protocol, table in scores.items():
        console.print(_table(protocol, bands[protocol], table))


def _table(protocol: str, bands: tuple[str, ...], table: dict[str, list[Score]]) -> Table:
    out = Table(title=f"{protocol}: rmse, mean over cases (other methods: measured once on the same files, quoted)")
    for column in ("method", "rmse", *bands, "cover 50", "cover 90", "cover 95", "CRPS", "s per case (median)"):
        out.add_column(column, justify="left" if column == "method" else "right")
    for method, found in table.items():
        rmse = np.mean([s.rmse for s in found], axis=0)
        cover = np.mean([s.cover for s in found], axis=0)
        out.add_row(
            method, f"{rmse.mean():.4f}", *(f"{v:.4f}" for v in rmse),
            *("" if np.isnan(v) else f"{100 * v:.0f} %" for v in cover), f"{np.mean([s.crps for s in found]):.4f}",
            "" if np.isnan(found[0].seconds) else f"{np.median([s.seconds for s in found]):.0f}",
        )
    blank = [""] * (5 + len(bands))
    if protocol == "boreas":
        for method, values in BOREAS.items():
            out.add_row(method, f"{np.mean(values):.4f}", *(f"{v:.4f}" for v in values), *blank[len(bands) :])
        return out
    published = ("cia", "loo", "gap5")
    for method, numbers in PEERS.items() if protocol in published else ():
        value = numbers[published.index(protocol)]
        if value is not None:
            seconds = f"{numbers[3]:.1f}" if protocol == "cia" and numbers[3] else ""
            out.add_row(method, f"{value:.4f}", *blank[:-1], seconds)
    return out


if __name__ == "__main__":
    main()
