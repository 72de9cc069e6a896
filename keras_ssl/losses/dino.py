"""DINO's loss: the student predicts the teacher's centred and sharpened distribution."""

import keras
from keras import ops

from keras_ssl.training.cross_device import all_reduce_mean


@keras.saving.register_keras_serializable(package="keras_ssl")
class Center(keras.layers.Layer):
    """Running mean of the teacher's logits, subtracted before its softmax.

    `P_t = softmax((t - c) / temperature)`, and after the loss `c = m c + (1 - m) mean(t)` over
    the whole batch. Centring keeps any one prototype from dominating, and pulls towards the
    uniform distribution; a low temperature does the opposite: together they avoid collapse.

    The centre is a non-trainable variable, saved with the model. With `momentum=1` it stays zero:
    no centring.

    Args:
        dim: number of prototypes `K`.
        momentum: `m` in [0, 1]. 0.9 in the paper, whose batch is 1024; see
            `keras_ssl.models.DINO.small`.

    Example:

    >>> center = Center(8)
    >>> logits = np.ones((4, 8), "float32")
    >>> targets = center.probabilities(logits, temperature=0.04)
    >>> center.update(logits)

    Reference:
        Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021, section
        3.1 and equation 4. (DINOv2's code applies the same update at the beginning of the next
        step: the same targets, while the centre that it saves is one step older.)
    """

    def __init__(self, dim: int, momentum: float = 0.9, **kwargs):
        super().__init__(trainable=False, **kwargs)
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"`momentum` must lie in [0, 1]. Received: momentum={momentum}")
        self.dim = dim
        self.momentum = float(momentum)
        self.center = self.add_weight(
            shape=(1, dim),
            dtype="float32",
            initializer="zeros",
            trainable=False,
            autocast=False,
            name="center",
        )
        self.built = True

    def probabilities(self, logits, temperature):
        """`softmax((logits - c) / temperature)` in float32, without gradient.

        Args:
            logits: `(..., K)`, of the teacher.
            temperature: float or scalar tensor > 0.
        """
        centred = _without_gradient(logits) - self.center
        return ops.softmax(centred / temperature, axis=-1)

    def update(self, logits) -> None:
        """Takes in the mean of the teacher's logits `(..., K)`."""
        rows = ops.reshape(_without_gradient(logits), (-1, self.dim))
        mean = all_reduce_mean(ops.mean(rows, axis=0, keepdims=True))
        self.center.assign(self.center * self.momentum + mean * (1.0 - self.momentum))

    def get_config(self):
        config = super().get_config()
        del config["trainable"]
        return {**config, "dim": self.dim, "momentum": self.momentum}


@keras.saving.register_keras_serializable(package="keras_ssl")
class DINOLoss:
    """Cross-entropy from each teacher crop to each *other* crop of the student, of one picture.

    `loss = sum over t, v != t of H(P_t, P_v) / pairs`, averaged over the batch, where
    `H(p, q) = -sum_k p_k log q_k` and `P_v = softmax(s_v / student_temperature)`.

    Crop `t` of the teacher and crop `v = t` of the student are the same picture: such pairs are
    left out.

    Args:
        student_temperature: temperature of the student's softmax.
        reduction: `"mean"` over the pairs (DINO), or `"sum"` (DINOv2's code, which scales itself).
        name: name of the loss.

    Call arguments:
        student_logits: `V` crops' logits: a list of `(N, K)`, or `(V, N, K)`.
        teacher_probabilities: `T <= V` crops' distributions, likewise, without gradient; see
            `Center.probabilities`.
        exclude_same: leave out the pairs of equal index.

    Raises:
        ValueError: where no pair is left.

    Example:

    >>> student = keras.random.normal((4, 8, 16), seed=0)  # 4 crops, 8 pictures, 16 prototypes
    >>> teacher = keras.ops.softmax(student[:2] / 0.04)
    >>> loss = DINOLoss()(student, teacher)

    Reference:
        Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021, equations
        1 to 3 and algorithm 1.
    """

    def __init__(
        self, student_temperature: float = 0.1, reduction: str = "mean", name: str = "dino"
    ):
        if not student_temperature > 0.0:
            raise ValueError(
                "`student_temperature` must be greater than 0. "
                f"Received: student_temperature={student_temperature}"
            )
        if reduction not in ("mean", "sum"):
            raise ValueError(
                f'`reduction` must be "mean" or "sum". Received: reduction={reduction!r}'
            )
        self.student_temperature = float(student_temperature)
        self.reduction = reduction
        self.name = name

    def __call__(self, student_logits, teacher_probabilities, exclude_same: bool = True):
        student, teacher = (
            ops.stack(crops) if isinstance(crops, (list, tuple)) else ops.convert_to_tensor(crops)
            for crops in (student_logits, teacher_probabilities)
        )
        num_student, num_teacher = student.shape[0], teacher.shape[0]
        pairs = num_student * num_teacher
        if exclude_same:
            pairs -= min(num_student, num_teacher)
        if pairs < 1:
            raise ValueError(
                "There is no pair of a teacher's and another student's crop: give the student two "
                f"crops or more. Received: {num_student} of the student, {num_teacher} of the "
                "teacher"
            )
        student = ops.cast(student, "float32") / self.student_temperature
        log_probabilities = ops.log_softmax(student, axis=-1)  # V x N x K
        teacher = _without_gradient(teacher)
        teacher = [teacher[t] for t in range(num_teacher)]  # N x K each
        everyone, terms = sum(teacher), []
        for v in range(num_student):
            targets = everyone
            if exclude_same and v < num_teacher:
                if num_teacher == 1:
                    continue
                targets = sum(teacher[:v] + teacher[v + 1 :])
            terms.append(ops.sum(targets * log_probabilities[v], axis=-1))
        loss = -ops.mean(sum(terms))
        return loss / pairs if self.reduction == "mean" else loss

    def get_config(self):
        return {
            "student_temperature": self.student_temperature,
            "reduction": self.reduction,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def mean_entropy(probabilities):
    """Mean entropy in nats of distributions along the last axis: `h(p) = -sum_k p_k log p_k`."""
    p = ops.cast(probabilities, "float32")
    return -ops.mean(ops.sum(p * ops.log(ops.maximum(p, 1e-30)), axis=-1))


def _without_gradient(x):
    return ops.cast(ops.stop_gradient(ops.convert_to_tensor(x)), "float32")
