"""Jobs: the template is valid, wrong keys are named with the nearest right one, nothing hostile gets through or crashes."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.errors import FusionError, JobError
from fusion.service.job import Job, check, job_schema, job_template
from tests.service.worlds import job_document


def document(**changes: object) -> dict:
    return job_document("items.json", "cube.zarr", **changes)


def test_the_template_is_a_valid_job_and_paths_start_at_its_folder(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(job_template())
    job = Job.load(tmp_path / "job.toml")
    check(job)
    assert job.output.store == str(tmp_path / "cube.zarr")
    assert job.grid().transform.c % 30 == 15
    assert str(job.calendar().times[0])[:10] == "2024-05-01"


def test_the_template_names_every_key_that_a_job_has() -> None:
    text = job_template()
    for section, model in Job.model_fields.items():
        assert section in text
        for name in getattr(model.annotation, "model_fields", {}):
            if section == "cluster" and name in ("threads", "read_retries", "dashboard", "cache"):
                continue
            assert name in text, (section, name)


def test_a_job_survives_its_own_document_and_the_fingerprint_is_what_decides_values() -> None:
    job = Job.of(document())
    assert Job.of(json.loads(json.dumps(job.document()))) == job
    same = Job.of(document(cluster={"workers": 7}, name="other", output={"store": "s3://b/c", "draws": 2}))
    assert same.fingerprint == job.fingerprint
    for changes in (
        {"engine": {"seed": 1}}, {"tiles": {"core": 64}}, {"spectrum": {"rank": 3}}, {"target": {"align": 0.0}},
        {"output": {"store": "cube.zarr", "draws": 3}}, {"period": {"start": "2024-05-01", "end": "2024-06-01"}},
    ):
        assert Job.of(document(**changes)).fingerprint != job.fingerprint, changes


@pytest.mark.parametrize(("change", "said"), [
    ({"perod": {}}, "did you mean 'period'"), ({"area": {"bbx": [0, 0, 1, 1]}}, "did you mean 'bbox'"),
    ({"sensors": [{"name": "landsat-8", "colection": "x"}]}, "did you mean 'collection'"),
    ({"sensors": [{"name": "landsat-8", "files": [{"href": "a", "datetme": "x"}]}]}, "did you mean 'datetime'"),
    ({"engine": {"name": "gausian"}}, "'gaussian', 'variational' or 'mcmc'"), ({"tiles": {"core": "big"}}, "tiles.core"),
    ({"area": {}}, "either `bbox` or `geojson`"), ({"sensors": []}, "sensors"), ({"output": {}}, "output.store: missing"),
    ({"sensors": [{"name": "a"}, {"name": "a"}]}, "listed twice"),
    ({"sensors": [{"name": "a", "catalog": "x", "files": ["y"]}]}, "either `catalog` or `files`"),
])
def test_wrong_keys_and_values_are_explained(change: dict, said: str) -> None:
    with pytest.raises(JobError) as told:
        Job.of(document(**change))
    assert said in str(told.value)


@pytest.mark.parametrize(("change", "said"), [
    ({"sensors": [{"name": "landsat-88"}]}, "landsat-8"), ({"area": {"bbox": [10, 0, -10, 1]}}, "antimeridian"),
    ({"target": {"crs": "EPSG:4326"}}, "geographic"), ({"target": {"resolution": 1e-4}}, "pixels"),
    ({"period": {"start": "2024-05-01", "end": "2024-04-01"}}, "ends"), ({"period": {"start": "no", "end": "2024"}}, "instant"),
    ({"period": {"start": "1985-01-01", "end": "2024-01-01", "step_days": 1e-3}}, "latent times"),
    ({"period": {"start": "2024-05-01", "end": "2024-06-01", "times": ["2024-05-02", "2024-07-02"]}}, "inside the period"),
    ({"period": {"start": "2024-05-01", "end": "2024-06-01", "times": ["2024-05-03", "2024-05-02"]}}, "increase"),
    ({"area": {"bbox": [0, 0, 1, 1], "crs": "PSG:4326"}}, "check area.crs"),
    ({"area": {"geojson": "/nowhere.geojson"}}, "geojson"), ({"output": {"store": "s3://key:secret@b/c"}}, "output.store"),
])
def test_impossible_jobs_are_refused_before_anything_is_allocated(change: dict, said: str) -> None:
    with pytest.raises(FusionError) as told:
        check(Job.of(document(**change)))
    assert said in str(told.value)


def test_latent_times_of_ones_own() -> None:
    regular = Job.of(document())
    period = {"start": "2024-05-01", "end": "2024-06-01", "times": ["2024-05-02", "2024-05-05T12:00:00Z", "2024-06-01"]}
    own = Job.of(document(period=period))
    assert [str(t)[:16] for t in own.calendar().times] == ["2024-05-02T00:00", "2024-05-05T12:00", "2024-06-01T00:00"]
    assert own.fingerprint != Job.of(document(period={**period, "times": period["times"][:2]})).fingerprint
    assert Job.of(own.document()) == own
    assert Job.of(regular.document()).fingerprint == regular.fingerprint


def test_geojson_in_another_crs(tmp_path: Path) -> None:
    ring = [[4e5, 4e6], [4.1e5, 4e6], [4.1e5, 4.2e6], [4e5, 4e6]]
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    outline = {"type": "FeatureCollection", "features": [feature]}
    (tmp_path / "area.json").write_text(json.dumps(outline))
    job = Job.of(document(area={"geojson": str(tmp_path / "area.json"), "crs": "EPSG:32613"}, target={"crs": "EPSG:32613"}))
    box = job.grid().bounds
    # the smallest box of whole 30 m pixels whose edges sit at multiples of 30 m
    assert (box.left, box.bottom, box.right, box.top) == (399990.0, 3999990.0, 410010.0, 4200000.0)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="fusion job init"):
        Job.load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[area\nbbox = 3")
    with pytest.raises(JobError, match="not TOML"):
        Job.load(tmp_path / "bad.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\x00\xfe")
    with pytest.raises(JobError, match="not TOML"):
        Job.load(tmp_path / "binary.toml")


def test_the_schema_describes_the_template() -> None:
    schema = job_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"area", "period", "sensors", "output"}
    assert set(tomllib.loads(job_template())) <= set(schema["properties"])


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=8,
)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_hostile_jobs_are_errors_never_crashes(data: st.DataObject) -> None:
    made = document()
    section = data.draw(st.sampled_from([*made, "engine", "cluster"]))
    if data.draw(st.booleans()) and isinstance(made.get(section), dict):
        made[section] = {**made[section], data.draw(st.sampled_from(sorted(made[section]))): data.draw(JUNK)}
    else:
        made[section] = data.draw(JUNK)
    try:
        job = Job.of(made)
        check(job)
    except FusionError:
        return
    assert job.fingerprint
