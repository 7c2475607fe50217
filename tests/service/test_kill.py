"""Kill tests with real processes: SIGKILL of a worker, of the client, of the scheduler at a random time, then resume.

The law: the final cube equals the undisturbed one to the bit, and no tile that was committed before is fused again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from distributed import Client, LocalCluster

from fusion.errors import JobError
from fusion.service import cluster
from fusion.service import run as running
from fusion.service.store import CubeStore
from tests.service.test_run import on, same_cube
from tests.service.worlds import quick_fit, slow_fit, small_job

ROOT = Path(__file__).resolve().parents[2]
CLIENT = """
import sys
from fusion.service import run
from tests.service.worlds import slow_fit, small_job
catalog, store, scheduler = sys.argv[1:]
run.run(small_job(catalog, store, cluster={"scheduler": scheduler, "retries": 1}), fit=slow_fit, progress="none")
"""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that died is waited for five seconds."""
    monkeypatch.setattr(cluster, "CONNECT", "5s")


@pytest.fixture(scope="module")
def wanted(catalog: Path, tmp_path_factory: pytest.TempPathFactory, workers: LocalCluster) -> CubeStore:
    job = small_job(catalog, tmp_path_factory.mktemp("wanted") / "cube.zarr", cluster=on(workers))
    assert running.run(job, fit=quick_fit, progress="none").done == 9
    return CubeStore.open(job.output.store)


def processes(*arguments: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    quiet = subprocess.DEVNULL
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=environment, stdout=quiet, stderr=quiet)


def wait_for(condition: object, seconds: float = 240.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def records(folder: Path) -> dict[str, tuple[int, bytes]]:
    """The committed tiles by name, with the time and content of their records."""
    tiles = folder / "status" / "tiles"
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in tiles.glob("*.json")} if tiles.exists() else {}


def resumed_equals(folder: Path, wanted: CubeStore, scheduler: str) -> int:
    """Resumes, checks the law, and returns how many tiles were committed when it began."""
    before = records(folder)
    summary = running.resume(str(folder), scheduler=scheduler, fit=quick_fit, progress="none")
    # a task of the dead client may still be on a worker and commit its tile between the two looks
    assert summary.before >= len(before)
    assert summary.before + summary.done == 9
    assert summary.failed == {}
    after = records(folder)
    assert {name: after[name] for name in before} == before, "a committed tile was fused again"
    store = CubeStore.open(folder)
    assert store.verify() == []
    assert same_cube(store, wanted)
    return len(before)


def kill_client(catalog: Path, folder: Path, workers: LocalCluster, pause: float) -> None:
    client = processes("-c", CLIENT, str(catalog), str(folder), workers.scheduler_address)
    wait_for(lambda: (folder / "status" / "claim.json").exists() or client.poll() is not None)
    time.sleep(pause)
    client.send_signal(signal.SIGKILL)
    client.wait()


def kill_worker(catalog: Path, folder: Path, workers: LocalCluster, pause: float) -> int:
    """Kills one of two workers under a run and waits for the run's end; returns the tiles committed at the kill."""
    with Client(workers.scheduler_address, set_as_default=False) as seen:
        pids = list(seen.run(os.getpid, nanny=False).values())
    client = processes("-c", CLIENT, str(catalog), str(folder), workers.scheduler_address)
    try:
        wait_for(lambda: (folder / "status" / "claim.json").exists() or client.poll() is not None)
        time.sleep(pause)
        done = len(records(folder))
        os.kill(pids[0], signal.SIGKILL)
        assert client.wait(timeout=300) == 0, "the run did not survive the loss of a worker"
        return done
    finally:
        client.kill()
        client.wait()


@contextmanager
def own_cluster(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A scheduler and a worker as processes of their own."""
    file = folder / "scheduler.json"
    listen = ("--port", "0", "--host", "127.0.0.1", "--no-dashboard")
    scheduler = processes("-m", "distributed.cli.dask_scheduler", "--scheduler-file", str(file), *listen)
    worker = None
    try:
        wait_for(lambda: file.exists() and file.stat().st_size > 0)
        alone = ("--nthreads", "1", "--no-dashboard", "--death-timeout", "240")
        worker = processes("-m", "distributed.cli.dask_worker", "--scheduler-file", str(file), *alone)
        address = json.loads(file.read_text())["address"]
        with Client(address, set_as_default=False) as seen:
            seen.wait_for_workers(1, timeout=240)
        yield scheduler, address
    finally:
        for process in (worker, scheduler):
            if process is not None:
                process.kill()
                process.wait()


def test_the_client_is_killed(catalog: Path, tmp_path: Path, workers: LocalCluster, wanted: CubeStore) -> None:
    kill_client(catalog, tmp_path / "cube.zarr", workers, pause=1.0)
    resumed_equals(tmp_path / "cube.zarr", wanted, workers.scheduler_address)


def test_a_worker_is_killed(catalog: Path, tmp_path: Path, workers: LocalCluster, wanted: CubeStore) -> None:
    kill_worker(catalog, tmp_path / "cube.zarr", workers, pause=2.0)
    resumed_equals(tmp_path / "cube.zarr", wanted, workers.scheduler_address)


def scheduler_trial(catalog: Path, folder: Path, workers: LocalCluster, wanted: CubeStore, pause: float) -> int:
    """Kills the scheduler `pause` seconds after a run on it began; returns the tiles committed when the cube is resumed."""
    folder.mkdir(parents=True, exist_ok=True)
    cube = folder / "cube.zarr"
    with own_cluster(folder) as (scheduler, address):
        job = small_job(catalog, cube, cluster={"scheduler": address, "retries": 1})
        running.prepare(job)

        def killed_later() -> None:
            wait_for(lambda: len(records(cube)) >= 1)
            time.sleep(pause)
            scheduler.send_signal(signal.SIGKILL)

        killer = Thread(target=killed_later)
        killer.start()
        with pytest.raises(JobError, match="scheduler went away"):
            running.run(job, fit=slow_fit, progress="none")
        killer.join()
    assert records(cube)
    return resumed_equals(cube, wanted, workers.scheduler_address)


def test_the_scheduler_is_killed(catalog: Path, tmp_path: Path, workers: LocalCluster, wanted: CubeStore) -> None:
    scheduler_trial(catalog, tmp_path, workers, wanted, pause=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(36))
def test_whatever_dies_whenever(
    trial: int, catalog: Path, tmp_path: Path, workers: LocalCluster, wanted: CubeStore,
    record_property: Callable[[str, object], None],
) -> None:
    """At a random time of the run; `--junitxml=FILE` keeps what each trial met."""
    rng = np.random.default_rng(trial)
    kind, cube = ("client", "worker", "scheduler")[trial % 3], tmp_path / "cube.zarr"
    pause = rng.uniform(0.0, 1.5 if kind == "scheduler" else 4.0)
    if kind == "client":
        kill_client(catalog, cube, workers, pause)
        running.prepare(small_job(catalog, cube, cluster=on(workers)))  # it may have died before the template was whole
        kept = resumed_equals(cube, wanted, workers.scheduler_address)
    elif kind == "worker":
        kept = kill_worker(catalog, cube, workers, pause)
        assert resumed_equals(cube, wanted, workers.scheduler_address) == 9, "the run itself was to finish"
    else:
        kept = scheduler_trial(catalog, tmp_path, workers, wanted, pause)
    record_property("killed", kind)
    record_property("pause", round(pause, 2))
    record_property("committed", kept)
