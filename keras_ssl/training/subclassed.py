"""Keras models that stay subclassed models, whatever else is built in the process."""

import contextlib

import keras


def _functional_classes() -> tuple[type, ...]:
    inputs = keras.Input((1,))
    mro = type(keras.Model(inputs, inputs)).__mro__
    return mro[: mro.index(keras.Model)]


_FUNCTIONAL = _functional_classes()


class SubclassedModelType(type(keras.Model)):
    """Metaclass of models that are not functional, below base classes that may become so.

    When a functional subclass of a class such as `keras_hub.models.Backbone` is built for the first
    time (any backbone of keras-hub), Keras puts its `Functional` class among the bases of
    `Backbone` itself, for the whole process. A subclass like ours would then inherit from
    `Functional` without being one: its constructor would ask for inputs and outputs, and its weight
    files would get another layout. This metaclass leaves those classes out of the method resolution
    order.
    """

    def mro(cls):
        return [base for base in super().mro() if base not in _FUNCTIONAL]


@contextlib.contextmanager
def without_optimizer(model):
    """Hides a model's optimizer while its weights are saved to a preset.

    Keras saves optimizer state with weights. It belongs to a run, which `.keras` files continue;
    in a preset it would treble the size and could not be loaded without compiling.
    """
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None:
        model.optimizer = None
    try:
        yield
    finally:
        if optimizer is not None:
            model.optimizer = optimizer
