"""Driving an optimizer with the gradients of a reference file, and judging what it did."""

import keras
import numpy as np

from conformance_handlers.framework import BOUNDS, TINY, as_numpy


def make_variables(arrays: dict[str, np.ndarray]) -> dict[str, keras.Variable]:
    """Variables whose `path` is the reference's name, so that exclusions by name see the same."""
    variables = {}
    for name, array in arrays.items():
        *scopes, last = name.split("/")
        variables[name] = _make(scopes, last, array)
        if variables[name].path != name:
            raise ValueError(f"the variable {name!r} got the path {variables[name].path!r}")
    return variables


def _make(scopes, name, array):
    if scopes:
        with keras.name_scope(scopes[0]):
            return _make(scopes[1:], name, array)
    return keras.Variable(array, dtype="float32", name=name)


def run_steps(case, optimizer, variables: dict, gradient_key: str, step_key: str, steps: int):
    """Apply the given gradients step after step; compare every parameter after each.

    `gradient_key` and `step_key` are formats of `step` and `name`.
    """
    start = {name: as_numpy(variable).copy() for name, variable in variables.items()}
    for step in range(1, steps + 1):
        pairs = [
            (case.input(gradient_key.format(step=step, name=name)), variable)
            for name, variable in variables.items()
        ]
        optimizer.apply_gradients((keras.ops.convert_to_tensor(g), v) for g, v in pairs)
        for name, variable in variables.items():
            key, ours = step_key.format(step=step, name=name), as_numpy(variable)
            case.compare(key, ours)
            compare_move(case, key, ours, start[name])


def compare_move(case, key: str, ours, start, adam: bool = False):
    """How far a parameter moved from its start, to the bound of steps.

    The parameter's own value would hide a wrong rate or a lost decay where steps are small: LARS
    moves a layer by a thousandth of its norm, which is that bound.
    """
    theirs = case.arrays[key]
    if theirs.shape != ours.shape:
        return  # `compare` has said so
    label, bound = key.replace("/param/", "/moved/"), BOUNDS["step"]
    ours, theirs, start = (x.astype("float64").ravel() for x in (ours, theirs, start))
    ours, theirs = ours - start, theirs - start
    # A move is a difference of two float32 numbers, so it is known to their rounding only.
    rounding = 4 * np.finfo("float32").eps * np.linalg.norm(start) / np.sqrt(start.size)
    because = "so small a move is known to the rounding of the parameter"
    if adam and theirs.size > 8 and _relative(ours, theirs) > bound:
        # Here and there a gradient is nearly zero by chance, and Adam makes a step of size lr from
        # its rounding. A wrong rate, decay or beta moves all elements.
        kept = np.argsort(np.abs(ours - theirs))[: -max(1, theirs.size // 100)]
        because = (
            f"without the {theirs.size - len(kept)} of {theirs.size} elements that differ most:"
            " Adam makes a step of size lr from a gradient that is only rounding"
        )
        ours, theirs = ours[kept], theirs[kept]
        case.compare_values(label, ours, theirs, bound, because)
        return
    case.compare_values(label, ours, theirs, floor=rounding / bound, because=because)


def compare_zero_gradient(case, key: str, gradient):
    """The gradient of a bias that batch normalisation follows: exactly zero but for rounding.

    What is rounded are terms of the size of its neighbours, of which there are a batch: a floor
    ten times the usual.
    """
    because = "batch normalisation subtracts this bias again: its gradient is only rounding"
    case.compare(key, gradient, floor=10 * TINY * case.scale("grad/"), because=because)


def _relative(ours, theirs):
    return np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-30)
