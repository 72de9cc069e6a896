"""iBOT: predict the teacher's prototypes of the patches that were hidden."""

import keras
from keras import ops

from keras_ssl.losses.precision import at_least_float32


@keras.saving.register_keras_serializable(package="keras_ssl")
class IBOTPatchLoss:
    """Cross entropy between teacher and student, over the masked patches.

    With the teacher's probabilities `p` (centred softmax or Sinkhorn-Knopp) and the student's
    logits `s` at masked patch `j` of picture `i`, which has `n_i` of them:

    `loss = -1/N sum_i 1/n_i sum_j p_ij . log softmax(s_ij / student_temperature)`

    where `N` counts all pictures; those without a masked patch add nothing. Computed in float32
    at least. No gradient reaches the teacher.

    Args:
        student_temperature: `> 0`.
        name: name of the loss.

    Call arguments:
        student: logits of all patches `(N, P, K)`, or of picked ones `(M, K)`.
        teacher: probabilities of the same shape.
        mask: with all patches: bool or 0/1 `(N, P)`, 1 = masked.
        weights: with picked patches: `(M,)`, `1 / (n_i N)`, and 0 for rows that stand for no
            patch; `masked_patches` gives them.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: a mask where weights are needed, or the other way round.

    Example:

    >>> logits, teacher = (keras.random.normal((2, 9, 5), seed=i) for i in (0, 1))
    >>> mask = keras.random.uniform((2, 9), seed=2) < 0.4
    >>> loss = IBOTPatchLoss()(logits, keras.ops.softmax(teacher / 0.04), mask=mask)

    Reference:
        Zhou et al., iBOT, 2021, equation 2; Oquab et al., DINOv2, 2023, section 4.
    """

    def __init__(self, student_temperature: float = 0.1, name: str = "ibot"):
        if not student_temperature > 0:
            raise ValueError(
                "`student_temperature` must be greater than 0. "
                f"Received: student_temperature={student_temperature}"
            )
        self.student_temperature = float(student_temperature)
        self.name = name

    def __call__(self, student, teacher, mask=None, weights=None):
        student, teacher = (at_least_float32(x) for x in (student, teacher))
        rank = len(student.shape)
        if rank not in (2, 3) or (mask is None) != (rank == 2) or (weights is None) != (rank == 3):
            raise ValueError(
                "Give `mask` with patches (N, P, K), or `weights` with picked patches (M, K). "
                f"Received: student of shape {tuple(student.shape)}, "
                f"mask={'None' if mask is None else tuple(mask.shape)}, "
                f"weights={'None' if weights is None else tuple(weights.shape)}"
            )
        if mask is not None:
            weights = patch_weights(mask)
        log_student = ops.log_softmax(student / self.student_temperature, axis=-1)
        entropies = -ops.sum(ops.stop_gradient(teacher) * log_student, axis=-1)
        return ops.sum(ops.cast(weights, entropies.dtype) * entropies)

    def get_config(self):
        return {"student_temperature": self.student_temperature, "name": self.name}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def patch_weights(mask):
    """`1 / (masked patches of the picture * pictures)` at masked patches, else 0.

    Args:
        mask: bool or 0/1 `(N, P)`.

    Returns:
        float32 `(N, P)`; sums to the share of pictures that have a masked patch.
    """
    mask = ops.cast(mask, "float32")
    pictures = ops.cast(ops.shape(mask)[0], "float32")
    return mask / (ops.maximum(ops.sum(mask, axis=1, keepdims=True), 1.0) * pictures)


def masked_patches(mask, limit):
    """Where the masked patches are, with as many rows whatever the mask.

    Heads with thousands of prototypes are run on the masked patches only; their number varies from
    batch to batch, while compiled programs have fixed shapes.

    Args:
        mask: bool or 0/1 `(N, P)`.
        limit: rows to return, at least the number of masked patches (further ones are left out).

    Returns:
        `(indices, weights)`, both `(limit,)`: int32 places in the flattened `(N * P,)` patches,
        the masked ones first and in order, and their `patch_weights`: 0 behind the last.

    Example:

    >>> indices, weights = masked_patches(np.array([[0, 1, 1], [1, 0, 0]]), limit=4)
    >>> indices.shape
    (4,)
    """
    weights = ops.reshape(patch_weights(mask), (-1,))
    places = ops.arange(ops.shape(weights)[0], dtype="int32")
    # Distinct keys: not every backend sorts stably.
    keys = places + ops.where(weights > 0, 0, ops.shape(weights)[0])
    indices = ops.cast(ops.argsort(keys)[:limit], "int32")
    return indices, ops.take(weights, indices)
