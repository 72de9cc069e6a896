"""What a name map is made of: official tensor name, our attribute path, how the array is turned.

Every source has a file of its own beside this one that holds its maps. `{i}` in a row runs over a
list of layers. A path that ends in `None` in the model at hand (no class token, no bias, another
kind of MLP) does not apply there; every variable of the model that no row reaches must be listed
under `left` of the map, so that a mistyped path cannot hide.
"""

import dataclasses
from collections.abc import Callable

# Transforms (convert.py holds the functions):
#   same        as it is
#   linear      torch's Linear weight [out, in] to a Dense kernel (in, out)
#   conv        torch's convolution [out, in, h, w] to a Conv2D kernel (h, w, in, out)
#   patch_conv  a convolution [dim, channels, p, p] whose stride is its size, to the kernel
#               (p * p * channels, dim) of a Dense over patches in (row, column, channel) order
#   depthwise   a torch depthwise convolution [dim, 1, h, w] to a kernel (h, w, dim, 1)
#   heads       [heads * size, in] to (in, heads, size): a Dense of keras' multi-head attention
#   from_heads  [out, heads * size] to (heads, size, out): the one behind it
#   vector      [heads * size] to (heads, size)
#   temperature a divisor of similarities to the logarithm of a factor
#   flat        [1, 1, dim] to (1, dim)
#   leading     as it is, but for leading axes of size 1 that only ours has
#   scalar      a vector of one to a scalar
#   lead1       [1, dim] to (dim,): haiku's batch normalisation of vectors
#   lead3       [1, 1, 1, dim] to (dim,): the same of maps
# "linear 1/3" fills the second of three equal parts of our variable, along its last axis: sources
# that keep queries, keys and values apart.

Row = tuple[str, str, str]


@dataclasses.dataclass(frozen=True)
class Map:
    """One layout seen from one of our classes.

    Attributes:
        entries: rows of (official name, our attribute path, transform), or a function that gives
            those of a model.
        ignored: patterns of official names that this class has no place for.
        left: attribute paths of ours that the layout has no tensors for.
        displaced: pairs of attribute paths; entries of the first do not apply where the second
            exists.
        zeros: patterns of official names that a source may leave out, meaning zeros.
        inside: prefixes below which a larger file (a whole run) may have these names; everything
            else in it is ignored then.
        renamed: function that gives tensors these names which others of the same source have.
    """

    entries: tuple[Row, ...] | Callable
    ignored: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    displaced: tuple[tuple[str, str], ...] = ()
    zeros: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    renamed: Callable = dict

    def rows(self, model) -> tuple[Row, ...]:
        return tuple(self.entries(model)) if callable(self.entries) else self.entries


def norm(official: str, ours: str) -> tuple[Row, ...]:
    """A torch LayerNorm."""
    return (
        (f"{official}.weight", f"{ours}.gamma", "same"),
        (f"{official}.bias", f"{ours}.beta", "same"),
    )


def batch_norm(official: str, ours: str) -> tuple[Row, ...]:
    """A torch BatchNorm with its running statistics."""
    return (
        *norm(official, ours),
        (f"{official}.running_mean", f"{ours}.moving_mean", "same"),
        (f"{official}.running_var", f"{ours}.moving_variance", "same"),
    )


def dense(official: str, ours: str, kind: str = "linear") -> tuple[Row, ...]:
    """A torch Linear (or, by its kind, a convolution)."""
    return (
        (f"{official}.weight", f"{ours}.kernel", kind),
        (f"{official}.bias", f"{ours}.bias", "same"),
    )


def split_dense(officials: tuple[str, ...], ours: str) -> tuple[Row, ...]:
    """Several torch Linears that are one Dense here."""
    n = len(officials)
    return tuple(
        row
        for i, official in enumerate(officials)
        for row in (
            (f"{official}.weight", f"{ours}.kernel", f"linear {i}/{n}"),
            (f"{official}.bias", f"{ours}.bias", f"same {i}/{n}"),
        )
    )


def head(official: str, ours: str, linears: tuple, norms: tuple = ()) -> tuple[Row, ...]:
    """A torch Sequential of Linear and BatchNorm, by their places, as a `ProjectionHead`."""
    return (
        *(
            row
            for i, n in enumerate(linears)
            for row in dense(f"{official}.{n}", f"{ours}.linears.{i}")
        ),
        *(
            row
            for i, n in enumerate(norms)
            for row in batch_norm(f"{official}.{n}", f"{ours}.norms.{i}")
        ),
    )


def prefixed(rows: tuple[Row, ...], official: str = "", ours: str = "") -> tuple[Row, ...]:
    """Rows below a prefix on either side."""
    return tuple((official + theirs, ours + mine, how) for theirs, mine, how in rows)
