"""The transformer block of every vision transformer here: pre-norm attention and MLP."""

import keras
from keras import ops

from keras_ssl.layers.position_embedding import rotate
from keras_ssl.layers.shapes import whole
from keras_ssl.training.cross_device import all_rows, own_rows, replica_count
from keras_ssl.training.kernels import attention_weights, dot_product_attention, gelu, materialize
from keras_ssl.training.random import RandomStream


def gelu_tanh(x):
    """Tanh approximation of GELU (SigLIP)."""
    return keras.activations.gelu(x, approximate=True)


def quick_gelu(x):
    """`x * sigmoid(1.702 x)` (OpenAI's CLIP)."""
    return x * ops.sigmoid(1.702 * x)


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": ops.relu,
    "silu": ops.silu,
}


def get_activation(name: str):
    if name not in ACTIVATIONS:
        raise ValueError(
            f"`activation` must be one of {sorted(ACTIVATIONS)}. Received: activation={name!r}"
        )
    return ACTIVATIONS[name]


@keras.saving.register_keras_serializable(package="keras_ssl")
class SelfAttention(keras.layers.Layer):
    """Multi-head self-attention with one fused projection for queries, keys and values.

    `softmax(q k^T / sqrt(head_dim)) v`, then an output projection. The fused kernel is packed
    `[q | k | v]`, and inside each the heads follow one another, as in every official code.

    Args:
        num_heads: number of heads; divides the width of the input.
        use_bias: bias on the fused projection.
        causal: a token sees itself and those before it only (text).
        qkv_initializer: initializer of the fused kernel.
        kernel_initializer: initializer of the output projection.

    Call arguments:
        x: `(batch, tokens, dim)`.
        return_attention: also return the attention `(batch, heads, tokens, tokens)`.
        rotary: cosines and sines, each `(patches, head_dim)` or `(batch, patches, head_dim)`, that
            turn queries and keys of the last tokens; the tokens before them have no position.
    """

    def __init__(
        self,
        num_heads: int,
        use_bias: bool = True,
        causal: bool = False,
        qkv_initializer="glorot_uniform",
        kernel_initializer="glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.use_bias = use_bias
        self.causal = causal
        self.qkv_initializer = keras.initializers.get(qkv_initializer)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        dim = input_shape[-1]
        if dim % self.num_heads:
            raise ValueError(
                "The number of heads must divide the width. "
                f"Received: hidden_dim={dim}, num_heads={self.num_heads}"
            )
        self.head_dim = dim // self.num_heads
        self.qkv = keras.layers.Dense(
            3 * dim,
            use_bias=self.use_bias,
            kernel_initializer=self.qkv_initializer,
            dtype=self.dtype_policy,
            name="qkv",
        )
        self.projection = keras.layers.Dense(
            dim,
            kernel_initializer=self.kernel_initializer,
            dtype=self.dtype_policy,
            name="projection",
        )
        self.qkv.build(input_shape)
        self.projection.build(input_shape)
        self.built = True

    def call(self, x, return_attention=False, rotary=None):
        tokens, dim = x.shape[1], x.shape[2]
        # Split before the heads are separated: the gradient is then one concatenation, where
        # indexing a reshaped tensor pads three times (XLA on CPU: 24 ms against 42).
        q, k, v = (
            ops.reshape(part, (-1, tokens, self.num_heads, self.head_dim))
            for part in ops.split(self.qkv(x), 3, axis=-1)
        )
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        if return_attention:
            attention = attention_weights(q, k, self.causal)
            out = ops.transpose(ops.matmul(attention, ops.transpose(v, (0, 2, 1, 3))), (0, 2, 1, 3))
        else:
            out = dot_product_attention(q, k, v, self.causal)
        out = self.projection(ops.reshape(out, (-1, tokens, dim)))
        return (out, attention) if return_attention else out

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "use_bias": self.use_bias,
            "causal": self.causal,
            "qkv_initializer": keras.initializers.serialize(self.qkv_initializer),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable(package="keras_ssl")
class MLP(keras.layers.Layer):
    """`fc2(activation(fc1(x)))`.

    Args:
        hidden_dim: width in the middle.
        activation: `"gelu"` (exact), `"gelu_tanh"`, `"quick_gelu"`, `"relu"` or `"silu"`.
        kernel_initializer: initializer of both kernels.
    """

    def __init__(
        self, hidden_dim: int, activation="gelu", kernel_initializer="glorot_uniform", **kwargs
    ):
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.activation = activation
        self.activation_function = get_activation(activation)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        def dense(units, name):
            return keras.layers.Dense(
                units,
                kernel_initializer=self.kernel_initializer,
                dtype=self.dtype_policy,
                name=name,
            )

        self.fc1 = dense(self.hidden_dim, "fc1")
        self.fc2 = dense(input_shape[-1], "fc2")
        self.fc1.build(input_shape)
        self.fc2.build((*input_shape[:-1], self.hidden_dim))
        self.built = True

    def call(self, x):
        return self.fc2(self.activation_function(self.fc1(x)))

    def get_config(self):
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "activation": self.activation,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable(package="keras_ssl")
class SwiGLU(keras.layers.Layer):
    """Gated MLP `w3(silu(a) * b)` with `[a | b] = w12(x)` (Shazeer 2020; DINOv2).

    Args:
        hidden_dim: width of `a` and `b`.
        kernel_initializer: initializer of both kernels.
    """

    def __init__(self, hidden_dim: int, kernel_initializer="glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        def dense(units, name):
            return keras.layers.Dense(
                units,
                kernel_initializer=self.kernel_initializer,
                dtype=self.dtype_policy,
                name=name,
            )

        self.w12 = dense(2 * self.hidden_dim, "w12")
        self.w3 = dense(input_shape[-1], "w3")
        self.w12.build(input_shape)
        self.w3.build((*input_shape[:-1], self.hidden_dim))
        self.built = True

    def call(self, x):
        gate, value = ops.split(self.w12(x), 2, axis=-1)
        return self.w3(ops.silu(gate) * value)

    def get_config(self):
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable(package="keras_ssl")
class LayerScale(keras.layers.Layer):
    """A learned gain per channel, `gamma * x` (Touvron et al. 2021, CaiT).

    Args:
        init_value: start value of every gain, e.g. `1e-5`.
    """

    def __init__(self, init_value: float, **kwargs):
        super().__init__(**kwargs)
        self.init_value = init_value

    def build(self, input_shape):
        self.gamma = self.add_weight(
            shape=(input_shape[-1],),
            initializer=keras.initializers.Constant(self.init_value),
            name="gamma",
        )
        self.built = True

    def call(self, x):
        return x * self.gamma

    def get_config(self):
        return {**super().get_config(), "init_value": self.init_value}


@keras.saving.register_keras_serializable(package="keras_ssl")
class DropPathStream(RandomStream):
    """A random stream that a file of weights need not hold.

    Stochastic depth is often added to a network that was trained without, for fine-tuning: the
    stream then begins at its own seed.
    """

    def load_own_variables(self, store):
        if len(store.keys()):
            super().load_own_variables(store)


@keras.saving.register_keras_serializable(package="keras_ssl")
class DropPath(keras.layers.Layer):
    """Stochastic depth: in training, a branch counts for some samples of the batch only.

    Each sample's branch is kept with probability `1 - rate` and then divided by it. With `subset`
    a fixed number of samples is kept, `k = max(1, floor(N (1 - rate)))` at random places, their
    branches are multiplied by `N / k`, and `residual` computes nothing for the others. In
    inference it is the identity.

    Args:
        rate: probability of dropping, in `[0, 1)`.
        subset: keep a fixed number of samples (DINOv2).
        seed: int, of the random stream.

    Call arguments:
        x: `(N, ...)`, what a branch gave.
        training: whether anything is dropped.
        draws: uniform numbers `(N,)` to decide by, instead of the own random stream.

    Reference:
        Huang et al., Deep Networks with Stochastic Depth, 2016; Oquab et al., DINOv2, 2023,
        section 5.
    """

    def __init__(self, rate: float, subset: bool = False, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"`rate` must lie in [0, 1). Received: rate={rate}")
        self.rate = rate
        self.subset = subset
        self.seed = seed
        self.stream = DropPathStream(seed, name="stream") if rate > 0 else None
        self.built = True

    def call(self, x, training=None, draws=None):
        if self.rate == 0 or not training:
            return x
        count = ops.shape(x)[0]
        draws = self.stream.uniform((count,)) if draws is None else draws
        if self.subset:
            # The fixed number is that of the whole batch, whatever devices share it.
            order, kept, scale = self._kept(all_rows(draws))
            factors = own_rows(ops.where(ops.argsort(order) < kept, scale, 0.0))
        else:
            factors = ops.where(draws >= self.rate, 1 / (1 - self.rate), 0.0)
        return x * ops.reshape(ops.cast(factors, x.dtype), (-1,) + (1,) * (len(x.shape) - 1))

    def residual(self, x, branch, draws):
        """`x + dropped branch(x)`, in training.

        Args:
            x: `(N, tokens, dim)`.
            branch: function `(x, samples) -> x`, where `samples` are the places in the batch of
                the rows that it gets, or `None` for all.
            draws: uniform numbers `(N,)`.
        """
        if not self.subset or replica_count() > 1:
            return x + self(branch(x, None), training=True, draws=draws)
        order, kept, scale = self._kept(draws)
        samples = order[:kept]
        h = branch(ops.take(x, samples, axis=0), samples)
        # Back to their places by a gather: zeros for the rest.
        h = ops.concatenate([h * ops.cast(scale, h.dtype), ops.zeros_like(x[kept:])], axis=0)
        return x + ops.take(h, ops.argsort(order), axis=0)

    def _kept(self, draws):
        """The samples in random order, how many of them are kept, and their factor."""
        count = ops.shape(draws)[0]
        kept = whole(count, 1 - self.rate)
        kept = max(kept, 1) if isinstance(kept, int) else ops.maximum(kept, 1)
        scale = count / kept if isinstance(kept, int) else ops.cast(count / kept, "float32")
        return ops.argsort(draws), kept, scale

    def get_config(self):
        return {
            **super().get_config(),
            "rate": self.rate,
            "subset": self.subset,
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable(package="keras_ssl")
class TransformerBlock(keras.layers.Layer):
    """Pre-norm transformer block.

    `x = x + drop(scale1(attention(norm1(x))))`, then `x = x + drop(scale2(mlp(norm2(x))))`.

    Args:
        num_heads: attention heads.
        mlp_dim: hidden width of the MLP (of each half for `"swiglu"`).
        ffn: `"mlp"` or `"swiglu"`.
        activation: activation of the MLP.
        qkv_bias: bias on the fused query, key and value projection.
        causal: a token sees itself and those before it only (text).
        layer_scale_init: start value of the two layer scales, or `None` for none.
        drop_path_rate: stochastic depth rate of this block.
        drop_path_subset: where the rate is above 0.1, drop a fixed share of the batch and compute
            the branches of the others only (DINOv2); else every sample on its own.
        layer_norm_epsilon: added to the variance; 1e-6 in the papers' vision transformers.
        qkv_initializer: initializer of the fused projection.
        kernel_initializer: initializer of the other kernels.

    Call arguments:
        x: `(batch, tokens, dim)`.
        training: whether stochastic depth drops.
        return_attention: also return the attention maps.
        rotary: of `SelfAttention`.
        drop_path_draws: `(2, batch)` uniform numbers that decide what the two branches drop,
            instead of the block's own random stream.
    """

    def __init__(
        self,
        num_heads: int,
        mlp_dim: int,
        ffn: str = "mlp",
        activation: str = "gelu",
        qkv_bias: bool = True,
        causal: bool = False,
        layer_scale_init: float | None = None,
        drop_path_rate: float = 0.0,
        drop_path_subset: bool = False,
        layer_norm_epsilon: float = 1e-6,
        qkv_initializer="glorot_uniform",
        kernel_initializer="glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if ffn not in ("mlp", "swiglu"):
            raise ValueError(f'`ffn` must be "mlp" or "swiglu". Received: ffn={ffn!r}')
        self.num_heads = num_heads
        self.mlp_dim = mlp_dim
        self.ffn = ffn
        self.activation = activation
        self.qkv_bias = qkv_bias
        self.causal = causal
        self.layer_scale_init = layer_scale_init
        self.drop_path_rate = drop_path_rate
        self.drop_path_subset = drop_path_subset
        self.layer_norm_epsilon = layer_norm_epsilon
        self.qkv_initializer = keras.initializers.get(qkv_initializer)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

        policy = self.dtype_policy
        kernel_initializer = self.kernel_initializer
        self.norm1 = keras.layers.LayerNormalization(
            epsilon=layer_norm_epsilon, dtype=policy, name="norm1"
        )
        self.attention = SelfAttention(
            num_heads,
            use_bias=qkv_bias,
            causal=causal,
            qkv_initializer=self.qkv_initializer,
            kernel_initializer=kernel_initializer,
            dtype=policy,
            name="attention",
        )
        self.norm2 = keras.layers.LayerNormalization(
            epsilon=layer_norm_epsilon, dtype=policy, name="norm2"
        )
        if ffn == "mlp":
            self.mlp = MLP(
                mlp_dim,
                activation=activation,
                kernel_initializer=kernel_initializer,
                dtype=policy,
                name="mlp",
            )
        else:
            self.mlp = SwiGLU(
                mlp_dim, kernel_initializer=kernel_initializer, dtype=policy, name="mlp"
            )
        self.layer_scale1 = self.layer_scale2 = None
        if layer_scale_init is not None:
            self.layer_scale1 = LayerScale(layer_scale_init, dtype=policy, name="layer_scale1")
            self.layer_scale2 = LayerScale(layer_scale_init, dtype=policy, name="layer_scale2")
        self.drop_path = None
        if drop_path_rate > 0:
            # Official: for a few samples the gathering would cost more than it saves.
            subset = drop_path_subset and drop_path_rate > 0.1
            self.drop_path = DropPath(drop_path_rate, subset, dtype=policy, name="drop_path")

    def build(self, input_shape):
        for layer in (self.norm1, self.attention, self.norm2, self.mlp):
            layer.build(input_shape)
        for layer in (self.layer_scale1, self.layer_scale2):
            if layer is not None:
                layer.build(input_shape)
        self.built = True

    def call(self, x, training=None, return_attention=False, rotary=None, drop_path_draws=None):
        attention = []

        def attend(x, samples):
            # Not passed as None: rematerialisation on JAX would choke on it.
            options = {} if rotary is None else {"rotary": _rows(rotary, samples)}
            h = self.attention(self.norm1(x), return_attention=return_attention, **options)
            if return_attention:
                h, weights = h
                attention.append(weights)
            return h if self.layer_scale1 is None else self.layer_scale1(h)

        def transform(x, samples):
            h = self.mlp(self.norm2(x))
            return h if self.layer_scale2 is None else self.layer_scale2(h)

        draws = drop_path_draws
        if self.drop_path is None:
            draws = None
        elif draws is None and training is True:  # a tracer where JAX rematerialises
            draws = self.drop_path.stream.uniform((2, ops.shape(x)[0]), batch_axis=1)
        for i, branch in enumerate((attend, transform)):
            if draws is None:
                x = x + branch(x, None)
            elif return_attention:  # of all samples
                x = x + self.drop_path(branch(x, None), training=True, draws=draws[i])
            else:
                x = self.drop_path.residual(x, branch, draws[i])
            x = materialize(x)
        return (x, attention[0]) if return_attention else x

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "mlp_dim": self.mlp_dim,
            "ffn": self.ffn,
            "activation": self.activation,
            "qkv_bias": self.qkv_bias,
            "causal": self.causal,
            "layer_scale_init": self.layer_scale_init,
            "drop_path_rate": self.drop_path_rate,
            "drop_path_subset": self.drop_path_subset,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "qkv_initializer": keras.initializers.serialize(self.qkv_initializer),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def _rows(rotary, samples):
    """The angles of some samples, where every sample has its own."""
    if samples is None:
        return rotary
    return tuple(r if len(r.shape) == 2 else ops.take(r, samples, axis=0) for r in rotary)
