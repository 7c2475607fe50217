"""Runs on real Dask workers: every tile ends in a status, a bad tile or scene costs itself only, a rerun repeats nothing."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster

from fusion.cube.cube import Cube
from fusion.errors import JobError, StoreError
from fusion.service import drive as driving
from fusion.service import run as running
from fusion.service import tile as tiling
from fusion.service.reading import look
from fusion.service.store import CubeStore
from fusion.service.tile import fuse_tile
from tests.service.test_store import snapshot
from tests.service.worlds import failing_fit, poison_fit, quick_fit, small_job


def on(workers: LocalCluster) -> dict[str, Any]:
    return {"scheduler": workers.scheduler_address, "retries": 1, "read_retries": 1}


@pytest.fixture(scope="module")
def undisturbed(catalog: Path, tmp_path_factory: pytest.TempPathFactory, workers: LocalCluster) -> CubeStore:
    """A cube that nothing went wrong with."""
    job = small_job(catalog, tmp_path_factory.mktemp("run") / "cube.zarr", cluster=on(workers))
    summary = running.run(job, fit=quick_fit, progress="log")
    assert summary.done == summary.total == 9
    assert not summary.failed
    return CubeStore.open(job.output.store)


def test_a_run_leaves_a_whole_cube(undisturbed: CubeStore) -> None:
    assert undisturbed.verify() == []
    data = xr.open_zarr(undisturbed.url)
    assert (data["status"] == 0).all()
    assert (data["looks"].sel(sensor="landsat-8") == 2).all()
    assert np.isfinite(data["mean"].values).all()
    # the engine of this test has z = 2 x
    np.testing.assert_allclose(2 * data["canonical_sd"].values, data["sd"].values, rtol=1e-5)
    np.testing.assert_array_equal(data["mixing"].values[1, 2], 2 * np.eye(2))
    assert (data["tail"] == 0.25).all()
    level = data["decomposition"].sel(level="pixel").values
    inner = (..., slice(36, 60), slice(36, 60))  # of the tile in the middle, further from its border than the blend reaches
    np.testing.assert_allclose(level[inner], (data["sd"].values[inner] ** 2).mean(0), rtol=1e-4)
    assert np.isnan(data["decomposition"].sel(level="scene").values).all()
    record = undisturbed.record((0, 0))
    assert record["simulated"] is True
    assert record["scenes"]["landsat-8"] == ["landsat-8-2024-05-05", "landsat-8-2024-05-21"]
    assert undisturbed.provenance["versions"]["jax"]


def test_a_tile_is_the_one_that_the_engine_gave(undisturbed: CubeStore) -> None:
    at = tiling.desk(undisturbed.url, undisturbed.about["fingerprint"])
    tile = at.tile((1, 2))
    cube = Cube(tile.grid, undisturbed.cube.calendar, undisturbed.cube.basis)
    observations, _ = look(at.coverage.of(tile), tile, cube, 0)
    wanted = quick_fit(observations, cube, engine="", draws=2, seed=0, origin=tile.origin)
    reach = at.blend
    assert reach == 3
    inner = tuple(slice(w.start + reach, w.stop - reach) for w in tile.window)
    own = tuple(slice(c.start + reach, c.stop - reach) for c in tile.core)
    np.testing.assert_array_equal(undisturbed.group["mean"][(..., *inner)], wanted.mean[(..., *own)])


def test_a_second_run_repeats_nothing(undisturbed: CubeStore, catalog: Path) -> None:
    before = snapshot(Path(undisturbed.url))
    summary = running.run(small_job(catalog, undisturbed.url), fit=poison_fit)
    assert (summary.before, summary.done) == (9, 0)
    assert running.resume(undisturbed.url, fit=poison_fit).done == 0
    assert snapshot(Path(undisturbed.url)) == before


def test_a_committed_tile_is_not_fused_again(undisturbed: CubeStore) -> None:
    brief = fuse_tile(undisturbed.url, undisturbed.about["fingerprint"], (0, 0), fit=failing_fit)
    assert brief["skipped"]


def test_failing_and_poison_tiles_cost_themselves_only_and_are_mended_by_resume(
    undisturbed: CubeStore, catalog: Path, tmp_path: Path, workers: LocalCluster
) -> None:
    job = small_job(catalog, tmp_path / "cube.zarr", cluster=on(workers))
    summary = running.run(job, fit=failing_fit, progress="none")
    assert summary.done == 8
    assert "cannot be fitted" in summary.failed[0, 0]
    store = CubeStore.open(job.output.store)
    assert [(f.kind, f.tile) for f in store.verify()] == [("failed", (0, 0))]
    assert xr.open_zarr(store.url)["status"].values[0, 0] == 254
    assert np.isnan(xr.open_zarr(store.url)["mean"].values[..., :32, :32]).all()
    summary = running.resume(store.url, fit=poison_fit, progress="none")
    assert summary.done == 0
    assert "workers died" in summary.failed[0, 0]
    summary = running.resume(store.url, fit=quick_fit, progress="none")
    assert (summary.before, summary.done, summary.failed) == (8, 1, {})
    assert same_cube(store, undisturbed)


def same_cube(one: CubeStore, other: CubeStore) -> bool:
    """Whether two cubes are equal to the bit in every array."""
    names = list(one.layout.arrays())
    return all(np.array_equal(one.group[n][...], other.group[n][...], equal_nan=one.group[n].dtype.kind == "f") for n in names)


def test_no_worker_is_asked_for_the_stacks_of_its_threads(workers: LocalCluster) -> None:
    """On Python 3.11 that may stop all of them while others are started, as readers are all the time (CPython #106883)."""
    with Client(workers, set_as_default=False) as client:
        found = client.run(lambda dask_worker: sorted(dask_worker.periodic_callbacks))
    assert len(found) == 2
    assert not any("profile" in name for names in found.values() for name in names), found


def test_another_job_on_the_same_store_is_refused(undisturbed: CubeStore, catalog: Path) -> None:
    with pytest.raises(StoreError, match="another job"):
        running.run(small_job(catalog, undisturbed.url, spectrum={"rank": 3}), fit=quick_fit)


def test_a_rerun_sees_the_frozen_scenes(undisturbed: CubeStore) -> None:
    # the catalog has gone, but the scenes were frozen with the job
    job = small_job("/nowhere/items.json", undisturbed.url)
    assert job.fingerprint != undisturbed.about["fingerprint"]
    again = running.resume(undisturbed.url, fit=quick_fit)
    assert again.before == 9


def test_going_on_with_other_versions_is_said(
    undisturbed: CubeStore, tmp_path: Path, workers: LocalCluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(undisturbed.url, tmp_path / "cube.zarr")
    store = CubeStore.open(tmp_path / "cube.zarr")
    caplog.set_level(logging.WARNING, logger="fusion")
    for other in (False, True):
        if other:
            monkeypatch.setattr(running, "versions", lambda: {**undisturbed.provenance["versions"], "jax": "99.1", "platform": "another"})
        store.forget((1, 1))
        caplog.clear()
        assert running.resume(store.url, scheduler=workers.scheduler_address, fit=quick_fit, progress="none").done == 1
        told = [r.getMessage() for r in caplog.records if "other versions" in r.getMessage()]
        assert len(told) == other
    assert f"jax {undisturbed.provenance['versions']['jax']} -> 99.1" in told[0]
    assert "platform" not in told[0]


@pytest.fixture
def prepared(catalog: Path, tmp_path: Path) -> CubeStore:
    return running.prepare(small_job(catalog, tmp_path / "cube.zarr"))


def test_an_engine_that_returns_nan_fails_its_tile(prepared: CubeStore) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        made = quick_fit(*args, **kwargs)
        made.mean[..., 10, 10] = np.nan
        return made

    with pytest.raises(Exception, match="not finite"):
        fuse_tile(prepared.url, prepared.about["fingerprint"], (0, 0), fit=broken)
    assert prepared.committed() == set()


def test_a_store_that_cannot_be_written_stops_the_run(prepared: CubeStore) -> None:
    nothing: Any = SimpleNamespace(failed={})
    drive = driving.Drive(nothing, prepared, small_job("x", prepared.url), nothing, print, {}, nothing)
    future = SimpleNamespace(exception=lambda: StoreError("No space left on device"))
    drive._give_up((0, 0), future)  # type: ignore[arg-type]
    drive._give_up((0, 1), future)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="No space"):
        drive._give_up((0, 2), future)  # type: ignore[arg-type]


def test_no_secrets_in_the_store(prepared: CubeStore) -> None:
    text = json.dumps(prepared.items()) + json.dumps(prepared.about)
    assert "sig=" not in text
    assert "AWS_SECRET" not in text


def test_an_unreachable_scheduler_is_explained(catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fusion.service.cluster as cluster

    monkeypatch.setattr(cluster, "CONNECT", "1s")
    with pytest.raises(JobError, match="no Dask scheduler answers"):
        running.run(small_job(catalog, tmp_path / "c.zarr", cluster={"scheduler": "tcp://127.0.0.1:9"}), fit=quick_fit)


def learning_fit(observations: Any, cube: Cube, *, prior: Any = None, **given: Any) -> Any:
    """`quick_fit` that reports hyperparameters, and says in its message which prior it was given."""
    from fusion.process.hierarchy import Hyper

    made = quick_fit(observations, cube, **given)
    hyper = Hyper.default(cube.basis.rank, tuple(sorted({o.sensor for o in observations})))
    names = hyper.names()
    level = 0.5 + 0.1 * given["origin"][0] / 32
    made.diagnostics = {"theta": {"names": list(names), "mean": [level] * len(names), "sd": [0.2] * len(names)}}
    made.message = "alone" if prior is None else f"{np.mean(prior['mean']):.3f} {np.mean(prior['sd']):.3f}"
    return made


def test_a_sample_of_tiles_tells_all_tiles_what_they_share(catalog: Path, tmp_path: Path, workers: LocalCluster) -> None:
    job = small_job(catalog, tmp_path / "cube.zarr", cluster=on(workers), engine={"pool": 4})
    summary = running.run(job, fit=learning_fit, progress="none")
    assert (summary.done, summary.failed) == (9, {})
    store = CubeStore.open(job.output.store)
    told = store.objects.get("status/population.json")
    assert len(told) == 4
    messages = {r["message"] for r in store.records().values()}
    assert "alone" not in messages
    # the priors' means lie among the sampled tiles' own, and their sds under the prior's 1
    sampled = [t["mean"][0] for t in told]
    for message in messages:
        mean, sd = map(float, message.split())
        assert min(sampled) - 0.1 <= mean <= max(sampled) + 0.1
        assert sd < 1


def seeing_fit(observations: Any, cube: Cube, *, landscape: Any = None, **given: Any) -> Any:
    """`quick_fit` that says in its message which landscape it was given."""
    made = quick_fit(observations, cube, **given)
    made.message = "none" if landscape is None else f"{len(landscape.keys)} {float(np.abs(landscape.cover.centres).sum()):.9f}"
    return made


def test_all_tiles_are_fitted_with_one_landscape(catalog: Path, tmp_path: Path, workers: LocalCluster) -> None:
    job = small_job(catalog, tmp_path / "cube.zarr", cluster=on(workers), engine={"landscape": 4})
    assert running.run(job, fit=seeing_fit, progress="none").left == 0
    store = CubeStore.open(job.output.store)
    messages = {r["message"] for r in store.records().values()}
    assert len(messages) == 1
    assert messages.pop().startswith("14 ")  # two scenes of seven bands
    assert store.objects.names("status/surveys") == []
    kept = store.objects.get_bytes("status/landscape.npz")
    # a tile that is fused later gets the same one, although the surveys are gone
    store.forget((0, 0))
    assert running.resume(store.url, scheduler=workers.scheduler_address, fit=seeing_fit, progress="none").done == 1
    assert store.objects.get_bytes("status/landscape.npz") == kept
    assert len({r["message"] for r in store.records().values()}) == 1


def test_the_surveyed_tiles_are_spread_evenly() -> None:
    assert running.evenly((1, 1), 9) == [(0, 0)]
    assert running.evenly((9, 9), 9) == [(i, j) for i in (1, 4, 7) for j in (1, 4, 7)]
    assert running.evenly((1, 20), 4) == [(0, 2), (0, 7), (0, 12), (0, 17)]
    for tiles in ((3, 50), (2, 2), (40, 7)):
        chosen = running.evenly(tiles, 9)
        assert len(set(chosen)) == len(chosen) <= 9
        assert set(chosen) <= set(np.ndindex(*tiles))


STOPPED = """
import signal
import sys
from pathlib import Path
from fusion.service import run as running
from tests.service.worlds import slow_fit, small_job
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to Ctrl-C
job = small_job(sys.argv[1], sys.argv[2], cluster={"workers": 1, "memory": "4GiB"})
summary = running.run(job, fit=slow_fit, progress="none")
sys.exit(130 if summary.cancelled and summary.left else 1)
"""


def test_ctrl_c_leaves_a_store_that_is_readable_and_goes_on(
    undisturbed: CubeStore, catalog: Path, tmp_path: Path, workers: LocalCluster
) -> None:
    root, folder = Path(__file__).resolve().parents[2], tmp_path / "cube.zarr"
    run = subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(catalog), str(folder)], cwd=root, env=os.environ | {"PYTHONPATH": str(root)},
        start_new_session=True,
    )
    tiles = folder / "status" / "tiles"
    try:
        end = time.monotonic() + 240
        while not (tiles.exists() and any(tiles.iterdir())):
            assert run.poll() is None, "the run ended before a tile was committed"
            assert time.monotonic() < end
            time.sleep(0.02)
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to the driver and to its workers
        assert run.wait(timeout=120) == 130
    finally:
        run.kill()
        run.wait()
    store = CubeStore.open(folder)
    done = store.committed()
    assert 0 < len(done) < 9
    status = xr.open_zarr(folder)["status"].values
    assert (status == 0).sum() == len(done)  # gathered before the process ended, so that readers see what is there
    assert (status == 255).sum() == 9 - len(done)
    summary = running.resume(str(folder), scheduler=workers.scheduler_address, fit=quick_fit, progress="none")
    assert (summary.before, summary.left) == (len(done), 0)
    assert same_cube(store, undisturbed)


def hanging_fit(observations: Any, cube: Cube, *, origin: tuple[int, int], folder: Path, **given: Any) -> Any:
    """`quick_fit` that hangs the first time that it meets one tile, until it is released."""
    if origin == (-4, -4) and not (folder / "met").exists():
        (folder / "met").touch()
        while not (folder / "release").exists():
            time.sleep(0.05)
    return quick_fit(observations, cube, origin=origin, **given)


def test_a_tile_that_hangs_is_started_a_second_time(
    catalog: Path, tmp_path: Path, workers: LocalCluster, undisturbed: CubeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driving, "LEAST_WAIT", 2.0)
    job = small_job(catalog, tmp_path / "cube.zarr", cluster=on(workers))
    try:
        summary = running.run(job, fit=partial(hanging_fit, folder=tmp_path), progress="none")
        assert not (tmp_path / "release").exists()
        assert (summary.done, summary.failed) == (9, {})
        assert summary.repeated >= 1  # a blend may have been queued behind it
    finally:
        (tmp_path / "release").touch()
    assert same_cube(CubeStore.open(job.output.store), undisturbed)
