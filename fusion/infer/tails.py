"""The shape of errors, learned from fine looks that are predicted from all others, and draws that have it (`fusion.process.tails`)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fusion.infer.collapsed import INDEPENDENT, errors, temporal
from fusion.infer.posterior import Posterior
from fusion.infer.probes import Probes
from fusion.infer.theta import Evidence
from fusion.process.hierarchy import LEVELS, Hyper
from fusion.process.tails import learned, scales


def tail_of(known: Evidence, hyper: Hyper) -> float:
    """The tail index that left-out looks of probes tell of, each scale (scene to pixels) by itself; 0 where there are no probes."""
    batches, hierarchy, _ = known
    probes = [batch for batch in batches if isinstance(batch, Probes)]
    if not probes:
        return 0.0
    dates = temporal(hierarchy, hyper)
    found = [(np.asarray(batch.scale), np.asarray(errors(batch, hyper, dates))) for batch in probes]
    of_scale = (np.concatenate([z[scale == i].ravel() for scale, z in found]) for i in range(len(LEVELS)))
    return learned(of_scale, INDEPENDENT)


def with_tail(found: Posterior, tail: float) -> Posterior:
    """The same with errors of a tail index: each pair of draws is brought to one of the law's scales, whose mean square is 1.

    A scale is one number for all pixels and times, so that no covariance changes: not that of neighbours, nor the variance of a mean of many. The
    draws are moved where they lie.
    """
    if tail <= 0:
        return found
    pairs = len(found.draws) // 2
    for i, scale in enumerate(np.random.default_rng(pairs).permutation(scales(tail, max(pairs, 1)))[:pairs]):
        one, other = found.draws[2 * i], found.draws[2 * i + 1]
        moved = (scale - 1) / 2 * (one - other)
        one += moved
        other -= moved
    return replace(found, tail=tail)
