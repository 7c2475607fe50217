"""What scheduling costs: simulated tiles whose fit is a sleep of known length, 100 to 10,000 of them on 2 to 64 workers.

    python -m benchmarks.scale                      # the table, minutes
    python -m benchmarks.scale --tiles 10000 --workers 64 --seconds 2
    python -m benchmarks.scale --real               # tiny tiles that are fused: 4, 16, 64 of them on 1 and 2 workers

Without --real nothing is fused: the task sleeps (`time.sleep`) for `--seconds` and writes one tile record, so what is measured is Dask, the
driver's window and the store's records, not the engine and not the arrays. Beyond four processes, workers are threads of these
processes: the scheduler sees as many slots as there would be workers, and a sleeping tile needs no core of its own.
Printed per case: overhead per tile = (wall x workers - tiles x sleep) / tiles, scheduler CPU per tile, peak growth of the
driver's memory (scheduler and client live in it), time to the first tile, time to gather all records at the end. The load average of the
machine is printed too: on a busy one the overheads are upper bounds, only the processor time per tile is not.

With --real each case is `fusion run` over a simulated world (three Landsat scenes, tiles of 24 px with their halo, rank 3, gaussian engine), from
the start of its worker processes to the last record. What takes long to compile is compiled once before, into the persistent cache, and
loaded by every worker. Printed: wall time, worker seconds per tile, the same without what does not grow with the tiles (from the cases
with fewest and most tiles), and the efficiency against one worker.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from distributed import Client, LocalCluster

from fusion.cube.calendar import Calendar
from fusion.cube.cube import Cube
from fusion.cube.grid import Grid
from fusion.cube.spectrum import SpectralBasis
from fusion.service.cluster import SETTINGS
from fusion.service.drive import Drive
from fusion.service.job import Job
from fusion.service.progress import Summary
from fusion.service.store import CubeStore
from fusion.service.template import Layout
from fusion.service.weave import Each


def sleeping_tile(url: str, fingerprint: str, index: tuple[int, int], *, seconds: float, **_: Any) -> dict[str, Any]:
    """A tile that is not fused: sleeps, then writes its record."""
    from fusion.service.objects import Objects

    time.sleep(seconds)
    Objects(url).put(f"status/tiles/{index[0]}.{index[1]}.json", {"tile": list(index), "status": "OK", "crc32": {}})
    return {"tile": index, "status": "OK"}


def store_of(folder: Path, tiles: int) -> tuple[CubeStore, Job]:
    """A template with that many tiles of 8 x 8 px."""
    side = round(tiles**0.5)
    grid = Grid.from_bbox((0, 0, side * 240, side * 240), "EPSG:32613", 30.0, bbox_crs="EPSG:32613")
    cube = Cube(grid, Calendar.regular("2024-01-01", "2024-01-01", 8), SpectralBasis.library(1))
    job = Job.of({
        "area": {"bbox": [0, 0, side * 240, side * 240], "crs": "EPSG:32613"}, "target": {"crs": "EPSG:32613"},
        "period": {"start": "2024-01-01", "end": "2024-01-02"}, "sensors": [{"name": "landsat-8"}], "tiles": {"core": 8},
        "output": {"store": str(folder / "cube.zarr"), "draws": 0},
    })
    store = CubeStore.create(
        job.output.store, Layout(cube, 8, 0, ("landsat-8",)), job=job.document(), fingerprint=job.fingerprint,
        items={"landsat-8": []}, provenance={},
    )
    return store, job


class Watch(threading.Thread):
    """Peak resident memory of this process, sampled ten times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.process = psutil.Process()
        self.start_bytes = self.peak = self.process.memory_info().rss
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.1):
            self.peak = max(self.peak, self.process.memory_info().rss)


def case(client: Client, tiles: int, workers: int, seconds: float) -> dict[str, float]:
    """One line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        store, job = store_of(Path(folder), tiles)
        down, across = store.layout.tiles
        summary = Summary(store.url, down * across)
        first: list[float] = []
        watch = Watch()
        watch.start()
        cpu, began = sum(psutil.Process().cpu_times()[:2]), time.perf_counter()

        def show(_: Summary) -> None:
            if not first:
                first.append(time.perf_counter() - began)

        work = Each(sleeping_tile, iter(np.ndindex(down, across)))
        Drive(client, store, job, summary, show, {"seconds": seconds}, work).finish()
        wall = time.perf_counter() - began
        watch.ended.set()
        watch.join()
        used = sum(psutil.Process().cpu_times()[:2]) - cpu
        assert len(store.committed()) == down * across
        began = time.perf_counter()
        store.finish()
        gathered = time.perf_counter() - began
    done = down * across
    return {
        "tiles": done, "workers": workers, "sleep_s": seconds, "wall_s": wall,
        "overhead_ms": 1e3 * (wall * workers / done - seconds), "driver_cpu_ms": 1e3 * used / done,
        "driver_MB": (watch.peak - watch.start_bytes) / 1e6, "first_s": first[0], "finish_s": gathered,
        "efficiency": done * seconds / (wall * workers),
    }


CORE = 24
"""pixels of a tile that is fused"""


def real_job(folder: Path, tiles: int, name: str) -> Job:
    """A square of so many tiles over the simulated world in `folder`."""
    side = round(tiles**0.5) * CORE * 30.0
    box = [450_015.0, 4_430_025.0, 450_015.0 + side, 4_430_025.0 + side]
    return Job.of({
        "area": {"bbox": box, "crs": "EPSG:32613"}, "target": {"crs": "EPSG:32613", "align": 15.0},
        "period": {"start": "2024-05-03", "end": "2024-06-04", "step_days": 16}, "spectrum": {"rank": 3}, "engine": {"name": "gaussian"},
        "sensors": [{"name": "landsat-8", "catalog": str(folder / "archive" / "catalog.json")}], "tiles": {"core": CORE},
        "output": {"store": str(folder / f"{name}.zarr"), "draws": 0}, "cluster": {"workers": 1, "memory": "4GiB"},
    })


def real(counts: list[int], workers: list[int]) -> None:
    """Fuses and prints the table of --real."""
    from fusion.service.run import fuse, prepare
    from fusion.simulate import world

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world(real_job(folder, max(counts), "whole").grid(), "2024-05-03", "2024-06-04").archive(folder / "archive", ["landsat-8"])
        found: dict[tuple[int, int], float] = {}
        for tiles, count in [(counts[0], 1), *((t, w) for w in workers for t in counts)]:
            job = real_job(folder, tiles, f"cube-{len(found)}-{tiles}-{count}")
            job = job.model_copy(update={"cluster": job.cluster.model_copy(update={"workers": count})})
            store, load, began = prepare(job), os.getloadavg()[0], time.perf_counter()
            summary = fuse(store, job, progress="none")
            wall = time.perf_counter() - began
            assert summary.done == summary.total, summary
            warm = "cold" if not found else "warm"
            found[(tiles, count) if warm == "warm" else (0, 0)] = wall
            print(f"{warm}: {tiles} tiles, {count} workers: {wall:.1f} s, load average before {load:.1f}", flush=True)
        print("".join(f"{c:>22}" for c in ("tiles", "workers", "wall_s", "worker_s_per_tile", "of_which_grows", "efficiency")))
        for (tiles, count), wall in found.items():
            if tiles:
                grows = (found[counts[-1], count] - found[counts[0], count]) / (counts[-1] - counts[0]) * count
                row = (tiles, count, wall, wall * count / tiles, grows, found[tiles, workers[0]] * workers[0] / (wall * count))
                print("".join(f"{v:>22.4g}" for v in row))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tiles", type=int, nargs="*", help="default: 100 1000 10000, with --real 4 16 64")
    parser.add_argument("--workers", type=int, nargs="*", help="default: 2 16 64, with --real 1 2")
    parser.add_argument("--real", action="store_true", help="fuse tiny tiles instead of sleeping")
    parser.add_argument("--seconds", type=float, help="of a tile; default: such that a case takes a minute")
    asked = parser.parse_args()
    if asked.real:
        real(asked.tiles or [4, 16, 64], asked.workers or [1, 2])
        return
    import dask

    print(f"tiles are simulated: each sleeps, nothing is fused; {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
    columns = ("tiles", "workers", "sleep_s", "wall_s", "overhead_ms", "driver_cpu_ms", "driver_MB", "first_s", "finish_s", "efficiency")
    print("".join(f"{c:>15}" for c in columns))
    for workers in asked.workers or [2, 16, 64]:
        # threads stand for workers beyond the cores of this machine: a sleeping tile needs none
        processes = min(workers, 4)
        with dask.config.set(SETTINGS), LocalCluster(
            n_workers=processes, threads_per_worker=workers // processes, dashboard_address=None, silence_logs=logging.ERROR,
            memory_limit=0,
        ) as cluster, Client(cluster) as client:
            for tiles in asked.tiles or [100, 1000, 10_000]:
                seconds = asked.seconds if asked.seconds is not None else min(2.0, max(0.05, 60.0 * workers / tiles))
                row = case(client, tiles, workers, seconds)
                print("".join(f"{row[c]:>15.4g}" for c in columns), flush=True)


if __name__ == "__main__":
    main()
