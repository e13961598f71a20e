"""How a run axis is executed. `Step` is written for one run; this wraps it over the runs of a pack.

`map` loops over the runs inside the program, on each device over its own share (`shard_map` over the `run` axis): on a
CPU it is faster than `vmap`, and a run in a pack equals the run alone to the bit (on one device, or on any number from
two: XLA rounds otherwise where it compiles for one). `vmap` fills an accelerator.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property, lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lab.optim import optimizers
from lab.parametrization.scales import TREES
from lab.train import statistics
from lab.train.sharding import BATCH, batch_devices, state_shardings
from lab.train.step import METRICS, RunState, Step


@dataclasses.dataclass(frozen=True)
class Executor:
    """Compiled programs of a pack with `slots` places on `mesh`.

    Everything per run has a leading axis [slots]; a slot that is not live keeps its state and costs (under `map`)
    nothing.
    """

    step: Step
    mesh: Mesh
    run_axis: str  # "map" or "vmap"
    slots: int

    def sharding(self, *spec: Any) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*spec))

    def over_runs(self, fn: Any, shared: int) -> Any:
        """`fn(*shared, *per_run)` for one run -> the same for all slots, per-run arguments with a leading axis.

        `fn` is traced where it sees the mesh, over which it splits what XLA cannot (Pallas kernels).
        """
        over = self._over_runs(fn, shared)

        def on_mesh(*args):
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                return over(*args)

        return on_mesh

    def _over_runs(self, fn: Any, shared: int) -> Any:
        def mapped(*args):
            return jax.lax.map(lambda mine: fn(*args[:shared], *mine), args[shared:])

        if self.run_axis == "vmap":

            def vmapped(*args):
                axes = (None,) * shared + (0,) * (len(args) - shared)
                return jax.vmap(fn, in_axes=axes, spmd_axis_name="run")(*args)

            return vmapped
        if self.mesh.shape["run"] == 1:
            return mapped

        def sharded(*args):
            specs = (PartitionSpec(),) * shared + (PartitionSpec("run"),) * (len(args) - shared)
            return jax.shard_map(
                mapped,
                mesh=self.mesh,
                in_specs=specs,
                out_specs=PartitionSpec("run"),
                axis_names={"run"},
                check_vma=False,
            )(*args)

        return sharded

    @property
    def shapes(self) -> RunState:
        """Shapes of a pack's state, on no devices yet."""
        return jax.eval_shape(jax.vmap(self.step.init), self.abstract_hyper)

    @cached_property
    def abstract_state(self) -> RunState:
        """Shapes and shardings of a pack's state."""
        places = state_shardings(self.shapes, self.step.model.records(), self.mesh)
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), self.shapes, places)

    @property
    def abstract_hyper(self) -> dict:
        """Structure of the hyperparameters: what `Step` reads, one number per slot."""
        number = jax.ShapeDtypeStruct((self.slots,), jnp.float32)
        weights = jax.eval_shape(self.step.model.init, jax.random.key(0))
        tree = jax.tree.map(lambda _: number, weights)
        return {
            "seed": jax.ShapeDtypeStruct((self.slots,), jnp.uint32),
            "optimizer": dict.fromkeys(optimizers.HYPERPARAMETERS, number),
            "scales": dict.fromkeys(TREES, tree),
            "multipliers": jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((self.slots, *x.shape), jnp.float32), self.step.model.neutral()
            ),
            "z_loss": number,
        }

    @cached_property
    def shardings(self) -> RunState:
        return jax.tree.map(lambda x: x.sharding, self.abstract_state)

    @cached_property
    def init(self) -> Any:
        """hyper -> states."""
        return jax.jit(self.over_runs(self.step.init, 0), out_shardings=self.shardings)

    @cached_property
    def train(self) -> Any:
        """(tokens [K, S, B, T+1], probes [K], count, states, live, stream, rows [slots, K], hyper) -> states, metrics.

        S data streams serve the runs: `stream` says which one a run reads. States are donated. Metrics are
        [slots, K, len(METRICS)].
        """

        def one(tokens, probes, count, state, live, stream, rows, hyper):
            mine = jax.lax.dynamic_index_in_dim(tokens, stream, axis=1, keepdims=False)
            idle = jnp.zeros((tokens.shape[0], len(METRICS)), jnp.float32)
            run = partial(self.step.ticks, tokens=mine, rows=rows, probes=probes, count=count, hyper=hyper)
            return jax.lax.cond(live, run, lambda state: (state, idle), state)

        return jax.jit(self.over_runs(one, 3), donate_argnums=3, out_shardings=(self.shardings, self.sharding("run")))

    @cached_property
    def evaluate(self) -> Any:
        """(tokens [M, B, T+1], states, live, hyper) -> losses [slots] in nats per token, NaN where not live."""

        def one(tokens, state, live, hyper):
            nothing = jnp.full((), jnp.nan, jnp.float32)
            return jax.lax.cond(live, lambda: self.step.evaluate(state, tokens, hyper), lambda: nothing)

        return jax.jit(self.over_runs(one, 1), out_shardings=self.sharding("run"))

    @cached_property
    def statistics(self) -> Any:
        """(tokens [B, T+1], states, live, hyper) -> [slots, tensors and layers, statistics], NaN where not live.

        Of the weights that train, not of their average; see `lab.train.statistics`.
        """

        def one(tokens, state, live, hyper):
            found = partial(statistics.measure, self.step.model, state.weights, tokens, hyper["multipliers"])
            nothing = jnp.full(jax.eval_shape(found).shape, jnp.nan, jnp.float32)
            return jax.lax.cond(live, found, lambda: nothing)

        return jax.jit(self.over_runs(one, 1), out_shardings=self.sharding("run"))

    @cached_property
    def take(self) -> Any:
        """(tree of [slots, ...], slot) -> the tree of that slot, split as it was: one program, whatever the slot."""

        def one(tree, slot):
            return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, slot, keepdims=False), tree)

        return jax.jit(one)

    def put_tokens(self, tokens: np.ndarray) -> jax.Array:
        """Token ids [..., B, T+1] with the sequences split over the batch axes where they divide."""
        split = BATCH if tokens.shape[-2] % batch_devices(self.mesh) == 0 else None
        return jax.device_put(tokens, self.sharding(*(None,) * (tokens.ndim - 2), split, None))

    def put_runs(self, tree: Any) -> Any:
        """Arrays with a leading run axis, split over it."""
        return jax.device_put(tree, self.sharding("run"))


@lru_cache(maxsize=16)
def executor(step: Step, mesh: Mesh, run_axis: str, slots: int) -> Executor:
    """The executor of equal packs, one after another: what it has compiled serves them all."""
    return Executor(step, mesh, run_axis, slots)
