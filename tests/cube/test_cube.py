"""A cube's coordinates survive the trip through a store's attributes exactly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import xarray as xr
import zarr
from hypothesis import given, settings

from fusion.cube.calendar import Calendar
from fusion.cube.cube import Cube
from fusion.cube.grid import Grid
from fusion.cube.spectrum import SpectralBasis
from tests.cube.strategies import cubes


@settings(deadline=None, max_examples=80)
@given(cubes)
def test_attributes_round_trip_exactly_through_json(cube: Cube) -> None:
    back = Cube.from_attrs(json.loads(json.dumps(cube.to_attrs(), allow_nan=False)))
    assert back == cube
    assert back.shape == cube.shape
    assert (back.grid.x == cube.grid.x).all()
    assert (back.calendar.times == cube.calendar.times).all()
    for name in ("wavelengths", "mean", "components", "prior", "residual_var"):
        assert (getattr(back.basis, name) == getattr(cube.basis, name)).all()


def test_attributes_round_trip_through_a_zarr_store_opened_by_xarray(tmp_path: Path) -> None:
    cube = Cube(
        Grid.from_bbox((13.0, 46.0, 13.01, 46.01)), Calendar.regular("2020-01-01T10:30:00.123456Z", "2020-03-01", 8),
        SpectralBasis.library(5),
    )  # fmt: skip
    group = zarr.open_group(tmp_path / "cube.zarr", mode="w", zarr_format=3)
    group.attrs["cube"] = cube.to_attrs()
    array = group.create_array("z", shape=cube.shape, dtype="f4", dimension_names=("time", "component", "y", "x"))
    array[...] = np.zeros(cube.shape, np.float32)
    opened = xr.open_zarr(tmp_path / "cube.zarr", consolidated=False)
    assert Cube.from_attrs(opened.attrs["cube"]) == cube
    assert opened["z"].shape == cube.shape
