"""A layer is the triple contraction of the equation, whatever order it takes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion.cube.calendar import Instant, PixelDay, When, Window
from fusion.observe.footprint import footprint
from fusion.observe.geometry import window
from fusion.observe.layer import Layer, together
from fusion.observe.psf import PSF
from tests.observe.cases import sinusoidal_tile
from tests.observe.worlds import cube, raster

CUBE = cube()
FINE = footprint(window(raster(dx=-315.0), CUBE.grid), PSF("gaussian", 26.0), CUBE.grid)
COARSE = footprint(window(sinusoidal_tile(9, 4), CUBE.grid), PSF("gaussian", 100.0, cell=False), CUBE.grid)


def _days(shape: tuple[int, int]) -> PixelDay:
    days = np.datetime64("2021-06-02") + np.random.default_rng(1).integers(0, 8, shape).astype("timedelta64[D]")
    days[0, 0] = np.datetime64("NaT")
    return PixelDay(days)


WHEN: dict[str, When] = {
    "instant": Instant(np.datetime64("2021-06-07T10:00")),
    "on a latent time": Instant(np.datetime64("2021-05-28")),
    "last": Instant(np.datetime64("2021-07-23")),
    "window": Window(np.datetime64("2021-06-01"), np.datetime64("2021-06-16"), np.datetime64("2021-06-09"), 5.0),
}


@pytest.mark.parametrize("bands", [2, 4, 7])
@pytest.mark.parametrize("when", [*WHEN, "pixel day"])
@pytest.mark.parametrize("foot", [FINE, COARSE], ids=["fine", "coarse"])
def test_layer_and_adjoint_are_the_equation(foot, when: str, bands: int) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(bands)
    colour = rng.normal(size=(bands, CUBE.basis.rank))
    tau = CUBE.calendar.weights(_days(foot.shape) if when == "pixel day" else WHEN[when])
    layer = Layer.of(foot, colour, np.zeros(bands), tau)
    z, v = rng.normal(size=CUBE.shape), rng.normal(size=layer.shape)
    w = foot.dense().reshape(*foot.shape, *foot.grid_shape)
    full = np.broadcast_to(tau, (*foot.shape, tau.shape[-1]))
    expected = np.einsum("hwt,hwyx,bk,tkyx->bhw", full, w, colour, z, optimize=True)
    back = np.einsum("hwt,hwyx,bk,bhw->tkyx", full, w, colour, v, optimize=True)
    np.testing.assert_allclose(layer(jnp.asarray(z, jnp.float32)), expected, atol=2e-5)
    np.testing.assert_allclose(layer.adjoint(jnp.asarray(v, jnp.float32)), back, atol=2e-5)


def test_only_the_latent_times_that_count_are_read() -> None:
    layer = Layer.of(FINE, np.eye(4), np.zeros(4), CUBE.calendar.weights(WHEN["instant"]))
    assert layer.near.shape == (2,)
    z = np.full(CUBE.shape, np.nan, np.float32)
    z[int(layer.first) : int(layer.first) + 2] = 0.25
    assert np.isfinite(np.asarray(layer(jnp.asarray(z)))).all()
    assert layer.operations() < CUBE.basis.rank * FINE.grid_shape[0] * FINE.grid_shape[1] * 60


def test_looks_of_one_raster_compile_once() -> None:
    layers = [
        Layer.of(FINE, np.eye(4), np.zeros(4), CUBE.calendar.weights(Instant(np.datetime64(day))))
        for day in ("2021-06-01", "2021-06-21T10:00", "2021-07-23")
    ]
    count = 0

    @jax.jit
    def forward(layer: Layer, z: jax.Array) -> jax.Array:
        nonlocal count
        count += 1
        return layer(z)

    z = jnp.asarray(np.random.default_rng(0).normal(size=CUBE.shape), jnp.float32)
    each = [forward(layer, z) for layer in layers]
    assert count == 1
    np.testing.assert_allclose(together(layers, z), np.stack(each), atol=1e-6)
    daily = [Layer.of(FINE, np.eye(4), np.zeros(4), CUBE.calendar.weights(_days(FINE.shape))) for _ in range(2)]
    np.testing.assert_allclose(together(daily, z), np.stack([layer(z) for layer in daily]), atol=1e-6)


def test_looks_of_different_rasters_are_not_mixed() -> None:
    tau = CUBE.calendar.weights(WHEN["instant"])
    layers = [Layer.of(foot, np.eye(4), np.zeros(4), tau) for foot in (FINE, COARSE)]
    with pytest.raises(ValueError, match="one footprint"):
        together(layers, jnp.zeros(CUBE.shape))
