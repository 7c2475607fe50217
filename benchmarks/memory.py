"""Measured against projected peak memory of one tile, per engine and size; each case in a process of its own.

    python benchmarks/memory.py                 # the table
    python benchmarks/memory.py --case gaussian 64 8 4 4

The scenes are simulated (`fusion.simulate`). The constants of `fusion.service.plan` come from this table.
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

    from fusion.cube.grid import Grid
    from fusion.service import run
    from fusion.service.job import Job
    from fusion.service.tile import fuse_tile
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
        began = time.perf_counter()
        brief = fuse_tile(store.url, store.about["fingerprint"], (0, 0))
        seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": seconds, "before_GB": before / 1e9, "peak_GB": peak / 1e9, "projected_GB": planned.peak_bytes / 1e9,
        "ratio": planned.peak_bytes / peak, "looks": sum(brief["looks"].values()), "halo": planned.halo,
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
