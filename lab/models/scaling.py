"""Operations whose forward and backward factors may differ: what unit scaling is made of (arXiv:2303.11257).

A gradient stays right up to one constant a weight where every way from it to the loss has the same product of backward
over forward factors; Adam and Lion do not see that constant. A parametrization that uses true gradients gives equal
factors everywhere.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from lab.models.precision import POLICIES


@jax.custom_vjp
def scale(x, forward, backward):
    """`forward` x x, and `backward` x its cotangent; the factors are scalars, of which no gradient is taken."""
    return x * jnp.asarray(forward, x.dtype)


def _scale_forward(x, forward, backward):
    return scale(x, forward, backward), (forward, backward)


def _scale_backward(factors, dy):
    _, backward = factors
    return dy * jnp.asarray(backward, dy.dtype), *jax.tree.map(jnp.zeros_like, factors)


scale.defvjp(_scale_forward, _scale_backward)


def product(x_NI, w_IO, factors: dict, precision: str = "none", dtype=None):
    """x @ w in `dtype` (or x's), its value and both gradients multiplied by factors of their own.

    Args:
      x_NI: [tokens, fan_in], in the dtype that the model computes in.
      w_IO: [fan_in, fan_out], float32 or wider; cast to x's dtype here.
      factors: scalars `forward` (of the value), `backward` (of the gradient of x), `gradient` (of that of w).
      precision: a name of `lab.models.precision.POLICIES`: how operands are cast on their way into the products.
    """
    return _product(precision, dtype or x_NI.dtype, x_NI, w_IO, factors)


def _wide(left, right, out_dtype):
    return jnp.dot(left, right, preferred_element_type=out_dtype)


def _product_value(precision, dtype, x, w, factors):
    policy = POLICIES[precision]
    left, right = policy.cast(x, "activation"), policy.cast(w.astype(x.dtype), "weight")
    return _wide(left, right, dtype) * jnp.asarray(factors["forward"], dtype), left, right


def _product_forward(precision, dtype, x, w, factors):
    y, left, right = _product_value(precision, dtype, x, w, factors)
    return y, (left, right, jnp.zeros((), w.dtype), factors)


def _product_backward(precision, dtype, saved, dy):
    left, right, of_weight, factors = saved
    dy = POLICIES[precision].cast(dy.astype(left.dtype), "gradient")
    dx = _wide(dy, right.T, left.dtype) * jnp.asarray(factors["backward"], left.dtype)
    dw = _wide(left.T, dy, left.dtype).astype(of_weight.dtype) * jnp.asarray(factors["gradient"], of_weight.dtype)
    return dx, dw, jax.tree.map(jnp.zeros_like, factors)


_product = jax.custom_vjp(lambda *args: _product_value(*args)[0], nondiff_argnums=(0, 1))
_product.defvjp(_product_forward, _product_backward)


def tap(module: nn.Module, name: str, x):
    """x itself, seen from outside: `Model.taps` returns it, and its gradient, under the module's path and `name`."""
    module.sow("taps", name, x, reduce_fn=lambda _, new: new, init_fn=lambda: None)
    return module.perturb(name, x, collection="tap_gradients")
