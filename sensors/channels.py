"""Imaging spectrometers: what a file says of its channels, made trustworthy, and the Scene they give.

Channels arrive with the file: in any order, in nanometres or micrometres, with or without widths, some of them empty, some blind
behind water vapour (NEON's own bad windows, 1340-1445 and 1790-1955 nm, lie inside those dropped here). Every repair is a note.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pystac
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from fusion.cube.calendar import When
from fusion.cube.spectrum import DROPPED, NODES, SHOULDERS, within
from fusion.errors import SceneError
from fusion.observe.scene import Scene, View
from fusion.observe.sensor import Noise

SHOULDER_FACTOR = 3.0
"""on sigma in the shoulders of water vapour, where residuals of the atmospheric correction stay"""
WIDTH_PER_STEP = 1.15
"""FWHM per channel spacing where a file gives none: EMIT 1.14, AVIRIS-NG 1.16, NEON 1.17, AVIRIS-3 1.07 (calibration files)"""
PLAUSIBLE = (-0.2, 2.0)
"""reflectance outside is a code, not a measurement"""

Array = NDArray[np.float64]


def in_nanometres(values: Any, what: str, where: str, unit: str = "") -> tuple[Array, tuple[str, ...]]:
    """(N,) nm, judged by size: a median of 0.2-3 is micrometres, 200-3000 nanometres; a note where the declaration disagrees."""
    array = np.asarray(values, dtype=np.float64).ravel()
    middle = float(np.median(array)) if array.size and np.isfinite(array).all() else float("nan")
    micro = unit.lower().startswith(("micro", "um", "µm"))
    if 200 <= middle <= 3000:
        return array, ((f"{what} declared in {unit}, their size says nanometres",) if micro else ())
    if 0.2 <= middle <= 3:
        told = f"{what} in micrometres though declared in {unit}" if unit else f"{what} in micrometres, undeclared"
        return array * 1000, (() if micro else (f"{told}: converted to nm",))
    raise SceneError(f"{where}: {what} have a median of {middle:g}, neither nanometres nor micrometres: correct the header")


def widths(fwhm: Any, centres: Array, where: str) -> tuple[Array, tuple[str, ...]]:
    """(N,) FWHM in nm: the file's (micrometres if their median is below .2), else 1.15 x the local channel spacing and a note."""
    array = np.zeros(0) if fwhm is None else np.asarray(fwhm, dtype=np.float64).ravel()
    if array.size:
        if array.size != centres.size:
            raise SceneError(f"{where}: {array.size} widths for {centres.size} wavelengths: the header is damaged")
        array = array * 1000 if np.median(array) < 0.2 else array
        if not ((array > 0) & (array < 200)).all():
            raise SceneError(f"{where}: channel widths of {array.min():g} to {array.max():g} nm cannot be: correct the header")
        return array, ()
    if centres.size < 2:
        raise SceneError(f"{where}: one channel without a width: give FWHM in the file")
    step = np.abs(np.gradient(centres))
    usual = float(np.median(step))
    step = np.where((step > 3 * usual) | (step < usual / 3), usual, step)  # seams between detectors
    return WIDTH_PER_STEP * step, (f"no channel widths in the file: {WIDTH_PER_STEP} x the channel spacing is used",)


def spectral_scene(
    name: str, noise: Noise, item: pystac.Item, rho: NDArray[np.float32], centres: Array, fwhm: Array, geobox: GeoBox, when: When,
    *, good: NDArray[np.bool_] | None = None, sigma: NDArray[np.float32] | None = None, count: NDArray[np.float32] | None = None,
    view: View | None = None, notes: tuple[str, ...] = (),
) -> Scene:
    """The Scene of one look: channels sorted, blind and empty ones dropped, sigma = a + b rho, tripled on the shoulders.

    rho: (N, H, W) as `measured` leaves it. good: (N,) the file's own verdict. sigma: (N, H, W) its own uncertainty, used where
    larger. count: (N, H, W) how many native pixels each value is the mean of (white noise averages down).
    """
    told, empty = list(notes), _coded(rho)
    use = (centres >= NODES[0]) & (centres <= NODES[-1]) & ~within(centres, DROPPED) & (True if good is None else good)
    if (empty & use).any():
        which = ", ".join(f"{c:.0f}" for c in centres[empty & use])
        told.append(f"{int((empty & use).sum())} channels are zero-coded and dropped: {which} nm")
    order = np.argsort(centres, kind="stable")
    if (np.diff(centres) < 0).any():
        told.append("wavelengths do not increase (overlapping detectors): channels sorted")
    pick = order[(use & ~empty)[order]]
    if not pick.size:
        raise SceneError(f"{name} scene {item.id}: no usable channel in {NODES[0]:g}-{NODES[-1]:g} nm: check the units")
    values, nm = rho[pick], centres[pick]
    level = noise.a + noise.b * np.clip(values, 0, None)
    level *= np.where(within(nm, SHOULDERS), SHOULDER_FACTOR, 1.0)[:, None, None]
    if sigma is not None:
        level = np.fmax(level, sigma[pick])
    if count is not None:
        level = level / np.sqrt(count[pick])
    return Scene(
        name, item.id, named(nm), values, level.astype(np.float32), geobox, when, view=view, centres=nm, fwhm=fwhm[pick],
        notes=tuple(dict.fromkeys(told)), simulated=bool(item.properties.get("fusion:simulated", False)),
    )


def measured(rho: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
    """((N, H, W) with NaN for implausible numbers and for pixels that are zero in every channel, how many of the latter)."""
    kept = np.where((rho >= PLAUSIBLE[0]) & (rho <= PLAUSIBLE[1]), rho, np.float32(np.nan)).astype(np.float32)
    blank = ((rho == 0) | np.isnan(rho)).all(axis=0) & (rho == 0).any(axis=0)
    if blank.any():
        kept[:, blank] = np.nan
    return kept, int(blank.sum())


def _coded(rho: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(N,) channels that hold one number, zero or less, wherever they hold any: a code, not ground."""
    seen = np.isfinite(rho)
    lowest = np.min(rho, axis=(1, 2), where=seen, initial=np.inf)
    highest = np.max(rho, axis=(1, 2), where=seen, initial=-np.inf)
    return np.asarray((lowest == highest) & (highest <= 0))


def named(centres: Array) -> tuple[str, ...]:
    """Channel names from wavelengths, unique: 548.9nm; a repeat gets a suffix."""
    names = [f"{c:.2f}nm" for c in centres]
    return tuple(n if names.index(n) == i else f"{n}-{i}" for i, n in enumerate(names))


def channels_of(scene: Scene) -> tuple[Array, Array]:
    """(centres, fwhm) of a scene to be written; SceneError for one without channels."""
    if scene.centres is None or scene.fwhm is None:
        raise SceneError(f"{scene.where}: no channel centres and widths: a spectrometer's scene must carry both")
    return scene.centres, scene.fwhm


def spread(first: float, last: float, count: int, fwhm: float) -> tuple[tuple[float, float], ...]:
    """Evenly spaced (centre, fwhm), nm: a typical file of an instrument, for display and simulation."""
    return tuple((float(c), fwhm) for c in np.linspace(first, last, count))
