"""Lesson: why DINO does not collapse. The same run without one of its parts, on 32-pixel emoji.

Paper: Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021, section 5.3
and figure 7. (Teacher beside student: lesson_dino_teacher.py.)
Data: one style of the shipped emoji, 1,321 pictures.
Command: KERAS_BACKEND=tensorflow python examples/lesson_dino.py (five minutes of one core)
Result after 20 epochs (400 steps), curves in docs/images/lesson_dino.png:

|                     | targets' entropy | KL to student | largest prototype |
| DINO                | 4.96 nats        | 0.28 nats     | 17 % of pictures  |
| without centring    | 0.00             | 0.00          | 100 %: one class  |
| without sharpening  | 5.55 = log 256   | 0.00: uniform | 18 %              |
| teacher by gradient | swings, 0 to 5.5 | up to 14      | 100 %             |
"""

import keras
import numpy as np
from keras import ops
from watching import plt

import keras_ssl
from keras_ssl.losses.dino import mean_entropy
from keras_ssl.models import DINO


class GradientTeacher(DINO):
    """No moving average: the targets are the student's own, and the gradient goes through them."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        self.count_batch(training)
        s = self.project(self.make_views(x, training), training)  # V x N x K
        targets = ops.softmax((s[:2] - self.center.center) / self.current_teacher_temperature())
        log_p = ops.log_softmax(s / self.student_temperature)
        pairs = [(t, v) for t in range(2) for v in range(s.shape[0]) if v != t]
        loss = -ops.mean(ops.stack([ops.sum(targets[t] * log_p[v], -1) for t, v in pairs]))
        self.teacher_entropy.update_state(mean_entropy(targets))
        self.teacher_student_kl.update_state(loss - mean_entropy(targets))
        if training:
            self.center.update(s[:2])
        return loss


# The paper's head has no batch normalisation, which by itself works against collapse.
OPTIONS = dict(output_dim=256, num_local_views=2, head_batch_norm=False)
OPTIONS |= dict(teacher_temperature=0.04, warmup_teacher_temperature=0.04)
EPOCHS = 20
LESSONS = {
    "DINO": (DINO, {}),
    "without centring": (DINO, {"center_momentum": 1.0}),
    "without sharpening": (DINO, dict(teacher_temperature=0.2, warmup_teacher_temperature=0.2)),
    # Momentum 0: what is looked at is the student itself.
    "teacher by gradient": (GradientTeacher, dict(momentum=0.0, momentum_schedule="constant")),
}
CURVES = {
    "teacher_entropy": "entropy of the targets (nats; uniform: log 256 = 5.5)",
    "teacher_student_kl": "KL(teacher | student) (nats)",
    "largest_prototype": "share of test pictures in the largest prototype",
}


def largest(model, images):
    """Share of the pictures for which one and the same prototype wins."""
    features = model.encode(model.preprocess(images), backbone=model.teacher_backbone)
    winners = ops.argmax(model.teacher_head(features) - model.center.center, axis=-1)
    return np.bincount(ops.convert_to_numpy(winners)).max() / len(images)


def build(name="DINO", seed=0):
    keras.utils.set_random_seed(seed)
    options = dict(position_embedding="sincos", initializer="mae")
    backbone = keras_ssl.backbones.ViTBackbone((32, 32, 3), 8, 96, 3, 3, **options)
    method, changes = LESSONS[name]
    model = method.small(backbone, seed=seed, **{**OPTIONS, **changes})
    model.compile(learning_rate=4e-3)
    return model


def run(name, train, test):
    model = build(name)
    watch = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda _, logs: logs.update(largest_prototype=largest(model, test.images))
    )
    fit = model.fit(train.images, batch_size=64, epochs=EPOCHS, verbose=0, callbacks=[watch])
    print(name, {key: np.round(fit.history[key], 3).tolist() for key in CURVES}, flush=True)
    return fit.history


if __name__ == "__main__":
    emoji = keras_ssl.datasets.load_emoji(styles="noto", image_size=32, background=(255, 255, 255))
    train, test = emoji.split(test_fraction=0.2, seed=0)
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for name in LESSONS:
        history = run(name, train, test)
        for axis, key in zip(axes, CURVES, strict=True):
            axis.plot(range(1, EPOCHS + 1), history[key], label=name)
            axis.set(title=CURVES[key], xlabel="epoch")
    axes[1].set_yscale("symlog", linthresh=0.1)
    axes[0].legend(fontsize=8)
    figure.savefig("docs/images/lesson_dino.png", dpi=80)
