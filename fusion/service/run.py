"""The work: every tile that is not committed yet becomes one Dask task, a bounded number at a time.

Only the tiles in flight are known to the scheduler, so its memory and the driver's do not grow with the area. A task that fails
is tried again up to a cap and then noted as FAILED; a tile that kills its workers is given up alone; a tile that hangs behind all
others is started a second time elsewhere, which is safe because writing a tile is idempotent. Whatever dies, `resume` continues.
"""

from __future__ import annotations

import importlib.metadata
import logging
import math
import platform
import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
from distributed import Client, Future
from distributed.scheduler import KilledWorker

from fusion.cube.cube import Cube
from fusion.cube.spectrum import SpectralBasis
from fusion.errors import FusionError, JobError, StoreError
from fusion.observe.sensor import sensor
from fusion.service.catalog import Found, find
from fusion.service.cluster import connected
from fusion.service.continued import before_of, continue_tile
from fusion.service.flights import sharpened
from fusion.service.job import Job, check
from fusion.service.objects import normal_url
from fusion.service.plan import Plan, make_plan
from fusion.service.progress import Show, Summary, shown
from fusion.service.store import CubeStore
from fusion.service.tile import Fit, fuse_tile, pilot_tile

log = logging.getLogger("fusion")

Index = tuple[int, int]
IN_FLIGHT = 3
"""tasks per worker thread that the scheduler knows of"""
STORE_FAILURES = 3
"""tiles in a row that cannot be written before the run stops: the disk is full or the bucket is gone"""
POLL = 0.02
"""seconds between looks at the tasks in flight"""
STRAGGLER = 4.0
"""times the median tile after which a last tile is started a second time"""
LEAST_WAIT = 60.0
"""seconds that any tile may take before it is a straggler"""


def basis_of(job: Job) -> SpectralBasis:
    """The spectral basis that a job asks for: the library, turned to what the job's own bands can tell apart.

    With an imaging spectrometer among the sensors all wavelengths count for more.
    """
    named = [sensor(s.name) for s in job.sensors]
    everywhere = any(not s.bands for s in named)
    bands = [b.response for s in named for b in s.bands]
    return SpectralBasis.seen_by(bands, job.spectrum.rank, elsewhere=0.01 if everywhere else 0.03)


def plan(job: Job, found: Found | None = None) -> Plan:
    """What a job will cost: searches the catalogs, reads no pixels."""
    check(job)
    cube = Cube(job.grid(), job.calendar(), basis_of(job))
    return make_plan(job, cube, find(job) if found is None else found)


def versions() -> dict[str, str]:
    """What made the cube."""
    names = ("fusion-cube", "jax", "jaxlib", "numpyro", "numpy", "zarr", "dask", "rasterio", "pystac")
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def prepare(job: Job) -> CubeStore:
    """The job's store: opened if the job was begun before (its frozen scenes are kept), else planned and created."""
    check(job)
    url = normal_url(job.output.store)
    claim = CubeStore.claim(url)
    if claim is not None and claim.get("fingerprint") != job.fingerprint:
        raise StoreError(f"{url} belongs to another job: a cube mixes no two; choose another output address or delete that cube")
    if claim is not None and claim.get("ready"):
        return CubeStore.open(url)
    made = plan(job)
    made.require()
    if job.spectrum.flights:
        cube, told = sharpened(made.cube, made.found.items, job)
        made = replace(made, cube=cube, notes=made.notes + told)
    for note in made.notes:
        log.warning("%s", note)
    provenance = {"versions": versions(), "seed": job.engine.seed, "notes": made.notes[:1000], "halo": made.halo}
    return CubeStore.create(
        url, made.layout, job=job.document(), fingerprint=job.fingerprint, items=made.found.items, provenance=provenance
    )


def run(job: Job, *, fit: Fit | None = None, progress: str = "auto") -> Summary:
    """Fuses every tile of a job that is not committed yet.

    fit: replaces `fusion.infer.fit` (simulation of load, other engines). progress: auto, rich, tqdm, log or none.
    Raises JobError if the job cannot run, StoreError if the cube cannot be written; a failing tile is counted, not raised.
    """
    return fuse(prepare(job), job, fit=fit, progress=progress)


def resume(url: str, *, scheduler: str | None = None, fit: Fit | None = None, progress: str = "auto") -> Summary:
    """Continues an interrupted run from nothing but its store."""
    store = CubeStore.open(url)
    return fuse(store, Job.of(store.about["job"], f"the job in {store.url}").on(scheduler), fit=fit, progress=progress)


def fuse(store: CubeStore, job: Job, *, fit: Fit | None = None, progress: str = "auto") -> Summary:
    """Fuses the tiles of an existing store that are not committed yet, on the job's cluster."""
    done = store.committed()
    summary = Summary(store.url, math.prod(store.layout.tiles), before=len(done))
    try:
        if summary.left:
            with connected(job.cluster) as client, shown(progress, summary) as show:
                _fuse_rest(client, store, job, summary, show, {"fit": fit, "read_retries": job.cluster.read_retries}, done)
    finally:  # after our own workers have ended: what they were writing is written, or it is not
        _settled(store)
    return summary


def _fuse_rest(
    client: Client, store: CubeStore, job: Job, summary: Summary, show: Show, options: dict[str, Any], done: set[Index]
) -> None:
    """Fuses what is not done; Ctrl-C ends it in order."""
    try:
        if job.engine.pool:
            learn_population(client, store, job, options)
        todo = (i for i in np.ndindex(*store.layout.tiles) if i not in done)
        task = continue_tile if before_of(store) else fuse_tile
        _Drive(client, store, job, summary, show, options, task=task).over(todo)
    except KeyboardInterrupt:
        summary.cancelled = True
        log.warning("stopped: %d of %d tiles are committed; `fusion resume %s` continues", len(store.committed()), summary.total, store.url)


def _settled(store: CubeStore) -> None:
    """The statuses gathered; a store that cannot be written now stays as it is, which is readable and resumable."""
    try:
        store.finish()
    except StoreError as error:
        log.error("%s", error)
        raise


def learn_population(client: Client, store: CubeStore, job: Job, options: dict[str, Any]) -> None:
    """Stages 1 and 2 of the parameter model: a sample of tiles is fitted; what they tell is kept for all tiles to shrink to."""
    if store.objects.get("status/population.json") is not None:
        return
    down, across = store.layout.tiles
    count = min(job.engine.pool, down * across)
    chosen = np.random.default_rng(job.engine.seed).choice(down * across, count, replace=False)
    sample = [(int(c // across), int(c % across)) for c in sorted(chosen)]
    log.info("learning what tiles share from %d of %d", count, down * across)
    quiet = Summary(store.url, count)
    _Drive(client, store, job, quiet, lambda _: None, options, task=pilot_tile).over(iter(sample))
    told = [s for i in sample if (s := store.objects.get(f"status/pilots/{i[0]}.{i[1]}.json")) is not None]
    if not told:
        reason = next(iter(quiet.failed.values()), "none of them had data")[:500]
        raise JobError(f"none of the {count} sampled tiles could be fitted: {reason}; sample more (engine.pool)")
    store.objects.put("status/population.json", told)


@dataclass
class _Drive:
    """The window of tasks in flight."""

    client: Client
    store: CubeStore
    job: Job
    summary: Summary
    show: Show
    options: dict[str, Any]
    task: Callable[..., dict[str, Any]] = fuse_tile
    flying: dict[Future, tuple[Index, float]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    unwritten: int = 0
    threads: int = -1
    """of all workers; -1 = not looked yet"""
    looked: float = -1e9
    name: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    def over(self, todo: Iterator[Index]) -> None:
        """Until every tile is committed or given up."""
        try:
            while True:
                for index in islice(todo, max(0, self._width() - len(self.flying))):
                    self._submit(index)
                if not self.flying:
                    return
                landed = self._landed()
                for future, result in landed:
                    self._take(future, result)
                if self._gone():
                    raise self._went_away()
                if not landed:
                    self._second_start()
                else:
                    self.show(self.summary)
        except (FusionError, KeyboardInterrupt):
            raise
        except Exception as error:  # a client whose scheduler died raises many kinds, from wherever it happens to be
            if self._gone():
                raise self._went_away() from error
            raise
        finally:
            if self.flying and self.client.status == "running":
                self.client.cancel(list(self.flying), force=True)

    def _width(self) -> int:
        """Tasks in flight: a few per thread that there is now (workers come and go); looked up every few seconds."""
        if time.monotonic() - self.looked > 5:
            self.looked = time.monotonic()
            before, self.threads = self.threads, sum(self.client.nthreads().values())
            if self.threads == 0 and before != 0:
                log.warning("the scheduler has no workers: waiting until some join")
        return max(4, IN_FLIGHT * self.threads)

    def _submit(self, index: Index, attempt: int = 0) -> None:
        future = self.client.submit(
            self.task, self.store.url, self.store.about["fingerprint"], index, **self.options,
            key=f"{self.task.__name__}-{index[0]}.{index[1]}-{attempt}-{self.name}", pure=False, retries=self.job.cluster.retries,
            resources={"GPU": 1} if self.job.cluster.gpus else None,
        )
        self.flying[future] = index, time.monotonic()

    def _landed(self) -> list[tuple[Future, dict[str, Any] | None]]:
        """The tasks that ended, with their results fetched in one go; none if nothing ends within two seconds.

        A future's status is a local attribute, so looking at a few hundred of them costs less than waiting on them.
        """
        end = time.monotonic() + 2
        while time.monotonic() < end:
            done = [f for f in self.flying if f.status != "pending"]
            if done:
                finished = [f for f in done if f.status == "finished"]
                results = dict(zip(finished, self.client.gather(finished, errors="raise"), strict=True)) if finished else {}
                return [(f, results.get(f)) for f in done]
            time.sleep(POLL)
        return []

    def _gone(self) -> bool:
        """Whether the scheduler is there no more."""
        lost = any(f.status in ("cancelled", "lost") for f in self.flying)
        return lost or self.client.status not in ("running", "newly-created")

    def _went_away(self) -> JobError:
        return JobError(
            f"the Dask scheduler went away; {len(self.store.committed())} of {self.summary.total} tiles are committed, nothing "
            f"is lost: start it again, then `fusion resume {self.store.url}`"
        )

    def _take(self, future: Future, result: dict[str, Any] | None) -> None:
        if future not in self.flying:
            return  # the twin of one that landed a moment before
        index, started = self.flying.pop(future)
        twins = [f for f, (i, _) in self.flying.items() if i == index]
        if result is not None:
            for twin in twins:
                self.flying.pop(twin)
                twin.cancel(force=True)
            self.seconds.append(time.monotonic() - started)
            del self.seconds[:-1000]
            self.summary.add(result)
            self.unwritten = 0
        elif future.status == "error" and not twins:
            self._give_up(index, future)

    def _give_up(self, index: Index, future: Future) -> None:
        error: Any = future.exception()
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, KilledWorker):
            reason = "its workers died each time (out of memory, or a crash in a library): use smaller tiles or more memory"
        log.error("tile %s is given up: %s", index, reason)
        self.summary.failed[index] = reason
        if isinstance(error, StoreError):
            self.unwritten += 1
            if self.unwritten >= STORE_FAILURES:
                raise error
            return
        self.store.write_failure(index, reason)

    def _second_start(self) -> None:
        """When only stragglers are left and a worker is free, the oldest ones are started again elsewhere."""
        if len(self.seconds) < 4 or len(self.flying) >= self.threads:
            return
        limit = max(LEAST_WAIT, STRAGGLER * statistics.median(self.seconds))
        for index, started in list(self.flying.values()):
            twins = sum(1 for i, _ in self.flying.values() if i == index)
            if twins == 1 and time.monotonic() - started > limit:
                log.warning("tile %s takes more than %.0f s: started a second time", index, limit)
                self.summary.repeated += 1
                self._submit(index, attempt=1)
