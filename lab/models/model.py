"""A model as pure functions of its weights. One for every architecture: the Linen module gives the logits."""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lab.models.cross_entropy import cross_entropy
from lab.models.weight import NEUTRAL, Weight, by_path, draw, is_record

SCALARS = tuple("activated activation attention embedding mixed query_gradient readout readout_gradient".split())
RESIDUAL = ("branch", "branch_gradient", "entry_gradient", "skip")


@lru_cache(maxsize=256)
def _records(model: Model) -> dict:
    boxed = jax.eval_shape(model._init)["params"]
    return jax.tree.map(lambda box: box.record, boxed, is_leaf=lambda leaf: isinstance(leaf, Weight))


@dataclasses.dataclass(frozen=True)
class Model:
    """`module(tokens [B, T], multipliers)` gives logits [B * T, vocabulary]; its weights are declared with records.

    Weights are a nested dict. `multipliers` is a dict, all of it traced; what is left out changes nothing:

    - `embedding` of the embedding's output; `attention` of the scores beside 1/sqrt(head width); `mixed` of the mixed
      values; `activation`, `activated` of what enters and leaves the MLP's activation; `readout` of the logits;
      `readout_gradient` of their gradient; `query_gradient` of the gradients of queries and keys, undone further down.
    - `residual`: for each layer and branch, arrays [depth, 2]: `branch` of a branch's output, `skip` of the stream that
      it is added to, and of the gradients where the branch leaves and enters the stream, `branch_gradient` and
      `entry_gradient`, whose product is `branch` where gradients are true.
    - `weights`: for each weight a dict of `forward`, `backward`, `gradient`: factors of its product, of the gradient of
      the product's input, and of the weight's own gradient (see `lab.models.scaling.product`).

    `precision` names the policy of `lab.models.precision` by which operands of dense products are cast.

    Equal configs give equal models, and a model hashes, so that it can be a static argument of jit.
    """

    module: nn.Module
    vocab_size: int
    depth: int = 1
    precision: str = "none"

    def _init(self):
        return self.module.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32), self._whole({})[0])

    def records(self) -> dict:
        """The structure of the weights, with a `Record` for each; computes nothing, and once for equal models."""
        return jax.tree.map(lambda record: record, _records(self), is_leaf=is_record)

    def init(self, key) -> dict:
        """Float32 weights at unit scale (see `lab.models.weight.draw`), the same on every mesh."""

        def value(path, record):
            return draw(key, jax.tree_util.keystr(path, simple=True, separator="/"), record)

        return jax.tree_util.tree_map_with_path(value, self.records(), is_leaf=is_record)

    def neutral(self) -> dict:
        """The multipliers that change nothing, as numpy arrays."""
        one = np.float32(1)
        return {
            **dict.fromkeys(SCALARS, one),
            "residual": dict.fromkeys(RESIDUAL, np.ones((self.depth, 2), np.float32)),
            "weights": jax.tree.map(lambda _: dict.fromkeys(NEUTRAL, one), self.records(), is_leaf=is_record),
        }

    def _whole(self, multipliers: dict) -> tuple[dict, dict]:
        """Multipliers of activations, completed so that gradients are true, and the factors of weights."""
        given = dict(multipliers)
        factors, residual = given.pop("weights", {}), given.pop("residual", {})
        branch = residual.get("branch", 1.0)
        residual = {**dict.fromkeys(RESIDUAL, 1.0), "branch_gradient": branch, **residual}
        whole = {**dict.fromkeys(SCALARS, 1.0), "readout_gradient": given.get("readout", 1.0), **given}
        whole["residual"] = jax.tree.map(lambda x: jnp.broadcast_to(x, (self.depth, 2)), residual)
        return jax.tree.map(jnp.asarray, whole), jax.tree.map(jnp.asarray, factors)

    def _flat_logits(self, weights, tokens_BT, multipliers):
        whole, factors = self._whole(multipliers)
        return self.module.apply({"params": weights, "factors": factors}, tokens_BT, whole)

    def logits(self, weights, tokens_BT, multipliers):
        """Logits [B, T, vocabulary] in float32 or wider for int32 tokens [B, T]."""
        return self._flat_logits(weights, tokens_BT, multipliers).reshape(*tokens_BT.shape, self.vocab_size)

    def _nats_and_log_z(self, weights, tokens_BT1, multipliers):
        logits_NV = self._flat_logits(weights, tokens_BT1[:, :-1], multipliers)
        return cross_entropy(logits_NV, tokens_BT1[:, 1:].reshape(-1))

    def nll(self, weights, tokens_BT1, multipliers):
        """Summed nats of the B * T predictions of tokens [B, T + 1]."""
        nats_N, _ = self._nats_and_log_z(weights, tokens_BT1, multipliers)
        return jnp.sum(nats_N)

    def loss(self, weights, tokens_BT1, multipliers, z_loss):
        """What training minimises, summed over the B * T predictions of tokens [B, T + 1]: nats + z_loss * log(z)^2.

        Returns it with {"nll": the nats alone, "z_loss": the rest}, all sums.
        """
        nats_N, log_z_N = self._nats_and_log_z(weights, tokens_BT1, multipliers)
        nll, penalty = jnp.sum(nats_N), z_loss * jnp.sum(log_z_N**2)
        return nll + penalty, {"nll": nll, "z_loss": penalty}

    def taps(self, weights, tokens_BT1, multipliers) -> tuple[dict, dict, dict]:
        """What the model tapped (`lab.models.scaling.tap`) on tokens [B, T + 1]: dicts by path, layers stacked.

        Returns the tapped activations, the gradients that arrive at them, and the gradients of the weights (a tree),
        all of the loss summed over predictions.
        """
        whole, factors = self._whole(multipliers)

        def loss(weights, zeros):
            variables = {"params": weights, "factors": factors, "tap_gradients": zeros}
            logits_NV, state = self.module.apply(variables, tokens_BT1[:, :-1], whole, mutable=["taps"])
            nats_N, _ = cross_entropy(logits_NV, tokens_BT1[:, 1:].reshape(-1))
            return jnp.sum(nats_N), state["taps"]

        shapes = jax.eval_shape(
            lambda: self.module.apply(
                {"params": weights, "factors": factors}, tokens_BT1[:, :-1], whole, mutable=["tap_gradients"]
            )[1]["tap_gradients"]
        )
        zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        (of_weights, arriving), tapped = jax.grad(loss, argnums=(0, 1), has_aux=True)(weights, zeros)
        return by_path(tapped), by_path(arriving), of_weights
