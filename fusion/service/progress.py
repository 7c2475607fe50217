"""Telling how far a run is: a live bar in a terminal, tqdm in a notebook, plain lines in a log; all from one summary."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger("fusion")


@dataclass
class Summary:
    """How far a run is; updated in place by the run, read by whoever shows it."""

    url: str
    total: int
    """tiles of the cube"""
    before: int = 0
    """tiles that were committed when this run began"""
    done: int = 0
    """tiles committed by this run"""
    failed: dict[tuple[int, int], str] = field(default_factory=dict)
    """tiles given up by this run, with the reason"""
    statuses: Counter[str] = field(default_factory=Counter)
    origins: Counter[str] = field(default_factory=Counter)
    """of a cube that continues another: how many tiles were copied, continued, refitted, fused"""
    unread: int = 0
    """scene windows that could not be read"""
    chi_square: dict[str, tuple[float, int]] = field(default_factory=dict)
    """sensor -> (sum, count)"""
    cancelled: bool = False
    began: float = field(default_factory=time.monotonic)
    repeated: int = 0
    """tiles whose task ran more than once (lost workers, stragglers)"""

    def add(self, brief: dict[str, Any]) -> None:
        """Counts one committed tile."""
        self.done += 1
        self.statuses[str(brief.get("status"))] += 1
        if brief.get("how"):
            self.origins[str(brief["how"])] += 1
        self.unread += int(brief.get("failed") or 0)
        for name, value in (brief.get("chi_square") or {}).items():
            if value is not None:
                total, count = self.chi_square.get(name, (0.0, 0))
                self.chi_square[name] = total + float(value), count + 1

    @property
    def left(self) -> int:
        """Tiles that are neither committed nor given up."""
        return self.total - self.before - self.done - len(self.failed)

    @property
    def rate(self) -> float:
        """Tiles per second of this run."""
        return self.done / max(time.monotonic() - self.began, 1e-9)

    @property
    def eta(self) -> float:
        """Seconds until the end at this rate; infinite before the first tile."""
        return self.left / self.rate if self.done else float("inf")

    def line(self) -> str:
        """All of it in one line."""
        chi = " ".join(f"{name} {total / count:.2f}" for name, (total, count) in sorted(self.chi_square.items()) if count)
        left = "-" if self.eta == float("inf") else f"{self.eta:.0f} s"
        parts = [f"{self.before + self.done}/{self.total} tiles", f"{self.rate * 60:.1f}/min", f"left {left}"]
        parts += [f"{n} failed" for n in [len(self.failed)] if n] + [f"{self.unread} scenes unread" for _ in [0] if self.unread]
        return ", ".join(parts) + (f"; chi-square {chi}" if chi else "")


Show = Callable[[Summary], None]


@contextmanager
def shown(kind: str, summary: Summary) -> Iterator[Show]:
    """A function to call after every tile.  kind: auto, rich, tqdm, log or none."""
    kind = _suited() if kind == "auto" else kind
    if kind == "none":
        yield lambda _: None
    elif kind == "rich":
        yield from _rich(summary)
    elif kind == "tqdm":
        yield from _tqdm(summary)
    else:
        yield from _lines(summary)


def _suited() -> str:
    if "ipykernel" in sys.modules:
        return "tqdm"
    return "rich" if sys.stderr.isatty() else "log"


def _rich(summary: Summary) -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn("fusing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[what]}")]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("fusing", total=summary.total, completed=summary.before, what="")
        yield lambda s: bar.update(task, completed=s.before + s.done, what=s.line().split(", ", 1)[1])


def _tqdm(summary: Summary) -> Iterator[Show]:
    from tqdm.auto import tqdm

    with tqdm(total=summary.total, initial=summary.before, unit="tile", desc="fusing") as bar:

        def show(now: Summary) -> None:
            bar.n = now.before + now.done
            bar.set_postfix_str(now.line().split("; ")[-1])
            bar.refresh()

        yield show


def _lines(summary: Summary) -> Iterator[Show]:
    last = [0.0]

    def show(now: Summary) -> None:
        if time.monotonic() - last[0] > 10 or now.left == 0:
            last[0] = time.monotonic()
            log.info("%s", now.line())

    yield show
