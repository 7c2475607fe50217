"""What a newcomer meets with an area of his own: a collection that is not there, a period that ends between two latent times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fusion.errors import JobError
from fusion.service.catalog import find
from fusion.service.reading import look
from tests.service.worlds import archive, small_cube, small_job


def test_a_collection_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    job = small_job(archive(tmp_path / "archive"), tmp_path / "cube.zarr")
    source = job.sensors[0].model_copy(update={"collection": "landsat-c2-l2"})
    with pytest.raises(JobError, match=r"no such collection; it has landsat-8"):
        find(job.model_copy(update={"sensors": (source,)}))


def test_a_scene_beyond_the_last_latent_time_is_no_look_and_no_failure(tmp_path: Path) -> None:
    cube = small_cube(times=2)  # 2024-05-01 and 05-09; a scene on 05-21 is found by the search and says nothing of them
    job = small_job(archive(tmp_path / "archive"), tmp_path / "cube.zarr")
    items = find(job).items
    assert len(items["landsat-8"]) == 2
    observations, record = look(items, cube.grid.tiles(64, 8)[0], cube, retries=0)
    assert record["failed_scenes"] == []
    assert record["looks"]["landsat-8"] == len(record["scenes"]["landsat-8"]) == 1
    assert all(np.asarray(o.precision).any() for o in observations)
