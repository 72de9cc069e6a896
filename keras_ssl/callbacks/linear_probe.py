"""Linear accuracy while a model trains."""

from keras_ssl.callbacks.online_evaluation import OnlineEvaluation
from keras_ssl.evaluation.linear_probe import LinearProbeProtocol


class LinearProbe(OnlineEvaluation):
    """Logs `linear_top1`, `linear_top5`, `linear_best_top1`: a linear classifier of the features.

    Several learning rates train side by side as lanes of one product, and the one that is best on
    held-out train samples is reported. Each evaluation starts afresh on the features of that
    epoch, so the figure is that of the protocol run on a checkpoint, and not of a head that
    follows the model around.

    Args:
        train: `(images, labels)`: what the classifier learns from.
        test: `(images, labels)`: what it is measured on.
        learning_rates: for a batch of 256; all are tried at once.
        training_epochs: passes of the classifier over the train features.
        training_batch_size: of those passes; at most the samples that are not held out.
        every: evaluate after every so many epochs; the last epoch always is.
        epochs: the epochs to evaluate after, counted from 1, instead of `every`.
        label_fraction: share of the train labels to use, in (0, 1]: 0.01 and 0.1 are the usual
            low-label figures.
        batch_size: of `model.predict`.
        name: prefix of the logged names.
        **options: of `keras_ssl.evaluation.LinearProbeProtocol`.

    Example:

    ```python
    backbone = keras_ssl.backbones.ViTBackbone.from_size(
        "vit_nano", image_shape=(32, 32, 3), patch_size=8
    )
    model = keras_ssl.models.SimCLR(backbone, projection_dim=64)
    images = np.random.randint(0, 256, (64, 32, 32, 3), "uint8")
    labels = np.arange(64) % 4
    probe = keras_ssl.callbacks.LinearProbe(
        train=(images[:32], labels[:32]), test=(images[32:], labels[32:]), epochs=[2]
    )
    model.fit(images, batch_size=32, epochs=2, callbacks=[probe])
    probe.results[2].details["learning_rate"]
    ```

    Reference:
        He et al. (MAE), 2021, table 10; Caron et al. (DINO), 2021, `eval_linear`.
    """

    def __init__(
        self,
        train,
        test,
        learning_rates: tuple = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
        training_epochs: int = 20,
        training_batch_size: int = 256,
        every: int = 10,
        epochs=None,
        label_fraction: float | None = None,
        batch_size: int = 256,
        name: str = "linear",
        **options,
    ):
        options.setdefault("warmup_epochs", training_epochs / 10)
        super().__init__(
            LinearProbeProtocol(
                learning_rates=learning_rates,
                epochs=training_epochs,
                batch_size=training_batch_size,
                **options,
            ),
            train,
            test,
            name=name,
            every=every,
            epochs=epochs,
            label_fraction=label_fraction,
            batch_size=batch_size,
        )
