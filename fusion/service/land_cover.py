"""A land-cover map of the user's own: its codes on the pixels of a tile. Any GeoTIFF of integer codes will do, in any projection."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT

from fusion.cube.grid import Grid
from fusion.errors import JobError, SceneError
from fusion.service.policy import Origin, Refused, safe_href

log = logging.getLogger("fusion")
UNKNOWN = -1
"""code of a pixel of which the map says nothing"""


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
        with _seen(address, grid) as map_:
            if not map_.dataset_mask(out_shape=(64, 64)).any():
                raise JobError(f"land_cover {address}: it says nothing in {grid.bounds} of {grid.crs}: give a map of the job's area")
    except (OSError, RasterioError) as error:
        raise JobError(f"land_cover {address} cannot be opened ({' '.join(str(error).split())[:200]}): check path or address") from error


def codes(address: str, grid: Grid, retries: int = 3) -> NDArray[np.int64]:
    """(Y, X) the code that most of each latent pixel has, UNKNOWN where there is none.

    What may pass (network, file system) is tried again with growing pauses; then SceneError, which costs the tile the map and nothing else.
    """
    for attempt in range(retries + 1):
        try:
            with _seen(address, grid) as map_:
                return np.where(map_.dataset_mask() > 0, map_.read(1).astype(np.int64), UNKNOWN)
        except (OSError, RasterioError) as error:
            if attempt == retries:
                raise SceneError(f"land_cover {address}: {' '.join(str(error).split())[:300]}") from error
            log.info("land cover: attempt %d failed (%s), trying again", attempt + 1, error)
            time.sleep(min(0.5 * 2**attempt, 20.0))
    raise AssertionError("unreachable")


def known(address: str | None, grid: Grid, retries: int = 3) -> dict[str, Any]:
    """What engines are told of a job's map on a tile; nothing where the job has none."""
    return {} if address is None else {"land_cover": codes(address, grid, retries)}


@contextmanager
def _seen(address: str, grid: Grid) -> Iterator[Any]:
    """The map as a raster on the latent pixels, of which only what is asked for is read.  Only GeoTIFF: a VRT could name any other file."""
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_HTTP_MAX_RETRY=2), rasterio.open(address, driver="GTiff") as file:
        kind = np.dtype(file.dtypes[0])
        if file.crs is None or not np.issubdtype(kind, np.integer):
            told = "no coordinate system" if file.crs is None else f"{kind} numbers"
            raise JobError(f"land_cover {address}: asked for integer codes on a map projection, got {told}: give a classified GeoTIFF")
        height, width = grid.shape
        onto = {"crs": grid.crs.to_wkt(), "transform": grid.geobox.transform, "height": height, "width": width}
        with WarpedVRT(file, resampling=Resampling.mode, add_alpha=file.nodata is None, **onto) as map_:
            yield map_
