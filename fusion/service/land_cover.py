"""A land-cover map of the user's own: its codes on the pixels of a tile. Any GeoTIFF of integer codes will do, in any projection."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds

from fusion.cube.grid import Grid
from fusion.errors import JobError, SceneError
from fusion.service.policy import Origin, Refused, safe_href
from fusion.service.reading import again

UNKNOWN = -1
"""code of a pixel of which the map says nothing"""
GDAL = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_HTTP_MAX_RETRY": "3", "GDAL_HTTP_RETRY_DELAY": "0.3", "GDAL_HTTP_RETRY_CODES": "ALL",
    "CPL_VSIL_CURL_NON_CACHED": "/vsicurl/:/vsis3/:/vsigs/:/vsiaz/",
}
"""how a map is read; a variable of the same name in the environment wins. The last: a failure is not remembered for the life of the process"""


def check(address: str, grid: Grid) -> None:
    """Opens the map and looks at its header. JobError for what is no map of this area, before anything is fitted."""
    if "://" in address:
        try:
            plain = safe_href(address, Origin("job"))
        except Refused as error:
            raise JobError(f"land_cover: {error}") from error
        if plain != address:
            raise JobError(f"land_cover {plain}: asked for with a signature, which a store must not keep: give a plain address or a local copy")
    try:
        with _opened(address) as file:
            there, (west, south, east, north) = file.bounds, transform_bounds(grid.crs.to_wkt(), file.crs, *grid.bounds)
    except (OSError, RasterioError) as error:
        raise JobError(f"land_cover {address} cannot be opened ({' '.join(str(error).split())[:200]}): check path or address") from error
    if not (west < there.right and there.left < east and south < there.top and there.bottom < north):
        raise JobError(
            f"land_cover {address}: it covers {there.left:g} {there.bottom:g} {there.right:g} {there.top:g}, the job asks for "
            f"{west:g} {south:g} {east:g} {north:g} there: give a map of the job's area"
        )


def codes(address: str, grid: Grid, retries: int = 3) -> NDArray[np.int64]:
    """(Y, X) the code that most of each latent pixel has, UNKNOWN where there is none.

    Read again where that may help; then SceneError, which costs the tile the map and nothing else.
    """
    height, width = grid.shape
    onto = {"crs": grid.crs.to_wkt(), "transform": grid.geobox.transform, "height": height, "width": width}

    def attempt() -> NDArray[np.int64]:
        with _opened(address) as file, WarpedVRT(file, resampling=Resampling.mode, add_alpha=file.nodata is None, **onto) as seen:
            return np.where(seen.dataset_mask() > 0, seen.read(1).astype(np.int64), UNKNOWN)

    try:
        return again(attempt, retries, "land cover")
    except (OSError, RasterioError) as error:
        raise SceneError(f"land_cover {address}: {' '.join(str(error).split())[:300]}") from error


def known(address: str | None, grid: Grid, retries: int = 3) -> dict[str, Any]:
    """What engines are told of a job's map on a tile; nothing where the job has none."""
    return {} if address is None else {"land_cover": codes(address, grid, retries)}


@contextmanager
def _opened(address: str) -> Iterator[Any]:
    """The map, of which only what is asked for is read.  Only GeoTIFF: a VRT could name any other file."""
    settings = {name: value for name, value in GDAL.items() if name not in os.environ}
    with rasterio.Env(**settings), rasterio.open(address, driver="GTiff") as file:
        kind = np.dtype(file.dtypes[0])
        if file.crs is None or not np.issubdtype(kind, np.integer):
            told = "no coordinate system" if file.crs is None else f"{kind} numbers"
            raise JobError(f"land_cover {address}: asked for integer codes on a map projection, got {told}: give a classified GeoTIFF")
        yield file
