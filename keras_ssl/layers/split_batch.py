"""Batch normalisation over parts of a batch, as it is on several devices."""

from keras import ops

from keras_ssl.training.cross_device import own_statistics, replica_count


def apply_in_groups(function, inputs, groups: int):
    """Applies a network to `groups` parts of a batch, one after the other.

    Batch normalisation inside then normalises each part by its own statistics, as if every part
    were on a device of its own. Part `i` of `N` rows is `floor(i N / groups)` up to
    `floor((i + 1) N / groups)`. The moving statistics see the parts one after the other. In a
    batch with fewer than two rows a part, a part is normalised together with its neighbours, so
    that there is always a variance.

    Args:
        function: from a batch `(n, ...)` to a batch `(n, ...)`.
        inputs: `(N, ...)`; `N` may be unknown when tracing.
        groups: number of parts; 1 is the plain network.

    Where several replicas each run the step on a share of the batch, there must be as many parts:
    a part is a replica's share.

    Returns:
        What the function gave for every row, in order.

    Raises:
        ValueError: another number of parts than of replicas.
    """
    if groups == 1:
        return function(inputs)
    if replica_count() > 1:
        if groups != replica_count():
            raise ValueError(
                "Parts of a batch for batch normalisation must be as many as the replicas that "
                "share it, or 1 for the statistics of the whole batch. "
                f"Received: {groups} parts, {replica_count()} replicas"
            )
        with own_statistics():
            return function(inputs)
    known = inputs.shape[0] is not None
    count = inputs.shape[0] if known else ops.shape(inputs)[0]
    least, greatest = (min, max) if known else (ops.minimum, ops.maximum)
    outputs = []
    for i in range(groups):
        low, high = i * count // groups, (i + 1) * count // groups
        if known and low == high:
            continue
        start = greatest(least(low, count - 2), 0)
        end = least(greatest(high, start + 2), count)
        outputs.append(function(inputs[start:end])[low - start : high - start])
    return ops.concatenate(outputs, axis=0)
