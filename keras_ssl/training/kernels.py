"""Operations whose fastest form differs between backends."""

import functools

import keras
import numpy as np
from keras import ops


def _prefers_plain_attention() -> bool:
    """Whether two matrix products and a softmax beat the backend's own attention.

    Measured in benchmarks/: on JAX's CPU the plain form takes 0.5 of the time of
    `jax.nn.dot_product_attention` for 197 tokens, forward and backward, and keras' TensorFlow
    version is the plain form in another order. PyTorch, and JAX on accelerators, have fused
    kernels that never write the attention matrix to memory.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.default_backend() == "cpu"
    return backend == "tensorflow"


def gelu(x):
    """Exact GELU, `x * Phi(x)`, as the papers' codes use it.

    PyTorch has a kernel for it. XLA fuses the formula, and gets it with `erf`: the `erfc` of
    `jax.nn.gelu` costs twice as much on CPU, and differs only where `x < -4`, by less than 1e-7.
    """
    if keras.backend.backend() == "torch":
        return keras.activations.gelu(x, approximate=False)
    return 0.5 * x * (1.0 + ops.erf(x * 0.7071067811865476))


def write_rows(variable, place, rows) -> None:
    """Writes some rows of a variable `(size, dim)`.

    A new array where the compiler then reuses the old one's memory; in place on PyTorch, where
    three copies of a queue of 65,536 keys would cost as much as a small network's forward pass.

    Args:
        place: `(n,)` int, the rows to write, each once.
        rows: `(n, dim)`, without gradient.
    """
    if keras.backend.backend() == "torch":
        import torch

        with torch.no_grad():
            variable.value.index_copy_(0, place.long(), rows.to(variable.value.dtype))
        return
    variable.assign(ops.scatter_update(ops.convert_to_tensor(variable), place[:, None], rows))


def dot_product_attention(query, key, value, causal=False):
    """Scaled dot-product attention, `softmax(q k^T / sqrt(head_dim)) v`.

    Args:
        query: `(batch, tokens, heads, head_dim)`; `key` and `value` likewise.
        causal: whether a token sees itself and those before it only.

    Returns:
        `(batch, tokens, heads, head_dim)`.
    """
    if not _prefers_plain_attention():
        return ops.dot_product_attention(query, key, value, is_causal=causal)
    attention = attention_weights(query, key, causal)
    out = ops.matmul(attention, ops.transpose(value, (0, 2, 1, 3)))
    return ops.transpose(out, (0, 2, 1, 3))


def attention_weights(query, key, causal=False):
    """`softmax(q k^T / sqrt(head_dim))`: `(batch, heads, query tokens, key tokens)`."""
    query = ops.transpose(query * query.shape[-1] ** -0.5, (0, 2, 1, 3))
    logits = ops.matmul(query, ops.transpose(key, (0, 2, 3, 1)))
    if causal:
        # Finite, so that half precision has no infinity to subtract.
        lowest = -1e4 if keras.backend.standardize_dtype(logits.dtype) == "float16" else -1e9
        before = np.tri(logits.shape[-2], logits.shape[-1], dtype=bool)
        logits = ops.where(before, logits, ops.cast(lowest, logits.dtype))
    return ops.softmax(logits, axis=-1)


@functools.cache  # at its first use: asking JAX for its devices ends what may be set before
def _barrier():
    """The identity, behind and before which XLA fuses nothing; or `None` where not needed."""
    if keras.backend.backend() != "jax":
        return None
    import jax

    if jax.default_backend() != "cpu":
        return None

    def materialized(x):
        # `lax.optimization_barrier` is taken out before fusion on CPU; a branch is not. The
        # predicate is true unless the first number is NaN, and then everything becomes NaN.
        probe = x[(0,) * x.ndim]
        return jax.lax.cond(probe == probe, lambda x: x, lambda x: x * probe, x)

    @jax.custom_vjp
    def barrier(x):
        return materialized(x)

    barrier.defvjp(lambda x: (materialized(x), None), lambda _, gradient: (materialized(gradient),))
    return barrier


def materialize(x):
    """The identity; on JAX's CPU a hint to write `x` to memory here.

    A residual stream is a chain of sums that every block reads. XLA's CPU compiler fuses the
    chain into each of its readers and so computes it again, from the first block on, in every one
    of them: time and code grow with the square of the depth. Measured in benchmarks/.
    """
    barrier = _barrier()
    return x if barrier is None else barrier(x)
