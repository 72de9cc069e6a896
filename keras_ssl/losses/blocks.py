"""Losses over all pairs of a batch, one block of rows at a time: memory linear in the batch."""

from keras import ops

# block_size="auto": 512 rows against the 2 * 8192 columns of a batch of 8192 are 32 MB in float32,
# where the whole matrix takes 1 GB, several times over. Up to 1024 rows blocks gain nothing.
AUTO_BLOCK_SIZE, AUTO_WHOLE_ROWS = 512, 1024


def check_block_size(block_size) -> None:
    """Refuses what is no int >= 1, "auto" or None."""
    if block_size not in ("auto", None) and not (isinstance(block_size, int) and block_size >= 1):
        raise ValueError(
            f'`block_size` must be an int >= 1, "auto" or None. Received: block_size={block_size!r}'
        )


def rows_in_a_block(block_size, rows):
    """None for the whole matrix at once; an int, or a scalar tensor where `rows` is one."""
    if block_size is None:
        return None
    block = AUTO_BLOCK_SIZE if block_size == "auto" else block_size
    if isinstance(rows, int):
        if block_size == "auto" and rows <= AUTO_WHOLE_ROWS:
            return None
        return min(block, rows)
    return ops.minimum(rows, block)


def in_blocks(x, rows, block):
    """(rows, ...) to (blocks, block, ...), the last block filled with zeros."""
    missing = (-rows) % block
    if not isinstance(missing, int) or missing:
        x = ops.pad(x, [[0, missing]] + [[0, 0]] * (len(x.shape) - 1))
    return ops.reshape(x, (-1, block) + tuple(x.shape[1:]))
