"""Measured against projected peak memory and time of one tile, per engine and size; each case in a process of its own.

    python benchmarks/memory.py                 # the table
    python benchmarks/memory.py --case gaussian 64 8 4 4

The scenes are simulated (`fusion.simulate`). The constants of `fusion.service.plan` come from this table. Times are processor seconds of
the whole tile, read to written: `cold_s` with nothing compiled (no compile cache), `warm_s` of the same tile again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CASES = (("gaussian", 32, 8, 4, 2), ("gaussian", 64, 8, 4, 2), ("gaussian", 64, 16, 8, 8), ("gaussian", 128, 16, 8, 8))
"""(engine, core px, latent times, rank, draws)"""


def case(engine: str, core: int, times: int, rank: int, draws: int) -> dict[str, float]:
    """Fuses one tile in this process; bytes and seconds."""
    import resource

    import numpy as np

    from fusion.cube.cube import Cube
    from fusion.cube.grid import Grid
    from fusion.service import run
    from fusion.service.job import Job
    from fusion.service.reading import look
    from fusion.service.tile import desk, fuse_tile
    from fusion.simulate import world

    start = np.datetime64("2024-05-01")
    end = str(start + 8 * (times - 1))
    with tempfile.TemporaryDirectory() as folder:
        side = core * 30.0
        box = (450_015.0, 4_430_025.0, 450_015.0 + side, 4_430_025.0 + side)
        grid = Grid.from_bbox(box, "EPSG:32613", 30.0, bbox_crs="EPSG:32613", align=15.0)
        catalog = Path(folder) / "archive"
        world(grid, str(start), end).archive(catalog, ["landsat-8", "modis-mcd43a4"])
        source = {"catalog": str(catalog / "catalog.json")}
        job = Job.of({
            "area": {"bbox": box, "crs": "EPSG:32613"}, "target": {"crs": "EPSG:32613", "align": 15.0},
            "period": {"start": str(start), "end": end}, "spectrum": {"rank": rank}, "engine": {"name": engine},
            "tiles": {"core": core},
            "sensors": [{"name": "landsat-8", **source}, {"name": "modis-mcd43a4", **source}],
            "output": {"store": f"{folder}/cube.zarr", "draws": draws}, "cluster": {"memory": "1000GiB"},
        })
        planned = run.plan(job)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        store = run.prepare(job)
        began = time.process_time()
        brief = fuse_tile(store.url, store.about["fingerprint"], (0, 0))
        cold = time.process_time() - began
        store.forget((0, 0))
        began = time.process_time()
        fuse_tile(store.url, store.about["fingerprint"], (0, 0))
        warm = time.process_time() - began
        at = desk(store.url, store.about["fingerprint"])
        tile = at.tile((0, 0))
        began = time.process_time()
        look(at.coverage.of(tile), tile, Cube(tile.grid, store.cube.calendar, store.cube.basis), 0)
        reading = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    looks, values = sum(brief["looks"].values()), times * rank * (core + 2 * planned.halo) ** 2
    return {
        "cold_s": cold, "warm_s": warm, "read_s_per_look": reading / looks, "warm_us_per_value": 1e6 * (warm - reading) / values,
        "before_GB": before / 1e9, "peak_GB": peak / 1e9, "projected_GB": planned.peak_bytes / 1e9,
        "ratio": planned.peak_bytes / peak, "looks": looks, "halo": planned.halo,
    }


def main() -> None:
    """Prints the table, one process per case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--case", nargs=5)
    asked = parser.parse_args()
    if asked.case:
        engine, *numbers = asked.case
        print(json.dumps(case(engine, *map(int, numbers))))
        return
    for one in CASES:
        done = subprocess.run([sys.executable, __file__, "--case", *map(str, one)], capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(*one, *(f"{k}={v:.3g}" for k, v in found.items()), flush=True)


if __name__ == "__main__":
    main()
