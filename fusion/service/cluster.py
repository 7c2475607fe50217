"""Who works: a local Dask cluster, the address of a scheduler, or one process per GPU.

A GPU worker's environment is set before its process imports JAX: one visible device, a memory share, a persistent compile cache.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
from dask.utils import parse_bytes
from distributed import Client, LocalCluster, Nanny, Scheduler, SpecCluster, WorkerPlugin
from distributed.system import MEMORY_LIMIT
from distributed.worker import Worker

from fusion.errors import JobError
from fusion.service.job import Cluster

log = logging.getLogger("fusion")
CONNECT = "30s"

HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""XLA takes its arrays anew for every call; in pages of 4 kB that is a sixth of a fit's CPU time (measured). glibc 2.35 and newer heed this"""
SETTINGS = {
    "distributed.scheduler.allowed-failures": 2,  # a tile that kills this many workers is given up, not the job
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.scheduler.worker-ttl": "10 minutes",
    "distributed.scheduler.work-stealing": True,
    "distributed.worker.memory.target": False,  # results are tiny: there is nothing to spill
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": 0.95,
    "distributed.worker.memory.terminate": 0.98,
    "distributed.nanny.pre-spawn-environ.GLIBC_TUNABLES": HUGE_PAGES,  # the C library reads it as a process starts
    "distributed.worker.profile.enabled": False,  # asks for all threads' stacks, which on Python 3.11 may stop them for good (CPython #106883)
    "distributed.worker.daemon": False,
    "distributed.comm.timeouts.connect": "30s",
    "distributed.comm.retry.count": 3,
    "distributed.admin.tick.limit": "1 minute",
}


@dataclass(frozen=True)
class Workers:
    """Who will work, as far as it is known before the work."""

    number: int
    threads: int
    """tiles at a time in each"""
    memory: float | None
    """bytes that each may use; None = nobody says"""
    note: str = ""
    """what a reader of the plan should know about these numbers"""


def workers_of(cluster: Cluster) -> Workers:
    """The workers of a job: as it says, else those that its scheduler has now, else those that this machine can hold."""
    try:
        memory = float(parse_bytes(cluster.memory)) if cluster.memory else None
    except ValueError as error:
        raise JobError(f"cluster.memory = {cluster.memory!r} is not a size: write 8GiB") from error
    if cluster.scheduler:
        return _of_scheduler(cluster, memory)
    number = cluster.workers or len(cluster.gpus) or max(1, len(os.sched_getaffinity(0)) // cluster.threads)
    return Workers(number, cluster.threads, memory or MEMORY_LIMIT * 0.9 / number)


def _of_scheduler(cluster: Cluster, memory: float | None) -> Workers:
    try:
        with Client(cluster.scheduler, timeout=CONNECT, set_as_default=False) as client:
            found = list(client.scheduler_info()["workers"].values())
    except (OSError, TimeoutError, ValueError) as error:
        note = f"no Dask scheduler answers at {cluster.scheduler} ({error}): its workers and their memory are not known"
        return Workers(cluster.workers or 1, cluster.threads, memory, note)
    if not found:
        note = f"the scheduler at {cluster.scheduler} has no worker yet: number, threads and memory of its workers are not known"
        return Workers(cluster.workers or 1, cluster.threads, memory, note)
    note, limits = "", [worker.get("memory_limit") for worker in found]
    if memory is None and all(limits):
        memory = float(min(limits))
    elif memory is None:
        note = f"workers at {cluster.scheduler} have no memory limit: whether a tile fits is not checked; give cluster.memory"
    threads = 1 if cluster.gpus else max(int(worker["nthreads"]) for worker in found)
    return Workers(cluster.workers or len(found), threads, memory, note)


def cache_folder(cluster: Cluster) -> Path:
    """Where compiled programs are kept between processes and runs."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(cluster.cache) if cluster.cache else home / "fusion" / "compiled"


def environment(cluster: Cluster) -> dict[str, str]:
    """What a worker's process needs before it imports anything."""
    found = {
        "JAX_COMPILATION_CACHE_DIR": str(cache_folder(cluster)),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        "GDAL_HTTP_TIMEOUT": "60", "GDAL_HTTP_CONNECTTIMEOUT": "15", "GDAL_HTTP_MAX_RETRY": "4", "GDAL_HTTP_RETRY_DELAY": "1",
        "GDAL_HTTP_RETRY_CODES": "ALL", "GDAL_CACHEMAX": "128",
        "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "GLIBC_TUNABLES": HUGE_PAGES,
    }
    return {k: os.environ.get(k, v) for k, v in found.items()}


class Prepared(WorkerPlugin):
    """Sets a worker up however it was started: environment, compile cache; one of ours leaves Ctrl-C to the driver."""

    name = "fusion"

    def __init__(self, cluster: Cluster, driver: int | None = None) -> None:
        self.environment = environment(cluster)
        self.driver = driver
        """process that started the workers; None = somebody else did"""

    def setup(self, worker: Worker) -> None:
        """Runs once in every worker, before its first tile."""
        for key, value in self.environment.items():
            os.environ.setdefault(key, value)
        # a terminal sends Ctrl-C to every process of ours; the driver stops the workers in order
        if self.driver not in (None, os.getpid()) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        folder, own = Path(os.environ["JAX_COMPILATION_CACHE_DIR"]), f"{len(os.sched_getaffinity(0))}-cores"
        if folder.name != own:  # a program is cut into parts for the cores that compile it, and JAX would use it on any number
            folder = folder / own
            os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            log.warning("no compile cache on %s: %s", worker.address, error)


def _gpu_workers(cluster: Cluster) -> dict[int, dict[str, Any]]:
    base = environment(cluster) | {"XLA_CLIENT_MEM_FRACTION": "0.9"}
    return {
        device: {"cls": Nanny, "options": {
            "nthreads": 1, "resources": {"GPU": 1}, "memory_limit": cluster.memory or "auto",
            "env": base | {"CUDA_VISIBLE_DEVICES": str(device)},
        }}
        for device in cluster.gpus
    }


@contextmanager
def connected(cluster: Cluster) -> Iterator[Client]:
    """A Dask client with prepared workers; closes what it started."""
    with dask.config.set(SETTINGS):
        if cluster.scheduler:
            try:
                client = Client(cluster.scheduler, timeout=CONNECT, set_as_default=False)
            except (OSError, TimeoutError, ValueError) as error:
                asked = f"no Dask scheduler answers at {cluster.scheduler} ({error})"
                raise JobError(f"{asked}: check the address, start it first") from error
            owned = None
        else:
            workers = workers_of(cluster)
            if cluster.gpus:
                scheduler = {"cls": Scheduler, "options": {"dashboard_address": cluster.dashboard}}
                owned = SpecCluster(workers=_gpu_workers(cluster), scheduler=scheduler, silence_logs=logging.ERROR)
            else:
                owned = LocalCluster(
                    n_workers=workers.number, threads_per_worker=workers.threads, memory_limit=int(workers.memory or 0),
                    env=environment(cluster), dashboard_address=cluster.dashboard, silence_logs=logging.ERROR,
                )
            client = Client(owned, set_as_default=False)
        try:
            client.register_plugin(Prepared(cluster, None if owned is None else os.getpid()))
            yield client
        finally:
            _quietly_closed(client)
            if owned is not None:
                _quietly_closed(owned)


def _quietly_closed(thing: Any) -> None:
    """A cluster whose scheduler was killed cannot be closed in an orderly way; that is no second error."""
    try:
        thing.close(timeout=20)
    except Exception as error:  # distributed raises many kinds here
        log.debug("closing %s: %s", type(thing).__name__, error)
