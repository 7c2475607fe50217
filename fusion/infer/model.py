"""The joint model, written once as a numpyro program over white noise: the reference that every engine must agree with.

    u ~ N(prior)            theta = Hyper.from_white(u)
    xi_l ~ N(0, I)          the white coefficients of every level; the field is their colouring by theta
    o, g, d ~ N(0, I)       per look and band an offset, per band a gain, per cell a discrepancy in time, coloured by theta
    y ~ N(forward(field) + o + g a + d, white noise), or Student-t with nu degrees of freedom

Nothing is integrated out, so plain NUTS needs minutes on a tile of a few pixels; the engines integrate what is Gaussian.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array

from fusion.infer.looks import Looks
from fusion.process.hierarchy import Hierarchy, Hyper


def joint(
    series: Sequence[Looks], hierarchy: Hierarchy, sensors: tuple[str, ...], *, hyper: Hyper | None = None,
    prior: tuple[Any, Any] | None = None, nu: float | None = None,
) -> None:
    """The model above; the deterministic site "z" is the field (T, K, Y, X).

    hyper: theta to hold fixed, None = inferred. prior: mean and sd (D,) of u, None = N(0, I). nu: of the Student-t noise (its
    scale is the stated noise), None = Gaussian.
    """
    rank = hierarchy.mixing.shape[0]
    if hyper is None:
        size = Hyper.size(rank, len(sensors))
        mean, sd = prior if prior is not None else (jnp.zeros(size), jnp.ones(size))
        hyper = Hyper.from_white(numpyro.sample("u", dist.Normal(mean, sd).to_event(1)), rank, sensors)
    white = {name: _normal(f"xi_{name}", shape) for name, shape in hierarchy.white_shapes.items()}
    scene, planes = hierarchy.coefficients(white, hierarchy.factors(hyper))
    numpyro.deterministic("z", hierarchy.field(scene, planes))
    for i, looks in enumerate(series):
        expected = looks.forward(scene, planes, hierarchy.temporal) + _errors(i, looks, hyper)
        there = looks.precision > 0
        white_precision = jnp.where(there, looks.precision_for(hyper), 1.0)
        noise = dist.Normal(expected, white_precision**-0.5)
        if nu is not None:
            noise = dist.StudentT(nu, expected, white_precision**-0.5)
        numpyro.sample(f"y_{i}", noise.mask(there).to_event(4), obs=looks.data)


def _normal(name: str, shape: tuple[int, ...]) -> Array:
    return jnp.asarray(numpyro.sample(name, dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape))))


def _errors(i: int, looks: Looks, hyper: Hyper) -> Array:
    """(n, B, H, W) offsets, what classes get wrong, gain and discrepancy of one series."""
    count, bands, *shape = looks.data.shape
    offset = hyper.offset[looks.group] * looks.offset_sd * _normal(f"offset_{i}", (count, bands))
    gain = hyper.gain[looks.group] * looks.gain_sd * looks.level * _normal(f"gain_{i}", (bands,))
    total = (offset + gain)[:, :, None, None] * jnp.ones((1, 1, *shape))
    if len(looks.patterns):
        wrong = looks.by_class(hyper)[:, None] * _normal(f"classes_{i}", (count, bands, len(looks.patterns)))
        total = total + jnp.einsum("nbj,jhw->nbhw", wrong, looks.patterns)
    if looks.correlated:
        covariance = looks.discrepancy_covariance(hyper)
        root = jnp.linalg.cholesky(covariance + 1e-5 * covariance[0, 0] * jnp.eye(count))
        total = total + jnp.einsum("nm,mbhw->nbhw", root, _normal(f"discrepancy_{i}", (count, bands, *shape))) * looks.uneven
    return total
