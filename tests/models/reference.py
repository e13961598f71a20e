"""The decoder in plain NumPy, float64, one loop per sequence, layer, head and query: slow and easy to check by eye."""

from __future__ import annotations

import math

import numpy as np

from lab.models.architecture import resolve


def _norm(x, weights, kind, epsilon):
    if kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    y = x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * weights["gain"]
    return y + weights["bias"] if kind == "layer" else y


def _rope(x, base):
    """x [length, head_width]: pair i is features i and i + head_width / 2, a complex number turned by its angle."""
    length, width = x.shape
    out = np.empty_like(x)
    for position in range(length):
        for i in range(width // 2):
            z = complex(x[position, i], x[position, i + width // 2])
            z *= np.exp(1j * position / base ** (2 * i / width))
            out[position, i], out[position, i + width // 2] = z.real, z.imag
    return out


def _act(x, name):
    if name == "relu":
        return np.maximum(x, 0)
    if name == "silu":
        return x / (1 + np.exp(-x))
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _attention(x, w, a, scale):
    mixed = []
    for head in range(a.heads):
        shared = head // (a.heads // a.kv_heads)
        q, k, v = x @ w["query"][:, head], x @ w["key"][:, shared], x @ w["value"][:, shared]
        if a.qk_norm:
            q = _norm(q, w["query_norm"], "rms", a.norm_epsilon)
            k = _norm(k, w["key_norm"], "rms", a.norm_epsilon)
        q, k = _rope(q, a.rope_base), _rope(k, a.rope_base)
        out = np.zeros_like(q)
        for t in range(len(x)):
            scores = k[: t + 1] @ q[t] * scale / math.sqrt(a.head_width)
            p = np.exp(scores - scores.max())
            out[t] = p / p.sum() @ v[: t + 1]
        mixed.append(out)
    return sum(mixed[head] @ w["out"][head] for head in range(a.heads))


def _mlp(x, w, a):
    hidden = _act(x @ w["gate"], a.activation) * (x @ w["up"]) if a.gated else _act(x @ w["up"], a.activation)
    return hidden @ w["out"]


def logits(config, weights, tokens, multipliers):
    """[batch, length, vocabulary] for tokens [batch, length]; weights as the model's, in float64."""
    a = resolve(config)
    result = []
    for sequence in np.asarray(tokens):
        x = weights["embedding"][sequence] * multipliers["embedding"]
        branch = multipliers["residual"]["branch"]
        for layer in range(a.depth):
            attention = {k: v[layer] for k, v in weights["layers"]["attention"].items() if not k.endswith("norm")}
            for name in ("query_norm", "key_norm"):
                if a.qk_norm:
                    attention[name] = {"gain": weights["layers"]["attention"][name]["gain"][layer]}
            norms = {n: {k: v[layer] for k, v in weights["layers"][n].items()} for n in ("attention_norm", "mlp_norm")}
            mlp = {k: v[layer] for k, v in weights["layers"]["mlp"].items()}
            y = _norm(x, norms["attention_norm"], a.norm, a.norm_epsilon)
            x = x + branch * _attention(y, attention, a, multipliers["attention"])
            x = x + branch * _mlp(_norm(x, norms["mlp_norm"], a.norm, a.norm_epsilon), mlp, a)
        readout = weights["embedding"].T if a.tied else weights["readout"]
        y = _norm(x, weights["final_norm"], a.norm, a.norm_epsilon) @ readout * multipliers["readout"]
        result.append(a.logit_soft_cap * np.tanh(y / a.logit_soft_cap) if a.logit_soft_cap else y)
    return np.stack(result)


def nats_and_log_z(logits, targets):
    """Per prediction, [batch, length] each."""
    log_z = np.log(np.exp(logits).sum(-1))
    return log_z - np.take_along_axis(logits, np.asarray(targets)[..., None], -1)[..., 0], log_z
