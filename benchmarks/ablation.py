"""Each part of the model off in turn, on real pairs: what it earns in error and in the honesty of the intervals.

    python -m benchmarks.ablation [--data ../shared/data] [--window 96] [--only full "no classes"] [--case cia:0 --case loo:8]

Levels and errors are switched off through theta (a standard deviation of almost nothing), so one compiled program serves most rows; parts of
the calibration of coarse sensors by leaving their step out. Everything else is the setting of `benchmarks.accuracy`. The fine and coarse
images are cut to a window in the middle of the file, so errors differ a little from those of the whole file.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax.numpy as jnp
import numpy as np

from benchmarks.accuracy import DRAWS, SETTING, Score, predicted, score
from benchmarks.pairs import Case, cases, cut, observations, read
from benchmarks.peers import naive
from fusion.infer import empirical
from fusion.infer.engine import settle, with_moments
from fusion.infer.mixture import robust_weights
from fusion.infer.problem import Problem, pose
from fusion.infer.tails import tail_of
from fusion.infer.theta import evidence
from fusion.process.hierarchy import LEVELS, Hyper
from fusion.process.moment import SUDDEN

NOTHING = 1e-3
"""factor that switches a standard deviation off"""


@dataclass(frozen=True)
class Row:
    """One variant of the model."""

    name: str
    theta: Callable[[Hyper], Hyper] = lambda hyper: hyper
    calibration: str = "all"
    """all, none (facts as stated), as stated PSF, without pseudo-bands, or all cells alike"""
    robust: bool = False
    coarse: bool = True
    lively: bool = True
    """does ground change unequally"""
    sudden: float = SUDDEN
    """share of a change between looks that comes at one moment"""
    tailed: bool = True
    """is the law of errors learned, or normal"""


def _without(level: str) -> Callable[[Hyper], Hyper]:
    return lambda hyper: hyper.replace(sd=hyper.sd.at[LEVELS.index(level)].multiply(NOTHING))


ROWS = (
    Row("full"),
    Row("no classes", _without("class")),
    Row("no objects", _without("object")),
    Row("no places", _without("place")),
    Row("no single pixels", _without("pixel")),
    Row("all ground equally lively", lively=False),
    Row("no change at unseen moments", sudden=0.0),
    Row("normal errors", tailed=False),
    Row("no learned temporal covariance", lambda hyper: hyper.replace(learned=NOTHING**2)),
    Row("no lasting discrepancy", lambda hyper: hyper.replace(discrepancy=NOTHING)),
    Row("no offsets", lambda hyper: hyper.replace(offset=NOTHING)),
    Row("PSF and shift as stated", calibration="psf"),
    Row("no pseudo-bands", calibration="bands"),
    Row("all cells equally wrong", calibration="cells"),
    Row("noise as stated", lambda hyper: hyper.replace(noise=1.0)),
    Row("nothing learned of any sensor", calibration="none"),
    Row("with robust weights", robust=True),
    Row("no coarse sensor at all", coarse=False),
)


@contextmanager
def calibration(kind: str) -> Iterator[None]:
    """Calibration with one of its steps left out."""
    if kind == "psf":
        with patch.object(empirical, "registered", lambda pairs, cube, cell: (1.0, (0.0, 0.0))):
            yield
    elif kind == "bands":
        with patch.object(empirical, "rotation", lambda residual, use, scale, least: np.eye(residual.shape[1])):
            yield
    elif kind == "cells":
        with patch.object(empirical, "share_of_variety", lambda residual, use, variety: 0.0):
            yield
    else:
        yield


def middle(case: Case, window: int) -> Case:
    """The case on the middle of its images, at most `window` fine pixels wide and high, on whole coarse cells."""
    sizes = case.pair.coarse.shape[2:]
    down, across = (min(size, window // case.pair.ratio) for size in sizes)
    return cut(case, (down, across), ((sizes[0] - down) // 2, (sizes[1] - across) // 2))


def posed(case: Case, row: Row) -> tuple[Problem, Any]:
    """(problem, cube) of a case under one variant."""
    looks, cube = observations(case)
    if not row.coarse:
        looks = tuple(o for o in looks if o.sensor == "fine")
    with calibration(row.calibration):
        problem = pose(looks, cube, ranks=SETTING["ranks"], calibrate=row.calibration != "none", sudden=row.sudden)
    if not row.lively:
        still = replace(problem.hierarchy, liveliness=jnp.ones_like(problem.hierarchy.liveliness))
        problem = replace(problem, hierarchy=still)
    return problem, cube


def run(case: Case, row: Row) -> Score:
    """The score of one variant at the prior medians, the engine `gaussian`."""
    start = time.perf_counter()
    problem, cube = posed(case, row)
    theta = row.theta(problem.hyper)
    weights = robust_weights(problem, theta)[0] if row.robust else None
    posterior = with_moments(settle(problem, theta, cube, draws=DRAWS, weights=weights, samples=SETTING["samples"]), problem, 0)
    tail = tail_of(evidence(problem.views, theta, None, 0), theta) if row.tailed else 0.0
    mean, sd = predicted(posterior, case, cube)
    return score(mean, case.truth, sd, time.perf_counter() - start, tail)


def chosen(data: Path, names: list[str], window: int) -> Iterator[tuple[str, Case]]:
    """Cases by protocol and number: cia:0, loo:8, gap5:3, boreas:0."""
    files = {"cia": "cia_west", "loo": "salton_north", "gap5": "salton_north", "boreas": "boreas_west"}
    for name in names:
        protocol, number = name.split(":")
        found = [c for c in cases(read(data, files[protocol])) if c.protocol == protocol]
        yield name, middle(found[int(number)], window)


def main() -> None:
    """Run, and print one markdown table per protocol: means over its cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--window", type=int, default=100, help="fine pixels")
    parser.add_argument("--case", nargs="+", default=["cia:0", "cia:1", "cia:2", "cia:3", "loo:3", "loo:8", "loo:13"])
    parser.add_argument("--only", nargs="+", default=[])
    options = parser.parse_args()
    groups: dict[str, list[Case]] = {}
    for name, case in chosen(options.data, options.case, options.window):
        groups.setdefault(name.split(":")[0], []).append(case)
    for protocol, members in groups.items():
        dates = ", ".join(str(case.pair.fine_dates[case.target]) for case in members)
        print(f"\n{protocol}: {dates}; {' x '.join(map(str, members[0].truth.shape[1:]))} pixels\n")
        print("| variant | rmse | each case | cover 50 / 90 / 95 | CRPS | s |\n|---|---|---|---|---|---|")
        for method in naive.predictions(members[0]):
            _print(method, [score(naive.predictions(case)[method], case.truth) for case in members])
        for row in ROWS:
            if not options.only or row.name in options.only:
                _print(row.name, [run(case, row) for case in members])


def _print(name: str, found: list[Score]) -> None:
    each = [float(f.rmse.mean()) for f in found]
    cover = " / ".join(f"{100 * v:.0f}" for v in np.mean([f.cover for f in found], axis=0))
    crps, seconds = np.mean([f.crps for f in found]), np.median([f.seconds for f in found])
    rest = "" if np.isnan(seconds) else f"{seconds:.0f}"
    listed = " ".join(f"{v:.4f}" for v in each)
    print(f"| {name} | {np.mean(each):.4f} | {listed} | {'' if np.isnan(seconds) else cover} | {crps:.4f} | {rest} |", flush=True)


if __name__ == "__main__":
    main()
