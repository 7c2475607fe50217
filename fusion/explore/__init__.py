"""For the scientist who opens the result: `open_cube(url)` and the `.fusion` accessor on any xarray view of a cube.

    cube = fusion.open_cube("cube.zarr")
    cube.fusion.index("NDVI").mean            # posterior expectation, lazily
    cube.fusion.series(lon, lat)              # a pixel through time; fusion.explore.plots draws it
"""

from __future__ import annotations

from fusion.explore.accessor import FusionAccessor, open_cube

__all__ = ["FusionAccessor", "open_cube"]
