"""One archive of simulated scenes and one S3 server for all tests of the service."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import dask
import pytest
from distributed import LocalCluster

from fusion.service.cluster import SETTINGS
from tests.service.worlds import archive


@pytest.fixture(scope="session")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ItemCollection of two simulated Landsat scenes on disk."""
    return archive(tmp_path_factory.mktemp("archive"))


@pytest.fixture(scope="session")
def workers() -> Iterator[LocalCluster]:
    """Two warm worker processes that the tests share; a run reaches them by the scheduler's address, as on a real cluster."""
    with dask.config.set(SETTINGS), LocalCluster(
        n_workers=2, threads_per_worker=1, memory_limit="4GiB", dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL
    ) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An empty bucket on an S3 server of this process; credentials and endpoint in the environment, where users have them."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    wanted = {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_EC2_METADATA_DISABLED": "true",
    }
    kept = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    boto3.client("s3", endpoint_url=wanted["AWS_ENDPOINT_URL"]).create_bucket(Bucket="cubes")
    yield "s3://cubes"
    server.stop()
    for key, value in kept.items():
        if value is None:
            del os.environ[key]
        else:
            os.environ[key] = value
