"""In which order tiles are fitted and blended, so that no tile waits longer than for its neighbours.

Fits are started row by row; a tile is blended as soon as all tiles around it have told what they found, or are given up. What has
been fitted and not blended is about one row of tiles, whatever the area. After a crash the store tells where to go on: a tile
whose own message is there is not fitted again, and a committed tile is fitted again only where a tile beside it was lost later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fusion.errors import FusionError
from fusion.service.blend import Index, addressed, around, blended, clear, provisional, record_in, senders, told
from fusion.service.continued import before_of, continue_tile
from fusion.service.store import CubeStore
from fusion.service.tile import Fit, brief, desk, fuse_tile, taken_over

Task = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Step:
    """One task on one tile."""

    task: Task
    index: Index
    given: tuple[tuple[str, Any], ...] = ()
    """arguments of the task, beyond those that all tasks of a run get"""


class Work(Protocol):
    """What a run has to do, as its driver sees it."""

    def next(self) -> Step | None:
        """What can be started now; None if nothing can before something lands."""

    def landed(self, step: Step, result: dict[str, Any]) -> bool:
        """Takes notice of what is done; whether a tile is complete with it."""

    def lost(self, step: Step) -> bool:
        """Takes notice of what is given up; whether a tile is missing for it."""


@dataclass
class Each:
    """Every tile by itself."""

    task: Task
    todo: Iterator[Index]
    given: tuple[tuple[str, Any], ...] = ()
    """arguments of the task"""

    def next(self) -> Step | None:
        """The next tile."""
        index = next(self.todo, None)
        return None if index is None else Step(self.task, index, self.given)

    def landed(self, step: Step, result: dict[str, Any]) -> bool:
        """A tile is complete."""
        return True

    def lost(self, step: Step) -> bool:
        """A tile is missing."""
        return True


class Weave:
    """Fits, and blends of tiles whose neighbours are fitted."""

    def __init__(self, store: CubeStore, done: set[Index]) -> None:
        self.store, self.tiles = store, store.layout.tiles
        self.task: Task = continue_tile if before_of(store) else fuse_tile
        self.early = provisional(store, done)
        """committed, but to be blended again with a neighbour that had failed"""
        self.done = done - self.early
        self.known = addressed(store)
        self.settled: set[Index] = set()
        """tiles that have told what they found, or never will"""
        self.without: set[Index] = set()
        """those that never will"""
        self.ready: deque[Index] = deque()
        self.submitted: set[Index] = set()
        self.fits = self._fits()

    def next(self) -> Step | None:
        """A blend where one is ready, else the next fit."""
        fit = None if self.ready else next(self.fits, None)
        if fit is not None:
            return Step(self.task, fit, (("post", True), ("again", fit in self.done)))
        if not self.ready:  # the last fits may have been there already
            return None
        index = self.ready.popleft()
        lost = tuple(i for i in around(index, self.tiles) if i in self.without)
        return Step(blend_tile, index, (("without", lost), ("again", index in self.early)))

    def _fits(self) -> Iterator[Index]:
        for index in np.ndindex(*self.tiles):
            at = (int(index[0]), int(index[1]))
            if self._needed(at):
                yield at
            else:
                self._settle(at)

    def _needed(self, index: Index) -> bool:
        """Whether a tile must be fitted: nobody did, or a tile beside it waits for what it told another time."""
        if index in self.early:
            return False
        if index not in self.done:
            return index not in self.known or index not in senders(self.store, index)
        waiting = [i for i in around(index, self.tiles) if i not in self.done and i not in self.early]
        waiting = [i for i in waiting if i not in self.known or index not in senders(self.store, i)]
        return bool(waiting) and not taken_over(self.store.record(index))

    def _settle(self, index: Index) -> None:
        self.settled.add(index)
        for i in around(index, self.tiles):
            free = i not in self.done and i not in self.submitted and i not in self.without
            if free and all(n in self.settled for n in around(i, self.tiles)):
                self.submitted.add(i)
                self.ready.append(i)

    def landed(self, step: Step, result: dict[str, Any]) -> bool:
        """A fit that told its neighbours is no complete tile yet; a blend is, unless it was complete before."""
        if step.task is blend_tile:
            self.done.add(step.index)
            return step.index not in self.early
        before = step.index in self.done
        if not result.get("posted"):
            self.done.add(step.index)
        self._settle(step.index)
        return not before and not result.get("posted")

    def lost(self, step: Step) -> bool:
        """A tile that cannot be fitted is left out by its neighbours."""
        if step.task is blend_tile:
            return True
        self.without.add(step.index)
        self._settle(step.index)
        return step.index not in self.done


def blend_tile(
    url: str, fingerprint: str, index: Index, *, without: tuple[Index, ...] = (), again: bool = False, fit: Fit | None = None,
    read_retries: int = 3,
) -> dict[str, Any]:
    """Commits one tile from what it and its neighbours found; returns its record without what is long.

    without: tiles that were given up. again: also if the tile is committed. What was lost on the way is fitted again here.
    """
    at = desk(url, fingerprint)
    store, parts = at.store, {}
    for source in around(index, store.layout.tiles):
        if source in without:
            continue
        if (part := told(store, index, source, at.blend)) is None:
            if store.has(index) and not again:
                return {**brief(store.record(index)), "skipped": True}
            if source != index and store.has(source) and taken_over(store.record(source)):
                continue
            task = continue_tile if before_of(store) else fuse_tile
            task(url, fingerprint, source, fit=fit, read_retries=read_retries, post=True, again=True)
            part = told(store, index, source, at.blend)
            if part is None:
                raise FusionError(f"tile {index}: what tile {source} told it is lost again and again: the store loses objects")
        parts[source] = part
    blocks = blended(store, index, at.blend, parts)
    record = record_in(parts[index]) | ({"without": [list(i) for i in without]} if without else {})
    if again:
        store.forget(index)
    made = store.write_blocks(at.tile(index), blocks, record)
    if not without:
        clear(store, index)
    return brief(made)
