"""Random addresses, for the laws of fusion.cube."""

from __future__ import annotations

import numpy as np
from affine import Affine
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from fusion.cube.calendar import Calendar
from fusion.cube.cube import Cube
from fusion.cube.grid import Grid
from fusion.cube.spectrum import SpectralBasis

CRS = ("EPSG:32613", "EPSG:32633", "EPSG:32756", "EPSG:3035", "EPSG:5070", "ESRI:54008", "+proj=sinu +R=6371007.181 +units=m")


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    resolution = draw(st.sampled_from([1.0, 10.0, 30.0, 70.0, 463.3127165]) | st.floats(0.5, 1000.0))
    left, top = draw(st.floats(-1e6, 1e6)), draw(st.floats(-8e6, 8e6))
    shape = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    return Grid(GeoBox(shape, Affine(resolution, 0, left, 0, -resolution, top), draw(st.sampled_from(CRS))))


@st.composite
def calendars(draw: st.DrawFn) -> Calendar:
    start = np.datetime64("1982-08-22", "us") + np.timedelta64(draw(st.integers(0, 2_000_000_000)), "s")
    steps = draw(st.lists(st.integers(1, 40 * 86_400_000_000), max_size=12))
    return Calendar(start + np.concatenate([[0], np.cumsum(steps, dtype=np.int64)]).astype("timedelta64[us]"))


@st.composite
def bases(draw: st.DrawFn) -> SpectralBasis:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    nodes, rank = draw(st.integers(2, 9)), draw(st.integers(1, 4))
    root = rng.standard_normal((rank, rank))
    offsets, gains = ({f"look {i}": rng.standard_normal(nodes) for i in range(draw(st.integers(0, 2)))} for _ in range(2))
    return SpectralBasis(
        400 + np.cumsum(rng.uniform(1, 200, nodes)), rng.uniform(0, 1, nodes), rng.standard_normal((nodes, rank)),
        root @ root.T + 0.1 * np.eye(rank), rng.uniform(0, 1e-3, nodes), draw(st.text(max_size=20)), offsets, gains, draw(st.booleans()),
        rng.standard_normal((nodes, draw(st.integers(0, 3)))),
    )  # fmt: skip


cubes = st.builds(Cube, grids(), calendars(), bases())
