"""Grids cover what was asked, tile without gaps, and refuse what footprints cannot work on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from fusion.cube.grid import Grid, halo_for, utm_zone_of
from fusion.errors import JobError
from tests.cube.strategies import grids


@settings(deadline=None, max_examples=60)
@given(
    lon=st.floats(-170, 170), lat=st.floats(-70, 70), size=st.floats(0.001, 0.2), resolution=st.sampled_from([10.0, 30.0, 500.0]),
    align=st.sampled_from([0.0, 15.0]),
)  # fmt: skip
def test_a_grid_covers_its_box_tightly_and_aligned(lon: float, lat: float, size: float, resolution: float, align: float) -> None:
    grid = Grid.from_bbox((lon, lat, lon + size, lat + size), resolution=resolution, align=align)
    forward = Transformer.from_crs(4326, grid.crs.proj, always_xy=True)
    edge = np.linspace(0, 1, 50)
    sides = [(edge, 0 * edge), (edge, 0 * edge + 1), (0 * edge, edge), (0 * edge + 1, edge)]
    around = np.concatenate([np.stack(side) for side in sides], axis=1)
    x, y = forward.transform(lon + size * around[0], lat + size * around[1])
    bounds, slack = grid.bounds, 1e-3 * resolution + 0.02
    assert bounds.left <= min(x) + slack
    assert max(x) <= bounds.right + slack
    assert bounds.bottom <= min(y) + slack
    assert max(y) <= bounds.top + slack
    assert min(x) - bounds.left < 1.01 * resolution + 0.02
    assert bounds.top - max(y) < 1.01 * resolution + 0.02
    assert abs((bounds.left - align) / resolution - round((bounds.left - align) / resolution)) < 1e-6
    assert grid.resolution == resolution
    assert grid.crs == utm_zone_of(lon + size / 2, lat + size / 2)


@settings(deadline=None, max_examples=60)
@given(grid=grids(), core=st.integers(1, 25), halo=st.integers(0, 8))
def test_tiles_partition_the_grid_and_know_their_place(grid: Grid, core: int, halo: int) -> None:
    count = np.zeros(grid.shape, int)
    for tile in grid.tiles(core, halo):
        count[tile.window] += 1
        assert tile.grid.shape == (core + 2 * halo, core + 2 * halo)
        assert grid.offset_of(tile.grid) == tile.origin
        rows, cols = tile.core
        assert np.allclose(tile.grid.y[rows], grid.y[tile.window[0]], rtol=0, atol=1e-6 * grid.resolution)
        assert np.allclose(tile.grid.x[cols], grid.x[tile.window[1]], rtol=0, atol=1e-6 * grid.resolution)
    assert (count == 1).all()


def test_a_halo_holds_the_footprint() -> None:
    grid = Grid.from_bbox((13.0, 46.0, 13.1, 46.1), resolution=30)
    assert halo_for(1000.0, grid) * 30 >= 1000 > (halo_for(1000.0, grid) - 1) * 30


@pytest.mark.parametrize(
    ("box", "settings_", "says"),
    [
        ((179.9, 10, -179.9, 10.1), {}, "antimeridian"),
        ((13, 46.1, 13.1, 46.0), {}, "south < north"),
        ((13, 46, float("nan"), 46.1), {}, "not a box"),
        ((13, 46, 13.1, 46.1), {"crs": "EPSG:4326"}, "geographic"),
        ((13, 46, 13.1, 46.1), {"crs": "EPSG:2263"}, "metres"),
        ((13, 46, 13.1, 46.1), {"crs": "EPSG:nonsense"}, "not understood"),
        ((13, 46, 13.1, 46.1), {"resolution": 0}, "positive"),
        ((-180, -60, 170, 60), {}, "longitude"),
    ],
)
def test_what_cannot_be_fused_is_refused_with_a_sentence(box: tuple[float, ...], settings_: dict[str, object], says: str) -> None:
    with pytest.raises(JobError, match=says):
        Grid.from_bbox(box, **settings_)  # type: ignore[arg-type]


def test_grids_of_two_systems_are_refused() -> None:
    box = (13.0, 46.0, 13.01, 46.01)
    grid = Grid.from_bbox(box)
    with pytest.raises(JobError, match="different CRSs"):
        grid.offset_of(Grid.from_bbox(box, "EPSG:3035"))
    with pytest.raises(JobError, match="fraction of a pixel"):
        grid.offset_of(Grid.from_bbox(box, align=15.0))
    with pytest.raises(JobError, match="north-up"):
        Grid(GeoBox((4, 4), grid.transform.rotation(20), grid.crs))
    with pytest.raises(JobError, match="no CRS"):
        Grid(GeoBox((4, 4), grid.transform, None))
