"""Which scenes there are: each sensor's items from a STAC API, a static catalog or plain files, frozen with the job.

Clients check `conformsTo` before they filter, and filter again here, because servers were seen to ignore filters silently. Items
pass `fusion.service.policy`; one that does not is listed with its reason. Hrefs are kept unsigned: a worker signs as it reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import requests
import shapely
import shapely.geometry
from numpy.typing import NDArray
from pystac_client.exceptions import APIError

from fusion.cube.calendar import DAY, instant_of
from fusion.errors import FusionError, JobError
from fusion.observe.sensor import sensor
from fusion.service.job import Job, Source
from fusion.service.policy import Item, Origin, Refused, admit, interval
from fusion.service.sources import PAD, Trouble, documents, matches, outline

BROKEN = (
    FusionError, APIError, requests.RequestException, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError,
)
"""what a catalog that is down or malformed makes its clients raise"""
SHARED = 1 / 8
"""of a composite's window, the least distance to another's where both are the nearest to a latent time: closer ones were not measured"""


@dataclass(frozen=True)
class Found:
    """The frozen catalog: items per sensor, and what was left out or went wrong, one sentence each."""

    items: dict[str, list[Item]]
    notes: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Scenes of all sensors."""
        return sum(map(len, self.items.values()))


def find(job: Job) -> Found:
    """Searches for every sensor of a job; a source that fails is noted, the rest goes on; JobError if nothing at all is found."""
    items: dict[str, list[Item]] = {}
    notes: list[str] = []
    area = outline(job)
    for source in job.sensors:
        found: dict[str, Item] = {}
        try:
            for document, origin in documents(job, source, sensor(source.name)):
                _take(document, origin, (job, area), source, found, notes)
        except BROKEN as error:
            notes.append(f"{source.name}: the search ended early after {len(found)} scenes: {_short(error)}")
        items[source.name] = thinned(sorted(found.values(), key=lambda i: (interval(i), i["id"])), job.calendar().times)
        if len(items[source.name]) < len(found):
            kept = len(items[source.name])
            notes.append(f"{source.name}: kept {kept} of {len(found)} composites; the others' windows overlap these")
    result = Found(items, notes)
    if result.count == 0:
        raise JobError(
            "no sensor has a scene for this place and period" + "".join(f"\n  {note}" for note in notes[:20])
            + "\nWiden the period, check the catalog and collection names, or add a sensor"
        )
    return result


def thinned(items: list[Item], times: NDArray[np.datetime64]) -> list[Item]:
    """Without the composites that say again what another one of the same place says.

    MCD43A4 is published daily with a 16-day window: successive days hold nearly the same observations. Kept is, for each latent time,
    the composite whose window's centre is nearest, and any other that shares at most half of its window with those kept; none lies
    closer to another than SHARED of its window.  items: in time order. times: (T,) latent.
    """
    places: dict[str, list[Item]] = {}
    kept: list[Item] = []
    for item in items:
        first, end = interval(item)
        if end - first < 2 * DAY:
            kept.append(item)
            continue
        centre = shapely.geometry.shape(item["geometry"]).centroid
        places.setdefault(f"{centre.x:.3f} {centre.y:.3f}", []).append(item)
    for here in places.values():
        kept += _apart(here, times)
    return sorted(kept, key=lambda i: (interval(i), i["id"]))


def _apart(items: list[Item], times: NDArray[np.datetime64]) -> list[Item]:
    first, end = (np.array(edge, "datetime64[us]") for edge in zip(*map(interval, items), strict=True))
    width, centre = end - first, first + (end - first) / 2
    nearest = np.unique(np.abs(centre[:, None] - times[None].astype("datetime64[us]")).argmin(0))
    kept = np.zeros(len(items), bool)
    for chosen, share in ((nearest, SHARED), (range(len(items)), 0.5)):
        for i in chosen:
            kept[i] |= bool((np.abs(first[i] - first[kept]) >= share * width[i]).all())
    return [item for item, one in zip(items, kept, strict=True) if one]


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _take(
    document: Any, origin: Origin, wanted: tuple[Job, Any], source: Source, found: dict[str, Item], notes: list[str]
) -> None:
    """Adds one document to the scenes found if it is admitted and matches."""
    if isinstance(document, Trouble):
        notes.append(f"{source.name} {document.name}: {document.reason}")
        return
    name = str(document.get("id"))[:80] if isinstance(document, Mapping) else "?"
    try:
        item, dropped = admit(document, origin)
        if matches(item, source.query) and reaches(item, *wanted):
            if len(found) >= source.max_items:
                raise JobError(f"more than max_items = {source.max_items} scenes match: narrow the search or raise it")
            found.setdefault(item["id"], item)
            notes += [f"{source.name} {name}: {note}" for note in dropped]
    except Refused as reason:
        notes.append(f"{source.name} {name}: refused: {reason}")


def reaches(item: Item, job: Job, area: Any) -> bool:
    """Whether an item may touch the job's period and area (its outline, made once: it costs more than everything here)."""
    first, last = interval(item)
    start, end = instant_of(job.period.start), instant_of(job.period.end)
    if last < start - PAD or first > end + PAD:
        return False
    return bool(shapely.intersects(shapely.geometry.shape(item["geometry"]), area))
