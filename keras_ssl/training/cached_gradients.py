"""Cached contrastive gradients: a large batch's gradient in the memory of a small one."""

from collections.abc import Callable

import keras
from keras import ops


def in_micro_batches(model, encoder, function: Callable, inputs, training: bool):
    """`function(inputs)`, in training one micro-batch after the other (GradCache).

    A contrastive loss needs the embeddings of the whole batch, but not their activations. So each
    micro-batch is encoded and only its embeddings kept; the loss of all of them gives the gradient
    at the embeddings; and each micro-batch is encoded once more to send its part of that gradient
    back through the encoder. The sum over the micro-batches is exactly the gradient of the whole
    batch, because the encoder treats samples independently. It costs one more forward pass.

    The size of a micro-batch is the model's `micro_batch_size`, set by `compile`; `None` encodes
    the whole batch at once.

    Args:
        model: whose variables the function reads.
        encoder: the part of it that the function runs; its random states go on from one micro-batch
            to the next, and the second pass draws what the first one drew.
        function: from a tensor `(n, ...)` to features `(n, D)`, each row for itself.
        inputs: `(N, ...)`; the micro-batch size divides `N`.
        training: `False` encodes the whole batch at once.

    Returns:
        `(N, D)`.

    Raises:
        ValueError: the size does not divide the batch, or the encoder has batch normalisation,
            whose statistics would be those of a micro-batch.

    Reference:
        Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021,
        section 3.2.
    """
    size = getattr(model, "micro_batch_size", None)
    if not training or size is None:
        return function(inputs)
    rows = inputs.shape[0]
    if rows is not None and rows % size:
        raise ValueError(
            "`micro_batch_size` must divide the number of images (views, texts) of a batch. "
            f"Received: micro_batch_size={size}, {rows} rows"
        )
    trained = any(v.trainable for v in encoder.variables)
    if trained and any(v.path.endswith("moving_mean") for v in encoder.variables):
        raise ValueError(
            "Cached gradients need an encoder that treats samples independently, and this one has "
            "batch normalisation: leave `micro_batch_size` out, or take an encoder with layer "
            f"normalisation. Received: {encoder.name}"
        )
    # Counters of random numbers: whole numbers all of them.
    state = [v for v in encoder.variables if not keras.backend.is_float_dtype(v.dtype)]
    return _BACKENDS[keras.backend.backend()](model, function, inputs, size, state)


def _jax(model, function, inputs, size, state):
    import jax

    # All variables by their present values: those of the step's own scope are not seen inside.
    values = [(v, v.value) for v in model.variables]
    carried = {id(v) for v in state}
    fixed = [(v, value) for v, value in values if id(v) not in carried]

    @jax.checkpoint
    def encode(state_values, chunk):
        mapping = [*fixed, *zip(state, state_values, strict=True)]
        with keras.StatelessScope(state_mapping=mapping) as scope:
            features = function(chunk)
        return [scope.get_current_value(v) for v in state], features

    chunks = ops.reshape(inputs, (-1, size, *inputs.shape[1:]))
    # A loop, not an unrolled one: the compiler could otherwise run all second passes at once.
    last, features = jax.lax.scan(encode, [v.value for v in state], chunks)
    for variable, value in zip(state, last, strict=True):
        variable.assign(value)
    return ops.reshape(features, (-1, features.shape[-1]))


def _torch(model, function, inputs, size, state):
    from torch.utils.checkpoint import checkpoint

    def encode(chunk):
        before = []

        def run(chunk):
            if not before:  # the first pass
                before.append([ops.copy(v) for v in state])
                return function(chunk)
            now = [ops.copy(v) for v in state]
            _assign(state, before[0])
            features = function(chunk)
            _assign(state, now)
            return features

        return checkpoint(run, chunk, use_reentrant=False)

    chunks = [inputs[start : start + size] for start in range(0, inputs.shape[0], size)]
    return ops.concatenate([encode(chunk) for chunk in chunks], axis=0)


def _tensorflow(model, function, inputs, size, state):
    import tensorflow as tf

    if inputs.shape[0] is None:
        raise ValueError(
            "Cached gradients need a batch size that is known when the step is traced: batch with "
            f"drop_remainder=True. Received: inputs of shape {tuple(inputs.shape)}"
        )
    count = inputs.shape[0] // size
    differentiable = not inputs.dtype.is_integer
    chunk_spec = tf.TensorSpec((size, *inputs.shape[1:]), inputs.dtype)
    spec = tf.function(function, autograph=False).get_concrete_function(chunk_spec)
    spec = spec.structured_outputs

    def loop(body, *values):
        """`values = body(i, *values)` for one micro-batch after the other."""
        # Loops, not unrolled ones: the compiler takes a second pass that stands beside the first
        # for the same computation and keeps the first one's activations, those of all of them.
        return tf.while_loop(
            lambda i, *values: i < count,
            lambda i, *values: (i + 1, *body(i, *values)),
            (0, *values),
            parallel_iterations=1,
        )[1:]

    @tf.custom_gradient
    def run(inputs):
        before = [ops.copy(v) for v in state]
        chunks = tf.reshape(inputs, (count, *chunk_spec.shape))

        def encode(i, features):
            return (features.write(i, function(chunks[i])),)

        (features,) = loop(encode, tf.TensorArray(spec.dtype, count, element_shape=spec.shape))

        def gradient(upstream, variables=None):
            variables = list(variables or ())
            parts = tf.reshape(upstream, (count, *spec.shape))
            reached = set()

            def add(i, by_chunk, *sums):
                with tf.GradientTape() as tape:
                    chunk = chunks[i]
                    if differentiable:
                        tape.watch(chunk)
                    again = function(chunk)
                sources = [*variables, chunk] if differentiable else variables
                found = tape.gradient(again, sources, output_gradients=parts[i])
                if differentiable and (last := found.pop()) is not None:
                    by_chunk = by_chunk.write(i, last)
                    reached.add("chunk")
                reached.update(k for k, g in enumerate(found) if g is not None)
                pairs = zip(sums, found, strict=True)
                # Embeddings give sparse gradients.
                return by_chunk, *(
                    total if g is None else total + tf.convert_to_tensor(g) for total, g in pairs
                )

            now = [ops.copy(v) for v in state]
            _assign(state, before)
            by_chunk = tf.TensorArray(inputs.dtype, count, element_shape=chunk_spec.shape)
            zeros = [tf.zeros(v.shape, v.dtype) for v in variables]
            by_chunk, *sums = loop(add, by_chunk, *zeros)
            _assign(state, now)
            sums = [total if k in reached else None for k, total in enumerate(sums)]
            by_inputs = None
            if "chunk" in reached:
                by_inputs = tf.reshape(by_chunk.stack(), inputs.shape)
            return (by_inputs, sums) if variables else by_inputs

        return tf.reshape(features.stack(), (-1, *spec.shape[1:])), gradient

    return run(inputs)


def _assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


_BACKENDS = {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}
