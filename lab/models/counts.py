"""Parameters and FLOPs of a model from its config alone, by each convention. No jax here.

N "non_embedding" leaves out the embedding table and the readout (Kaplan et al. 2020); "with_head" adds width x
vocabulary for the readout product, tied or not; "total" is every stored number once. FLOPs per token are forward and
backward, 6 per weight; "with_attention" adds 12 x depth x heads x head width x sequence length for scores and mixing,
each query counted with all keys (PaLM, arXiv:2204.02311, appendix B). The program does less, it leaves out most of what
lies above the diagonal, or more, where scores are computed again for the gradient (`kernels_pallas.flash_attention`).
"""

from __future__ import annotations

from lab.models.architecture import Architecture, resolve
from lab.models.registry import own_counts


def _gain(architecture: Architecture) -> int:
    return architecture.width * (2 if architecture.norm == "layer" else 1)


def _layer(a: Architecture) -> int:
    attention = 2 * a.width * a.head_width * (a.heads + a.kv_heads)
    mlp = a.width * a.mlp_width * (3 if a.gated else 2)
    return attention + mlp + 2 * _gain(a) + (2 * a.head_width if a.qk_norm else 0)


def parameters(config) -> dict[str, int]:
    """Counts {"non_embedding", "with_head", "total"} for a `model` config node with `vocab_size` resolved."""
    counts = own_counts(config.kind)
    if counts:
        return counts.parameters(config)
    a = resolve(config)
    non_embedding = a.depth * _layer(a) + _gain(a)
    table = a.width * a.vocab_size
    return {
        "non_embedding": non_embedding,
        "with_head": non_embedding + table,
        "total": non_embedding + table * (1 if a.tied else 2),
    }


def flops_per_token(config) -> dict[str, int]:
    """FLOPs {"non_embedding", "with_head", "with_attention"} of one token of training, forward and backward."""
    counts = own_counts(config.kind)
    if counts:
        return counts.flops_per_token(config)
    a, n = resolve(config), parameters(config)
    head = 6 * n["with_head"]
    mixing = 12 * a.depth * a.heads * a.head_width * a.sequence_length
    return {"non_embedding": 6 * n["non_embedding"], "with_head": head, "with_attention": head + mixing}
