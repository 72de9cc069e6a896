"""Our models beside keras-hub's functional ones, which change Keras' base classes when built."""

import keras_hub
import numpy as np
from toy import images, mae, to_numpy, vit

from keras_ssl.models import MAE, ImageClassifier


def build_functional_models():
    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64],
        stackwise_num_blocks=[1],
        stackwise_num_strides=[1],
        block_type="basic_block",
        image_shape=(16, 16, 3),
    )
    keras_hub.models.ResNetImageClassifier(backbone, num_classes=2)
    return backbone


def test_functional_models_beside_ours(tmp_path):
    before = mae()
    before.save_weights(tmp_path / "before.weights.h5")
    functional = type(build_functional_models()).__mro__
    assert any(c.__name__ == "Functional" for c in functional)
    for cls in (type(vit()), MAE, ImageClassifier):
        assert not any(c.__name__ == "Functional" for c in cls.__mro__)
        assert issubclass(cls, (keras_hub.models.Backbone, keras_hub.models.Task))

    after = mae()
    after.load_weights(tmp_path / "before.weights.h5")
    pictures = images(4)
    np.testing.assert_array_equal(
        before.predict(pictures, verbose=0), after.predict(pictures, verbose=0)
    )
    after.save_to_preset(str(tmp_path / "preset"))
    loaded = ImageClassifier.from_preset(str(tmp_path / "preset"), num_classes=2)
    np.testing.assert_array_equal(
        to_numpy(loaded.backbone.class_token), to_numpy(before.backbone.class_token)
    )
