"""The decoder-only transformer: embedding, stacked layers, final norm, readout."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from lab.models import weight
from lab.models.architecture import Architecture, resolve
from lab.models.block import Block
from lab.models.linear import linear
from lab.models.model import Model
from lab.models.norm import Norm
from lab.models.registry import register
from lab.models.scaling import product, scale, tap
from lab.models.units import typical


class Decoder(nn.Module):
    """Tokens [batch, length] to logits [batch * length, vocabulary] in float32 or wider.

    Layers are stacked on a leading "layers" axis; `unroll` of them are compiled at a time.
    """

    architecture: Architecture
    unroll: int

    def _layers(self, length: int):
        block = Block
        if self.architecture.remat == "full":
            block = nn.remat(block, prevent_cse=self.unroll > 1)
        depth = self.architecture.depth
        scanned = nn.scan(
            block,
            variable_axes={"params": 0, "taps": 0, "tap_gradients": 0},
            variable_broadcast="factors",
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=depth,
            unroll=self.unroll,
            metadata_params={nn.PARTITION_NAME: "layers", "length": depth},
        )
        return scanned(self.architecture, length, name="layers")

    @nn.compact
    def __call__(self, tokens_BT, multipliers):
        a = self.architecture
        dtype = jnp.dtype(a.compute_dtype)
        axes = {"vocab": a.vocab_size, "embed": a.width}
        table = weight.declare(self, "embedding", axes, role="embedding", fan_in=(0,), fan_out=(1,), width=(1,))
        x_ND = jnp.take(table.astype(dtype), tokens_BT.reshape(-1), axis=0) * multipliers["embedding"].astype(dtype)
        x_ND = tap(self, "embedded", x_ND)
        x_ND, _ = self._layers(tokens_BT.shape[1])(x_ND, multipliers["residual"], multipliers)
        x_ND = Norm(a.norm, a.norm_epsilon, "embed", name="final_norm")(x_ND)
        wide = jnp.promote_types(dtype, jnp.float32)
        if a.tied:
            logits_NV = product(x_ND, table.T, weight.NEUTRAL, dtype=wide)
        else:
            axes = {"embed": a.width, "vocab": a.vocab_size}
            rest = {"role": "readout", "fan_in": (0,), "fan_out": (1,), "width": (0,), "precision": "none"}
            logits_NV = linear(self, "readout", x_ND, axes, **rest, dtype=wide)
        logits_NV = scale(logits_NV, multipliers["readout"], multipliers["readout_gradient"])
        if a.logit_soft_cap:
            logits_NV = a.logit_soft_cap * jnp.tanh(logits_NV / a.logit_soft_cap)
        return tap(self, "logits", logits_NV)


@register("decoder", units=typical)
def decoder(config, unroll: int | None = None) -> Model:
    """The model of a `model` config node of kind "decoder"; see `lab.models.build`."""
    architecture = resolve(config)
    if unroll is None:
        unroll = architecture.depth if jax.default_backend() == "cpu" else 1
    return Model(Decoder(architecture, unroll), architecture.vocab_size, architecture.depth, architecture.precision)
