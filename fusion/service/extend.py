"""A cube grown in area or in time: a new cube that takes over what the new scenes and pixels do not change.

The old cube is read and never touched: it stays readable until the new one is complete, and afterwards. What is done per tile:

- area only: a tile of the old cube is copied bit by bit; tiles that are new, or that the old area cut, are fused with the landscape that
  the old ones had, and blended with each other, not with what is copied;
- later dates: every tile is fitted again over all its times, because what a tile learns of its ground (classes, covariance between
  dates) it learns from all of them; or, where `overlap` days are given, continued in time (`fusion.service.continued`): times
  further back than that from the first new date are kept, and a tile whose two fits differ at the join by more than `tolerance`
  posterior sd is fitted again over all its times after all;
- tiles that had failed, are damaged, or were never fused in the old cube are fused.

The new grid holds the old one on the same lattice of tiles, so that every old tile is a tile of the new cube, and random fields are
keyed to the old cube's first pixel for ever. Scenes that were frozen stay frozen; scenes found since are added, and count for what is
fused or fitted again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from typing import Any

import numpy as np

from fusion.cube.calendar import Calendar
from fusion.cube.cube import Cube
from fusion.cube.grid import Grid
from fusion.errors import JobError, StoreError
from fusion.service.catalog import Found, find
from fusion.service.continued import window_of
from fusion.service.job import Job
from fusion.service.objects import normal_url
from fusion.service.plan import make_plan
from fusion.service.policy import interval
from fusion.service.progress import Summary
from fusion.service.run import fuse, versions
from fusion.service.store import CubeStore
from fusion.service.tile import LANDSCAPE, Fit

log = logging.getLogger("fusion")

Box = tuple[float, float, float, float]
TOLERANCE = 0.1
"""posterior sd: the join of a continued tile may be that rough"""


def extend(
    url: str, to: str, *, end: str | None = None, bbox: Box | None = None, overlap: float = math.inf, tolerance: float = TOLERANCE,
    scheduler: str | None = None, fit: Fit | None = None, progress: str = "auto",
) -> Summary:
    """Makes the cube `to` from the one at `url` with a later end of its period, a larger area (west, south, east, north), or both.

    overlap, tolerance: see `fusion.service.continued`; with overlap inf later dates refit all times. An interrupted call is continued by the same
    call, or by `resume(to)`. Raises JobError if there is nothing to add, StoreError if `to` is of another job.
    """
    store = prepare(url, to, end=end, bbox=bbox, overlap=overlap, tolerance=tolerance, scheduler=scheduler)
    return fuse(store, Job.of(store.about["job"], f"the job in {store.url}").on(scheduler), fit=fit, progress=progress)


def prepare(
    url: str, to: str, *, end: str | None = None, bbox: Box | None = None, overlap: float = math.inf, tolerance: float = TOLERANCE,
    scheduler: str | None = None,
) -> CubeStore:
    """The new cube's store: opened if the same extension was begun before, else planned and created."""
    old, target = CubeStore.open(url, read_only=True), normal_url(to)
    if target == old.url:
        raise StoreError(f"{target} is the cube to extend: name another address for the larger one; the old one stays readable")
    if not (overlap > 0 and tolerance > 0):
        raise JobError(f"overlap {overlap} days and tolerance {tolerance} sd: both must be positive")
    was = Job.of(old.about["job"], f"the job in {old.url}")
    job, cube, offset = _larger(old, was, target, end, bbox)
    times, first = len(old.cube.calendar), old.cube.calendar.times[0]
    window, join = window_of(cube.calendar, times, overlap)
    asked = [job.fingerprint, old.about["fingerprint"], window, join, tolerance]
    fingerprint = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    claim = CubeStore.claim(target)
    if claim is not None and claim.get("fingerprint") != fingerprint:
        raise StoreError(f"{target} belongs to another job: a cube mixes no two; choose another address or delete that cube")
    if claim is not None and claim.get("ready"):
        return CubeStore.open(target)
    found = _merged(old, find(job), first, old.cube.calendar.times[-1])
    made = make_plan(job.on(scheduler), cube, found)
    made.require()
    for note in made.notes:
        log.warning("%s", note)
    row, col = old.provenance.get("anchor", (0, 0))
    core = job.tiles.core
    provenance = {
        "versions": versions(), "seed": job.engine.seed, "notes": made.notes[:1000], **made.meeting,
        "anchor": [row - offset[0] * core, col - offset[1] * core],
        "extends": {
            "url": old.url, "fingerprint": old.about["fingerprint"], "offset": list(offset), "times": times, "window": window,
            "join": join, "tolerance": tolerance,
        },
    }
    store = CubeStore.create(
        target, made.layout, job=job.document(), fingerprint=fingerprint, items=found.items, provenance=provenance
    )
    if (shared := old.objects.get("status/population.json")) is not None:
        store.objects.put("status/population.json", shared)
    if times == len(cube.calendar) and (known := old.objects.get_bytes(LANDSCAPE)) is not None:
        store.objects.put_bytes(LANDSCAPE, known)
    return store


def _larger(old: CubeStore, was: Job, target: str, end: str | None, bbox: Box | None) -> tuple[Job, Cube, tuple[int, int]]:
    """The larger job and cube, and the new tile where the old cube's first tile lies."""
    grid, offset = old.cube.grid, (0, 0)
    if bbox is not None:
        grid, offset = _around(grid, bbox, was)
    if end is not None and was.period.times is not None:
        raise JobError("the cube has latent times of its own choosing (period.times), which `end` cannot continue: make a new cube")
    period = was.period if end is None else was.period.model_copy(update={"end": end})
    attrs = grid.to_attrs()
    update = {
        "period": period.model_dump(), "output": {**was.output.model_dump(), "store": target},
        "area": {"bbox": list(grid.bounds.bbox), "crs": attrs["crs"]},
        "target": {**was.target.model_dump(), "crs": attrs["crs"]},
    }
    job = Job.of({**was.document(), **update}, "the larger job")
    calendar, known = job.calendar(), old.cube.calendar.times
    if len(calendar) < len(known) or not np.array_equal(calendar.times[: len(known)], known):
        raise JobError(f"the period would end on {period.end}, before the cube's last time {known[-1]}: a cube can only grow")
    if job.grid().to_attrs() != attrs:
        raise JobError(f"the larger area gives {job.grid().to_attrs()}, not {attrs}: its pixels do not lie on the old ones")
    if len(calendar) == len(known) and attrs == old.cube.grid.to_attrs():
        raise JobError(
            f"nothing to add: the cube covers this area until {known[-1]} in steps of {period.step_days:g} days; give a later end, "
            "by at least one step, or a larger area"
        )
    return job, Cube(grid, Calendar(calendar.times), old.cube.basis), offset


def _around(grid: Grid, bbox: Box, job: Job) -> tuple[Grid, tuple[int, int]]:
    """The grid that holds the old one and a box in longitude and latitude, grown north and west by whole tiles; tiles it grew there."""
    asked = Grid.from_bbox(bbox, grid.crs, grid.resolution, align=job.target.align)
    core = job.tiles.core
    row, col = grid.offset_of(asked)
    up, left = (math.ceil(max(0, -first) / core) for first in (row, col))
    bottom, right = (
        max(size, first + length) for size, first, length in zip(grid.shape, (row, col), asked.shape, strict=True)
    )
    return grid.crop(slice(-up * core, bottom), slice(-left * core, right)), (up, left)


def _merged(old: CubeStore, found: Found, first: Any, last: Any) -> Found:
    """The frozen scenes of the old cube and those found since; a note says how many of these could have been in the old one."""
    items, late = {}, 0
    for name, frozen in old.items().items():
        known = {item["id"] for item in frozen}
        fresh = [item for item in found.items.get(name, []) if item["id"] not in known]
        late += sum(bool(interval(item)[0] <= last and interval(item)[1] >= first) for item in fresh)
        items[name] = sorted([*frozen, *fresh], key=lambda item: (interval(item), item["id"]))
    notes = list(found.notes)
    if late:
        notes.append(f"{late} scenes of the old period were found that the old cube had not seen: they count only for what is fused again")
    return Found(items, notes)
