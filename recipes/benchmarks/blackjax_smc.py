"""Adaptive tempered sequential Monte Carlo of blackjax, on the targets of ``large_targets.py``.

It gets what the library gets: the proposal as its prior, and the energy. Its kernel is HMC with a diagonal mass matrix
from the particles, and a step size that follows the acceptance rate. Both are tuned after each temperature.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import blackjax
import blackjax.smc.resampling as resampling
import jax
import jax.numpy as jnp
from blackjax.smc.base import extend_params

jax.config.update("jax_enable_x64", True)  # of logsumexp and increments; energies are in float32
TARGET_ESS, ACCEPTANCE = 0.9, 0.7
Potential = Callable[[jax.Array], jax.Array]
"""Maps one point, shape (D,), to its energy."""


class Result(NamedTuple):
    """log Z in nats, gradient evaluations, and number of temperatures."""

    log_z: float
    gradients: int
    temperatures: int


def many_well(x: jax.Array) -> jax.Array:
    a, b = x[::2], x[1::2]
    return (a**4 - 6 * a**2 - a / 2 + b**2 / 2).sum()


def mixture(means: Any, std: float) -> Potential:
    """A normalized mixture of equally likely Gaussians, with means of shape (K, D)."""
    centers = jnp.asarray(means, jnp.float32)
    constant = math.log(len(centers)) + centers.shape[1] * math.log(std * math.sqrt(2 * math.pi))

    def energy(x: jax.Array) -> jax.Array:
        return constant - jax.nn.logsumexp(-((x - centers) ** 2).sum(1) / (2 * std**2))

    return energy


def gaussian(axes: Any, std: Any) -> Potential:
    """A Gaussian with these standard deviations (D,) along these axes (D, D), unnormalized."""
    scaled = jnp.asarray(axes / std, jnp.float32)
    return lambda x: 0.5 * ((x @ scaled) ** 2).sum()


def funnel(dimensions: int, std: float) -> Potential:
    constant = dimensions / 2 * math.log(2 * math.pi) + math.log(std)

    def energy(x: jax.Array) -> jax.Array:
        v, rest = x[0], (x[1:] ** 2).sum()
        return 0.5 * (v / std) ** 2 + 0.5 * (rest * jnp.exp(-v) + (dimensions - 1) * v) + constant

    return energy


def tempered_smc(energy: Potential, prior_std: Any, particles: int, moves: int, leapfrogs: int, seed: int) -> Result:
    """log Z of exp(-energy) from N(0, prior_std^2), shape (D,), with ``moves`` of HMC at each temperature."""
    std = jnp.asarray(prior_std, jnp.float32)
    constant = float(jnp.log(std).sum()) + 0.5 * len(std) * math.log(2 * math.pi)

    def log_prior(x: jax.Array) -> jax.Array:
        return -0.5 * ((x / std) ** 2).sum() - constant

    kernel, log_likelihood = blackjax.hmc.build_kernel(), lambda x: -energy(x) - log_prior(x)

    def step(key: Any, state: Any, log_density: Any, step_size: Any, inverse_mass_matrix: Any) -> Any:
        return kernel(key, state, log_density, step_size, inverse_mass_matrix, leapfrogs)

    def stage(key: Any, state: Any, step_size: Any, variance: Any) -> Any:
        parameters = extend_params({"step_size": step_size, "inverse_mass_matrix": variance})
        models = (log_prior, log_likelihood, step, blackjax.hmc.init, parameters)
        algorithm = blackjax.adaptive_tempered_smc(*models, resampling.systematic, TARGET_ESS, num_mcmc_steps=moves)
        return algorithm.step(key, state)

    compiled = jax.jit(stage)
    key, start = jax.random.split(jax.random.key(seed))
    x = std * jax.random.normal(start, (particles, len(std)), jnp.float32)
    state, log_step, log_z, temperatures = blackjax.smc.tempered.init(x), -0.25 * math.log(len(std)), 0.0, 0
    while float(state.tempering_param) < 1:
        key, now = jax.random.split(key)
        state, info = compiled(now, state, math.exp(log_step), state.particles.var(0))
        log_step += float(info.update_info.acceptance_rate.mean()) - ACCEPTANCE
        log_z, temperatures = log_z + float(info.log_likelihood_increment), temperatures + 1
    return Result(log_z, particles * temperatures * (1 + moves * leapfrogs), temperatures)
