"""No seams: where windows of neighbouring tiles overlap, the cube holds one blend of what each of them found.

Along one axis, tile j of core c answers for pixels j c .. (j + 1) c and has looked further by its halo. With a blend of h pixels

    w_j(g) = ramp(g + 1/2 - j c) ramp((j + 1) c - g - 1/2),    ramp(d) = clip((d + h) / 2 h, 0, 1)

is its weight at global pixel g, from 1 at h pixels inside its border over 1/2 at the border to 0 at h pixels outside; the weights
of the tiles that meet sum to 1, and in two dimensions they multiply. The stored value is the mean under these weights of
what the tiles found there: mean and draws as they are, standard deviations because errors of neighbours are nearly the same (and the sd
of a mean is never more than the mean of the sds). So both sides of a border are the same numbers, the field is continuous, and further
than h pixels inside a tile it is what the tile's own fit found, bit for bit.

How it runs: a tile's fit leaves a message for each tile that it overlaps, under `status/overlap/` of the store, its own part last, so
that a tile whose own part is there has told everything. A second, small task per tile reads what it was told, blends, writes
shards and record, and removes its messages. A tile that failed is left out, and its neighbours say `without` in their records and keep
their messages: when it is fused after all, they are blended again, to what an undisturbed run would have made.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.cube.grid import Tile
from fusion.errors import FusionError
from fusion.service.objects import finite
from fusion.service.store import CubeStore
from fusion.service.template import DRAW_STEP

log = logging.getLogger("fusion")

Index = tuple[int, int]
Blocks = dict[str, NDArray[Any]]
FOLDER = "status/overlap"
NAME = re.compile(r"^(\d{1,9})\.(\d{1,9})$")
WIDEST = 16
"""pixels: a wider blend would not make the step at a border much smaller"""
LEAST_HALO = 12
"""pixels of halo that a job of several tiles has unless it says otherwise"""


def widest(halo: int, core: int) -> int:
    """Pixels of blend that a halo has room for: all but its outer quarter, where a fit feels its own edge."""
    return max(0, min(WIDEST, halo - -(-halo // 4), core // 2))


def around(index: Index, tiles: tuple[int, int]) -> list[Index]:
    """The tile and its neighbours, in row-major order."""
    rows, cols = (range(max(0, i - 1), min(n, i + 2)) for i, n in zip(index, tiles, strict=True))
    return [(row, col) for row in rows for col in cols]


def weight(source: int, core: int, blend: int, pixels: NDArray[np.integer]) -> NDArray[np.float64]:
    """w_j of the module's equation.  source: j. pixels: g, (n,)."""
    inside = np.minimum(pixels + 0.5 - source * core, (source + 1) * core - pixels - 0.5)
    return np.clip((inside + blend) / (2 * blend), 0.0, 1.0)


def shared(source: Index, target: Index, store: CubeStore, blend: int) -> tuple[slice, slice]:
    """Global rows and columns of the target's core that the source tells of."""
    core, sizes = store.layout.core, store.cube.grid.shape
    rows, cols = (
        slice(max(t * core, s * core - blend), min((t + 1) * core, (s + 1) * core + blend, size))
        for s, t, size in zip(source, target, sizes, strict=True)
    )
    return rows, cols


def key_of(target: Index, source: Index) -> str:
    """Where the source's message to the target lies."""
    return f"{FOLDER}/{target[0]}.{target[1]}/{source[0]}.{source[1]}.npz"


def post(store: CubeStore, tile: Tile, blend: int, kept: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves what a tile's fit found for each tile that it overlaps, its own part last; may be repeated.  kept: as `blocks_of` takes it."""
    neighbours = [i for i in around(tile.index, store.layout.tiles) if i != tile.index]
    for target in [*neighbours, tile.index]:
        store.objects.put_arrays(key_of(target, tile.index), part_of(store, tile, target, blend, kept, record))
    return {"tile": tile.index, "status": record["status"], "posted": True}


def part_of(store: CubeStore, tile: Tile, target: Index, blend: int, kept: Mapping[str, Any], record: Mapping[str, Any]) -> Blocks:
    """The message of a fitted tile to a target: blocks as the arrays hold them, the mixing, and for itself its record."""
    rows, cols = shared(tile.index, target, store, blend)
    top, left = tile.origin
    blocks = store.blocks_of(tile, **kept, part=(slice(rows.start - top, rows.stop - top), slice(cols.start - left, cols.stop - left)))
    if not (np.isfinite(blocks["mean"]).all() and np.isfinite(blocks["sd"]).all()):
        raise FusionError(f"tile {tile.index}: the engine returned values that are not finite in its halo: raise the noise floors")
    if record.get("mixing") is not None:
        blocks["mixing"] = np.asarray(record["mixing"], np.float64)
    if target == tile.index:
        blocks["record"] = np.frombuffer(json.dumps(finite(dict(record)), allow_nan=False).encode(), np.uint8)
    return blocks


def told(store: CubeStore, target: Index, source: Index, blend: int) -> Blocks | None:
    """A message, if it is there and whole."""
    found = store.objects.get_arrays(key_of(target, source))
    if found is None:
        return None
    rows, cols = shared(source, target, store, blend)
    for name in store.layout.pixels():
        plan = store.layout.arrays()[name]
        if name not in found or found[name].shape != (*plan.shape[:-2], rows.stop - rows.start, cols.stop - cols.start):
            log.warning("what tile %s told tile %s is damaged: it is fitted again", source, target)
            return None
    return found if source != target or "record" in found else None


def record_in(own: Blocks) -> dict[str, Any]:
    """The record that a tile's own part carries."""
    return dict(json.loads(own["record"].tobytes()))


def blended(store: CubeStore, target: Index, blend: int, parts: Mapping[Index, Blocks]) -> Blocks:
    """The blocks of a tile from what it and its neighbours found; pixels that only it knows are its own bits.

    parts: message of each source, the target's own among them. Independent components of a neighbour on other axes are turned to the
    target's first.
    """
    own = parts[target]
    rows, cols = shared(target, target, store, blend)
    shares, total = [], np.zeros((rows.stop - rows.start, cols.stop - cols.start))
    for source in parts:
        there = shared(source, target, store, blend)
        where = tuple(slice(t.start - o.start, t.stop - o.start) for t, o in zip(there, (rows, cols), strict=True))
        down, across = (weight(j, store.layout.core, blend, np.arange(t.start, t.stop)) for j, t in zip(source, there, strict=True))
        shares.append((source, where, down[:, None] * across))
        total[where] += shares[-1][2]
    shares = [(source, where, share / total[where]) for source, where, share in shares]
    alone = next(share for source, _, share in shares if source == target) == 1.0

    def canonical(source: Index) -> NDArray[np.float32]:
        part, mixing, mine = parts[source]["canonical_sd"], parts[source].get("mixing"), own.get("mixing")
        return part if mixing is None or mine is None or np.array_equal(mixing, mine) else turned(mixing, mine, part)[0]

    def mean_of(value: Any) -> NDArray[np.float32]:
        out = np.zeros_like(value(target), dtype=np.float32)
        for source, (down, across), share in shares:
            out[..., down, across] += share.astype(np.float32) * value(source)
        return np.where(alone, value(target), out)

    out: Blocks = {name: mean_of(lambda s, n=name: parts[s][n]) for name in own if name in ("mean", "sd", "decomposition")}
    out["canonical_sd"] = mean_of(canonical)
    if "draws" in own:
        out["draws"] = np.empty_like(own["draws"])
        for n in range(len(own["draws"])):
            draw = mean_of(lambda s, n=n: parts[s]["mean"] + parts[s]["sd"] * np.float32(DRAW_STEP) * parts[s]["draws"][n])
            steps = np.rint((draw - out["mean"]) / (np.where(out["sd"] > 0, out["sd"], np.inf) * DRAW_STEP))
            out["draws"][n] = np.where(alone, own["draws"][n], np.clip(steps, -32767, 32767).astype(np.int16))
    return {name: out[name] for name in store.layout.pixels()}


def turned(old: NDArray[Any], new: NDArray[Any], sd: NDArray[Any]) -> tuple[NDArray[np.float32], float]:
    """(sd of x on the axes of another mixing, the largest correlation that they have there and that is left out).

    Cov(z) = M diag(sd^2) M^T = M' C M'^T with C = B diag(sd^2) B^T, B = M'^-1 M; kept is the diagonal of C.
    old, new: (K, K) M, M'. sd: (T, K, Y, X).
    """
    turn = np.linalg.solve(new.astype(np.float64), old.astype(np.float64))
    variance = np.einsum("jk,tkyx->tjyx", turn**2, sd.astype(np.float64) ** 2)
    usual = np.diag(np.nanmean(sd.astype(np.float64) ** 2, axis=(0, 2, 3)))
    covariance = turn @ usual @ turn.T
    scale = np.sqrt(np.maximum(np.diag(covariance), 1e-30))
    return np.sqrt(variance).astype(np.float32), float(np.abs(covariance / np.outer(scale, scale) - np.eye(len(scale))).max())


def addressed(store: CubeStore) -> set[Index]:
    """The tiles that have messages: one listing."""
    found = (NAME.match(name) for name in store.objects.names(FOLDER))
    return {(int(m[1]), int(m[2])) for m in found if m}


def senders(store: CubeStore, target: Index) -> set[Index]:
    """The tiles that have told a tile what they found of it."""
    found = (NAME.match(name.removesuffix(".npz")) for name in store.objects.names(f"{FOLDER}/{target[0]}.{target[1]}"))
    return {(int(m[1]), int(m[2])) for m in found if m}


def provisional(store: CubeStore, done: set[Index]) -> set[Index]:
    """The committed tiles that had to do without a neighbour and still have what they need to be blended with it."""
    return {index for index in addressed(store) & done if store.record(index).get("without")}


def clear(store: CubeStore, index: Index) -> None:
    """Removes what a tile was told."""
    store.objects.delete_folder(f"{FOLDER}/{index[0]}.{index[1]}")


def sweep(store: CubeStore) -> None:
    """Removes what tiles were told that are done with it: a crash between a commit and its clearing up leaves some."""
    done = store.committed()
    for index in (addressed(store) & done) - provisional(store, done):
        clear(store, index)
