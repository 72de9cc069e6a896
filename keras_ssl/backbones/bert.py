"""BERT's encoder, the text side of ALIGN."""

import keras
import keras_hub
from keras import ops

from keras_ssl.layers.transformer import get_activation
from keras_ssl.training.subclassed import SubclassedModelType
from keras_ssl.weight_files import load_preset


@keras.saving.register_keras_serializable(package="keras_ssl")
class PostNormBlock(keras.layers.Layer):
    """Transformer block that normalises last: `x = norm(x + f(x))` of attention, then of the MLP.

    Args:
        num_heads: attention heads; divides the width.
        mlp_dim: hidden width of the MLP.
        activation: of the MLP.
        dropout: rate in training, of the attention and of both branches.
        layer_norm_epsilon: added to the variance.

    Call arguments:
        x: `(batch, length, dim)`.
        mask: bool `(batch, 1, length)`: what may be looked at.
    """

    def __init__(
        self,
        num_heads: int,
        mlp_dim: int,
        activation: str = "gelu",
        dropout: float = 0.0,
        layer_norm_epsilon: float = 1e-12,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads, self.mlp_dim = num_heads, mlp_dim
        self.activation = activation
        self.dropout = dropout
        self.layer_norm_epsilon = layer_norm_epsilon

    def build(self, input_shape):
        policy, dim = self.dtype_policy, input_shape[-1]
        if dim % self.num_heads:
            raise ValueError(
                "The number of heads must divide the width. "
                f"Received: hidden_dim={dim}, num_heads={self.num_heads}"
            )
        init = keras.initializers.TruncatedNormal(stddev=0.02)
        self.attention = keras.layers.MultiHeadAttention(
            self.num_heads,
            dim // self.num_heads,
            dropout=self.dropout,
            kernel_initializer=init,
            dtype=policy,
            name="attention",
        )
        self.attention.build(input_shape, input_shape)
        options = dict(kernel_initializer=init, dtype=policy)
        self.fc1 = keras.layers.Dense(self.mlp_dim, name="fc1", **options)
        self.fc2 = keras.layers.Dense(dim, name="fc2", **options)
        self.fc1.build(input_shape)
        self.fc2.build((*input_shape[:-1], self.mlp_dim))
        self.norm1, self.norm2 = (
            keras.layers.LayerNormalization(
                epsilon=self.layer_norm_epsilon, dtype=policy, name=name
            )
            for name in ("norm1", "norm2")
        )
        self.norm1.build(input_shape)
        self.norm2.build(input_shape)
        self.drop = keras.layers.Dropout(self.dropout, dtype=policy, name="drop")
        self.built = True

    def call(self, x, mask, training=None):
        h = self.attention(x, x, attention_mask=mask, training=training)
        x = self.norm1(x + self.drop(h, training=training))
        h = self.fc2(get_activation(self.activation)(self.fc1(x)))
        return self.norm2(x + self.drop(h, training=training))

    def get_config(self):
        names = ("num_heads", "mlp_dim", "activation", "dropout", "layer_norm_epsilon")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable(package="keras_ssl")
class BertEncoder(keras_hub.models.Backbone, metaclass=SubclassedModelType):
    """BERT over token ids: `blocks(norm(token + segment + position))`.

    `keras_hub.models.BertBackbone` is the same with the tanh approximation of GELU, where the
    released models of ALIGN have GELU itself. Ids of 0 fill up and are not looked at. All tokens
    are of the first segment.

    Args:
        vocabulary_size: number of ids.
        context_length: ids of the longest sequence.
        hidden_dim: width.
        num_layers: blocks.
        num_heads: attention heads; divides the width.
        mlp_dim: hidden width of the MLP; four times the width when `None`.
        num_segments: kinds of segments.
        activation: of the MLP, as in `TextTransformer`.
        dropout: rate in training.
        layer_norm_epsilon: added to the variance.
        dtype: dtype policy.
        name: name of the model.

    Call arguments:
        token_ids: int `(batch, length)`, `length <= context_length`.

    Returns:
        `(batch, length, hidden_dim)`.

    Example:

    ```python
    encoder = keras_ssl.backbones.BertEncoder(
        vocabulary_size=64, context_length=8, hidden_dim=16, num_layers=2, num_heads=2
    )
    encoder(np.array([[62, 5, 6, 63, 0, 0, 0, 0]])).shape  # (1, 8, 16)
    ```

    Reference:
        Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers for Language
        Understanding, 2019; Jia et al. (ALIGN), 2021, section 4.
    """

    def __init__(
        self,
        vocabulary_size: int = 30522,
        context_length: int = 512,
        hidden_dim: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        mlp_dim: int | None = None,
        num_segments: int = 2,
        activation: str = "gelu",
        dropout: float = 0.1,
        layer_norm_epsilon: float = 1e-12,
        dtype=None,
        name: str | None = None,
        **kwargs,
    ):
        super().__init__(dtype=dtype, name=name or "text_bert", **kwargs)
        self.vocabulary_size = vocabulary_size
        self.context_length = context_length
        self.hidden_dim = hidden_dim
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.mlp_dim = mlp_dim or 4 * hidden_dim
        self.num_segments = num_segments
        self.activation = activation
        self.dropout = dropout
        self.layer_norm_epsilon = layer_norm_epsilon
        policy = self.dtype_policy
        init = keras.initializers.TruncatedNormal(stddev=0.02)

        def embedding(count, name):
            layer = keras.layers.Embedding(
                count, hidden_dim, embeddings_initializer=init, dtype=policy, name=name
            )
            layer.build((None, None))
            return layer

        self.token_embedding = embedding(vocabulary_size, "token_embedding")
        self.position_embedding = embedding(context_length, "position_embedding")
        self.segment_embedding = embedding(num_segments, "segment_embedding")
        self.norm = keras.layers.LayerNormalization(
            epsilon=layer_norm_epsilon, dtype=policy, name="text_norm"
        )
        self.norm.build((None, None, hidden_dim))
        self.drop = keras.layers.Dropout(dropout, dtype=policy, name="text_drop")
        self.blocks = []
        for i in range(num_layers):
            block = PostNormBlock(
                num_heads,
                self.mlp_dim,
                activation,
                dropout,
                layer_norm_epsilon,
                dtype=policy,
                name=f"text_block_{i}",
            )
            block.build((None, None, hidden_dim))
            self.blocks.append(block)
        self.built = True

    @classmethod
    def from_preset(cls, preset: str, load_weights: bool = True, **kwargs) -> "BertEncoder":
        """The encoder of a preset: a folder or a hub handle."""
        return load_preset(super().from_preset, preset, load_weights, **kwargs)

    def call(self, token_ids, training=None):
        length = token_ids.shape[1]
        if length > self.context_length:
            raise ValueError(
                f"A sequence has at most {self.context_length} ids. "
                f"Received: token_ids.shape={tuple(token_ids.shape)}"
            )
        x = self.token_embedding(token_ids) + self.segment_embedding(ops.zeros_like(token_ids))
        x = x + self.position_embedding(ops.arange(length))
        x = self.drop(self.norm(x), training=training)
        mask = (token_ids != 0)[:, None, :]
        for block in self.blocks:
            x = block(x, mask, training=training)
        return x

    def get_config(self):
        names = (
            *("vocabulary_size", "context_length", "hidden_dim", "num_layers", "num_heads"),
            *("mlp_dim", "num_segments", "activation", "dropout", "layer_norm_epsilon"),
        )
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
