"""Pooling by attention: one query looks at all tokens."""

import keras
from keras import ops

from keras_ssl.layers.transformer import MLP
from keras_ssl.training.kernels import dot_product_attention


@keras.saving.register_keras_serializable(package="keras_ssl")
class AttentionPooling(keras.layers.Layer):
    """One vector from a set of tokens, by multi-head attention with a single query.

    `"mean"` (CLIP's ResNets): the mean token is put in front of the tokens, a learned position is
    added to each, and the mean token asks. `"learned"` (SigLIP): a learned vector asks, and a
    residual MLP follows: `h = attention(probe, x)`, `h + mlp(norm(h))`.

    Args:
        num_heads: attention heads; divides the width.
        query: `"mean"` or `"learned"`.
        output_dim: width of the result; that of the input when `None`.
        mlp_dim: with `"learned"`: hidden width of the MLP; four times the width when `None`.
        activation: with `"learned"`: of the MLP.
        layer_norm_epsilon: with `"learned"`: added to the variance.

    Call arguments:
        x: tokens `(batch, tokens, dim)`; with `"mean"` of a fixed number.

    Returns:
        `(batch, output_dim)`.

    Example:

    >>> AttentionPooling(2)(np.ones((3, 16, 8), "float32")).shape
    (3, 8)

    Reference:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision,
        2021, section 2.4; Zhai et al., Scaling Vision Transformers, 2022, section 2.1 ("MAP").
    """

    def __init__(
        self,
        num_heads: int,
        query: str = "learned",
        output_dim: int | None = None,
        mlp_dim: int | None = None,
        activation: str = "gelu_tanh",
        layer_norm_epsilon: float = 1e-6,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if query not in ("mean", "learned"):
            raise ValueError(f'`query` must be "mean" or "learned". Received: query={query!r}')
        self.num_heads = num_heads
        self.query = query
        self.output_dim = output_dim
        self.mlp_dim = mlp_dim
        self.activation = activation
        self.layer_norm_epsilon = layer_norm_epsilon

    def build(self, input_shape):
        tokens, dim = input_shape[1:]
        if dim % self.num_heads:
            raise ValueError(
                "The number of heads must divide the width. "
                f"Received: width {dim}, num_heads={self.num_heads}"
            )
        options = dict(
            kernel_initializer=keras.initializers.RandomNormal(stddev=dim**-0.5),
            dtype=self.dtype_policy,
        )
        # One kernel [q | k | v], as everywhere here; the query goes through its first third only.
        self.qkv = keras.layers.Dense(3 * dim, name="qkv", **options)
        self.projection = keras.layers.Dense(self.output_dim or dim, name="projection", **options)
        self.qkv.build((None, None, dim))
        self.projection.build((None, dim))
        start = keras.initializers.RandomNormal(stddev=dim**-0.5)
        self.position_embedding = self.probe = self.norm = self.mlp = None
        if self.query == "mean":
            self.position_embedding = self.add_weight(
                shape=(tokens + 1, dim), initializer=start, name="position_embedding"
            )
        else:
            self.probe = self.add_weight(shape=(1, 1, dim), initializer=start, name="probe")
            self.norm = keras.layers.LayerNormalization(
                epsilon=self.layer_norm_epsilon, dtype=self.dtype_policy, name="norm"
            )
            self.mlp = MLP(
                self.mlp_dim or 4 * dim,
                activation=self.activation,
                dtype=self.dtype_policy,
                name="mlp",
            )
            self.norm.build((None, self.output_dim or dim))
            self.mlp.build((None, self.output_dim or dim))
        self.built = True

    def call(self, x):
        dim = x.shape[-1]
        if self.query == "mean":
            x = ops.concatenate([ops.mean(x, axis=1, keepdims=True), x], axis=1)
            x = x + ops.cast(self.position_embedding, x.dtype)
            query = x[:, :1]
        else:
            query = ops.cast(self.probe, x.dtype)
        kernel = ops.cast(self.qkv.kernel, x.dtype)
        bias = ops.cast(self.qkv.bias, x.dtype)
        query = ops.matmul(query, kernel[:, :dim]) + bias[:dim]
        query = ops.broadcast_to(query, (ops.shape(x)[0], 1, dim))
        key_value = ops.matmul(x, kernel[:, dim:]) + bias[dim:]
        q, k, v = (
            ops.reshape(part, (-1, part.shape[1], self.num_heads, dim // self.num_heads))
            for part in (query, *ops.split(key_value, 2, axis=-1))
        )
        out = self.projection(ops.reshape(dot_product_attention(q, k, v), (-1, dim)))
        return out if self.mlp is None else out + self.mlp(self.norm(out))

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.output_dim or input_shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "query": self.query,
            "output_dim": self.output_dim,
            "mlp_dim": self.mlp_dim,
            "activation": self.activation,
            "layer_norm_epsilon": self.layer_norm_epsilon,
        }
