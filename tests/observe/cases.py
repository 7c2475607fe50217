"""Grids, rasters and views that the laws run over, and the dense float64 reference written from the equation.

The reference shares nothing with the package: the sinusoidal projection is inverted by hand, cells come from steps of a
twentieth of a pixel, ground axes from PROJ's own factors, and W(p, s) is a Gauss-Legendre integral over the cell of
closed-form pieces in real space.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Proj, Transformer
from scipy.special import ndtr

from fusion.cube.grid import Grid
from fusion.observe.psf import PSF
from fusion.observe.scene import View

RADIUS = 6371007.181
TILE = 2 * np.pi * RADIUS / 36
CELL = TILE / 2400
SINUSOIDAL = f"+proj=sinu +R={RADIUS} +nadgrids=@null +wktext +no_defs"
BLUR_FLOOR = 0.2  # of the smaller pixel: part of the stated rule for kernels in general position


@dataclass(frozen=True, eq=False)
class Case:
    name: str
    geobox: GeoBox
    psf: PSF
    grid: Grid
    view: View | None = None


def grid_at(lon: float, lat: float, epsg: int, size: tuple[int, int] = (24, 20), resolution: float = 30.0) -> Grid:
    x, y = Transformer.from_crs(4326, epsg, always_xy=True).transform(lon, lat)
    left, top = (round(v / resolution) * resolution for v in (x, y))
    return Grid(GeoBox(size, Affine(resolution, 0, left, 0, -resolution, top), f"EPSG:{epsg}"))


def sinusoidal_tile(h: int, v: int) -> GeoBox:
    return GeoBox((2400, 2400), Affine(CELL, 0, (h - 18) * TILE, 0, -CELL, (9 - v) * TILE), SINUSOIDAL)


def utm(epsg: int, pixel: float, left: float, top: float, size: tuple[int, int] = (400, 400), turn: float = 0.0) -> GeoBox:
    return GeoBox(size, Affine.translation(left, top) * Affine.rotation(turn) * Affine.scale(pixel, -pixel), f"EPSG:{epsg}")


def constant_view(geobox: GeoBox, zenith: float, azimuth: float) -> View:
    shape = tuple(map(int, geobox.shape))
    return View(np.full(shape, zenith, np.float32), np.full(shape, azimuth, np.float32))


def _lonlat(geobox: GeoBox, col: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b, c, d, e, f = geobox.transform[:6]
    x, y = a * col + b * row + c, d * col + e * row + f
    if "sinu" in str(geobox.crs.to_wkt()).lower():
        return np.degrees(x / (RADIUS * np.cos(y / RADIUS))), np.degrees(y / RADIUS)
    return Transformer.from_crs(geobox.crs.proj, 4326, always_xy=True).transform(x, y)


def reference_rows(case: Case, rows: np.ndarray, latent: np.ndarray | None = None) -> np.ndarray:
    """(len(rows), Y X or len(latent)) float64 masses W(p, s), not yet divided by their sum inside the grid.

    rows: flat native pixels. latent: flat latent pixels to evaluate (scanners are costly), default all.
    """
    grid, psf = case.grid, case.psf
    row, col = np.divmod(rows, int(case.geobox.shape[1]))
    to_map = Transformer.from_crs(4326, grid.crs.proj, always_xy=True)

    def at(dc: float, dr: float) -> np.ndarray:
        return np.stack(to_map.transform(*_lonlat(case.geobox, col + 0.5 + dc, row + 0.5 + dr)), axis=-1)

    centre, across, down = at(0, 0), (at(0.05, 0) - at(-0.05, 0)) * 10, (at(0, 0.05) - at(0, -0.05)) * 10
    factors = Proj(grid.crs.proj).get_factors(*_lonlat(case.geobox, col + 0.5, row + 0.5))
    turn, scale = np.radians(factors.meridian_convergence), np.asarray(factors.meridional_scale)
    y, x = (a.ravel() for a in np.meshgrid(grid.y, grid.x, indexing="ij"))
    if latent is not None:
        y, x = y[latent], x[latent]
    out = np.empty((len(rows), len(x)))
    for i in range(len(rows)):
        native = np.sqrt(abs(np.linalg.det([across[i], down[i]])))
        aligned = psf.kind == "gaussian" and max(abs(across[i][1]), abs(down[i][0])) < 1e-6 * grid.resolution
        sd = psf.sd * scale[i]
        if not aligned:
            sd = max(sd, BLUR_FLOOR * min(native, grid.resolution) * scale[i])
        offset = np.stack([x, y], axis=-1) - centre[i]
        if psf.kind == "gaussian":
            out[i] = _gaussian(offset, across[i], down[i], sd, grid.resolution, psf.cell)
        else:
            index = rows[i]
            zenith = 0.0 if case.view is None else float(case.view.zenith.reshape(-1)[index])
            azimuth = 90.0 if case.view is None else float(case.view.azimuth.reshape(-1)[index])
            along = np.radians(azimuth) - turn[i]  # clockwise from the map's north
            out[i] = _scanner(offset, across[i], down[i], sd, grid.resolution, *_sizes(case, zenith, scale[i]), along)
    return out


def _sizes(case: Case, zenith: float, scale: float) -> tuple[float, float]:
    """Along-scan and along-track size by the law of sines, metres of the map."""
    v = np.radians(zenith)
    theta = np.arcsin(6371.0 / 7076.0 * np.sin(v))
    slant = 705.0 if zenith == 0 else 6371.0 * np.sin(v - theta) / np.sin(theta)
    track, scan = slant / 705.0, slant / 705.0 / np.cos(v)
    if case.view is None:  # composite: mean square over ground positions out to 45 degrees
        angle = np.radians(np.linspace(1e-6, 45.0, 20001))
        look = np.arcsin(6371.0 / 7076.0 * np.sin(angle))
        ground = 6371.0 * (angle - look)
        track_all = 6371.0 * np.sin(angle - look) / np.sin(look) / 705.0
        scan = np.sqrt(np.trapezoid((track_all / np.cos(angle)) ** 2, ground) / (ground[-1] - ground[0]))
        track = np.sqrt(np.trapezoid(track_all**2, ground) / (ground[-1] - ground[0]))
    return scan * case.psf.fwhm * scale, track * case.psf.fwhm * scale


def _nodes(panels: int, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Composite Gauss-Legendre rule on (-1/2, 1/2)."""
    point, weight = np.polynomial.legendre.leggauss(order)
    left = np.arange(panels) / panels - 0.5
    return (left[:, None] + (point + 1) / (2 * panels)).ravel(), np.tile(weight / (2 * panels), panels)


def _gaussian(offset: np.ndarray, across: np.ndarray, down: np.ndarray, sd: float, pixel: float, cell: bool) -> np.ndarray:
    if sd == 0:  # aligned boxes: their overlap
        sides = np.abs([across[0], down[1]])
        overlap = np.minimum(offset + pixel / 2, sides / 2) - np.maximum(offset - pixel / 2, -sides / 2)
        return np.prod(np.maximum(overlap, 0.0) / sides, axis=1)

    def box(t: np.ndarray) -> np.ndarray:
        return ndtr((t + pixel / 2) / sd) - ndtr((t - pixel / 2) / sd)

    if not cell:
        return box(offset[:, 0]) * box(offset[:, 1])
    panels = max(1, int(np.ceil(max(np.hypot(*across), np.hypot(*down)) / (4 * max(sd, 1.0)))))
    point, weight = _nodes(panels, 14)
    total = np.zeros(len(offset))
    for p, q in zip(point, weight, strict=True):
        shift = p * across + point[:, None] * down
        total += q * (weight @ (box(offset[None, :, 0] - shift[:, :1]) * box(offset[None, :, 1] - shift[:, 1:])))
    return total


def _scanner(
    offset: np.ndarray, across: np.ndarray, down: np.ndarray, sd: float, pixel: float, scan: float, track: float, along: float
) -> np.ndarray:
    """Cell and latent pixel by quadrature; triangle and rectangle blurred by the Gaussian in closed form on their own axes."""

    def twice(t: np.ndarray) -> np.ndarray:
        return t * ndtr(t / sd) + sd * np.exp(-0.5 * (t / sd) ** 2) / np.sqrt(2 * np.pi)

    u_axis, v_axis = np.array([np.sin(along), np.cos(along)]), np.array([np.cos(along), -np.sin(along)])
    (p, wp), (q, wq) = _nodes(3, 9), _nodes(1, 5)
    total = np.zeros(len(offset))
    cells = p[:, None, None] * across + p[None, :, None] * down
    for dx, wx in zip(q * pixel, wq, strict=True):
        for dy, wy in zip(q * pixel, wq, strict=True):
            d = offset[:, None, None, :] + np.array([dx, dy]) - cells
            u, v = d @ u_axis, d @ v_axis
            triangle = (twice(u + scan) - 2 * twice(u) + twice(u - scan)) / scan**2
            rectangle = (ndtr((v + track / 2) / sd) - ndtr((v - track / 2) / sd)) / track
            total += wx * wy * np.einsum("sab,a,b->s", triangle * rectangle, wp, wp)
    return total * pixel**2
