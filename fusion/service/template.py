"""The cube's template: which arrays there are, how they are cut into shards, and the attributes that describe them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import zarr
import zarr.abc.store
from zarr.codecs import BloscCodec, Crc32cCodec

from fusion.cube.cube import Cube
from fusion.cube.grid import Tile
from fusion.errors import StoreError
from fusion.infer.posterior import Status

CODECS: list[Any] = [BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"), Crc32cCodec()]
"""of every chunk; the checksum makes any Zarr reader refuse a damaged one"""
DRAW_STEP = 1 / 256
"""one step of a stored draw, in posterior sd"""
CODES = {**{status.name: code for code, status in enumerate(Status)}, "FAILED": 254, "PENDING": 255}
"""status array: how a tile ended; FAILED = the task itself failed, `fusion resume` tries again; PENDING = not yet run"""
CHUNK = 64
"""pixels: the largest edge of a chunk, the unit that a reader fetches"""
CHUNK_TIMES = 8


@dataclass(frozen=True)
class ArrayPlan:
    """One array of the template."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None = None
    fill: Any = 0
    attrs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Layout:
    """What a cube's template depends on."""

    cube: Cube
    core: int
    """pixels along a tile's edge"""
    draws: int
    sensors: tuple[str, ...]
    levels: tuple[str, ...] = ()
    """names of the variance levels that are kept"""

    def __post_init__(self) -> None:
        if self.core < 1 or self.draws < 0:
            raise StoreError(f"a cube of {self.core} pixel tiles and {self.draws} draws: the first must be >= 1, the second >= 0")

    @cached_property
    def tiles(self) -> tuple[int, int]:
        """Number of tiles (down, across)."""
        rows, cols = self.cube.grid.shape
        return -(-rows // self.core), -(-cols // self.core)

    @property
    def chunk(self) -> int:
        """Edge of a chunk: the largest divisor of the tile's edge up to CHUNK."""
        return max(d for d in range(1, min(CHUNK, self.core) + 1) if self.core % d == 0)

    def checked(self, tile: Tile) -> tuple[slice, slice]:
        """The tile's window, refused unless it is whole shards: a misaligned write corrupts its neighbours silently."""
        for window, size in zip(tile.window, self.cube.grid.shape, strict=True):
            whole = window.start % self.core == 0 and (window.stop % self.core == 0 or window.stop == size)
            if not (whole and 0 <= window.start < window.stop <= size):
                raise StoreError(
                    f"tile {tile.index} covers pixels {window.start}:{window.stop} of {size}, which is not a whole number of "
                    f"{self.core}-pixel shards: two tiles would share an object and lose data; use tiles of {self.core}"
                )
        return tile.window

    def pixels(self) -> list[str]:
        """The arrays that tiles write."""
        return [name for name, plan in self.arrays().items() if plan.shards is not None]

    def arrays(self) -> dict[str, ArrayPlan]:
        """Every data array by name (coordinates apart)."""
        return self._arrays

    @cached_property
    def _arrays(self) -> dict[str, ArrayPlan]:
        times, rank, rows, cols = self.cube.shape
        edge, step = self.chunk, min(CHUNK_TIMES, times)
        whole = -(-times // step) * step
        space = {"grid_mapping": "spatial_ref", "coordinates": "spatial_ref"}

        def field_of(lead: tuple[str, ...], sizes: tuple[int, ...], dtype: str, fill: Any, attrs: dict[str, Any]) -> ArrayPlan:
            ones = tuple(1 for _ in lead)
            return ArrayPlan(
                (*lead, "time", "component", "y", "x"), (*sizes, times, rank, rows, cols), dtype, (*ones, step, rank, edge, edge),
                (*ones, whole, rank, self.core, self.core), fill, {**space, **attrs},
            )

        plans = {
            "mean": field_of((), (), "float32", np.nan, {"long_name": "posterior mean of the components z", "units": "1"}),
            "sd": field_of((), (), "float32", np.nan, {"long_name": "posterior standard deviation of z", "units": "1"}),
            "canonical_sd": field_of((), (), "float32", np.nan, {
                "long_name": "posterior standard deviation of x, the components that are independent given theta: z = mixing x",
                "units": "1",
            }),
        }
        if self.draws:
            plans["draws"] = field_of(("draw",), (self.draws,), "int16", -32768, {
                "long_name": "standardised posterior draws of z: draw = mean + sd * value", "units": "1",
                "scale_factor": DRAW_STEP, "_FillValue": -32768,
            })
        if self.levels:
            plans["decomposition"] = ArrayPlan(
                ("level", "component", "y", "x"), (len(self.levels), rank, rows, cols), "float32", (1, rank, edge, edge),
                (len(self.levels), rank, self.core, self.core), np.nan,
                {**space, "long_name": "variance of z per level of the hierarchy", "units": "1"},
            )
        tiles, seen = self.tiles, (len(self.sensors), *self.tiles)
        plans["status"] = ArrayPlan(("tile_y", "tile_x"), tiles, "uint8", tiles, None, 255, {
            "long_name": "how the tile ended", "flag_values": list(CODES.values()), "flag_meanings": " ".join(CODES),
        })
        plans["chi_square"] = ArrayPlan(
            ("sensor", "tile_y", "tile_x"), seen, "float32", seen, None, np.nan,
            {"long_name": "reduced chi-square of a tile", "units": "1"},
        )
        square = (*tiles, rank, rank)
        plans["mixing"] = ArrayPlan(
            ("tile_y", "tile_x", "component", "canonical"), square, "float32", square, None, np.nan,
            {"long_name": "a tile's matrix from independent components x to z", "units": "1"},
        )
        plans["tail"] = ArrayPlan(("tile_y", "tile_x"), tiles, "float32", tiles, None, 0.0, {
            "long_name": "tail index 1 / nu of the law of errors in units of their sd, 0 = normal", "units": "1",
        })
        plans["looks"] = ArrayPlan(
            ("sensor", "tile_y", "tile_x"), seen, "uint16", seen, None, 0, {"long_name": "scenes fused into a tile", "units": "1"}
        )
        return plans

    def bytes(self) -> int:
        """Size of all pixel arrays before compression."""
        return sum(int(np.prod(p.shape, dtype=np.float64)) * np.dtype(p.dtype).itemsize for p in self.arrays().values())


def coordinates(layout: Layout) -> dict[str, tuple[tuple[str, ...], Any, dict[str, Any]]]:
    """name -> (dims, values, attributes) of the CF coordinates."""
    cube = layout.cube
    crs = cube.grid.crs
    a, b, c, d, e, f = tuple(cube.grid.transform)[:6]
    cf = {k: v for k, v in crs.proj.to_cf().items() if isinstance(v, str | int | float | list)}
    found: dict[str, tuple[tuple[str, ...], Any, dict[str, Any]]] = {
        "time": (("time",), cube.calendar.times.astype("datetime64[us]").astype(np.int64), {
            "standard_name": "time", "units": "microseconds since 1970-01-01T00:00:00", "calendar": "proleptic_gregorian",
            "axis": "T",
        }),
        "y": (("y",), cube.grid.y, {"standard_name": "projection_y_coordinate", "units": "metre", "axis": "Y"}),
        "x": (("x",), cube.grid.x, {"standard_name": "projection_x_coordinate", "units": "metre", "axis": "X"}),
        "component": (("component",), np.arange(cube.basis.rank, dtype=np.int32), {"long_name": "spectral component"}),
        "sensor": (("sensor",), np.array(layout.sensors, dtype=np.dtypes.StringDType()), {"long_name": "fused sensor"}),
        "spatial_ref": ((), np.int64(crs.epsg or 0), {
            **cf, "crs_wkt": crs.to_wkt(), "spatial_ref": crs.to_wkt(), "GeoTransform": f"{c} {a} {b} {f} {d} {e}",
        }),
    }
    if layout.draws:
        found["draw"] = (("draw",), np.arange(layout.draws, dtype=np.int32), {"long_name": "posterior draw"})
    if layout.levels:
        levels = np.array(layout.levels, dtype=np.dtypes.StringDType())
        found["level"] = (("level",), levels, {"long_name": "level of the hierarchy"})
    return found


def conventions(cube: Cube) -> dict[str, Any]:
    """The `proj:` and `spatial:` attributes of the Zarr conventions, with their registered identifiers."""
    crs, box = cube.grid.crs, cube.grid.bounds
    code = {"proj:code": f"EPSG:{crs.epsg}"} if crs.epsg is not None else {}
    return {
        "zarr_conventions": [
            {
                "uuid": "f17cb550-5864-4468-aeb7-f3180cfb622f", "name": "proj:",
                "schema_url": "https://raw.githubusercontent.com/zarr-experimental/geo-proj/refs/tags/v1/schema.json",
                "spec_url": "https://github.com/zarr-experimental/geo-proj/blob/v1/README.md",
                "description": "Coordinate reference system information for geospatial data",
            },
            {
                "uuid": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "name": "spatial:",
                "schema_url": "https://raw.githubusercontent.com/zarr-conventions/spatial/refs/tags/v1/schema.json",
                "spec_url": "https://github.com/zarr-conventions/spatial/blob/v1/README.md",
                "description": "Spatial coordinate information",
            },
        ],
        **code, "proj:wkt2": crs.to_wkt(), "proj:projjson": crs.proj.to_json_dict(),
        "spatial:dimensions": ["y", "x"], "spatial:transform": [float(v) for v in tuple(cube.grid.transform)[:6]],
        "spatial:shape": list(cube.grid.shape), "spatial:registration": "pixel",
        "spatial:bbox": [box.left, box.bottom, box.right, box.top],
    }


def write_template(store: zarr.abc.store.Store, layout: Layout, about: Mapping[str, Any]) -> None:
    """Metadata of all arrays and the coordinates' values; may be repeated after a crash, never touches pixels."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="zarr")  # the strings' data type is still a proposal
        group = zarr.open_group(store, mode="a", zarr_format=3, use_consolidated=False)
        title = {"Conventions": "CF-1.11", "title": "Fused latent surface-reflectance cube", "fusion": dict(about)}
        group.attrs.put({**title, **conventions(layout.cube)})
        for name, plan in layout.arrays().items():
            if name not in group:
                group.create_array(
                    name, shape=plan.shape, dtype=plan.dtype, chunks=plan.chunks, shards=plan.shards, compressors=CODECS,
                    fill_value=plan.fill, dimension_names=plan.dims, attributes=plan.attrs,
                )
        for name, (dims, values, attrs) in coordinates(layout).items():
            array = np.asarray(values)
            kind: Any = str if array.dtype.kind == "T" else array.dtype
            made: Any = group[name] if name in group else group.create_array(
                name, shape=array.shape, dtype=kind, chunks=array.shape, dimension_names=dims, attributes=attrs
            )
            made[...] = array
