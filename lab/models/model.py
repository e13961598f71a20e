"""A model as pure functions of its weights. One for every architecture: the Linen module gives the logits."""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import flax.linen as nn
import jax
import jax.numpy as jnp

from lab.models.cross_entropy import cross_entropy
from lab.models.weight import Weight, draw, is_record

SCALARS = ("embedding", "residual", "attention", "readout")


@lru_cache(maxsize=256)
def _records(module: nn.Module) -> dict:
    scalars = dict.fromkeys(SCALARS, jnp.float32(1))
    boxed = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32), scalars)["params"]
    return jax.tree.map(lambda box: box.record, boxed, is_leaf=lambda leaf: isinstance(leaf, Weight))


@dataclasses.dataclass(frozen=True)
class Model:
    """`module(tokens [B, T], scalars)` gives logits [B * T, vocabulary]; its weights are declared with records.

    Weights are a nested dict. The functions take them as they enter the products (already multiplied by the
    parametrization's `forward`). `scalars` holds traced multipliers of activations: `embedding` of the embedding's
    output, `residual` of each branch, `attention` of the scores beside 1/sqrt(head width), `readout` of the logits.
    Equal configs give equal models, and a model hashes, so that it can be a static argument of jit.
    """

    module: nn.Module
    vocab_size: int

    def records(self) -> dict:
        """The structure of the weights, with a `Record` for each; computes nothing, and once for equal models."""
        return jax.tree.map(lambda record: record, _records(self.module), is_leaf=is_record)

    def init(self, key) -> dict:
        """Float32 weights at unit scale (see `lab.models.weight.draw`), the same on every mesh."""

        def value(path, record):
            return draw(key, jax.tree_util.keystr(path, simple=True, separator="/"), record)

        return jax.tree_util.tree_map_with_path(value, self.records(), is_leaf=is_record)

    def _flat_logits(self, weights, tokens_BT, scalars):
        return self.module.apply({"params": weights}, tokens_BT, jax.tree.map(jnp.asarray, scalars))

    def logits(self, weights, tokens_BT, scalars):
        """Logits [B, T, vocabulary] in float32 or wider for int32 tokens [B, T]."""
        return self._flat_logits(weights, tokens_BT, scalars).reshape(*tokens_BT.shape, self.vocab_size)

    def _nats_and_log_z(self, weights, tokens_BT1, scalars):
        logits_NV = self._flat_logits(weights, tokens_BT1[:, :-1], scalars)
        return cross_entropy(logits_NV, tokens_BT1[:, 1:].reshape(-1))

    def nll(self, weights, tokens_BT1, scalars):
        """Summed nats of the B * T predictions of tokens [B, T + 1]."""
        nats_N, _ = self._nats_and_log_z(weights, tokens_BT1, scalars)
        return jnp.sum(nats_N)

    def loss(self, weights, tokens_BT1, scalars, z_loss):
        """What training minimises, summed over the B * T predictions of tokens [B, T + 1]: nats + z_loss * log(z)^2.

        Returns it with {"nll": the nats alone, "z_loss": the rest}, all sums.
        """
        nats_N, log_z_N = self._nats_and_log_z(weights, tokens_BT1, scalars)
        nll, penalty = jnp.sum(nats_N), z_loss * jnp.sum(log_z_N**2)
        return nll + penalty, {"nll": nll, "z_loss": penalty}

    def activations(self, weights, tokens_BT, scalars) -> dict:
        """What each Linen module returned, as a nested dict by module name (layers stacked), for coordinate checks."""
        scalars = jax.tree.map(jnp.asarray, scalars)
        _, state = self.module.apply(
            {"params": weights}, tokens_BT, scalars, capture_intermediates=True, mutable=["intermediates"]
        )
        return state["intermediates"]
