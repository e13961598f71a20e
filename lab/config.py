"""One run's config: every default, its checks, its canonical form, its identity.

A config has two readers. `shape(cfg)` is what changes the compiled program; every other number enters the program
as an array. `identity(cfg, corpus_digest)` is a hash of what the run *means*: defaults are resolved, settings that the
chosen options never read are dropped, and everything under `execution` (mesh, micro-batch, checkpoints, display) is
left out, because results belong to runs and not to the way in which they were executed.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from lab.errors import ConfigError
from lab.models import architecture
from lab.parametrization.scales import base_of, find


def default_config() -> ConfigDict:
    """Every key that a run has, with its default. Token counts are in tokens, fractions are of the horizon."""
    return ConfigDict(
        {
            "model": {
                "kind": "decoder",
                "width": 64,
                "depth": 3,
                "heads": 4,
                "kv_heads": 4,
                "head_width": 0,  # 0: width // heads
                "mlp_width": 0,  # 0: 4 * width, or 8/3 * width (rounded up to 8) where the MLP is gated
                "gated": False,
                "activation": "gelu",
                "norm": "rms",
                "norm_epsilon": 1e-6,
                "rope_base": 10000.0,
                "qk_norm": True,
                "logit_soft_cap": 0.0,  # 0: none
                "tied": False,
                "sequence_length": 128,
                "vocab_size": 0,  # 0: the corpus's
                "compute_dtype": "float32",
                "precision": "none",  # of the operands of dense products: none, fp16, fp8 (`lab.models.precision`)
                "remat": "none",
            },
            "parametrization": {
                "name": "standard",
                "base_width": 64,
                "base_depth": 3,
                "init_scale": 1.0,
                "embedding_multiplier": 1.0,
                "residual_multiplier": 1.0,
                "residual_ratio": 1.0,  # of attention branches to MLP branches
                "readout_multiplier": 1.0,
                "attention_multiplier": 1.0,  # of scores
                "activation_multiplier": 1.0,  # of what enters the MLP's activation
            },
            "optimizer": {
                "name": "adamw",
                "learning_rate": 3e-3,
                "beta1": 0.9,
                "beta2": 0.99,
                "epsilon": 1e-8,
                "momentum": 0.9,
                "weight_decay": 0.0,
                "decay": "coupled",  # with the learning rate, or independent of its peak
                "clip_norm": 1.0,  # 0: none
            },
            "schedule": {
                "name": "constant",
                "warmup_tokens": 0,
                "cooldown_fraction": 0.2,
                "final_fraction": 0.0,  # of the peak learning rate, at the horizon
            },
            "averaging": {
                "name": "none",
                "window_tokens": 65536,  # exponential: the weight of an update decays by e over this many tokens
                "window_fraction": 0.1,  # polynomial: the window grows as this fraction of the tokens seen
            },
            "loss": {"z_loss": 0.0},
            "run": {"horizon_tokens": 1048576, "batch_tokens": 4096, "seed": 0, "data_seed": 0},
            "data": {
                "corpus": "pydocs",
                "vocabulary": "byte",
                "vocabulary_size": 1024,  # of a trained SentencePiece vocabulary
                "validation_fraction": 0.05,
            },
            "evaluation": {
                "points": 32,  # evaluations, log-spaced in tokens, the last one at the horizon
                "first_tokens": 32768,
                "sequences": 128,
                "statistics": False,  # of tensors, with each evaluation and before the first update
            },
            "execution": {
                "microbatch_tokens": 1024,
                "mesh": {"run": 0, "data": 1, "fsdp": 1, "tensor": 1},  # run 0: every device that is left
                "run_axis": "auto",
                "pack_runs": 64,
                "noise_probe_ticks": 16,  # every so many ticks the two halves of a micro-batch are compared; 0: never
                "checkpoint_seconds": 60.0,
                "checkpoint_ticks": 0,  # 0: by time alone
                "checkpoint_keep": 2,
            },
        }
    )


CHOICES = {
    "optimizer.name": ("adamw", "lamb", "lion", "sgd"),
    "optimizer.decay": ("coupled", "independent"),
    "schedule.name": ("constant", "linear", "cosine", "wsd", "one-minus-sqrt"),
    "averaging.name": ("none", "exponential", "polynomial"),
    "data.vocabulary": ("byte", "sentencepiece"),
    "execution.run_axis": ("auto", "map", "vmap"),
}
POSITIVE = (
    "model.width model.depth model.sequence_length model.rope_base "
    "parametrization.base_width parametrization.base_depth parametrization.residual_ratio "
    "parametrization.attention_multiplier parametrization.activation_multiplier "
    "parametrization.init_scale "
    "optimizer.learning_rate optimizer.epsilon "
    "averaging.window_tokens averaging.window_fraction run.horizon_tokens run.batch_tokens data.vocabulary_size "
    "evaluation.points evaluation.first_tokens evaluation.sequences execution.microbatch_tokens execution.pack_runs "
    "execution.checkpoint_keep execution.mesh.data execution.mesh.fsdp execution.mesh.tensor"
).split()
FRACTIONS = (
    "optimizer.beta1 optimizer.beta2 optimizer.momentum schedule.cooldown_fraction schedule.final_fraction "
    "data.validation_fraction"
).split()


def flatten(cfg: Mapping, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value, in the order of declaration."""
    flat: dict[str, Any] = {}
    for key, value in cfg.items():
        if isinstance(value, (Mapping, ConfigDict)):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def get(cfg: ConfigDict, key: str) -> Any:
    """The value at a dotted key."""
    node: Any = cfg
    for part in key.split("."):
        node = node[part]
    return node


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or a list of what there is."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; expected one of {', '.join(known[:12])}"


def override(cfg: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """A copy of `cfg` with dotted keys replaced; strings are parsed by the type of the default."""
    out = ConfigDict(cfg.to_dict())
    flat = flatten(out)
    for key, value in changes.items():
        if key not in flat:
            tail = {k.rsplit(".", 1)[1]: k for k in flat}
            hint = f"; did you mean {tail[key]}?" if key in tail else nearest(key, flat)
            raise ConfigError(f"unknown config key {key!r}{hint}")
        node: Any = out
        *parents, leaf = key.split(".")
        for part in parents:
            node = node[part]
        node[leaf] = parse(key, value, flat[key])
    return out


def parse(key: str, value: Any, default: Any) -> Any:
    """`value` (a string from the command line, or a Python value) as the type of `default`.

    Raises:
      ConfigError: naming the key, what was found and the type expected.
    """
    kind = type(default)
    expected = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}[kind]
    problem = ConfigError(f"{key}: found {value!r}, expected {expected} (the default is {default!r})")
    if kind is bool:
        word = str(value).lower()
        if word not in ("true", "false"):
            raise problem
        return word == "true"
    if kind is str:
        if not isinstance(value, str) or not value:
            raise problem
        return value
    if isinstance(value, bool):
        raise problem
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise problem from None
    if not math.isfinite(number) or (kind is int and number != int(number)):
        raise problem
    return int(number) if kind is int else number


def validate(cfg: ConfigDict) -> ConfigDict:
    """`cfg` itself, once everything that can be checked without a corpus or devices is right.

    Raises:
      ConfigError: one line, naming the key, what was found, what was expected.
    """
    flat = flatten(cfg)
    for key, allowed in CHOICES.items():
        if flat[key] not in allowed:
            raise ConfigError(f"{key}: found {flat[key]!r}{nearest(flat[key], allowed)}")
    for key in POSITIVE:
        if not flat[key] > 0:
            raise ConfigError(f"{key}: found {flat[key]}, expected a number above 0")
    for key in FRACTIONS:
        if not 0 <= flat[key] < 1:
            raise ConfigError(f"{key}: found {flat[key]}, expected a fraction of at least 0 and below 1")
    for key, value in flat.items():
        if isinstance(value, (int, float)) and value < 0:
            raise ConfigError(f"{key}: found {value}, expected at least 0")
    for key in ("run.seed", "run.data_seed"):
        if flat[key] >= 2**32:
            raise ConfigError(f"{key}: found {flat[key]}, expected a number below 2^32")
    model, run = cfg.model, cfg.run
    if model.kind == "decoder":
        architecture.resolve({**model, "vocab_size": model.vocab_size or 1})
    base = base_of(model, cfg.parametrization)  # the base model must exist as well
    if model.kind == "decoder":
        architecture.resolve({**base, "vocab_size": model.vocab_size or 1})
    if cfg.optimizer.name == "lamb" and cfg.optimizer.decay != "coupled":
        raise ConfigError("optimizer.decay: found independent, expected coupled: LAMB decays inside its ratio of norms")
    micro = microbatch_tokens(cfg)
    for key, tokens in (("run.batch_tokens", run.batch_tokens), ("execution.microbatch_tokens", micro)):
        if tokens % model.sequence_length:
            raise ConfigError(
                f"{key}: {tokens} tokens are no whole number of sequences of {model.sequence_length}; "
                f"nearest: {max(1, round(tokens / model.sequence_length)) * model.sequence_length}"
            )
    if run.batch_tokens % micro:
        raise ConfigError(
            f"run.batch_tokens: {run.batch_tokens} is not a multiple of the micro-batch of {micro} tokens; "
            "set execution.microbatch_tokens to a divisor"
        )
    if run.horizon_tokens < run.batch_tokens:
        raise ConfigError(
            f"run.horizon_tokens: {run.horizon_tokens} is less than one batch of {run.batch_tokens} tokens"
        )
    return cfg


def microbatch_tokens(cfg: ConfigDict) -> int:
    """Tokens of one tick: `execution.microbatch_tokens`, or a quarter, a sixteenth, ... of it for smaller batches.

    Steps of four keep batch sizes that span decades in few packs, none of which serves a batch in slivers.
    """
    micro = cfg.execution.microbatch_tokens
    while micro > cfg.run.batch_tokens and micro % (4 * cfg.model.sequence_length) == 0:
        micro //= 4
    return micro if micro <= cfg.run.batch_tokens else cfg.model.sequence_length


def with_vocabulary(cfg: ConfigDict, vocab_size: int) -> ConfigDict:
    """`cfg` with the model's vocabulary made explicit.

    Raises:
      ConfigError: where a vocabulary was set that is smaller than the corpus's.
    """
    if 0 < cfg.model.vocab_size < vocab_size:
        raise ConfigError(f"model.vocab_size: found {cfg.model.vocab_size}, but the corpus has {vocab_size} tokens")
    return override(cfg, {"model.vocab_size": cfg.model.vocab_size or vocab_size})


def meaning(cfg: ConfigDict) -> dict[str, Any]:
    """What identity is computed from: a resolved config less `execution` and less what its options never read."""
    flat = {key: value for key, value in flatten(cfg).items() if not key.startswith("execution.")}
    unread: set[str] = set()
    compared = find(cfg.parametrization.name).base
    if cfg.model.kind == "decoder":
        unread.add("model.remat")
        if "width" not in compared:  # elsewhere 0 says how the base model follows its width
            resolved = architecture.resolve(cfg.model)
            flat |= {"model.head_width": resolved.head_width, "model.mlp_width": resolved.mlp_width}
    if not cfg.evaluation.statistics:
        unread.add("evaluation.statistics")
    unread |= {f"parametrization.base_{size}" for size in ("width", "depth") if size not in compared}
    if not cfg.optimizer.weight_decay:
        unread.add("optimizer.decay")
    unread |= {
        "adamw": {"optimizer.momentum"},
        "lamb": {"optimizer.momentum"},
        "lion": {"optimizer.momentum", "optimizer.epsilon"},
        "sgd": {"optimizer.beta1", "optimizer.beta2", "optimizer.epsilon"},
    }[cfg.optimizer.name]
    if cfg.schedule.name == "constant":
        unread |= {"schedule.cooldown_fraction", "schedule.final_fraction"}
    elif cfg.schedule.name in ("linear", "cosine"):
        unread.add("schedule.cooldown_fraction")
    unread |= {
        "none": {"averaging.window_tokens", "averaging.window_fraction"},
        "exponential": {"averaging.window_fraction"},
        "polynomial": {"averaging.window_tokens"},
    }[cfg.averaging.name]
    unread |= {key for key in flat if key.startswith("data.")}  # the corpus's digest says all of it
    return {key: flat[key] for key in sorted(flat) if key not in unread}


def digest(value: Any, length: int = 16) -> str:
    """Hex digest of a JSON value; floats by their shortest exact form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def identity(cfg: ConfigDict, corpus_digest: str) -> str:
    """The run's name: a hash of the meaning of a resolved config and of the corpus.

    The corpus enters by digest and not by name or path, so that a moved file is the same corpus.
    """
    return digest({"config": meaning(cfg), "corpus": corpus_digest})


def shape(cfg: ConfigDict) -> dict[str, Any]:
    """What a compiled program depends on; runs of equal shape may share a pack."""
    keep = {key: value for key, value in flatten(cfg).items() if key.startswith("model.")}
    keep["optimizer.name"] = cfg.optimizer.name
    keep["averaging"] = cfg.averaging.name != "none"
    keep["microbatch_tokens"] = microbatch_tokens(cfg)
    keep["evaluation.sequences"] = cfg.evaluation.sequences
    keep["evaluation.statistics"] = cfg.evaluation.statistics
    keep["data"] = cfg.data.to_dict()
    keep["execution"] = {k: v for k, v in flatten(cfg.execution).items() if k not in ("microbatch_tokens",)}
    return keep


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`key: old -> new`, one line for each flat key that differs."""
    keys = sorted(set(old) | set(new))
    return [f"{k}: {old.get(k, 'absent')} -> {new.get(k, 'absent')}" for k in keys if old.get(k) != new.get(k)]
