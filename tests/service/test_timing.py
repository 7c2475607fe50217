"""The plan's word about latent times that miss the finest sensor's days."""

from __future__ import annotations

import tomllib
from typing import Any

import numpy as np

from fusion.cube.cube import Cube
from fusion.service.job import Job
from fusion.service.timing import timing_notes
from tests.service.worlds import small_basis, small_job


def notes(days: list[str], **period: Any) -> tuple[list[str], Job]:
    job = small_job("items.json", "cube.zarr", period={"start": "2024-05-01", "end": "2024-06-30"} | period)
    items = {"landsat-8": [{"properties": {"datetime": f"{day}T17:30:00Z"}} for day in days]}
    return timing_notes(job, Cube(job.grid(), job.calendar(), small_basis()), items), job


def days(first: str, step: int, count: int) -> list[str]:
    return [str(np.datetime64(first) + step * n) for n in range(count)]


def test_a_start_that_meets_one_orbit_is_named_and_silences_the_note() -> None:
    told, _ = notes(days("2024-05-05", 16, 4))
    assert len(told) == 1
    assert told[0].startswith("4 of 4 looks of landsat-8 lie more than a day from every latent time")
    start = told[0].split('start = "')[1][:10]
    assert notes(days("2024-05-05", 16, 4), start=start)[0] == []


def test_looks_on_latent_times_and_lone_looks_need_no_word() -> None:
    assert notes(days("2024-05-01", 8, 7))[0] == []
    assert notes(["2024-05-05", "2024-05-13"])[0] == []


def test_orbits_out_of_phase_get_their_days_as_a_line_that_can_be_pasted() -> None:
    seen = sorted(days("2024-05-05", 8, 7) + days("2024-05-08", 8, 7) + days("2024-05-02", 8, 7))
    told, _ = notes(seen)
    line = told[0].split("[period] ")[1].split(", and more")[0]
    times = tomllib.loads(line)["times"]
    assert [t[:10] for t in times] == seen
    assert notes(seen, times=times)[0] == []


def test_long_lists_are_not_written_out() -> None:
    seen = sorted({d for phase in range(1, 8) for d in days(f"2024-05-0{phase + 1}", 8, 7)})
    told, _ = notes(seen)
    assert "make step_days shorter" in told[0]
