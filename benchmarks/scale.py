"""What scheduling costs: simulated tiles whose fit is a sleep of known length, 100 to 10,000 of them on 2 to 64 workers.

    python benchmarks/scale.py                      # the table, minutes
    python benchmarks/scale.py --tiles 10000 --workers 64 --seconds 2

Nothing is fused here: the task sleeps (`time.sleep`) for `--seconds` and writes one tile record, so what is measured is Dask, the
driver's window and the store's records, not the engine and not the arrays. Beyond four processes, workers are threads of these
processes: the scheduler sees as many slots as there would be workers, and a sleeping tile needs no core of its own.
Printed per case: overhead per tile = (wall x workers - tiles x sleep) / tiles, scheduler CPU per tile, peak growth of the
driver's memory (scheduler and client live in it), time to the first tile, time to gather all records at the end. The load average of the
machine is printed too: on a busy one the overheads are upper bounds, only the processor time per tile is not.
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
from fusion.service.job import Job
from fusion.service.progress import Summary
from fusion.service.run import _Drive
from fusion.service.store import CubeStore
from fusion.service.template import Layout


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

        drive = _Drive(client, store, job, summary, show, {"seconds": seconds}, task=sleeping_tile)
        drive.over(iter(np.ndindex(down, across)))
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


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tiles", type=int, nargs="*", default=[100, 1000, 10_000])
    parser.add_argument("--workers", type=int, nargs="*", default=[2, 16, 64])
    parser.add_argument("--seconds", type=float, help="of a tile; default: such that a case takes a minute")
    asked = parser.parse_args()
    import dask

    print(f"tiles are simulated: each sleeps, nothing is fused; {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
    columns = ("tiles", "workers", "sleep_s", "wall_s", "overhead_ms", "driver_cpu_ms", "driver_MB", "first_s", "finish_s", "efficiency")
    print("".join(f"{c:>15}" for c in columns))
    for workers in asked.workers:
        # threads stand for workers beyond the cores of this machine: a sleeping tile needs none
        processes = min(workers, 4)
        with dask.config.set(SETTINGS), LocalCluster(
            n_workers=processes, threads_per_worker=workers // processes, dashboard_address=None, silence_logs=logging.ERROR,
            memory_limit=0,
        ) as cluster, Client(cluster) as client:
            for tiles in asked.tiles:
                seconds = asked.seconds if asked.seconds is not None else min(2.0, max(0.05, 60.0 * workers / tiles))
                row = case(client, tiles, workers, seconds)
                print("".join(f"{row[c]:>15.4g}" for c in columns), flush=True)


if __name__ == "__main__":
    main()
