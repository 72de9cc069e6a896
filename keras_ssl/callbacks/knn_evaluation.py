"""k-NN accuracy while a model trains."""

from keras_ssl.callbacks.online_evaluation import OnlineEvaluation
from keras_ssl.evaluation.knn import KNNProtocol


class KNNEvaluation(OnlineEvaluation):
    """Logs `knn_top1` and `knn_top5`: nearest neighbours of frozen features, at chosen epochs.

    Nothing is trained, so it is the cheapest figure that tells whether a representation gets
    better: two passes of `predict` and one matrix product. A few thousand labelled images are
    enough to watch a run by. See `keras_ssl.evaluation.KNNProtocol` for the equation, and
    `OnlineEvaluation` for what is logged when.

    Args:
        train: `(images, labels)`: the bank, apart from the unlabelled training stream.
        test: `(images, labels)`: the queries.
        k: number of neighbours.
        temperature: of the votes.
        every: evaluate after every so many epochs; the last epoch always is.
        epochs: the epochs to evaluate after, counted from 1, instead of `every`.
        label_fraction: share of the bank's labels to use, in (0, 1].
        batch_size: of `model.predict`.
        name: prefix of the logged names.

    Example:

    ```python
    backbone = keras_ssl.backbones.ViTBackbone.from_size(
        "vit_nano", image_shape=(32, 32, 3), patch_size=8
    )
    model = keras_ssl.models.SimCLR(backbone, projection_dim=64)
    images = np.random.randint(0, 256, (64, 32, 32, 3), "uint8")
    labels = np.arange(64) % 4
    knn = keras_ssl.callbacks.KNNEvaluation(
        train=(images[:32], labels[:32]), test=(images[32:], labels[32:]), k=5
    )
    history = model.fit(images, batch_size=32, epochs=2, callbacks=[knn])
    history.history["knn_top1"]
    ```

    Reference:
        Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, 2018,
        section 3.4.
    """

    def __init__(
        self,
        train,
        test,
        k: int = 20,
        temperature: float = 0.07,
        every: int = 1,
        epochs=None,
        label_fraction: float | None = None,
        batch_size: int = 256,
        name: str = "knn",
    ):
        super().__init__(
            KNNProtocol(k=k, temperature=temperature),
            train,
            test,
            name=name,
            every=every,
            epochs=epochs,
            label_fraction=label_fraction,
            batch_size=batch_size,
        )
