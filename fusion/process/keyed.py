"""Random numbers that belong to places, not to a tile: neighbouring tiles draw alike where they meet."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def _mix(a: Array, b: Array) -> Array:
    """A 32-bit hash of two words: the finaliser of MurmurHash3 (Appleby 2011), whose every input bit reaches every output bit."""
    h = a ^ (b * jnp.uint32(0x9E3779B9) + jnp.uint32(0x7F4A7C15) + (a << 6) + (a >> 2))
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def keyed_normal(key: Array, rows: Array, cols: Array, width: int) -> Array:
    """(width, ...) standard normals that depend only on the key and on each place's GLOBAL row and column (broadcast together).

    A counter-based hash, not a stream: any tile finds the same number at the same place.
    """
    rows, cols = (jnp.asarray(v).astype(jnp.uint32) for v in jnp.broadcast_arrays(rows, cols))
    first, second = jax.random.key_data(key).astype(jnp.uint32)
    place = _mix(_mix(_mix(first, second), rows), cols)[None]
    index = jnp.arange(width, dtype=jnp.uint32).reshape(-1, *(1,) * rows.ndim)
    word = _mix(_mix(place, index), second)
    uniform = (word >> 8).astype(jnp.float32) * 2.0**-23 + (2.0**-24 - 1.0)  # the 2^24 midpoints of (-1, 1)
    return jnp.sqrt(2.0) * jax.lax.erf_inv(uniform)
