"""The command line: from nothing to a report, exit codes, errors without tracebacks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from distributed import LocalCluster
from typer.testing import CliRunner, Result

from fusion.infer.posterior import Status
from fusion.service.cli import app
from fusion.service.store import CubeStore
from fusion.service.tile import fuse_tile
from tests.service.worlds import BBOX, quick_fit

runner = CliRunner()


def fusion(*arguments: object) -> Result:
    return runner.invoke(app, [str(a) for a in arguments])


@pytest.fixture
def job_file(catalog: Path, tmp_path: Path, workers: LocalCluster) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(f"""
name = "test"
area = {{ bbox = {list(BBOX)} }}
target = {{ align = 15.0 }}
period = {{ start = 2024-05-01, end = 2024-05-25 }}
spectrum = {{ rank = 2 }}
tiles = {{ core = 32, halo = 4 }}
output = {{ store = "cube.zarr", draws = 2 }}
cluster = {{ scheduler = "{workers.scheduler_address}" }}
[[sensors]]
name = "landsat-8"
catalog = "{catalog}"
""")
    return path


def test_init_writes_a_job_and_never_over_one(tmp_path: Path) -> None:
    assert fusion("job", "init", tmp_path / "job.toml").exit_code == 0
    again = fusion("job", "init", tmp_path / "job.toml")
    assert again.exit_code == 1
    assert "--force" in again.output
    assert fusion("job", "init", tmp_path / "job.toml", "--force").exit_code == 0


def test_schema_and_version() -> None:
    assert json.loads(fusion("job", "schema").output)["title"] == "Job"
    assert re.match(r"fusion \d+\.\d+", fusion("--version").output)


def test_plan(job_file: Path, tmp_path: Path) -> None:
    told = fusion("plan", job_file, "--picture", tmp_path / "plan.png")
    assert told.exit_code == 0, told.output
    assert "9 of 32 px" in told.output
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(fusion("plan", job_file, "--json").output)["tiles"] == 9


def test_errors_are_sentences(job_file: Path, tmp_path: Path) -> None:
    job_file.write_text(job_file.read_text().replace("halo", "hallo"))
    told = fusion("run", job_file)
    assert told.exit_code == 1
    assert "did you mean 'halo'" in told.output
    assert "Traceback" not in told.output
    for command in ("status", "verify", "resume", "report"):
        told = fusion(command, tmp_path / "none.zarr")
        assert told.exit_code == 1
        assert "holds no cube" in told.output


def test_status_verify_and_report_of_a_partial_cube(job_file: Path, tmp_path: Path) -> None:
    from fusion.service import run as running
    from fusion.service.job import Job

    store = running.prepare(Job.load(job_file))
    assert fusion("verify", store.url).exit_code == 3
    for index in ((0, 0), (0, 1)):
        fuse_tile(store.url, store.about["fingerprint"], index, fit=quick_fit)
    store.write_failure((1, 1), "no luck <b>")
    store.finish()
    told = fusion("status", store.url)
    assert "2 of 9 tiles" in told.output
    assert "no luck" in told.output
    assert fusion("verify", store.url).exit_code == 3
    told = fusion("report", store.url)
    assert told.exit_code == 0, told.output
    page = Path(f"{store.url}.html").read_text()
    assert page.count("data:image/png;base64,") >= 4
    assert "simulated" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page), "the report is not self-contained"


def test_run_and_resume(job_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fusion.service import run as running

    original = running.fuse
    quick = {"fit": quick_fit, "progress": "none"}
    monkeypatch.setattr(running, "fuse", lambda store, job, **given: original(store, job, **{**given, **quick}))
    told = fusion("run", job_file)
    assert told.exit_code == 0, told.output
    assert "9/9 tiles" in told.output
    store = CubeStore.open(job_file.parent / "cube.zarr")
    assert {r["status"] for r in store.records().values()} == {Status.OK.name}
    assert fusion("verify", store.url).exit_code == 0
    assert fusion("resume", store.url, "--no-report").exit_code == 0


def test_every_command_has_help() -> None:
    for command in (["--help"], ["plan", "--help"], ["run", "--help"], ["job", "--help"], ["job", "init", "--help"]):
        told = runner.invoke(app, command)
        assert told.exit_code == 0
        assert len(told.output) > 100
