"""Draws docs/figures/responses.png and docs/figures/footprints.png from the installed sensors.

    python benchmarks/figures_sensors.py [folder]
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from affine import Affine
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from fusion.cube.grid import Grid
from fusion.cube.response import DROPPED, Response, within
from fusion.cube.spectrum import SpectralBasis
from fusion.observe.footprint import footprint
from fusion.observe.geometry import frame, window
from fusion.observe.scene import View
from fusion.observe.sensor import sensor

INK, SOFT, FAINT = "#1d2733", "#6b7785", "#e9edf1"
MASS = LinearSegmentedColormap.from_list("mass", ["#ffffff", "#d7ecf0", "#8cc9cf", "#35919f", "#155b73", "#0b2f4a"])
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.edgecolor": SOFT, "axes.labelcolor": INK, "text.color": INK,
    "xtick.color": SOFT, "ytick.color": SOFT, "axes.linewidth": 0.6, "figure.dpi": 150, "savefig.dpi": 150,
}
ROWS = {
    "modis-mcd43a4": "MODIS\n7 bands, 500 m",
    "landsat-5": "Landsat 5 TM\n6 bands, 30 m",
    "landsat-8": "Landsat 8 OLI\n7 bands, 30 m",
    "sentinel-2a": "Sentinel-2A MSI\n10, 20, 60 m",
    "viirs-vnp43": "VIIRS\n3 bands, 500 m",
    "neon-aop": "NEON AOP\nevery 10th channel, 1 m",
}
PANELS = {
    "landsat-8": (None, "Landsat 8", 165.0),
    "sentinel-2a": (None, "Sentinel-2A, 20 m bands", 165.0), "emit": (None, "EMIT", 165.0),
    "viirs-vnp43": (None, "VIIRS VNP43 composite", 1650.0), "modis-mcd43a4": (None, "MODIS MCD43A4 composite", 1650.0),
    "modis-terra-mod09ga": ((55.0, 104.0), "MODIS daily, seen 55° off nadir", 1650.0),
}


def colour_of(nm: float) -> tuple[float, float, float]:
    """Roughly the eye's colour in the visible, then dark red to violet-grey through the infrared."""
    knots = [400, 440, 490, 530, 580, 620, 680, 760, 900, 1250, 1650, 2200, 2500]
    hues = [
        "#5b3fa0", "#3b4cc0", "#2389c4", "#2a9d5c", "#c9b400", "#e67e22", "#d1342f", "#a81f3a", "#8f2352", "#7a3b76", "#5d5591",
        "#476a8c", "#3f7480",
    ]
    rgb = np.array([matplotlib.colors.to_rgb(h) for h in hues])
    return tuple(float(np.interp(nm, knots, rgb[:, i])) for i in range(3))  # type: ignore[return-value]


def draw_responses(path: Path) -> None:
    """One row of response curves per instrument over a vegetation-like spectrum of the library."""
    figure, axes = plt.subplots(len(ROWS), 1, figsize=(10, 8.2), sharex=True)
    basis = SpectralBasis.library()
    for ax, (name, title) in zip(axes, ROWS.items(), strict=True):
        one = sensor(name)
        ax.fill_between(basis.wavelengths, 0, basis.mean / basis.mean.max() * 0.9, color=FAINT, lw=0)
        for low, high in DROPPED:
            ax.axvspan(low, high, color="#f6f3ec", lw=0)
        last = 0.0
        if one.bands:
            bands = [(b.name, b.response) for b in one.bands]
        else:
            pairs = [pair for pair in one.example_channels[::10] if not within(np.array(pair[:1]), DROPPED)[0]]
            bands = [("", Response.gaussian(*pair)) for pair in pairs]
        for label, response in sorted(bands, key=lambda b: b[1].centroid):
            shade = colour_of(response.centroid)
            scaled = response.values / response.values.max()
            ax.fill_between(response.wavelengths, 0, scaled, color=shade, alpha=0.35, lw=0)
            ax.plot(response.wavelengths, scaled, color=shade, lw=1.0)
            if label and 400 < response.centroid < 2500:
                last = max(response.centroid, last + 36)
                ax.text(last, 1.07, label, ha="left", va="bottom", fontsize=6.2, color=shade, rotation=38)
        ax.set(xlim=(400, 2500), ylim=(0, 1.72), yticks=[])
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.set_ylabel(title, rotation=0, ha="right", va="center", labelpad=8, fontsize=8.5)
        ax.tick_params(axis="x", length=2)
    axes[-1].set_xlabel("wavelength, nm")
    figure.suptitle("What each instrument sees of the spectrum", x=0.02, ha="left", fontsize=13, weight="bold")
    figure.text(
        0.02, 0.945, "Relative spectral responses, peak 1. Grey: mean spectrum of the library. Sand: water vapour, no look.",
        ha="left", fontsize=9, color=SOFT,
    )
    figure.subplots_adjust(left=0.17, right=0.985, top=0.92, bottom=0.06, hspace=0.12)
    figure.savefig(path)
    plt.close(figure)


def draw_footprint(ax: Axes, name: str, view: tuple[float, float] | None, title: str, half: float) -> None:
    """One row of W on 30 m latent pixels with the outline of its native cell."""
    x, y = Transformer.from_crs(4326, 32613, always_xy=True).transform(-105.0, 40.0)
    reach = 2100.0 if half > 500 else 300.0
    count = int(2 * reach // 30)
    left, top = round(x / 30) * 30 - count // 2 * 30, round(y / 30) * 30 + count // 2 * 30
    grid = Grid(GeoBox((count, count), Affine(30, 0, left, 0, -30, top), "EPSG:32613"))
    one = sensor(name)
    assert one.native is not None
    box = window(one.native(grid), grid)
    place = frame(box, grid)
    middle = np.array([left + count * 15, top - count * 15])
    row, col = np.unravel_index(np.argmin(np.hypot(*(place.centre - middle).transpose(2, 0, 1))), tuple(map(int, box.shape)))
    subset = np.zeros(tuple(map(int, box.shape)), bool)
    subset[row, col] = True
    seen = None
    if view is not None:
        seen = View(*(np.full(subset.shape, v, np.float32) for v in view))
    weights = footprint(box, one.psf, grid, view=seen, subset=subset).dense()[row * subset.shape[1] + col].reshape(grid.shape)
    centre = place.centre[row, col]
    edges = (left - centre[0], left + count * 30 - centre[0], top - count * 30 - centre[1], top - centre[1])
    ax.imshow(weights / weights.max(), extent=edges, cmap=MASS, vmin=0, vmax=1, interpolation="nearest")
    gx, gy = grid.x - centre[0], grid.y - centre[1]
    if half > 500:
        ranked = np.sort(weights.ravel())[::-1]
        half_mass = ranked[np.searchsorted(np.cumsum(ranked), 0.5)] / weights.max()
        ax.contour(gx, gy, weights / weights.max(), levels=[half_mass], colors="#ffffff", linewidths=1.1)
    a, b = place.column[row, col] / 2, place.row[row, col] / 2
    outline = np.array([-a - b, a - b, a + b, -a + b, -a - b])
    ax.plot(*outline.T, color="#e4572e", lw=1.5)
    if half < 500:
        for line in np.concatenate([gx - 15, gx[-1:] + 15]):
            ax.axvline(line, color="#c9d1d9", lw=0.4, zorder=0.5)
            ax.axhline(line - (gx[0] - gy[-1]), color="#c9d1d9", lw=0.4, zorder=0.5)
    spread = 2.3548 * np.sqrt([(weights * gx**2).sum(), (weights * gy[:, None] ** 2).sum()])
    size = 2 * np.sqrt(abs(a[0] * b[1] - a[1] * b[0]))
    ax.set(xlim=(-half, half), ylim=(-half, half), aspect="equal")
    ax.set_title(title, loc="left", fontsize=10, weight="bold", pad=16)
    facts = f"cell {size:.0f} m, spread {spread[0]:.0f} × {spread[1]:.0f} m (E × N)"
    ax.text(0, 1.02, facts, transform=ax.transAxes, fontsize=7.5, color=SOFT)
    ticks = [-150, -75, 0, 75, 150] if half < 500 else [-1500, -750, 0, 750, 1500]
    ax.set_xticks(ticks)
    ax.set_yticks(ticks)
    ax.tick_params(length=2, labelsize=7.5)


def draw_footprints(path: Path) -> None:
    """Six footprints at 40 N 105 W, fine above and coarse below."""
    figure, axes = plt.subplots(2, 3, figsize=(10, 7.6))
    for ax, (name, (view, title, half)) in zip(axes.ravel(), PANELS.items(), strict=True):
        draw_footprint(ax, name, view, title, half)
    axes[0, 0].set_ylabel("metres north of the pixel centre")
    axes[1, 0].set_ylabel("metres north of the pixel centre")
    for ax in axes[1]:
        ax.set_xlabel("metres east of the pixel centre")
    figure.suptitle("What one pixel sees of the 30 m latent grid", x=0.02, ha="left", fontsize=13, weight="bold")
    figure.text(
        0.02, 0.935, "Weights of one observed pixel at 40° N 105° W. Orange: its native cell. White: the smallest area that "
        "holds half of the weight.\nThe upper and lower rows differ in scale by ten. Spread is 2.35 standard deviations.",
        ha="left", va="center", fontsize=8.5, color=SOFT,
    )
    figure.subplots_adjust(left=0.075, right=0.985, top=0.845, bottom=0.07, hspace=0.3, wspace=0.2)
    figure.savefig(path)
    plt.close(figure)


def main(folder: Path) -> None:
    """Both figures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        draw_responses(folder / "responses.png")
        draw_footprints(folder / "footprints.png")
    print(f"wrote {folder / 'responses.png'} and {folder / 'footprints.png'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1] / "docs" / "figures")
