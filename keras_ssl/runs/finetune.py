"""Fine-tuning a preset on labelled pictures."""

import dataclasses
import json
import os
import pathlib

import keras

from keras_ssl import callbacks as cb
from keras_ssl.evaluation import label_fraction as rows_of_fraction
from keras_ssl.layers.image_converter import ImagePreprocessor, convert_images, default_preprocessor
from keras_ssl.models import ConvNeXtImageClassifier, ImageClassifier
from keras_ssl.presets import resolve_preset
from keras_ssl.runs.data import load_data
from keras_ssl.safe_files import whole_file
from keras_ssl.training.labelled_batches import LabelledBatches

# By the class of the encoder that a preset holds.
_CLASSIFIERS = {
    cls.backbone_cls.__name__: cls for cls in (ImageClassifier, ConvNeXtImageClassifier)
}


@dataclasses.dataclass
class FinetuneResult:
    """What fine-tuning gave: the classifier, its folder, and the figures of `result.json`."""

    model: ImageClassifier
    folder: pathlib.Path
    figures: dict


def finetune(
    preset: str,
    data: str | os.PathLike,
    output: str | os.PathLike,
    epochs: int = 10,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    layer_decay: float = 0.75,
    drop_path_rate: float = 0.1,
    pooling: str | None = None,
    label_fraction: float | None = None,
    from_scratch: bool = False,
    seed: int = 0,
    say=print,
) -> FinetuneResult:
    """Trains a classifier, from the encoder of a preset, on labelled pictures.

    AdamW with layer-wise learning rate decay, warm-up and cosine, as MAE fine-tunes. Pictures are
    mirrored at random. The folder gets `preset/`, `log.csv` and `result.json` (accuracy after the
    last epoch and the best).

    Args:
        preset: a shipped name, a folder, or a hub handle; of a vision transformer.
        data: as for `keras_ssl.runs.load_data`, with labels.
        output: folder.
        epochs, batch_size: of the training.
        learning_rate: of the last layer, at the peak.
        layer_decay: factor per layer downwards, in (0, 1].
        drop_path_rate: stochastic depth.
        pooling: `"token"` or `"mean"`; None for the token where there is one.
        label_fraction: share of the labelled pictures to train on, in (0, 1], stratified.
        from_scratch: new weights in the same architecture: what the pretraining is worth.
        seed: of the head, the order, the share of labels and the mirroring.
        say: called with each line of what is going on.

    Returns:
        A `FinetuneResult`.

    Raises:
        ValueError: the data has no labels, or the preset's backbone is neither a vision transformer
            nor a ConvNeXt.

    Example:

    ```python
    result = keras_ssl.runs.finetune("my_mae", "photos", "runs/photos_finetuned", epochs=5)
    result.model.predict(pictures)  # logits
    ```
    """
    keras.utils.set_random_seed(seed)
    folder = pathlib.Path(output)
    path = resolve_preset(preset)
    with open(os.path.join(path, "config.json"), encoding="utf-8") as file:
        backbone = json.load(file)
    if backbone["class_name"] not in _CLASSIFIERS:
        raise ValueError(
            f"Fine-tuning is for {' and '.join(_CLASSIFIERS)} so far; put a head on "
            "keras_hub.models.Backbone.from_preset(...) for others. "
            f"Received: preset={preset!r} with a {backbone['class_name']}"
        )
    has_token = backbone["config"].get("use_class_token", True)
    pooling = pooling or ("token" if has_token else "mean")
    data = load_data(data, backbone["config"]["image_shape"][0], seed=seed)
    say(repr(data))
    if data.train_labels is None:
        raise ValueError(
            "Fine-tuning needs labels: a folder for each class, or train/ and test/ with them. "
            f"Received: {data!r}"
        )
    x, y = data.train, data.train_labels
    if label_fraction is not None:
        rows = rows_of_fraction(y, label_fraction, seed)
        x, y = x[rows], y[rows]
        say(f"{len(y)} labelled pictures are used")
    batch_size = min(batch_size, len(y))
    classifier = _CLASSIFIERS[backbone["class_name"]]
    encoder = classifier.backbone_cls.from_preset(
        path, load_weights=not from_scratch, drop_path_rate=drop_path_rate
    )
    if os.path.exists(os.path.join(path, "preprocessor.json")):
        preprocessor = ImagePreprocessor.from_preset(path)
    else:
        preprocessor = default_preprocessor(encoder)
    model = classifier(encoder, len(data.class_names), preprocessor=preprocessor, pooling=pooling)
    steps = len(y) // batch_size
    model.compile(learning_rate=learning_rate, layer_decay=layer_decay, total_steps=steps * epochs)

    def prepare(images):
        return convert_images(images, preprocessor.image_converter)

    held_out = LabelledBatches(data.test, data.test_labels, batch_size, prepare)
    log = cb.LogFile(folder / "log.csv")
    progress = cb.Progress(
        batch_size,
        figures=(
            ("loss", "loss", "{:.4f}"),
            ("sparse_categorical_accuracy", "accuracy", "{:.1%}"),
            ("val_sparse_categorical_accuracy", "held out", "{:.1%}"),
        ),
    )
    # Past keras-hub's own `fit`, which takes no PyDataset: the batches are preprocessed.
    history = keras.Model.fit(
        model,
        LabelledBatches(x, y, batch_size, prepare, seed=seed, mirror=True),
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=[_HeldOut(held_out), progress, log],
    ).history
    model.save_to_preset(folder / "preset")
    curve = next(v for k, v in history.items() if k.startswith("val_") and k.endswith("accuracy"))
    figures = {
        "preset": preset,
        "data": repr(data),
        "labelled": len(y),
        "from_scratch": from_scratch,
        "epochs": epochs,
        "top1": curve[-1],
        "best_top1": max(curve),
        "class_names": list(data.class_names),
    }
    with whole_file(folder / "result.json") as unfinished:
        unfinished.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    say(f"accuracy: {100 * curve[-1]:.1f} % (best epoch {100 * max(curve):.1f} %)")
    return FinetuneResult(model, folder, figures)


class _HeldOut(keras.callbacks.Callback):
    """Logs loss and accuracy on held-out batches."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def on_epoch_end(self, epoch, logs=None):
        values = keras.Model.evaluate(self.model, self.batches, verbose=0, return_dict=True)
        logs.update({f"val_{name}": value for name, value in values.items()})
