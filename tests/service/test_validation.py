"""Validation of a job or a cube: tiles are sampled and read as a run reads them, scores are those of the pooled values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import LocalCluster
from typer.testing import CliRunner

from fusion.errors import JobError, StoreError
from fusion.service import run as running
from fusion.service import validation
from fusion.service.cli import app
from fusion.service.job import Job
from fusion.service.store import CubeStore
from fusion.service.tile import fuse_tile
from fusion.service.validation import validate
from tests.service.worlds import archive, failing_measure, honest_measure, quick_fit, small_job


@pytest.fixture
def job(catalog: Path, tmp_path: Path, workers: LocalCluster) -> Job:
    return small_job(catalog, tmp_path / "cube.zarr", cluster={"scheduler": workers.scheduler_address})


def test_a_job_is_validated_without_a_store(job: Job, tmp_path: Path) -> None:
    found = validate(job, tiles=3, looks=2, measure=honest_measure, progress="none")
    assert not (tmp_path / "cube.zarr").exists()
    assert len(found.tiles) == found.values["tile"].nunique() == 3
    assert found.values["scene"].nunique() == 2
    assert found.simulated
    assert not found.failed
    # class 1 of the stand-in is darker than class 0 by construction, and numbers go from dark to bright
    bright = found.values.groupby(["tile", "class"], observed=True)["measured"].mean().unstack()
    assert (bright[0] < bright[1]).all()
    again = validate(job, tiles=3, looks=2, measure=honest_measure, progress="none")
    assert again.tiles == found.tiles
    np.testing.assert_array_equal(again.values["predicted"], found.values["predicted"])
    assert validate(job, tiles=99, looks=1, measure=honest_measure, progress="none").values["tile"].nunique() == 9


def test_the_document_has_the_scores_and_the_picture(job: Job, tmp_path: Path) -> None:
    found = validate(job, tiles=2, looks=2, measure=honest_measure, progress="none")
    picture = found.write(tmp_path / "validation.json")
    assert picture.read_bytes().startswith(b"\x89PNG")
    document = json.loads((tmp_path / "validation.json").read_text())
    assert set(document["scores"]) == {"sensor", "sensor,band", "sensor,class", "sensor,gap", "sensor,band,class,gap"}
    whole = document["scores"]["sensor"][0]
    assert whole["values"] == len(found.values) == document["values"]
    assert whole["rmse"] == pytest.approx(0.01, rel=0.03)
    assert whole["cover90"] == pytest.approx(0.9, abs=0.02)
    assert whole["linear"] is None
    assert sum(row["values"] for row in document["scores"]["sensor,band,class,gap"]) == len(found.values)
    with pytest.raises(StoreError, match="cannot be written"):
        found.write(tmp_path / "nowhere" / "validation.json")


def test_committed_tiles_come_first_and_bring_their_theta(job: Job) -> None:
    from fusion.process.hierarchy import Hyper

    def with_theta(*args: Any, **given: Any) -> Any:
        made = quick_fit(*args, **given)
        made.hyper = Hyper.default(2, ("landsat-8",))
        return made

    store = running.prepare(job)
    for index in ((1, 0), (2, 2)):
        fuse_tile(store.url, store.about["fingerprint"], index, fit=with_theta)
    found = validate(CubeStore.open(store.url, read_only=True), tiles=3, looks=1, measure=honest_measure, progress="none")
    assert {(1, 0), (2, 2)} <= set(found.tiles)
    told = found.values.groupby("tile", observed=True)["theta"].first().to_dict()
    assert told.pop("1.0") == told.pop("2.2") == "given"
    assert list(told.values()) == ["learned"]


def test_what_tiles_learned_together_goes_with_their_theta(catalog: Path, tmp_path: Path, workers: LocalCluster) -> None:
    def told(*args: Any, **given: Any) -> Any:
        return honest_measure(*args, **given).assign(theta=type(given.get("landscape")).__name__)

    job = small_job(catalog, tmp_path / "cube.zarr", cluster={"scheduler": workers.scheduler_address}, engine={"landscape": 2})
    running.run(job, fit=quick_fit, progress="none")
    found = validate(CubeStore.open(job.output.store, read_only=True), tiles=2, looks=1, measure=told, progress="none")
    assert set(found.values["theta"]) == {"Landscape"}
    assert set(validate(job, tiles=1, looks=1, measure=told, progress="none").values["theta"]) == {"NoneType"}


def test_a_tile_that_cannot_be_examined_costs_itself(job: Job) -> None:
    found = validate(job, tiles=9, looks=1, measure=failing_measure, progress="none")
    assert list(found.failed) == [(0, 0)]
    assert "cannot be examined" in found.failed[0, 0]
    assert len(found.tiles) == 8


def test_what_cannot_be_validated_is_explained(job: Job, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="at least one"):
        validate(job, tiles=0)
    one = archive(tmp_path / "one", days=("2024-05-05",))
    with pytest.raises(JobError, match="two scenes"):
        validate(small_job(one, tmp_path / "c.zarr", cluster=job.cluster.model_dump()), measure=honest_measure)


def test_from_a_terminal(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = validation.validate
    monkeypatch.setattr(validation, "validate", lambda *a, **k: original(*a, **k, measure=honest_measure, progress="none"))
    store = running.prepare(job)
    arguments = ["validate", store.url, "--tiles", "2", "--looks", "2", "--to", str(tmp_path / "v.json")]
    told = CliRunner().invoke(app, arguments)
    assert told.exit_code == 0, told.output
    assert "simulated" in told.output
    assert "cover90" in told.output
    assert json.loads((tmp_path / "v.json").read_text())["source"] == store.url
    told = CliRunner().invoke(app, ["validate", str(tmp_path / "none.toml")])
    assert told.exit_code == 1
    assert "fusion job init" in told.output
