"""One run: its state, and the pure functions that move it by one tick. Packs and meshes are not mentioned here.

Words: a *tick* adds one micro-batch's gradient sum to the accumulator; a *step* is an optimizer update, which happens
after the ticks whose timeline row says `apply`. `RunState` after tick t is all there is to resume from.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lab.models.model import Model
from lab.optim import optimizers

METRICS = ("loss", "gradient_norm", "update_norm", "weight_norm")


@flax.struct.dataclass
class RunState:
    """What a run is after a tick.

    Attributes:
      weights: float32 master weights (float64 where the model computes in it).
      average: weight average, or None where the run keeps none.
      optimizer: optax state.
      gradient: sum over the tokens of the current batch so far.
      loss_sum, tokens: loss (nats) and predictions summed over the same tokens.
      step, tick: updates made, micro-batches seen.
      diverged: tick at which the loss or gradient first was not finite; 0 while all is well.
      noise: [3] sums over probes since the start: |gA - gB|^2, gA . gB, number of probes (McCandlish et al. 2018).
    """

    weights: Any
    average: Any
    optimizer: Any
    gradient: Any
    loss_sum: jax.Array
    tokens: jax.Array
    step: jax.Array
    tick: jax.Array
    diverged: jax.Array
    noise: jax.Array


@dataclasses.dataclass(frozen=True)
class Step:
    """The functions of one run. Everything held here is shape; every number of a run comes in as an argument.

    `hyper` is a dict: `seed` (uint32), `optimizer` (scalars), `scales` (trees of scalars: init_std, learning_rate,
    weight_decay, epsilon), `multipliers` (see `lab.models.model.Model`), `z_loss`.
    """

    model: Model
    optimizer: str
    averages: bool
    probes: bool = True  # whether any tick compares the halves of its micro-batch
    dtype: str = "float32"  # of master weights

    def init(self, hyper: dict) -> RunState:
        """State before the first tick."""
        key = jax.random.key(hyper["seed"])
        unit = jax.tree.map(lambda w: w.astype(self.dtype), self.model.init(key))
        weights = jax.tree.map(jnp.multiply, unit, hyper["scales"]["init_std"])
        count = partial(jnp.zeros, (), jnp.int32)
        number = partial(jnp.zeros, (), jnp.float32)
        return RunState(
            weights=weights,
            average=jax.tree.map(jnp.copy, weights) if self.averages else None,
            optimizer=optimizers.init(self.optimizer, weights),
            gradient=jax.tree.map(jnp.zeros_like, weights),
            loss_sum=number(),
            tokens=number(),
            step=count(),
            tick=count(),
            diverged=count(),
            noise=jnp.zeros((3,), jnp.float32),
        )

    def loss(self, weights: Any, tokens: jax.Array, hyper: dict) -> tuple[jax.Array, jax.Array]:
        """Training objective and negative log-likelihood, both summed over tokens [B, T+1] (nats)."""
        total, parts = self.model.loss(weights, tokens, hyper["multipliers"], hyper["z_loss"])
        return total, parts["nll"]

    def tick(
        self, state: RunState, tokens: jax.Array, row: dict, probe: jax.Array, hyper: dict
    ) -> tuple[RunState, jax.Array]:
        """Adds one micro-batch and, where the row says so, makes the update.

        Args:
          tokens: int [B, T+1], B sequences.
          row: scalars of the timeline at this tick.
          probe: whether to compare the halves of the micro-batch.

        Returns:
          The state after the tick, and float32 [len(METRICS)] of the update (zeros where none was made).
        """
        nll, gradient, half = self.gradients(state.weights, tokens, probe, hyper)
        noise = state.noise
        if half is not None:
            noise = jax.lax.cond(probe, lambda: noise + compare_halves(gradient, half, tokens), lambda: noise)
        count = tokens.shape[0] * (tokens.shape[1] - 1)
        tick = state.tick + 1
        state = state.replace(
            gradient=jax.tree.map(jnp.add, state.gradient, gradient),
            loss_sum=state.loss_sum + nll.astype(jnp.float32),
            tokens=state.tokens + count,
            tick=tick,
            noise=noise,
            diverged=jnp.where((state.diverged == 0) & ~jnp.isfinite(nll), tick, state.diverged),
        )
        idle = jnp.zeros((len(METRICS),), jnp.float32)
        return jax.lax.cond(row["apply"], lambda s: self.apply(s, row, hyper), lambda s: (s, idle), state)

    def apply(self, state: RunState, row: dict, hyper: dict) -> tuple[RunState, jax.Array]:
        """The optimizer update from the accumulated sums, which start again from zero."""
        gradient = jax.tree.map(lambda g: g / state.tokens.astype(g.dtype), state.gradient)
        norm = optimizers.global_norm(gradient)
        how = self.optimizer, hyper["optimizer"], row, hyper["scales"], self.model.records()
        weights, optimizer = optimizers.update(*how, gradient, state.optimizer, state.weights)
        moved = optimizers.global_norm(jax.tree.map(jnp.subtract, weights, state.weights))
        metrics = jnp.stack(
            [
                m.astype(jnp.float32)
                for m in (state.loss_sum / state.tokens, norm, moved, optimizers.global_norm(weights))
            ]
        )
        average = state.average
        if self.averages:
            keep = row["averaging"]
            average = jax.tree.map(lambda a, w: keep * a + (1 - keep) * w, average, weights)
        state = state.replace(
            weights=weights,
            average=average,
            optimizer=optimizer,
            gradient=jax.tree.map(jnp.zeros_like, state.gradient),
            loss_sum=jnp.zeros_like(state.loss_sum),
            tokens=jnp.zeros_like(state.tokens),
            step=state.step + 1,
            diverged=jnp.where((state.diverged == 0) & ~jnp.isfinite(metrics).all(), state.tick, state.diverged),
        )
        return state, metrics

    def gradients(
        self, weights: Any, tokens: jax.Array, probe: jax.Array, hyper: dict
    ) -> tuple[jax.Array, Any, Any]:
        """Summed nats and gradient of a micro-batch [B, T+1]; where probed, twice its first half's besides (B even).

        The half is passed as a whole micro-batch, twice itself, through the same program: a program for half the
        shape would cost as much to compile as all the rest.
        """
        gradient_of = jax.value_and_grad(self.loss, has_aux=True)
        if not self.probes or tokens.shape[0] % 2:  # unequal halves have another expectation
            (_, nll), gradient = gradient_of(weights, tokens, hyper)
            return nll, gradient, None
        first = tokens[jnp.arange(tokens.shape[0]) % max(1, tokens.shape[0] // 2)]

        def body(i, carry):
            _, before, _ = carry
            (_, nll), gradient = gradient_of(weights, jnp.where(i == 0, first, tokens), hyper)
            return nll, gradient, before

        nothing = jax.tree.map(jnp.zeros_like, weights)
        nll = jax.eval_shape(gradient_of, weights, tokens, hyper)[0][1]
        return jax.lax.fori_loop(jnp.where(probe, 0, 1), 2, body, (jnp.zeros((), nll.dtype), nothing, nothing))

    def ticks(
        self, state: RunState, tokens: jax.Array, rows: dict, probes: jax.Array, count: jax.Array, hyper: dict
    ) -> tuple[RunState, jax.Array]:
        """The first `count` ticks of a chunk of K. The trip count is traced: any number of ticks, one program.

        Args:
          tokens: int [K, B, T+1].
          rows: timeline columns [K].
          probes: bool [K].
          count: int scalar, at most K.

        Returns:
          The state, and metrics [K, len(METRICS)].
        """

        def body(i, carry):
            state, metrics = carry
            state, line = self.tick(state, tokens[i], {k: v[i] for k, v in rows.items()}, probes[i], hyper)
            return state, metrics.at[i].set(line)

        empty = jnp.zeros((tokens.shape[0], len(METRICS)), jnp.float32)
        return jax.lax.fori_loop(0, count, body, (state, empty))

    def evaluate(self, state: RunState, tokens: jax.Array, hyper: dict) -> jax.Array:
        """Mean validation loss in nats per token: of the weight average where the run keeps one, else of the weights.

        Args:
          tokens: int [M, B, T+1], M micro-batches.
        """
        weights = state.average if self.averages else state.weights
        sums = jax.lax.map(lambda batch: self.model.nll(weights, batch, hyper["multipliers"]), tokens)
        return (sums.sum() / (tokens.shape[0] * tokens.shape[1] * (tokens.shape[2] - 1))).astype(jnp.float32)


def compare_halves(gradient: Any, half: Any, tokens: jax.Array) -> jax.Array:
    """|gA - gB|^2, gA . gB and 1, for mean gradients of the halves of a micro-batch [B, T+1], B even.

    Args:
      gradient: sum over the micro-batch.
      half: twice the sum over its first half.
    """
    count = tokens.shape[0] // 2 * (tokens.shape[1] - 1)
    pairs = list(zip(jax.tree.leaves(gradient), jax.tree.leaves(half), strict=True))
    a = [h / (2 * count) for _, h in pairs]
    b = [(g - h / 2) / count for g, h in pairs]
    difference = sum(jnp.vdot(x - y, x - y) for x, y in zip(a, b))
    product = sum(jnp.vdot(x, y) for x, y in zip(a, b))
    return jnp.stack([difference, product, jnp.ones_like(product)]).astype(jnp.float32)
