"""The work: every tile that is not committed yet is fitted by one Dask task, and blended with its neighbours by another.

A bounded number of tasks is known to the scheduler at a time (`fusion.service.drive`), in an order that lets no tile wait longer than
for its neighbours (`fusion.service.weave`). A tile that cannot be fused is noted as FAILED. Whatever dies, `resume` continues.
"""

from __future__ import annotations

import importlib.metadata
import logging
import math
import platform
from dataclasses import replace
from typing import Any

import numpy as np
from distributed import Client

from fusion.cube.cube import Cube
from fusion.cube.spectrum import SpectralBasis
from fusion.errors import JobError, StoreError
from fusion.observe.sensor import sensor
from fusion.service import land_cover
from fusion.service.blend import provisional, sweep
from fusion.service.catalog import Found, find
from fusion.service.cluster import connected
from fusion.service.continued import before_of, continue_tile
from fusion.service.drive import Drive
from fusion.service.flights import sharpened
from fusion.service.job import Job, check
from fusion.service.objects import normal_url
from fusion.service.plan import Plan, make_plan
from fusion.service.progress import Show, Summary, shown
from fusion.service.store import CubeStore
from fusion.service.tile import LANDSCAPE, SURVEYS, Fit, fuse_tile, learn_tiles, pilot_tile, survey_tile
from fusion.service.weave import Each, Index, Weave

log = logging.getLogger("fusion")


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
    if job.land_cover is not None:
        land_cover.check(job.land_cover, cube.grid)
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
    provenance = {"versions": versions(), "seed": job.engine.seed, "notes": made.notes[:1000], **made.meeting}
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
        if summary.left or provisional(store, done):
            _compare_versions(store)
            with connected(job.cluster) as client, shown(progress, summary) as show:
                _fuse_rest(client, store, job, summary, show, {"fit": fit, "read_retries": job.cluster.read_retries}, done)
    finally:  # after our own workers have ended: what they were writing is written, or it is not
        _settled(store)
    return summary


def _compare_versions(store: CubeStore) -> None:
    """A warning where other packages go on with a cube than began it: its tiles may differ by more than rounding."""
    now, begun = versions(), store.provenance.get("versions") or {}
    changed = [f"{name} {begun[name]} -> {now[name]}" for name in now if name != "platform" and begun.get(name, now[name]) != now[name]]
    if changed:
        log.warning("this cube was begun with other versions, its tiles may differ: %s; a new output address makes it all of one", ", ".join(changed))


def _fuse_rest(
    client: Client, store: CubeStore, job: Job, summary: Summary, show: Show, options: dict[str, Any], done: set[Index]
) -> None:
    """Fuses what is not done; Ctrl-C ends it in order."""
    try:
        if store.provenance.get("landscape"):
            learn_landscape(client, store, job, options)
        if job.engine.pool:
            learn_population(client, store, job, options)
        task = continue_tile if before_of(store) else fuse_tile
        alone = Each(task, (i for i in np.ndindex(*store.layout.tiles) if i not in done))
        work = Weave(store, done) if store.provenance.get("blend") else alone
        Drive(client, store, job, summary, show, options, work).finish()
    except KeyboardInterrupt:
        summary.cancelled = True
        log.warning("stopped: %d of %d tiles are committed; `fusion resume %s` continues", len(store.committed()), summary.total, store.url)


def _settled(store: CubeStore) -> None:
    """The statuses gathered; a store that cannot be written now stays as it is, which is readable and resumable."""
    try:
        sweep(store)
        store.finish()
    except StoreError as error:
        log.error("%s", error)
        raise


def learn_landscape(client: Client, store: CubeStore, job: Job, options: dict[str, Any]) -> None:
    """A sample of tiles, spread evenly, is read; what they show of the ground together is kept for all tiles to be fitted with."""
    if store.objects.get_bytes(LANDSCAPE) is not None:
        return
    sample = evenly(store.layout.tiles, int(store.provenance["landscape"]))
    log.info("learning the landscape from %d of %d tiles", len(sample), math.prod(store.layout.tiles))
    quiet = Summary(store.url, len(sample))
    Drive(client, store, job, quiet, lambda _: None, options, Each(survey_tile, iter(sample))).finish()
    last = Each(learn_tiles, iter(sample[:1]), (("sample", tuple(sample)),))
    Drive(client, store, job, quiet, lambda _: None, options, last).finish()
    known = store.objects.get_arrays(LANDSCAPE)
    if known is None:
        reason = next(iter(quiet.failed.values()), "it is not in the store")[:500]
        raise JobError(f"the landscape of {len(sample)} surveyed tiles could not be learned: {reason}; try again, or engine.landscape = 0")
    if "nothing" in known:
        log.warning("no surveyed tile has data: each tile learns its own landscape; survey more (engine.landscape)")
    store.objects.delete_folder(SURVEYS)


def evenly(tiles: Index, count: int) -> list[Index]:
    """At most `count` tiles in rows and columns that are as far apart as possible."""
    down, across = tiles
    rows = max(1, min(down, count, round(math.sqrt(count * down / across))))
    cols = max(1, min(across, count // rows))
    return [(int((i + 0.5) * down / rows), int((j + 0.5) * across / cols)) for i in range(rows) for j in range(cols)]


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
    Drive(client, store, job, quiet, lambda _: None, options, Each(pilot_tile, iter(sample))).finish()
    told = [s for i in sample if (s := store.objects.get(f"status/pilots/{i[0]}.{i[1]}.json")) is not None]
    if not told:
        reason = next(iter(quiet.failed.values()), "none of them had data")[:500]
        raise JobError(f"none of the {count} sampled tiles could be fitted: {reason}; sample more (engine.pool)")
    store.objects.put("status/population.json", told)
