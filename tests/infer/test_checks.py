"""Leave-one-look-out: scores from their definitions, and no look predicts itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from fusion.cube.cube import Cube
from fusion.infer.checks import render, score, validate
from fusion.infer.problem import pose
from fusion.observe.observation import Observation
from fusion.process.tails import scales
from tests.infer import small

pytestmark = pytest.mark.slow  # minutes of compilation on two cores


def test_scores_follow_their_definitions() -> None:
    rng = np.random.default_rng(0)
    n = 4000
    sd = rng.uniform(0.01, 0.05, n)
    error = sd * rng.normal(size=n)
    values = pd.DataFrame({
        "sensor": "a", "scene": rng.choice(["s1", "s2"], n), "band": "red", "class": 0, "gap": 10.0, "measured": 0.2,
        "predicted": 0.2 + error, "sd": sd, "tail": 0.0, "linear": 0.2 + 2 * error,
    })
    (_, row), = score(values).iterrows()
    assert (row["values"], row["looks"]) == (n, 2)
    assert row["rmse"] == pytest.approx(np.sqrt(np.mean(error**2)))
    assert row["linear"] == pytest.approx(2 * row["rmse"])
    assert row["bias"] == pytest.approx(error.mean())
    assert [row["cover50"], row["cover90"], row["cover95"]] == pytest.approx([0.5, 0.9, 0.95], abs=0.025)
    assert row["rms_z"] == pytest.approx(1, abs=0.04)
    assert len(row["pit"]) == 10
    np.testing.assert_allclose(row["pit"], 0.1, atol=0.025)
    x = np.linspace(-0.6, 0.6, 24001)  # CRPS = integral of (F(x) - [x >= y])^2 for the first value alone
    one = score(values.iloc[:1])["crps"].iloc[0]
    from scipy.stats import norm

    cdf = norm.cdf(x, 0.2 + error[0], sd[0])
    assert one == pytest.approx(np.trapezoid((cdf - (x >= 0.2)) ** 2, x), rel=2e-3)


def test_scores_heed_the_law_of_errors() -> None:
    """Errors on eight scales: intervals hold what they say, with their tail index and not without; rows of several laws go together."""
    rng = np.random.default_rng(2)
    n, sd = 40_000, 0.02
    tail = rng.choice([0.1, 0.5], n)
    error = sd * rng.normal(size=n) * np.where(tail < 0.3, *(rng.choice(scales(one), n) for one in (0.1, 0.5)))
    values = pd.DataFrame({
        "sensor": "a", "scene": "s", "band": "red", "class": 0, "gap": 10.0, "measured": 0.2, "predicted": 0.2 + error, "sd": sd, "tail": tail,
        "linear": np.nan,
    })
    (_, row), (_, normal) = (*score(values).iterrows(), *score(values.assign(tail=0.0)).iterrows())
    assert [row["cover50"], row["cover90"], row["cover95"]] == pytest.approx([0.5, 0.9, 0.95], abs=0.01)
    np.testing.assert_allclose(row["pit"], 0.1, atol=0.008)
    assert normal["cover50"] > 0.55
    assert row["crps"] < normal["crps"]
    assert row["rms_z"] == normal["rms_z"] == pytest.approx(1, abs=0.02)


def test_gaps_and_classes_are_groups() -> None:
    values = pd.DataFrame({
        "sensor": "a", "scene": "s", "band": "red", "class": [0, 0, 1], "gap": [4.0, 20.0, np.inf], "measured": 0.0,
        "predicted": [0.1, 0.2, 0.3], "sd": 0.1, "tail": 0.0, "linear": np.nan,
    })
    assert len(score(values, ("gap",))) == 3
    assert score(values, ("class",))["rmse"].tolist() == pytest.approx([np.sqrt(0.025), 0.3])
    assert np.isnan(score(values, ("class",))["linear"]).all()
    console = Console(width=160, record=True)
    console.print(render(values, ("sensor", "gap")))
    assert "rmse" in console.export_text()


@pytest.fixture(scope="module")
def tile() -> tuple[list[Observation], Cube]:
    return small.tile()


def table(looks: list[Observation], cube: Cube, **more: Any) -> pd.DataFrame:
    hyper = pose(looks, cube, classes=4).hyper
    return validate(looks, cube, hyper=hyper, draws=0, classes=4, **more)


def test_a_look_never_predicts_itself(tile: tuple[list[Observation], Cube]) -> None:
    """What a held-out look measured moves its error and nothing else; its duplicate leaves with it."""
    looks, cube = tile
    found = table(looks, cube)
    assert set(found["scene"]) == {"look-0", "look-1", "look-2", "look-3"}
    assert found["sd"].gt(0.004).all()
    inner = found[found["scene"].isin(["look-1", "look-2"])]
    assert np.sqrt(((inner["predicted"] - inner["measured"]) ** 2).mean()) < 0.03
    assert np.isfinite(inner["linear"]).all()
    assert np.isnan(found[found["scene"] == "look-0"]["linear"]).all()
    assert set(inner["gap"]) == {32.0}
    shifted = replace(looks[1], data=looks[1].data + 0.1)
    both = [shifted, replace(shifted), looks[0], *looks[2:]]
    again = table(both, cube, most=1)
    mine, theirs = (f[(f["scene"] == "look-1")] for f in (found, again))
    assert theirs["measured"].mean() - mine["measured"].mean() == pytest.approx(0.1, abs=1e-6)
    assert abs(theirs["predicted"].mean() - mine["predicted"].mean()) < 0.004


def test_nothing_to_compare_is_an_empty_table(tile: tuple[list[Observation], Cube]) -> None:
    _, cube = tile
    assert table([], cube).empty
    assert score(table([], cube)).empty
