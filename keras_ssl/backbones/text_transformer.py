"""The text transformer of CLIP and SigLIP."""

import keras
import keras_hub
from keras import ops

from keras_ssl.layers.transformer import TransformerBlock
from keras_ssl.training.subclassed import SubclassedModelType
from keras_ssl.weight_files import load_preset

# Widths of the released models.
TEXT_SIZES = {
    # Ours: for short captions on a CPU.
    "text_nano": dict(hidden_dim=128, num_layers=4, num_heads=4, context_length=16),
    # Radford et al. 2021, table 19 (beside ViT-B), (beside ViT-L).
    "clip_base": dict(hidden_dim=512, num_layers=12, num_heads=8),
    "clip_large": dict(hidden_dim=768, num_layers=12, num_heads=12),
}


@keras.saving.register_keras_serializable(package="keras_ssl")
class TextTransformer(keras_hub.models.Backbone, metaclass=SubclassedModelType):
    """Pre-norm transformer over token ids: `norm(blocks(token + position))`.

    keras-hub's `CLIPTextEncoder` is the same but for an epsilon of 1e-6 in its last normalisation,
    where the released models have 1e-5, and has no form without the causal mask (SigLIP).

    Args:
        vocabulary_size: number of ids.
        context_length: ids of the longest sequence; shorter ones are taken as well.
        hidden_dim: width.
        num_layers: blocks.
        num_heads: attention heads; divides the width.
        mlp_ratio: hidden width of the MLP over `hidden_dim`.
        mlp_dim: that width given outright; `None` takes `mlp_ratio`.
        causal: a token sees itself and those before it only (CLIP; not SigLIP).
        activation: `"quick_gelu"` (OpenAI's CLIP), `"gelu"` (open_clip's), `"gelu_tanh"`
            (SigLIP's), `"relu"` or `"silu"`.
        layer_norm_epsilon: added to the variance.
        dtype: dtype policy.
        name: name of the model.

    Call arguments:
        token_ids: int `(batch, length)`, `length <= context_length`; 0 fills up.

    Returns:
        `(batch, length, hidden_dim)`.

    Example:

    ```python
    encoder = keras_ssl.backbones.TextTransformer(
        vocabulary_size=64, context_length=8, hidden_dim=16, num_layers=2, num_heads=2
    )
    tokens = encoder(np.array([[62, 5, 6, 63, 0, 0, 0, 0]]))
    encoder.pool(tokens, np.array([[62, 5, 6, 63, 0, 0, 0, 0]])).shape  # (1, 16)
    ```

    Reference:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision,
        2021, section 2.4.
    """

    def __init__(
        self,
        vocabulary_size: int = 49408,
        context_length: int = 77,
        hidden_dim: int = 512,
        num_layers: int = 12,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        mlp_dim: int | None = None,
        causal: bool = True,
        activation: str = "quick_gelu",
        layer_norm_epsilon: float = 1e-5,
        dtype=None,
        name: str | None = None,
        **kwargs,
    ):
        super().__init__(dtype=dtype, name=name or "text_transformer", **kwargs)
        self.vocabulary_size = vocabulary_size
        self.context_length = context_length
        self.hidden_dim = hidden_dim
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.mlp_dim = mlp_dim
        self.causal = causal
        self.activation = activation
        self.layer_norm_epsilon = layer_norm_epsilon
        # Names start with "text", so that patterns of an optimizer can tell the encoders apart.
        policy = self.dtype_policy
        normal = keras.initializers.RandomNormal
        self.token_embedding = keras.layers.Embedding(
            vocabulary_size,
            hidden_dim,
            embeddings_initializer=normal(stddev=0.02),
            dtype=policy,
            name="token_embedding",
        )
        self.token_embedding.build((None, None))
        self.position_embedding = self.add_weight(
            shape=(context_length, hidden_dim),
            initializer=normal(stddev=0.01),
            name="text_position_embedding",
        )
        self.blocks = []
        for i in range(num_layers):
            block = TransformerBlock(
                num_heads,
                mlp_dim or int(hidden_dim * mlp_ratio),
                activation=activation,
                causal=causal,
                layer_norm_epsilon=layer_norm_epsilon,
                qkv_initializer=normal(stddev=hidden_dim**-0.5),
                kernel_initializer=normal(stddev=(2 * num_layers * hidden_dim) ** -0.5),
                dtype=policy,
                name=f"text_block_{i}",
            )
            block.build((None, None, hidden_dim))
            kernel = block.mlp.fc1.kernel  # the one with a scale of its own in CLIP's code
            kernel.assign(normal(stddev=(2 * hidden_dim) ** -0.5)(kernel.shape))
            self.blocks.append(block)
        self.norm = keras.layers.LayerNormalization(
            epsilon=layer_norm_epsilon, dtype=policy, name="text_norm"
        )
        self.norm.build((None, None, hidden_dim))
        self.built = True

    @classmethod
    def from_size(cls, size: str, **kwargs) -> "TextTransformer":
        """A text transformer of a published size, e.g. `TextTransformer.from_size("clip_base")`."""
        if size not in TEXT_SIZES:
            raise ValueError(f"`size` must be one of {sorted(TEXT_SIZES)}. Received: size={size!r}")
        return cls(**{**TEXT_SIZES[size], **kwargs})

    @classmethod
    def from_preset(cls, preset: str, load_weights: bool = True, **kwargs) -> "TextTransformer":
        """The encoder of a preset: a shipped name, a folder or a hub handle."""
        return load_preset(super().from_preset, preset, load_weights, **kwargs)

    def call(self, token_ids, training=None):
        length = token_ids.shape[1]
        if length > self.context_length:
            raise ValueError(
                f"A sequence has at most {self.context_length} ids. "
                f"Received: token_ids.shape={tuple(token_ids.shape)}"
            )
        x = self.token_embedding(token_ids)
        x = x + ops.cast(self.position_embedding[:length], x.dtype)
        for block in self.blocks:
            x = block(x, training=training)
        return self.norm(x)

    def pool(self, tokens, token_ids, pooling: str = "end"):
        """One vector per text; see `pool_text`."""
        return pool_text(tokens, token_ids, pooling)

    def get_config(self):
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "context_length": self.context_length,
            "hidden_dim": self.hidden_dim,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "mlp_dim": self.mlp_dim,
            "causal": self.causal,
            "activation": self.activation,
            "layer_norm_epsilon": self.layer_norm_epsilon,
        }


TEXT_POOLINGS = ("end", "last", "token", "mean")


def pool_text(tokens, token_ids, pooling: str):
    """One vector per text.

    Args:
        tokens: `(batch, length, dim)`.
        token_ids: int `(batch, length)`.
        pooling: `"end"`: where the id is largest, which is CLIP's end token; `"last"`: the last
            position (SigLIP); `"token"`: the first (BERT's class token); `"mean"`: over ids that
            are not 0.

    Returns:
        `(batch, dim)`.
    """
    if pooling == "end":
        place = ops.argmax(token_ids, axis=-1)[:, None, None]
        return ops.take_along_axis(tokens, ops.cast(place, "int32"), axis=1)[:, 0]
    if pooling == "last":
        return tokens[:, -1]
    if pooling == "token":
        return tokens[:, 0]
    if pooling == "mean":
        kept = ops.cast(token_ids != 0, tokens.dtype)[..., None]
        return ops.sum(tokens * kept, axis=1) / ops.maximum(ops.sum(kept, axis=1), 1)
    raise ValueError(f"`pooling` must be one of {TEXT_POOLINGS}. Received: pooling={pooling!r}")
