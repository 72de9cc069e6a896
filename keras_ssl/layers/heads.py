"""Projection and prediction heads."""

import keras
from keras import initializers


def linear_initializers(name: str, fan_in: int) -> dict:
    """How a linear layer starts, as arguments of `keras.layers.Dense`.

    | name | kernel | bias |
    | --- | --- | --- |
    | `"glorot"` | `U(-a, a)`, `a = sqrt(6 / (fan_in + fan_out))` | 0 |
    | `"torch"` | `U(-a, a)`, `a = 1 / sqrt(fan_in)` | the same |
    | `"haiku"` | normal, deviation `1 / sqrt(fan_in)`, cut at two deviations | 0 |

    Args:
        name: one of the table: what Keras, `torch.nn.Linear` and `haiku.Linear` do.
        fan_in: width of the input.

    Example:

    >>> layer = keras.layers.Dense(8, **linear_initializers("torch", fan_in=16))
    """
    scale = fan_in**-0.5
    if name == "torch":
        return dict(
            kernel_initializer=initializers.RandomUniform(-scale, scale),
            bias_initializer=initializers.RandomUniform(-scale, scale),
        )
    if name == "haiku":
        return dict(kernel_initializer=initializers.TruncatedNormal(stddev=scale))
    if name != "glorot":
        raise ValueError(
            f'`initializer` must be "glorot", "torch" or "haiku". Received: initializer={name!r}'
        )
    return {}


@keras.saving.register_keras_serializable(package="keras_ssl")
class ProjectionHead(keras.layers.Layer):
    """MLP with batch normalisation, as in the joint-embedding methods.

    Every layer but the last is `relu(BN(W x))`; the last is `BN(W x)` (or `W x`). Weights have
    no bias where batch normalisation follows, since it would subtract it, unless a published code
    has one there.

    | head | options |
    | --- | --- |
    | SimCLR | defaults; `num_layers=3` in v2 |
    | MoCo v1 | `num_layers=1, batch_norm=False` |
    | MoCo v2 | `batch_norm=False` |
    | BYOL, both heads | `final_batch_norm=False, hidden_bias=True, output_bias=False` |
    | SimSiam, projection | `num_layers=3, final_scale=False` |
    | SimSiam, prediction | `final_batch_norm=False` |
    | MoCo v3, projection | `num_layers=3` (ResNet: 2), `final_scale=False` |
    | MoCo v3, prediction | `final_scale=False` (ResNet: `final_batch_norm=False`, no bias) |
    | Barlow Twins | `num_layers=3, final_batch_norm=False, output_bias=False` |
    | VICReg | the same with `hidden_bias=True` |

    Args:
        output_dim: width of the output.
        hidden_dim: width of the hidden layers, or a list of their widths; the input's width when
            `None`.
        num_layers: number of linear layers: 2 in SimCLR, 3 in SimCLR v2.
        batch_norm: normalise at all; `False` leaves linear layers and ReLU.
        final_batch_norm: normalise the output too.
        final_center: give that normalisation a learned offset (SimCLR's has none).
        final_scale: give it a learned gain.
        hidden_bias: give the normalised hidden layers a bias.
        output_bias: give the last layer one; `None`: where no normalisation follows.
        batch_norm_momentum: of the moving statistics.
        batch_norm_epsilon: added to the variance.
        initializer: `"glorot"`, `"torch"` or `"haiku"`, see `linear_initializers`; the models take
            that of the method's published code.

    Example:

    >>> ProjectionHead(128, hidden_dim=512)(np.zeros((4, 384), "float32")).shape
    (4, 128)

    Reference:
        Chen et al., A Simple Framework for Contrastive Learning of Visual Representations,
        2020, section 4.2; Chen et al., Big Self-Supervised Models are Strong Semi-Supervised
        Learners, 2020, section 2.
    """

    def __init__(
        self,
        output_dim: int,
        hidden_dim: int | list[int] | None = None,
        num_layers: int = 2,
        final_batch_norm: bool = True,
        final_center: bool = False,
        final_scale: bool = True,
        batch_norm: bool = True,
        hidden_bias: bool = False,
        output_bias: bool | None = None,
        batch_norm_momentum: float = 0.9,
        batch_norm_epsilon: float = 1e-5,
        initializer: str = "glorot",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if num_layers < 1:
            raise ValueError(f"`num_layers` must be positive. Received: num_layers={num_layers}")
        linear_initializers(initializer, 1)  # refuses what is none
        if isinstance(hidden_dim, (list, tuple)):
            hidden_dim = tuple(hidden_dim)
            if len(hidden_dim) != num_layers - 1:
                raise ValueError(
                    f"`hidden_dim` must be one width or {num_layers - 1} of them. "
                    f"Received: hidden_dim={hidden_dim}"
                )
        self.output_dim = output_dim
        self.hidden_dim = hidden_dim
        self.num_layers = num_layers
        self.final_batch_norm = final_batch_norm
        self.batch_norm = batch_norm
        self.hidden_bias = hidden_bias
        self.output_bias = output_bias
        self.final_center = final_center
        self.final_scale = final_scale
        self.batch_norm_momentum = batch_norm_momentum
        self.batch_norm_epsilon = batch_norm_epsilon
        self.initializer = initializer

    def build(self, input_shape):
        dim = input_shape[-1]
        hidden = self.hidden_dim or dim
        if not isinstance(hidden, tuple):
            hidden = (hidden,) * (self.num_layers - 1)
        self.linears, self.norms = [], []
        for i in range(self.num_layers):
            last = i == self.num_layers - 1
            units = self.output_dim if last else hidden[i]
            normalized = self.batch_norm and (self.final_batch_norm or not last)
            use_bias = self.output_bias if last else self.hidden_bias or None
            linear = keras.layers.Dense(
                units,
                use_bias=not normalized if use_bias is None else use_bias,
                dtype=self.dtype_policy,
                name=f"linear_{i}",
                **linear_initializers(self.initializer, dim),
            )
            linear.build((None, dim))
            self.linears.append(linear)
            if normalized:
                norm = keras.layers.BatchNormalization(
                    momentum=self.batch_norm_momentum,
                    epsilon=self.batch_norm_epsilon,
                    center=self.final_center if last else True,
                    scale=self.final_scale if last else True,
                    dtype=self.dtype_policy,
                    name=f"norm_{i}",
                )
                norm.build((None, units))
                self.norms.append(norm)
            dim = units
        self.built = True

    def call(self, x, training=None):
        for i, linear in enumerate(self.linears):
            x = linear(x)
            if i < len(self.norms):
                x = self.norms[i](x, training=training)
            if i < self.num_layers - 1:
                x = keras.ops.relu(x)
        return x

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.output_dim)

    def get_config(self):
        return {
            **super().get_config(),
            "output_dim": self.output_dim,
            "hidden_dim": self.hidden_dim,
            "num_layers": self.num_layers,
            "final_batch_norm": self.final_batch_norm,
            "batch_norm": self.batch_norm,
            "hidden_bias": self.hidden_bias,
            "output_bias": self.output_bias,
            "final_center": self.final_center,
            "final_scale": self.final_scale,
            "batch_norm_momentum": self.batch_norm_momentum,
            "batch_norm_epsilon": self.batch_norm_epsilon,
            "initializer": self.initializer,
        }
