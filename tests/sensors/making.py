"""Small made-up scenes and windows for the adapter tests."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pystac
from affine import Affine
from odc.geo.geobox import GeoBox

from fusion.cube.calendar import Instant
from fusion.cube.grid import Grid
from fusion.observe.scene import Scene
from fusion.observe.sensor import Sensor

NOON = Instant(np.datetime64("2025-05-05T10:20:30", "us"))


def window(pixel: float, count: int = 20, crs: str = "EPSG:32613", corner: tuple[float, float] = (480000.0, 4428000.0)) -> Grid:
    """A square window of `count` pixels whose lower left corner sits on every archive's lattice."""
    x, y = corner
    return Grid.from_bbox((x, y, x + count * pixel, y + count * pixel), crs, pixel, bbox_crs=crs)


def scene(sensor: Sensor, box: GeoBox, seed: int = 0, low: float = 0.01, high: float = 0.6, name: str = "made") -> Scene:
    """White-noise reflectance with a hole without looks and one missing value, on these native pixels."""
    rng = np.random.default_rng(seed)
    channels = np.array(sensor.example_channels) if not sensor.bands else None
    names = tuple(b.name for b in sensor.bands) or tuple(f"c{i}" for i in range(len(sensor.example_channels)))
    rho = rng.uniform(low, high, (len(names), *box.shape)).astype(np.float32)
    rho[:, 2:4, 3:6] = np.nan
    rho[1, 6, 6] = np.nan
    return Scene(
        sensor.name, name, names, rho, np.full_like(rho, 0.01), box, NOON, simulated=True,
        centres=None if channels is None else channels[:, 0], fwhm=None if channels is None else channels[:, 1],
    )  # fmt: skip


def again(sensor: Sensor, one: Scene, folder: Path, grid: Grid) -> tuple[Scene, np.ndarray[Any, Any]]:
    """(what is read back of a written scene, the original values at the same pixels and bands)."""
    assert sensor.write is not None
    item = sensor.write(one, folder)
    back = sensor.read(pystac.Item.from_dict(item.to_dict()), grid)
    return back, original(one, back)


def original(one: Scene, back: Scene) -> np.ndarray[Any, Any]:
    """The values of `one` at the pixels and channels of `back`, matched by map coordinates and by band name or wavelength."""
    col, row = ~one.geobox.transform * (back.geobox.transform.c, back.geobox.transform.f)
    assert abs(col - round(col)) < 1e-6
    assert abs(row - round(row)) < 1e-6
    r, c, (height, width) = round(row), round(col), back.geobox.shape
    if one.centres is None or back.centres is None:
        pick = [one.bands.index(b) for b in back.bands]
    else:
        pick = [int(np.abs(one.centres - nm).argmin()) for nm in back.centres]
    return one.reflectance[pick][:, r : r + height, c : c + width]


def local_item(
    name: str, folder: Path, properties: dict[str, Any], assets: dict[str, Path], when: str = "2020-06-01T10:00:00Z"
) -> pystac.Item:
    """An item on this disk."""
    moment = datetime.fromisoformat(when.replace("Z", "+00:00"))
    item = pystac.Item(name, None, None, moment, properties)
    for key, path in assets.items():
        item.add_asset(key, pystac.Asset(str(path)))
    item.set_self_href(str(folder / f"{name}.json"))
    return item


UTM = GeoBox((40, 50), Affine(30, 0, 500_000, 0, -30, 4_500_000), "EPSG:32613")
"""the pixels of a small raster"""


def item_of(assets: dict[str, str], self_href: str | None = None, **properties: object) -> pystac.Item:
    """An item with these assets."""
    item = pystac.Item("X", None, None, datetime(2020, 6, 1, 17, 30, tzinfo=timezone.utc), dict(properties))
    for key, href in assets.items():
        item.add_asset(key, pystac.Asset(href))
    if self_href:
        item.set_self_href(self_href)
    return item


def inside(box: GeoBox, margin: int) -> Grid:
    """A latent grid over the middle of a UTM geobox."""
    t = box.transform
    rows, cols = box.shape
    return Grid(GeoBox((rows - 2 * margin, cols - 2 * margin), t * Affine.translation(margin, margin), box.crs))
