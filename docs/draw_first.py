"""The picture of the first page, from the cube that `make demo` left:  python docs/draw_first.py [demo/cube.zarr]."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import fusion
from fusion.cube.calendar import centre_of
from fusion.explore import plots


def main(url: str = "demo/cube.zarr") -> None:
    """Draws docs/figures/first.png."""
    cube = fusion.open_cube(url)
    grid, day = cube.fusion.cube.grid, cube.time.values[cube.sizes["time"] // 2]
    words = {"modis-mcd43a4": "MODIS, its own cells", "landsat-8": "Landsat 8; grey: cloud", "airborne": "an aircraft, on a patch"}
    names = [name for name in words if name in cube.sensor.values.tolist()]
    scenes = {name: [s for s in cube.fusion.scenes(name) if s.seen > 0.05] for name in names}
    near = {name: min(found, key=lambda s: abs(centre_of(s.when) - day)) for name, found in scenes.items() if found}
    fused = cube.fusion.band("landsat-8", "nir08").sel(time=day).compute()
    low, high = np.nanpercentile(fused["mean"], [2, 98])
    figure, axes = plt.subplots(1, len(near) + 2, figsize=(2.5 * (len(near) + 2), 2.75), layout="constrained")
    for ax, (name, scene) in zip(axes, near.items(), strict=False):
        band = "nir08" if "nir08" in scene.bands else scene.bands[int(np.abs(np.asarray(scene.centres) - 865).argmin())]
        plots.look(ax, scene, band, grid, vmin=low, vmax=high)
        ax.set_title(f"{words[name]}\n{str(centre_of(scene.when))[:10]}")
    *_, mean, sd = axes
    extent = (grid.bounds.left, grid.bounds.right, grid.bounds.bottom, grid.bounds.top)
    shown = mean.imshow(fused["mean"], vmin=low, vmax=high, extent=extent, interpolation="nearest")
    mean.set_title(f"fused: posterior mean\n{str(day)[:10]}")
    figure.colorbar(shown, ax=mean, shrink=0.85, label="near-infrared reflectance")
    spread = sd.imshow(fused["sd"], cmap=plots.SPREAD, extent=extent, interpolation="nearest")
    sd.set_title(f"and how sure: posterior sd\n{str(day)[:10]}")
    figure.colorbar(spread, ax=sd, shrink=0.85, label="reflectance")
    for ax in axes:
        ax.set(xticks=[], yticks=[], xlabel=f"{(grid.bounds.right - grid.bounds.left) / 1000:.1f} km")
    figure.savefig(Path(__file__).parent / "figures/first.png", dpi=130)


if __name__ == "__main__":
    main(*sys.argv[1:2])
