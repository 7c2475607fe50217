"""What is left of the border between two tiles: the real engine on a simulated world, step by step.

    python -m benchmarks.seams                  # core 48 px with a halo of 12: minutes
    python -m benchmarks.seams --core 96 --halo 16 --picture seam.png

Two tiles side by side are read by the service and fitted as a run does: each by itself; with the landscape that a job's tiles learn
together; and with that and their overlap blended, which is what a cube holds. Three measures of the border, all in posterior sd, over all
its rows, dates and components, as rms and 95th percentile:

    same pixel   left tile's value minus right tile's, at the same pixels: the two columns beside the border. A blended cube has one
                 value there, so nothing differs
    added step   the step from the last column of one tile to the first of the other, less the mean of the steps that the two fits
                 themselves have there: what the border adds to the ground's own contrast
    excess       sqrt(max(0, rms step across the border^2 - rms step between columns elsewhere^2)), from the stored cube alone; the
                 ground's own contrast makes it noisy, by about what is printed as +-

The correlation is of the deviations of draws at the same pixels, from either fit: it says how much of their variance a blend keeps.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
import numpy as np
from numpy.typing import NDArray

from fusion.cube.cube import Cube
from fusion.cube.grid import Grid
from fusion.infer import fit
from fusion.infer.landscape import learn, survey
from fusion.service import run as running
from fusion.service.blend import blended, part_of
from fusion.service.job import Job
from fusion.service.reading import look
from fusion.service.store import CubeStore
from fusion.service.template import DRAW_STEP
from fusion.service.tile import desk, kept_of
from fusion.simulate import world

SENSORS = ("landsat-8", "landsat-9")
PERIOD = ("2024-05-01", "2024-07-04")
VALUES = ("mean", "sd", "draw")
Fields = dict[str, NDArray[np.float64]]


def two_tiles(folder: Path, core: int, halo: int, seed: int = 0) -> CubeStore:
    """The template of a job of two tiles side by side, over a simulated archive that reaches beyond them."""
    box = (450_015.0, 4_430_025.0, 450_015.0 + 2 * core * 30.0, 4_430_025.0 + core * 30.0)
    grid = Grid.from_bbox(box, "EPSG:32613", 30.0, bbox_crs="EPSG:32613", align=15.0)
    around = grid.crop(slice(-halo - 8, core + halo + 8), slice(-halo - 8, 2 * core + halo + 8))
    world(around, *PERIOD, finer=1, seed=seed).archive(folder / "archive", list(SENSORS))
    catalog = str(folder / "archive" / "catalog.json")
    return running.prepare(Job.of({
        "area": {"bbox": box, "crs": "EPSG:32613"}, "target": {"crs": "EPSG:32613", "align": 15.0},
        "period": {"start": PERIOD[0], "end": PERIOD[1]}, "spectrum": {"rank": 3}, "engine": {"name": "gaussian"},
        "tiles": {"core": core, "halo": halo}, "sensors": [{"name": name, "catalog": catalog} for name in SENSORS],
        "output": {"store": str(folder / "cube.zarr"), "draws": 4}, "cluster": {"memory": "1000GiB"},
    }))


class Pair:
    """The two tiles' observations and fits."""

    def __init__(self, store: CubeStore) -> None:
        self.store, self.desk = store, desk(store.url, store.about["fingerprint"])
        self.core, self.halo, self.blend = store.layout.core, self.desk.halo, self.desk.blend
        self.tiles = [self.desk.tile((0, column)) for column in (0, 1)]
        self.cubes = [Cube(tile.grid, store.cube.calendar, store.cube.basis) for tile in self.tiles]
        self.seen = [look(self.desk.coverage.of(tile), tile, cube, 0)[0] for tile, cube in zip(self.tiles, self.cubes, strict=True)]

    def fits(self, together: bool) -> list[Any]:
        """The two posteriors, each by itself or with a landscape in common."""
        both = list(zip(self.tiles, self.seen, self.cubes, strict=True))
        given = {"landscape": learn([survey(o, c, origin=t.origin) for t, o, c in both], self.cubes[0])} if together else {}
        return [fit(o, c, engine="gaussian", draws=4, origin=t.origin, **given) for t, o, c in both]

    def stitched(self, fits: list[Any]) -> Fields:
        """(T, K, Y, 2 core) what a cube holds without a blend."""
        inner = slice(self.halo, self.halo + self.core)
        return {n: np.concatenate([v[..., inner, inner] for v in found], -1) for n, found in self._values(fits).items()}

    def woven(self, fits: list[Any]) -> Fields:
        """The same with the blend of a run, through its own messages."""
        parts = {
            target.index: {
                tile.index: part_of(
                    self.store, tile, target.index, self.blend, kept_of(found, self.store), {"mixing": found.mixing}
                ) for tile, found in zip(self.tiles, fits, strict=True)
            } for target in self.tiles
        }
        blocks = [blended(self.store, tile.index, self.blend, parts[tile.index]) for tile in self.tiles]
        mean, sd, draws = (np.concatenate([b[n] for b in blocks], -1).astype(np.float64) for n in ("mean", "sd", "draws"))
        return {"mean": mean, "sd": sd, "draw": mean + sd * draws[0] * DRAW_STEP}

    def _values(self, fits: list[Any]) -> dict[str, list[NDArray[np.float64]]]:
        found = {"mean": [f.mean for f in fits], "sd": [f.sd for f in fits], "draw": [f.draws[0] for f in fits]}
        return {name: [np.asarray(v, np.float64) for v in values] for name, values in found.items()}

    def report(self, fits: list[Any], cube: Fields) -> dict[str, float]:
        """The measures of one cube made of the two fits."""
        core, halo = self.core, self.halo
        rows, here, there = slice(halo, halo + core), slice(halo + core - 1, halo + core + 1), slice(halo - 1, halo + 1)
        sd = cube["sd"][..., core - 1 : core + 1].mean(-1)
        out = {}
        whole = np.broadcast_to(cube["sd"], cube["mean"].shape)
        for name, (left, right) in self._values(fits).items():
            sides = [left[..., rows, here], right[..., rows, there]]
            out |= _told(f"{name} same", (sides[0] - sides[1]) / sd[..., None])
            own = 0.5 * sum(side[..., 1] - side[..., 0] for side in sides)
            step = np.diff(cube[name], axis=-1)
            out |= _told(f"{name} added", (step[..., core - 1] - own) / sd)
            columns = np.sqrt(np.mean((step / (0.5 * (whole[..., 1:] + whole[..., :-1]))) ** 2, axis=(0, 1, 2)))
            elsewhere = np.delete(columns, range(core - 1 - halo, core + halo))
            out[f"{name} excess"] = float(np.sqrt(max(0.0, columns[core - 1] ** 2 - np.mean(elsewhere**2))))
            out[f"{name} +-"] = float(np.sqrt(np.std(elsewhere**2)))
        values = self._values(fits)
        deviations = [
            ((values["draw"][n] - values["mean"][n]) / values["sd"][n])[..., rows, at].ravel() for n, at in enumerate((here, there))
        ]
        return out | {"correlation": float(np.corrcoef(*deviations)[0, 1])}


def _told(name: str, difference: NDArray[np.float64]) -> dict[str, float]:
    return {f"{name} rms": float(np.sqrt(np.mean(difference**2))), f"{name} 95": float(np.quantile(np.abs(difference), 0.95))}


def measured(store: CubeStore) -> tuple[dict[str, dict[str, float]], dict[str, Fields]]:
    """(measures, cubes) of a store of two tiles: alone, landscape, blended."""
    pair = Pair(store)
    alone, together = pair.fits(False), pair.fits(True)
    cubes = {"alone": pair.stitched(alone), "landscape": pair.stitched(together), "blended": pair.woven(together)}
    rows = {name: pair.report(alone if name == "alone" else together, cube) for name, cube in cubes.items()}
    rows["blended"] |= {f"{name} same {what}": 0.0 for name in VALUES for what in ("rms", "95")}  # one pixel, one number
    return rows, cubes


def draw(cubes: dict[str, Fields], core: int, path: Path) -> None:
    """The mean across the border, before and after, at the date where it differs most."""
    from matplotlib.figure import Figure

    step = np.abs(np.diff(cubes["alone"]["mean"], axis=-1)[..., core - 1]).mean(-1)
    time, component = np.unravel_index(int(step.argmax()), step.shape)
    figure = Figure(figsize=(11, 8), layout="constrained")
    for axes, (name, cube) in zip(figure.subplots(3, 2), cubes.items(), strict=True):
        for axis, what in zip(axes, ("mean", "sd"), strict=True):
            image = cube[what][time, component]
            low, high = np.quantile(cubes["blended"][what][time, component], (0.02, 0.98))
            axis.imshow(image, vmin=low, vmax=high, cmap="viridis")
            axis.axvline(core - 0.5, ymin=-0.05, ymax=0.03, color="red", clip_on=False)
            axis.set(title=f"{name}: {what} of component {component}, date {time}", xticks=[], yticks=[])
    figure.savefig(path, dpi=110)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--core", type=int, default=48)
    parser.add_argument("--halo", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = two_tiles(Path(folder), asked.core, asked.halo, asked.seed)
        blend = int(store.provenance["blend"])
        rows, cubes = measured(store)
    print(f"simulated world, {', '.join(SENSORS)}; core {asked.core} px, halo {asked.halo} px, blend {blend} px; in posterior sd")
    columns = [f"{value} {what}" for value in VALUES for what in ("same rms", "same 95", "added rms", "added 95", "excess", "+-")]
    for name in (*columns, "correlation"):
        print(f"{name:<18}" + "".join(f"{kind + ' ' + format(row[name], '.3f'):>20}" for kind, row in rows.items()))
    if asked.picture:
        draw(cubes, asked.core, asked.picture)


if __name__ == "__main__":
    main()
