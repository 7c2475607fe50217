"""Small objects in a folder or a bucket: one way to put, get and list them, wherever a cube lives."""

from __future__ import annotations

import asyncio
import io
import json
import os
import zipfile
import zlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import zarr.abc.store
from numpy.typing import NDArray
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.core.sync import sync
from zarr.errors import BaseZarrError
from zarr.storage import FsspecStore, LocalStore, ObjectStore

from fusion.errors import StoreError

CLOUD = {"s3": "S3Store", "gs": "GCSStore", "gcs": "GCSStore", "az": "AzureStore", "abfs": "AzureStore", "abfss": "AzureStore"}
MAX_JSON = 512 * 2**20
"""bytes: the largest JSON document that is parsed (a continent's frozen catalog is a few hundred MB)"""

PAUSES = (0.2, 1.0, 3.0)
"""seconds between attempts, beyond those of the object-store client itself"""


def normal_url(url: str | os.PathLike[str]) -> str:
    """The address of a store without a trailing slash: an absolute local path, or scheme://bucket/prefix."""
    text = os.fspath(url).rstrip("/")
    if "\x00" in text or not text:
        raise StoreError(f"store {text!r} is not an address: give a local path, s3://, gs:// or az://")
    scheme, rest = text.split("://", 1) if "://" in text else ("", text)
    if scheme in ("", "file"):
        return os.path.abspath(os.path.expanduser(rest))
    if scheme not in CLOUD and scheme != "memory":
        raise StoreError(f"store {text!r}: scheme {scheme!r} is not known: give a local path, s3://, gs:// or az://")
    if urlsplit(text).username is not None:
        raise StoreError(f"store {scheme}://...: a key in the address would be stored with the cube; use the environment instead")
    return text


def connect(url: str, *, read_only: bool = False) -> zarr.abc.store.Store:
    """The Zarr store behind an address; credentials, endpoint and region come from the standard environment variables.

    Cloud addresses go through obstore where it is installed (2-4 times faster), else through fsspec.
    """
    if "://" not in url:
        return LocalStore(url, read_only=read_only)
    scheme, rest = url.split("://", 1)
    try:
        import obstore.store as obs
    except ImportError:
        return FsspecStore.from_url(url, read_only=read_only)
    if scheme == "memory":
        return FsspecStore.from_url(url, read_only=read_only)
    bucket, _, prefix = rest.partition("/")
    retry: Any = {"max_retries": 8}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    if scheme == "s3":
        options: dict[str, Any] = {"endpoint": endpoint, "virtual_hosted_style_request": False} if endpoint else {}
        store: Any = obs.S3Store(
            bucket, prefix=prefix, retry_config=retry, client_options={"allow_http": endpoint.startswith("http://")}, **options
        )
    else:
        store = getattr(obs, CLOUD[scheme])(bucket, prefix=prefix, retry_config=retry)
    return Steady(store, read_only=read_only)


class Steady(ObjectStore[Any]):
    """obstore tries again what failed before an answer began, but neither a cut answer nor a conditional PUT.

    Here all of it may be repeated: whoever puts a key first wins, and what a repeated put finds there is then read back.
    """

    async def get(self, *args: Any, **kwargs: Any) -> Buffer | None:
        """One object, or a range of it."""
        return await _steadily(super().get, *args, **kwargs)

    async def get_partial_values(self, *args: Any, **kwargs: Any) -> list[Buffer | None]:
        """Ranges of several objects."""
        return await _steadily(super().get_partial_values, *args, **kwargs)

    async def set(self, key: str, value: Buffer) -> None:
        """Writes an object."""
        await _steadily(super().set, key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Writes an object unless it is there."""
        await _steadily(super().set_if_not_exists, key, value)

    async def list_dir(self, prefix: str) -> AsyncGenerator[str, None]:
        """The names directly under a prefix."""
        whole = super().list_dir

        async def listed() -> list[str]:
            return [name async for name in whole(prefix)]

        for name in await _steadily(listed):
            yield name


async def _steadily(call: Callable[..., Coroutine[Any, Any, Any]], *args: Any, **kwargs: Any) -> Any:
    from obstore.exceptions import GenericError

    for pause in PAUSES:
        try:
            return await call(*args, **kwargs)
        except GenericError:
            await asyncio.sleep(pause)
    return await call(*args, **kwargs)


@contextmanager
def store_errors(url: str, doing: str) -> Iterator[None]:
    """Turns what a file system or an object store throws into one StoreError that says what to do."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        remote = type(error).__module__.split(".")[0] in ("obstore", "botocore", "aiohttp", "gcsfs", "adlfs", "azure", "s3fs")
        if not (remote or isinstance(error, OSError | BaseZarrError)):
            raise
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise StoreError(
            f"{doing} in {url} failed: {cause}. What is committed stays readable; mend the cause (space, rights, network, "
            "bucket), then `fusion resume` continues"
        ) from error


class Objects:
    """Small objects, most of them JSON documents, under keys of one Zarr store; every put is atomic (a rename, or a single PUT)."""

    def __init__(self, url: str, *, read_only: bool = False) -> None:
        self.url = url
        with store_errors(url, "opening the store"):
            self.store = connect(url, read_only=read_only)

    def _do(self, doing: str, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        with store_errors(self.url, doing):
            return sync(call())

    def put(self, key: str, value: Any, *, new: bool = False) -> None:
        """Writes one document; new: leaves an existing one untouched (the first writer wins)."""
        self.put_bytes(key, json.dumps(value, allow_nan=False, separators=(",", ":"), default=_plain).encode(), new=new)

    def put_bytes(self, key: str, data: bytes, *, new: bool = False) -> None:
        """Writes one object as it is; new: see `put`."""
        buffer = default_buffer_prototype().buffer.from_bytes(data)
        self._do(f"writing {key}", lambda: (self.store.set_if_not_exists if new else self.store.set)(key, buffer))

    def get(self, key: str) -> Any | None:
        """One document, or None where there is none; StoreError if it is not JSON."""
        data = self.get_bytes(key)
        if data is None:
            return None
        if len(data) > MAX_JSON:
            raise StoreError(f"{self.url}: {key} has {len(data)} bytes, more than any document of a cube")
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{self.url}: {key} is not JSON ({error}): the store was damaged; restore or delete it") from error

    def get_bytes(self, key: str) -> bytes | None:
        """One object as it is, or None where there is none."""
        found = self._do(f"reading {key}", lambda: self.store.get(key, default_buffer_prototype()))
        return None if found is None else found.to_bytes()

    def put_arrays(self, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Writes named arrays as one uncompressed npz, whose members carry checksums."""
        made = io.BytesIO()
        np.savez(made, **dict[str, Any](arrays))
        self.put_bytes(key, made.getvalue())

    def get_arrays(self, key: str) -> dict[str, NDArray[Any]] | None:
        """Named arrays as they were written; None where there are none, or where they were damaged (nothing is ever unpickled)."""
        data = self.get_bytes(key)
        if data is None:
            return None
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as found:
                return {name: found[name] for name in found.files}
        except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
            return None

    def delete_folder(self, prefix: str) -> None:
        """Removes everything under a prefix."""
        self._do(f"deleting {prefix}", lambda: self.store.delete_dir(prefix))

    def delete(self, key: str) -> None:
        """Removes one document if it is there."""
        self._do(f"deleting {key}", lambda: self.store.delete(key))

    def names(self, prefix: str) -> list[str]:
        """The names directly under a prefix (without it), sorted; a listing, no reads."""

        async def listed() -> list[str]:
            return [name async for name in self.store.list_dir(prefix)]

        return sorted(name.removeprefix(prefix).strip("/") for name in self._do(f"listing {prefix}", listed))


def _plain(value: Any) -> Any:
    """numpy scalars, dates and paths as JSON."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    return str(value)


def finite(value: Any) -> Any:
    """The same tree with NaN and infinities as None, so that every JSON reader accepts it."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [finite(v) for v in value]
    if value is None or isinstance(value, str | int | bool):
        return value
    return str(value)
