"""How a vision transformer's weights are shared among devices."""

import keras


def vit_layout_map(device_mesh, model_axis: str = "model"):
    """Which of a transformer's weights are divided among devices, for `ModelParallel`.

    Of every block, heads and hidden units are divided: queries, keys and values and the MLP's first
    layer by their outputs, attention's projection and the MLP's second layer by their inputs. So
    the devices have to put something together twice a block only. The rest (positions, patches,
    normalisation, heads of the method) is on every device. A teacher and the optimizer's moments
    are divided as the student's weights are. JAX only, as `keras.distribution` is.

    Args:
        device_mesh: a `keras.distribution.DeviceMesh` with an axis of that name, whose size divides
            the number of attention heads and the MLP's width.
        model_axis: name of the axis that weights are divided along.

    Returns:
        A `keras.distribution.LayoutMap`.

    Raises:
        ValueError: the mesh has no such axis.

    Example:

    ```python notest
    devices = keras.distribution.list_devices()  # 8 of them: 4 shares of a batch, 2 of the weights
    mesh = keras.distribution.DeviceMesh((4, 2), ["batch", "model"], devices)
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(layout_map=vit_layout_map(mesh), batch_dim_name="batch")
    )
    model = keras_ssl.models.MAE(backbone)  # after it
    ```

    Reference:
        Shoeybi et al., Megatron-LM: Training Multi-Billion Parameter Language Models Using Model
        Parallelism, 2019, section 3.
    """
    if model_axis not in device_mesh.axis_names:
        raise ValueError(
            f"The mesh needs an axis for weights. Received: model_axis={model_axis!r}, a mesh with "
            f"the axes {device_mesh.axis_names}"
        )
    layout = keras.distribution.LayoutMap(device_mesh)
    block = r"block_\d+/"
    outputs, inputs = r"(attention/qkv|mlp/(fc1|w12))", r"(attention/projection|mlp/(fc2|w3))"
    layout[block + outputs + "/kernel"] = (None, model_axis)
    layout[block + outputs + "/bias"] = (model_axis,)
    layout[block + inputs + "/kernel"] = (model_axis, None)
    return layout
