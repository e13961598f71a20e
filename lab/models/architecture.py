"""What a decoder is, resolved and checked. No jax here: `lab plan` reads it.

`resolve` turns the config's `model` node into a frozen `Architecture`; each 0 that stands for "derive it" is replaced.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable

from lab.errors import ConfigError
from lab.models.precision import POLICIES

NORMS = ("rms", "layer")
ACTIVATIONS = ("gelu", "silu", "relu")
COMPUTE_DTYPES = ("float32", "bfloat16", "float64")
REMATS = ("none", "full")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A decoder-only transformer, field by field the config's `model` node with nothing left to derive.

    Widths count features; `sequence_length` counts the tokens that one sequence predicts. `logit_soft_cap` 0 is off.
    """

    kind: str
    width: int
    depth: int
    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    gated: bool
    activation: str
    norm: str
    norm_epsilon: float
    rope_base: float
    qk_norm: bool
    logit_soft_cap: float
    tied: bool
    sequence_length: int
    vocab_size: int
    compute_dtype: str
    precision: str
    remat: str


def one_of(key: str, found: str, allowed: Iterable[str]) -> None:
    """Raises ConfigError unless `found` is allowed; the message names the nearest allowed value."""
    allowed = tuple(allowed)
    if found in allowed:
        return
    near = difflib.get_close_matches(str(found), allowed, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"{key} is {found!r}; expected one of {', '.join(allowed)}{hint}")


def default_mlp_width(width: int, gated: bool) -> int:
    """4 x width; for a gated MLP 8/3 x width, rounded up to a multiple of 8, which has about as many weights."""
    return -(-8 * width // 24) * 8 if gated else 4 * width


def resolve(config) -> Architecture:
    """The architecture that a `model` config node means. Raises ConfigError for what cannot be built."""
    fields = {field.name: config[field.name] for field in dataclasses.fields(Architecture)}
    one_of("model.norm", fields["norm"], NORMS)
    one_of("model.activation", fields["activation"], ACTIVATIONS)
    one_of("model.compute_dtype", fields["compute_dtype"], COMPUTE_DTYPES)
    one_of("model.precision", fields["precision"], POLICIES)
    one_of("model.remat", fields["remat"], REMATS)
    for key in ("width", "depth", "heads", "kv_heads", "sequence_length", "vocab_size"):
        if fields[key] < 1:
            raise ConfigError(f"model.{key} is {fields[key]}; expected at least 1: set model.{key}")
    for key in ("head_width", "mlp_width", "logit_soft_cap"):
        if fields[key] < 0:
            raise ConfigError(f"model.{key} is {fields[key]}; expected 0 or more: set model.{key}")
    width, heads, kv_heads = fields["width"], fields["heads"], fields["kv_heads"]
    if fields["head_width"] == 0:
        if width % heads:
            raise ConfigError(
                f"model.heads={heads} does not divide model.width={width}; expected a divisor: "
                "change one of them, or set model.head_width"
            )
        fields["head_width"] = width // heads
    if heads % kv_heads:
        raise ConfigError(
            f"model.kv_heads={kv_heads} does not divide model.heads={heads}; expected a divisor: set model.kv_heads"
        )
    if fields["head_width"] % 2:
        raise ConfigError(
            f"the head width is {fields['head_width']}; expected an even number, because RoPE turns pairs of features: "
            "set model.head_width, or other model.width and model.heads"
        )
    if fields["mlp_width"] == 0:
        fields["mlp_width"] = default_mlp_width(width, fields["gated"])
    return Architecture(**fields)
