"""One tile of a cube that continues another: kept as it was, continued in time, or fused anew; as it happens inside a worker.

Dates that are added tell of the dates before them, less the further back. A tile is continued in time like this:

    old cube    |-------------------------------|              times that were fused before
    window                     |.....|==========+++++++|       the tile is fitted again over these times
    new cube    |--------------------|===================|     `-` kept, `=` fitted again, `+` new
                                     join

`.` is context: fitted again so that the fit knows the past, and not kept. At the join both fits know the data on both sides of it for
`overlap` days. How much they differ there, in posterior sd, is measured in every tile; where it is more than was allowed, the tile
is fitted again over all times. Theta starts from what the tile had learned: its old posterior is the new prior.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.cube.calendar import DAY, Calendar
from fusion.cube.cube import Cube
from fusion.cube.grid import Tile
from fusion.errors import StoreError
from fusion.infer.posterior import Status
from fusion.service.blend import turned
from fusion.service.plan import tile_at
from fusion.service.policy import interval
from fusion.service.sources import PAD
from fusion.service.store import CubeStore, Damaged
from fusion.service.tile import Desk, Fit, brief, delivered, desk, fused, kept_of, region, skipped

Index = tuple[int, int]
ALIKE = 0.1
"""largest correlation that independent components of the old fit may have on the axes of the new one: a band's sd is off by less than that"""
Blocks = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Before:
    """What a cube knows of the one that it continues: the provenance's `extends`."""

    url: str
    fingerprint: str
    offset: Index
    """tile of the new cube where the old one's first tile lies"""
    times: int
    """latent times of the old cube: the first ones of the new"""
    window: int
    """first time that is fitted again; `times` where none is"""
    join: int
    """first time that is written anew"""
    tolerance: float
    """posterior sd: the largest rms difference at the join"""


def before_of(store: CubeStore) -> Before | None:
    """The cube that a store continues, if it does."""
    told = store.about["provenance"].get("extends")
    if told is None:
        return None
    return Before(**{**told, "offset": tuple(told["offset"])})


@lru_cache(maxsize=4)
def _old(url: str, fingerprint: str) -> CubeStore:
    store = CubeStore.open(url, read_only=True)
    if store.about["fingerprint"] != fingerprint:
        raise StoreError(f"{url} is of another job now, so what was to be continued is gone: restore it, or run the whole job anew")
    return store


def continue_tile(
    url: str, fingerprint: str, index: Index, *, fit: Fit | None = None, read_retries: int = 3, post: bool = False, again: bool = False,
) -> dict[str, Any]:
    """Commits one tile of a cube that continues another; its record says how it came about (copied, continued, refitted, fused).

    post, again: as for `fuse_tile`; what is taken over from the old cube is committed as it is, and tells its neighbours nothing.
    """
    at = desk(url, fingerprint)
    if done := skipped(at.store, index, again, post):
        return done
    before = before_of(at.store)
    assert before is not None  # the caller chose this task because of it
    tile, kept = at.tile(index), None
    old = _old(before.url, before.fingerprint)
    here = index[0] - before.offset[0], index[1] - before.offset[1]
    if old.has(here):
        kept = _kept(old, here, tile, at)
    shared = region(url, fingerprint) if at.job.engine.pool else None
    if kept is not None and before.times == len(at.store.cube.calendar):
        record = {**old.record(here), "continued": {"how": "copied"}}
        return brief(at.store.write_blocks(tile, kept, record))
    how: dict[str, Any] = {"how": "fused"}
    if kept is not None and before.join > 0:
        blocks, record, difference = _continued(at, before, tile, kept, old.record(here), fit, read_retries, shared)
        how = {"how": "continued", "join": str(at.store.cube.calendar.times[before.join]), "difference_sd": difference}
        if difference <= before.tolerance:
            return brief(at.store.write_blocks(tile, blocks, {**record, "continued": how}))
        if np.isinf(difference):
            how["reason"] = "independent components of the old fit are not independent on the axes of the new one"
    if kept is not None:
        how = {**how, "how": "refitted"}
    posterior, record = fused(at, tile, fit, read_retries, shared)
    return delivered(at, tile, posterior, {**record, "continued": how}, post)


def _kept(old: CubeStore, here: Index, tile: Tile, at: Desk) -> Blocks | None:
    """The old cube's blocks of a tile; None if the tile was smaller there (the area ended in it) or is damaged."""
    before = tile_at(old.cube.grid, old.layout.core, at.halo, here)
    if [w.stop - w.start for w in before.window] != [w.stop - w.start for w in tile.window]:
        return None
    try:
        return old.read_blocks(before)
    except Damaged:
        return None


def _continued(
    at: Desk, before: Before, tile: Tile, kept: Blocks, record: Mapping[str, Any], fit: Fit | None, read_retries: int, shared: Any
) -> tuple[dict[str, NDArray[Any]], dict[str, Any], float]:
    """(blocks of all times, record, rms difference at the join in posterior sd) of a tile fitted again over the window."""
    times = at.store.cube.calendar.times[before.window :]
    cube = Cube(tile.grid, Calendar(times), at.store.cube.basis)
    items = {
        name: [item for item in found if interval(item)[1] >= times[0] - PAD] for name, found in at.coverage.of(tile).items()
    }
    theta = (record.get("diagnostics") or {}).get("theta")
    prior = theta if shared is None and theta and theta.get("names") and at.job.engine.name != "gaussian" else None
    posterior, made = fused(at, tile, fit, read_retries, shared, cube=cube, items=items, prior=prior)
    fresh = at.store.blocks_of(tile, **kept_of(posterior, at.store))
    join = before.join - before.window
    both = slice(join - 1, before.times - before.window)  # times that both fits know, from the last one that is kept
    there = {name: kept[name][before.window :][both][:2] for name in ("mean", "sd")}
    difference = (fresh["mean"][both][:2] - there["mean"]) / np.maximum(there["sd"], 1e-6)
    apart = float(np.sqrt(np.mean(difference**2)))
    if record.get("mixing") is not None and made["mixing"] is not None:
        sd, correlation = turned(np.asarray(record["mixing"]), np.asarray(made["mixing"]), kept["canonical_sd"])
        kept = {**kept, "canonical_sd": sd}
        apart = apart if correlation <= ALIKE else float("inf")
    return _joined(at, before, kept, fresh), _record(record, made), apart


def _joined(at: Desk, before: Before, kept: Blocks, fresh: Blocks) -> dict[str, NDArray[Any]]:
    blocks = {}
    for name, plan in at.store.layout.arrays().items():
        if name not in kept:
            continue
        if "time" in plan.dims:
            axis, join = plan.dims.index("time"), before.join - before.window
            old = np.take(kept[name], np.arange(before.join), axis=axis)
            blocks[name] = np.concatenate([old, np.take(fresh[name], np.arange(join, fresh[name].shape[axis]), axis=axis)], axis=axis)
        else:  # variances over time: each part counts by its number of times
            share = before.join / len(at.store.cube.calendar)
            blocks[name] = (share * kept[name] + (1 - share) * fresh[name]).astype(kept[name].dtype)
    return blocks


def _record(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a continued tile: scenes of both parts, chi-square weighted by looks, the status that asks for more attention."""
    scenes = {
        name: list(dict.fromkeys([*(old.get("scenes") or {}).get(name, []), *new["scenes"].get(name, [])])) for name in new["scenes"]
    }
    chi = {}
    for name in {**(old.get("chi_square") or {}), **new["chi_square"]}:
        parts = [
            (float(part["chi_square"][name]), max(1, (part.get("looks") or {}).get(name, 1)))
            for part in (old, new) if (part.get("chi_square") or {}).get(name) is not None
        ]
        chi[name] = sum(value * weight for value, weight in parts) / sum(weight for _, weight in parts) if parts else None
    calm = (Status.OK.name, Status.NO_DATA.name)
    first = new if new["status"] not in calm or old.get("status") in calm else old
    status = Status.OK.name if {old.get("status"), new["status"]} == set(calm) else first.get("status")
    return {
        **new, "status": status, "message": first.get("message"), "scenes": scenes, "chi_square": chi,
        "looks": {name: len(ids) for name, ids in scenes.items()},
        "failed_scenes": [*(old.get("failed_scenes") or []), *new["failed_scenes"]],
        "simulated": bool(old.get("simulated")) or new["simulated"],
    }


def window_of(calendar: Calendar, times: int, overlap: float) -> tuple[int, int]:
    """(window, join) of a calendar whose first `times` were fused before: what is fitted again, what is written anew.

    overlap: days between the join and the first new date, and again between the window's start and the join. A join that would
    leave nothing to keep is 0: everything is fitted again.
    """
    seam = calendar.times[times] if times < len(calendar) else None
    if seam is None:
        return times, times
    days = np.asarray((calendar.times - seam) / DAY)
    join = min(int(np.searchsorted(days, -overlap)), times - 1)
    window = min(int(np.searchsorted(days, -2 * overlap)), join - 1)
    return (window, join) if window >= 0 else (0, 0)
