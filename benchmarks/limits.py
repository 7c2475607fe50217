"""What is left of the error on real pairs, and what anybody could still win: tables beside `benchmarks.accuracy`.

    python -m benchmarks.limits [--data ../shared/data] [--only salton_north cia_west]

Three questions of the cases with a fine image before and after the hidden one (protocols loo and cia):
on which scale the error is (whole image, coarse cells, inside cells: a coarse sensor tells at most of the first two); how much of what the hidden
cells depart from the straight line the coarse series tells; and what ONE linear rule for all dates scores whose weights are fitted to
the hidden images themselves, which nobody can do who does not know them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.accuracy import SETTING, fused
from benchmarks.pairs import Case, Pair, cases, read
from benchmarks.peers import naive

Array = NDArray[np.float64]
SCALES = ("whole image", "cells", "inside cells")
RULES = {
    "straight line": (),
    "+ coarse departure, cells": ("coarse",),
    "+ ... and its mean": ("coarse", "coarse mean"),
    "+ the images beyond": ("coarse", "coarse mean", "before", "before mean", "after", "after mean"),
    "+ this project": ("coarse", "coarse mean", "before", "before mean", "after", "after mean", "ours"),
}
"""features of each rule; "ours" is the departure of this project's field from the line"""


@dataclass(frozen=True)
class Left:
    """One hidden image, one band, in departures from the straight line between its neighbours."""

    truth: Array
    """(Y, X), NaN where hidden or under cloud"""
    features: dict[str, Array]
    """name -> (Y, X)"""
    cells: tuple[Array, Array]
    """(H, W) departures of the hidden image's cells and of the coarse sensor's"""


def main() -> None:
    """Fit, and print three tables for each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--only", nargs="+", choices=("salton_north", "cia_west"), default=("salton_north", "cia_west"))
    options = parser.parse_args()
    console = Console(width=120)
    for name in options.only:
        pair = read(options.data, name)
        found = []
        for case in (c for c in cases(pair) if c.protocol in ("loo", "cia")):
            console.print(f"{name} {pair.fine_dates[case.target]}", style="dim")
            mean, *_ = fused(case, "gaussian", SETTING)
            found.append(left(case, mean))
        for table in (scales(pair, found), told(pair, found), rules(pair, found)):
            console.print(table)


def left(case: Case, ours: Array) -> list[Left]:
    """The departures of every band from the naive line.  ours: (B, Y, X) predicted."""
    pair, (before, after) = case.pair, case.around
    lines = naive.predictions(case)
    line, share = lines["linear in time"], _share(case, pair.fine_dates[case.target])
    planes = {"coarse": lines["linear + coarse anomaly"] - line, "ours": ours - line}
    for name, index in (("before", before - 1), ("after", after + 1)):
        planes[name] = np.zeros_like(line)
        if index in case.given:  # how far the next image departs from the line drawn on to it; the farther it is the less that tells
            there = _share(case, pair.fine_dates[index])
            beyond = pair.fine[index] - (1 - there) * pair.fine[before] - there * pair.fine[after]
            planes[name] = np.nan_to_num(beyond) * share * (1 - share) / (1 + abs(there))
    out = []
    for band, truth in enumerate(case.truth - line):
        features = {name: plane[band] for name, plane in planes.items()}
        features |= {f"{name} mean": np.full(truth.shape, features[name].mean()) for name in ("coarse", "before", "after")}
        out.append(Left(truth, features, (_cells(truth, pair.ratio), _cells(features["coarse"], pair.ratio))))
    return out


def _share(case: Case, day: np.datetime64) -> float:
    first, last = (case.pair.fine_dates[i] for i in case.around)
    return float((day - first) / (last - first))


def _cells(plane: Array, ratio: int) -> Array:
    """(H, W) means over the clear pixels of each cell, NaN where there are none."""
    height, width = (n // ratio for n in plane.shape)
    blocks = plane[: height * ratio, : width * ratio].reshape(height, ratio, width, ratio)
    count = np.isfinite(blocks).sum((1, 3))
    return np.where(count > 0, np.nansum(blocks, (1, 3)) / np.maximum(count, 1), np.nan)


def parts(error: Array, ratio: int) -> Array:
    """(3,) mean squares of an error (Y, X), whole cells, that add up to its own: its mean, its cells' means about that, and the rest."""
    centred = error - np.nanmean(error)
    cells = np.where(np.isfinite(centred), np.kron(_cells(centred, ratio), np.ones((ratio, ratio))), np.nan)
    return np.array([np.nanmean(error) ** 2, np.nanmean(cells**2), np.nanmean((centred - cells) ** 2)])


def scales(pair: Pair, found: Sequence[Sequence[Left]]) -> Table:
    """rms error of the line and of this project by scale: mean over cases and bands."""
    out = Table(title=f"{pair.name}: error by scale (mean over cases and bands of the rms)")
    for column in ("", *SCALES, "all", "all but the whole image's"):
        out.add_column(column, justify="left" if not column else "right")
    for name in ("straight line", "this project"):
        each = np.array([parts(one.truth - (one.features["ours"] if name == "this project" else 0.0), pair.ratio) for one in _all(found)])
        values = [*np.sqrt(each).mean(0), np.sqrt(each.sum(1)).mean(), np.sqrt(each[:, 1:].sum(1)).mean()]
        out.add_row(name, *(f"{v:.4f}" for v in values))
    return out


def told(pair: Pair, found: Sequence[Sequence[Left]]) -> Table:
    """Share of the hidden departures' variance that the coarse departures explain, one slope for all cases."""
    out = Table(title=f"{pair.name}: what the coarse departures explain of the hidden ones (one slope for all cases)")
    for column in ("band", "cells about their mean", "whole images", "... without the largest"):
        out.add_column(column, justify="left" if column == "band" else "right")
    for band, name in enumerate(pair.bands):
        seen = [(fine[np.isfinite(fine)], coarse[np.isfinite(fine)]) for fine, coarse in (case[band].cells for case in found)]
        inside = [np.concatenate([one[i] - one[i].mean() for one in seen]) for i in (0, 1)]
        means = np.array([[a.mean(), b.mean()] for a, b in seen])
        others = np.delete(means, np.abs(means[:, 0]).argmax(), axis=0)
        out.add_row(name, *(f"{explained(*of):.2f}" for of in (inside, means.T, others.T)))
    return out


def explained(value: Array, by: Array) -> float:
    """1 - sum (value - s by)^2 / sum value^2 at the best slope s."""
    return float((value * by).sum() ** 2 / max((value**2).sum() * (by**2).sum(), 1e-30))


def rules(pair: Pair, found: Sequence[Sequence[Left]]) -> Table:
    """rmse of the best rule of each kind, its weights fitted to the hidden images of all cases: a bound, nobody's score."""
    out = Table(title=f"{pair.name}: one linear rule for all dates, FITTED TO THE HIDDEN IMAGES (mean over cases and bands)")
    for column in ("rule", "weights a band", "rmse"):
        out.add_column(column, justify="left" if column == "rule" else "right")
    for name, chosen in RULES.items():
        used = [n for n in chosen if any(one.features[n].any() for one in _all(found))]
        scores = [s for band in range(len(pair.bands)) for s in best([case[band] for case in found], used)]
        out.add_row(name, str(len(used)), f"{np.mean(scores):.4f}")
    errors = [np.sqrt(np.nanmean((one.truth - one.features["ours"]) ** 2)) for one in _all(found)]
    out.add_row("this project, which has not seen them", "", f"{np.mean(errors):.4f}")
    return out


def best(each: Sequence[Left], used: Sequence[str]) -> list[float]:
    """rmse of every image under the weights of least squares over all of them."""
    clear = [np.isfinite(one.truth) for one in each]
    truths = [one.truth[ok] for one, ok in zip(each, clear, strict=True)]
    designs = [np.stack([one.features[n][ok] for n in used], 1) if used else np.zeros((ok.sum(), 0)) for one, ok in zip(each, clear, strict=True)]
    weights = np.linalg.lstsq(np.concatenate(designs), np.concatenate(truths), rcond=None)[0]
    return [float(np.sqrt(((t - d @ weights) ** 2).mean())) for t, d in zip(truths, designs, strict=True)]


def _all(found: Sequence[Sequence[Left]]) -> Iterator[Left]:
    return (one for case in found for one in case)


if __name__ == "__main__":
    main()
