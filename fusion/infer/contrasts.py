"""Which weighted sums of the ground theta is learned from: contrasts at every scale, a random sample of the small ones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fusion.process.hierarchy import Hierarchy

Plane = NDArray[np.float32]

MOST = {"class": 12, "place": 24, "object": 40, "pixel": 96}
"""probes of each small scale"""


def contrasts(hierarchy: Hierarchy, seed: int) -> Iterator[tuple[str, Plane, Plane]]:
    """(scale, plus, minus): the planes of all probes; minus is zero for the scene."""
    rng = np.random.default_rng([seed, *(abs(int(v)) for v in (hierarchy.rows[0], hierarchy.cols[0]))])
    _, _, height, width = hierarchy.shape
    zero = np.zeros((height, width), np.float32)
    yield "scene", zero + 1, zero
    shares = np.asarray(hierarchy.spaces["class"].weight, np.float32)
    for i in rng.permutation(len(shares) - 1)[: MOST["class"]]:  # where memberships sum to 1 the last contrast repeats the others
        if shares[i].std() > 1e-3:
            yield "class", shares[i], shares[i].max() - shares[i]
    yield from _blocks(hierarchy, zero, rng)
    yield from _objects(np.asarray(hierarchy.spaces["object"].label), zero, rng)


def _blocks(hierarchy: Hierarchy, zero: Plane, rng: np.random.Generator) -> Iterator[tuple[str, Plane, Plane]]:
    """Neighbouring square blocks about as large as the spacing of the place level."""
    height, width = zero.shape
    space = hierarchy.spaces["place"]
    nodes = max(1, space.rows.shape[1] - 3), max(1, space.cols.shape[1] - 3)
    step = max(1, -(-height // nodes[0])), max(1, -(-width // nodes[1]))
    corners = [(y, x) for y in range(0, height - step[0] + 1, step[0]) for x in range(0, width - 2 * step[1] + 1, 2 * step[1])]
    for i in rng.permutation(len(corners))[: MOST["place"]]:
        (y, x), plus, minus = corners[i], zero.copy(), zero.copy()
        plus[y : y + step[0], x : x + step[1]] = 1
        minus[y : y + step[0], x + step[1] : x + 2 * step[1]] = 1
        yield "place", plus, minus


def _objects(label: NDArray[np.integer], zero: Plane, rng: np.random.Generator) -> Iterator[tuple[str, Plane, Plane]]:
    """Pairs of close objects, and pairs of close pixels inside other objects."""
    rows, cols = np.indices(label.shape)
    count = int(label.max()) + 1
    size = np.bincount(label.ravel(), minlength=count)
    centre = np.stack([np.bincount(label.ravel(), v.ravel(), count) for v in (rows, cols)], 1) / np.maximum(size, 1)[:, None]
    free = list(rng.permutation(np.flatnonzero(size > 0)))
    taken = 0
    while len(free) > 1 and taken < MOST["object"]:
        one = free.pop()
        other = free.pop(int(np.argmin(((centre[free] - centre[one]) ** 2).sum(1))))
        yield "object", (label == one).astype(np.float32), (label == other).astype(np.float32)
        taken += 1
    used = np.zeros(label.shape, bool)
    reach = 3 if min(label.shape) > 8 else 2  # apart, so that neighbouring footprints do not blur the contrast away
    taken = 0
    for flat in rng.permutation(label.size):
        y, x = divmod(int(flat), label.shape[1])
        near = (np.maximum(abs(rows - y), abs(cols - x)) <= reach) & (np.maximum(abs(rows - y), abs(cols - x)) >= reach - 1)
        mates = np.flatnonzero((near & (label == label[y, x]) & ~used).ravel())
        if used[y, x] or mates.size == 0:
            continue
        plus, minus = zero.copy(), zero.copy()
        plus[y, x] = 1
        minus.ravel()[rng.choice(mates)] = 1
        used |= (plus + minus) > 0
        yield "pixel", plus, minus
        taken += 1
        if taken == MOST["pixel"]:
            return
