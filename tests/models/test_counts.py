"""Closed-form counts against the records, the jaxpr, a published model, and without jax."""

import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from settings import model_config

from kernels_pallas.flash_attention import cpu
from kernels_pallas.flash_attention.mask import Mask
from lab import models
from lab.models import counts, measure
from lab.models.weight import is_record

CONFIGS = [
    {},
    {"tied": True, "gated": True, "norm": "layer", "kv_heads": 2},
    {"qk_norm": False, "head_width": 6, "kv_heads": 1, "mlp_width": 20, "sequence_length": 100},
    {"depth": 1, "sequence_length": 600},
]


@pytest.mark.parametrize("changes", CONFIGS)
def test_parameters_equal_the_records_and_the_arrays(changes):
    config = model_config(**changes)
    model = models.build(config)
    assert counts.parameters(config) == measure.record_parameters(model.records())
    assert counts.parameters(config)["total"] == sum(w.size for w in jax.tree.leaves(model.init(jax.random.key(0))))


def done(length, batch_and_heads):
    """Attention's products over those of a program that keeps and meets every score, forward 2 and backward 4."""
    mask = Mask(length, length, right=0, causal=True)
    if length <= cpu.SHORT:
        return sum((end - start) * (high - low) for start, end, low, high in cpu.parts(mask)) / length**2
    queries, keys = cpu.tile_sizes(mask, batch_and_heads, itemsize=4)
    return len(cpu.pairs(mask, queries, keys)) * queries * keys / length**2 * 7 / 6


@pytest.mark.parametrize("unroll", [None, 1])
@pytest.mark.parametrize("changes", CONFIGS)
def test_flops_equal_the_jaxpr(changes, unroll):
    """But for gains, which are not products, and for what attention leaves out above the diagonal or computes again."""
    config = model_config(**changes)
    model, length = models.build(config, unroll), config.sequence_length
    records = model.records()
    weights = jax.tree.map(lambda r: jax.ShapeDtypeStruct(r.shape, jnp.float32), records, is_leaf=is_record)
    tokens = jax.ShapeDtypeStruct((2, length + 1), jnp.int32)
    found = measure.jaxpr_flops(jax.grad(lambda w, t: model.loss(w, t, {}, 0.0)[0]), weights, tokens)
    flops = counts.flops_per_token(config)
    vectors = [r for r in jax.tree.leaves(records, is_leaf=is_record) if r.role in ("norm", "bias")]
    gains = sum(math.prod(r.shape) for r in vectors)
    mixing = flops["with_attention"] - flops["with_head"]
    expected = flops["with_head"] - 6 * gains + done(length, 2 * config.heads) * mixing
    assert found / (2 * length) == pytest.approx(expected, rel=1e-12)


def test_pythia_160m_has_its_published_parameters():
    """Pythia-160M (arXiv:2304.01373, table 1): 85,056,000 non-embedding; ours lacks its biases of linear layers."""
    config = model_config(
        width=768, depth=12, heads=12, kv_heads=12, norm="layer", qk_norm=False, vocab_size=50304, sequence_length=2048
    )
    biases = 12 * (3 * 768 + 768 + 3072 + 768)
    assert counts.parameters(config)["non_embedding"] == 85_056_000 - biases
    assert counts.parameters(config)["total"] == 162_322_944 - biases


def test_jaxpr_flops_of_known_programs():
    a, b = np.zeros((3, 5), np.float32), np.zeros((5, 7), np.float32)
    product = 2 * 3 * 5 * 7
    assert measure.jaxpr_flops(jnp.dot, a, b) == product

    def looped(a, b):
        return jax.lax.scan(lambda carry, _: (carry + a @ b, None), jnp.zeros((3, 7)), length=4)[0]

    assert measure.jaxpr_flops(looped, a, b) == 4 * product
    image, kernel = np.zeros((1, 8, 8, 2), np.float32), np.zeros((3, 3, 2, 5), np.float32)

    def convolve(x, k):
        return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert measure.jaxpr_flops(convolve, image, kernel) == 2 * 64 * 5 * 9 * 2
    with pytest.raises(ValueError, match="while"):
        measure.jaxpr_flops(lambda a: jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x + 1, a), a)


def test_counting_does_not_import_jax():
    code = "import sys; from lab.models import counts, architecture; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
