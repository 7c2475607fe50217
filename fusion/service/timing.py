"""Whether a job's latent times lie on the days that its finest sensors saw, and what to write if not."""

from __future__ import annotations

import json

import numpy as np

from fusion.cube.calendar import DAY, in_phase, instant_of
from fusion.cube.cube import Cube
from fusion.observe.sensor import sensor
from fusion.service.job import Job
from fusion.service.policy import Item, interval

SHARE = 0.25
"""of the fine looks may miss the latent times before it is worth a word"""
LISTED = 40
"""days that a note lists"""


def timing_notes(job: Job, cube: Cube, items: dict[str, list[Item]]) -> list[str]:
    """One note if more than a quarter of the fine looks (pixels at most twice the latent ones; no composites) miss the latent times.

    It names the start that brings the most of them on latent times, or, where none brings nearly all, their days as `period.times`.
    """
    fine = [name for name in items if sensor(name).pixel <= 2 * cube.grid.resolution]
    spans = [interval(item) for name in fine for item in items[name]]
    instants = np.unique(np.array([first + (last - first) / 2 for first, last in spans if last - first < DAY], "datetime64[us]"))
    if instants.size < 3 or len(cube.calendar) < 2:
        return []
    missed = int(cube.calendar.missed(instants).sum())
    if missed <= SHARE * instants.size:
        return []
    told = f"{missed} of {instants.size} looks of {', '.join(fine)} lie more than a day from every latent time, where a change rings: "
    step = job.period.step_days
    if job.period.times is None:
        start, left = in_phase(instants, job.period.start, job.period.end, step)
        if left <= 0.1 * instants.size:
            return [f'{told}write [period] start = "{start}" (then {left} do)']
    noons = np.unique(instants.astype("datetime64[D]")).astype("datetime64[us]") + DAY // 2
    days = noons[(noons >= instant_of(job.period.start)) & (noons <= instant_of(job.period.end))]
    if days.size > LISTED:
        return [told + "write their days into [period] times, or make step_days shorter"]
    return [told + f"write [period] times = {json.dumps([f'{str(d)[:16]}Z' for d in days])}, and more between them where gaps are long"]
