"""HDF5 files that keep to themselves: a downloaded file must not choose what else is read from this disk."""

from __future__ import annotations

from typing import Any

import h5py

from fusion.errors import SceneError

MAX_OBJECTS = 100_000


def sealed(file: h5py.File, where: str) -> None:
    """SceneError if any part of an HDF5 file lies in another file: external link, virtual dataset, external raw storage.

    Source: HDF5 specification 3.0, sections IV.A.2.g (link), IV.A.2.h (external file list), IV.A.2.i (virtual layout).
    """
    count = 0

    def look(name: str, link: Any) -> str | None:
        nonlocal count
        count += 1
        if count > MAX_OBJECTS:
            return f"has more than {MAX_OBJECTS} objects"
        if isinstance(link, h5py.ExternalLink):
            return f"{name} is a link to another file"
        if isinstance(link, h5py.SoftLink):
            return None
        found = file.get(name)
        if isinstance(found, h5py.Dataset) and (found.external or found.is_virtual):
            return f"{name} lies in another file"
        return None

    if (reason := file.visititems_links(look)) is not None:
        raise SceneError(f"{where}: {reason}: refused, a file must not choose what else is read; copy the data into one file")
