"""What a save needs beside Keras: the size of its files beforehand, and memory that stays flat."""

import contextlib

import keras
import numpy as np

# HDF5 takes 1 to 4 KB for a variable beside its numbers. Configuration, vocabulary and the like:
_VARIABLE, _REST = 8 * 2**10, 2**22


def saved_variables(model, without=None) -> list:
    """The variables of a model, each as often as Keras writes it.

    Keras writes what every layer holds itself. A model that holds variables of its layers too, as
    one with a teacher does, has them in the file twice.

    Args:
        model: that is saved.
        without: a layer of it that goes to a file of its own.
    """
    of_layers = {id(v): v for layer in model.layers for v in layer.variables}
    for variable in without.variables if without is not None else ():
        of_layers.pop(id(variable), None)
    own = {}
    model.save_own_variables(own)
    return [*of_layers.values(), *own.values()]


def file_size(variables) -> int:
    """Bytes that a file with these variables takes at most."""
    numbers = sum(
        int(np.prod(v.shape)) * np.dtype(keras.backend.standardize_dtype(v.dtype)).itemsize
        for v in variables
    )
    return numbers + _VARIABLE * len(variables) + _REST


@contextlib.contextmanager
def same_names():
    """Gives variables that are made meanwhile one name; only for those that nobody keeps.

    Keras makes an optimizer to compare with whenever it saves a model. On TensorFlow each of its
    variables has a name of its own, and TensorFlow keeps a compiled operation for every name:
    70 KB a save that never come back.
    """
    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    def make(next_creator, **kwargs):
        with tf.name_scope("while_saving/"):
            return next_creator(**{**kwargs, "name": "variable"})

    with tf.variable_creator_scope(make):
        yield
