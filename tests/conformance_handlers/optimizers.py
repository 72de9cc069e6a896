"""Driving an optimizer of the package with the gradients of a reference file."""

import keras
import numpy as np


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
    for step in range(1, steps + 1):
        pairs = [
            (case.input(gradient_key.format(step=step, name=name)), variable)
            for name, variable in variables.items()
        ]
        optimizer.apply_gradients((keras.ops.convert_to_tensor(g), v) for g, v in pairs)
        for name, variable in variables.items():
            case.compare(step_key.format(step=step, name=name), variable)
