"""NEON AOP imaging spectrometer surface reflectance (DP3.30006 mosaics, DP1 flight lines) in its native HDF5."""

from __future__ import annotations

from datetime import date

import pystac

from fusion.cube.grid import Grid
from fusion.observe.psf import PSF
from fusion.observe.scene import Scene
from fusion.observe.sensor import Noise, Sensor
from sensors import revisit, sources
from sensors.channels import spread
from sensors.images import opened, scene_of
from sensors.neon_files import flight_time, neon_image, view_angles, write
from sensors.reading import asset_of, local_file


def read(item: pystac.Item, window: Grid) -> Scene:
    """One mosaic tile's window; wavelengths, widths, scale, fill, days and angles from the file."""
    where = f"neon-aop scene {item.id}"
    asset = asset_of(item, ("reflectance", "data", "h5"), where)
    path = local_file(item, asset, where)
    with opened(path, where) as file:
        image, group, told = neon_image(file, path, where)
        dated = flight_time(group, item, path, told, where)
        return scene_of(NEON_AOP, image, item, asset, window, where, when=dated, view=view_angles(group))


NEON_AOP = Sensor(
    name="neon-aop", title="NEON AOP imaging spectrometer, 1 m surface reflectance (HDF5)", bands=(), pixel=1.0,
    psf=PSF("gaussian", 0.68, geolocation=0.5), read=read, write=write, revisit=revisit.never, offset_sd=0.015, gain_sd=0.03,
    channel_noise=Noise(0.002, 0.02), lifetime=(date(2013, 1, 1), None), example_channels=spread(383.534, 2511.895, 426, 5.85),
    sources=sources.NEON,
)  # fmt: skip
