"""The projection head of DINO and DINOv2: an MLP, a unit vector, weight-normalised prototypes."""

import keras
from keras import ops

from keras_ssl.losses.nt_xent import l2_normalize
from keras_ssl.training.kernels import gelu


@keras.saving.register_keras_serializable(package="keras_ssl")
class DINOHead(keras.layers.Layer):
    """Logits of `K` prototypes: `x = MLP(x)`, `x = x / |x|`, `logits = x W`.

    The columns of `W` are weight-normalised, `w_k = g_k v_k / |v_k|`. With `g = 1` fixed, as DINO
    has it for its larger models and as here by default, a logit is the cosine between the
    feature and prototype `k`. The MLP has exact GELUs between its layers and none after the last.

    Args:
        output_dim: `K`, number of prototypes. 65536 in the papers; a few thousand images want
            fewer (see `keras_ssl.models.DINO`).
        hidden_dim: width of the hidden layers.
        bottleneck_dim: width of the unit vector.
        num_layers: linear layers of the MLP, the one to the bottleneck included.
        use_batch_norm: batch normalisation before each GELU (the official option for
            convolutional backbones).
        normalize_last_layer: fix `g = 1`. `False` lets it train (DINOv2's heads; DINO's ViT-S).

    Call arguments:
        x: features `(N, D)`, or any leading axes.
        training: whether batch normalisation uses the batch.

    Returns:
        Logits `(N, output_dim)`.

    The variables `weight_v (bottleneck_dim, K)` and `weight_g (1, K)` are the official
    `last_layer.weight_v` and `weight_g`, transposed.

    Example:

    >>> head = DINOHead(64, hidden_dim=32, bottleneck_dim=16)
    >>> head(np.random.rand(4, 24).astype("float32")).shape
    (4, 64)

    Reference:
        Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021, section
        3.2 and appendix C; Salimans and Kingma, Weight Normalization, 2016.
    """

    def __init__(
        self,
        output_dim: int = 65536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        num_layers: int = 3,
        use_batch_norm: bool = False,
        normalize_last_layer: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        for argument, value in (
            ("output_dim", output_dim),
            ("hidden_dim", hidden_dim),
            ("bottleneck_dim", bottleneck_dim),
            ("num_layers", num_layers),
        ):
            if not (isinstance(value, int) and value > 0):
                raise ValueError(
                    f"`{argument}` must be a positive integer. Received: {argument}={value!r}"
                )
        self.output_dim = output_dim
        self.hidden_dim = hidden_dim
        self.bottleneck_dim = bottleneck_dim
        self.num_layers = num_layers
        self.use_batch_norm = use_batch_norm
        self.normalize_last_layer = normalize_last_layer

    def build(self, input_shape):
        widths = [self.hidden_dim] * (self.num_layers - 1) + [self.bottleneck_dim]
        self.linears, self.norms = [], []
        dim = input_shape[-1]
        for i, width in enumerate(widths):
            linear = keras.layers.Dense(
                width,
                # As in the official code; it cuts at +-2, which at 0.02 is a plain normal.
                kernel_initializer=keras.initializers.RandomNormal(stddev=0.02),
                dtype=self.dtype_policy,
                name=f"linear_{i}",
            )
            linear.build((None, dim))
            self.linears.append(linear)
            dim = width
            if self.use_batch_norm and i < self.num_layers - 1:
                norm = keras.layers.BatchNormalization(
                    momentum=0.9, epsilon=1e-5, dtype=self.dtype_policy, name=f"norm_{i}"
                )
                norm.build((None, width))
                self.norms.append(norm)
        # PyTorch's default for a Linear, which the official code leaves in place here.
        limit = self.bottleneck_dim**-0.5
        self.weight_v = self.add_weight(
            shape=(self.bottleneck_dim, self.output_dim),
            initializer=keras.initializers.RandomUniform(-limit, limit),
            autocast=False,  # normalised in float32, under mixed precision too
            name="weight_v",
        )
        self.weight_g = self.add_weight(
            shape=(1, self.output_dim),
            initializer="ones",
            trainable=not self.normalize_last_layer,
            autocast=False,
            name="weight_g",
        )
        self.built = True

    def prototypes(self):
        """The weight-normalised prototypes as columns, `(bottleneck_dim, K)`, float32."""
        v = ops.convert_to_tensor(self.weight_v)
        return v * (self.weight_g / ops.sqrt(ops.sum(ops.square(v), axis=0, keepdims=True)))

    def call(self, x, training=None):
        for i, linear in enumerate(self.linears):
            x = linear(x)
            if i < len(self.norms):
                x = self.norms[i](x, training=training)
            if i < self.num_layers - 1:
                x = gelu(x)
        # The norm is kept above 1e-12, as `torch.nn.functional.normalize` does.
        unit = l2_normalize(ops.cast(x, self.variable_dtype), epsilon=1e-24)
        return ops.matmul(
            ops.cast(unit, self.compute_dtype), ops.cast(self.prototypes(), self.compute_dtype)
        )

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.output_dim)

    def get_config(self):
        return {
            **super().get_config(),
            "output_dim": self.output_dim,
            "hidden_dim": self.hidden_dim,
            "bottleneck_dim": self.bottleneck_dim,
            "num_layers": self.num_layers,
            "use_batch_norm": self.use_batch_norm,
            "normalize_last_layer": self.normalize_last_layer,
        }
