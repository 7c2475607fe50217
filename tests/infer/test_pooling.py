"""Partial pooling beats no pooling and complete pooling at the times that pixels were hidden, and errs by what it claims."""

from __future__ import annotations

import numpy as np

from benchmarks.pooling import errors


def test_partial_pooling_wins_and_is_honest() -> None:
    count, found = errors(seed=0, side=20)
    rms = {name: np.sqrt((error**2).mean()) for name, (error, _) in found.items()}
    honest = {name: np.sqrt(((error / sd) ** 2).mean()) for name, (error, sd) in found.items()}
    assert rms["partial pooling"] < 0.7 * min(rms["no pooling"], rms["complete pooling"]), rms
    assert abs(honest["partial pooling"] - 1) < 0.1, honest
    assert honest["complete pooling"] > 5, honest
    error, _ = found["partial pooling"]
    few, many = (np.sqrt((error[of] ** 2).mean()) for of in (count <= 1, count >= 6))
    assert many < 0.7 * few
