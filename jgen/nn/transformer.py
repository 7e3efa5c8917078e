"""A causal transformer in pre-LN form (Vaswani et al. 2017, arXiv 1706.03762; Child et al. 2019, arXiv 1904.10509).

    block     a = dropout(attention(norm(h))),  h + a + dropout(W_2 gelu(W_1 norm(h + a)))   (Child, equations 12 to 14)
    output    norm(h) after the last block

Attention follows the patterns of `jgen.nn.sparse_attention`, which alternate from block to block. A prefix of positions
may precede the sequence. The matrices W_2 and the output matrices of attention are initialised sqrt(2 layers) times
smaller.

Sequences are computed whole, or one position at a time from cached keys and values of the earlier ones. The blocks'
parameters are stacked, and all blocks share one program: a network of 128 layers compiles as fast as one of 8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jgen.core import keys as rng
from jgen.errors import require, require_positive
from jgen.nn.dropout import dropout
from jgen.nn.flow import cast
from jgen.nn.sparse_attention import Pattern, Source, attend, causal_attention, earlier_positions, sparse_attention

UNROLLED = 8  # largest number of blocks that are compiled one by one, which runs faster

KeyValue = tuple[jax.Array, jax.Array]


class Cache(NamedTuple):
    """Keys and values of one pattern's blocks: (blocks, N, B, heads, D) of the positions so far, zeros after them, and
    those of the prefix, (blocks, B, P, heads, D)."""

    keys: jax.Array
    values: jax.Array
    prefix_keys: jax.Array
    prefix_values: jax.Array


Carry = tuple[jax.Array, list[Cache]]  # features of a position, and the caches


class DecoderBlock(nn.Module):
    """Causal attention and a feed-forward network, each after normalisation and added to its input.

    features: width of the sequence. heads: of attention. hidden: width of the feed-forward network.
    key_features: total width of the queries and keys of all heads.
    """

    features: int
    heads: int
    hidden: int
    key_features: int
    pattern: Pattern = Pattern("full")
    dropout_rate: float = 0.0
    output_scale: float = 1.0
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        def dense(features: int, scale: float = 1.0) -> nn.Dense:
            init = nn.initializers.variance_scaling(scale**2, "fan_in", "normal")
            return nn.Dense(features, dtype=self.dtype, kernel_init=init)

        self.norm_attention, self.norm_feed_forward = (nn.LayerNorm(dtype=self.dtype) for _ in range(2))
        self.query_key_value = dense(2 * self.key_features + self.features)
        self.attention_out = dense(self.features, self.output_scale)
        self.wide = dense(self.hidden)
        self.narrow = dense(self.features, self.output_scale)

    def __call__(self, x: jax.Array, keys: jax.Array | None = None, prefix: int = 0) -> jax.Array:
        """(B, P + N, features) to the same; keys (B,) are for dropout, None for none; prefix: P."""
        attended = sparse_attention(*self.project(x), self.pattern, prefix)
        return self.finish(x, attended, keys)

    def prefill(self, x: jax.Array) -> tuple[jax.Array, KeyValue]:
        """The positions of a prefix alone, (B, P, features), and their keys and values (B, P, heads, D)."""
        q, k, v = self.project(x)
        return self.finish(x, causal_attention(q, k, v), None), (k, v)

    def step(
        self, x: jax.Array, remember: Callable[..., tuple[list[Source], Any]], temperature: jax.Array | None = None
    ) -> tuple[jax.Array, Any]:
        """One position, (B, features), and what `remember` returns second.

        remember: (key, value) of the position, (B, heads, D), to the keys and values before it, (B, K, heads, D) with
        masks that broadcast to (B, heads, K), and anything else. temperature: (B,), of the attention's softmax.
        """
        q, k, v = self.project(x)
        sources, remembered = remember(k, v)
        if temperature is not None:
            q = q / temperature[:, None, None].astype(q.dtype)
        grouped: list[Source] = [
            (keys[:, None], values[:, None], None if mask is None else mask[:, None, :, None])
            for keys, values, mask in sources
        ]
        own_q, own_k, own_v = (part[:, None, None] for part in (q, k, v))
        attended = attend(own_q, own_k, own_v, grouped)
        return self.finish(x, attended[:, 0, 0], None), remembered

    def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values (..., heads, D) of (..., features)."""
        width = self.key_features
        parts = jnp.split(self.query_key_value(self.norm_attention(x)), [width, 2 * width], axis=-1)
        q, k, v = (part.reshape(*part.shape[:-1], self.heads, -1) for part in parts)
        return q, k, v

    def finish(self, x: jax.Array, attended: jax.Array, keys: jax.Array | None) -> jax.Array:
        """The block's output from its input and its heads' outputs."""
        key_attention, key_feed_forward = (None, None) if keys is None else rng.split(keys, 2)
        a = self.attention_out(attended.reshape(*attended.shape[:-2], -1))
        x = x + dropout(a, key_attention, self.dropout_rate)
        h = self.narrow(nn.gelu(self.wide(self.norm_feed_forward(x))))
        return x + dropout(h, key_feed_forward, self.dropout_rate)


class CausalTransformer(nn.Module):
    """Blocks whose patterns alternate, and a last normalisation: (B, P + N, features) to the same.

    layers: number of blocks, a multiple of the number of patterns. remat: recompute the blocks' activations in the
    backward pass, so that only their inputs are stored. dtype: of the arithmetic, None for that of the input. Other
    fields are those of `DecoderBlock`.
    """

    features: int
    heads: int
    layers: int
    hidden: int
    key_features: int
    patterns: tuple[Pattern, ...] = (Pattern("full"),)
    dropout_rate: float = 0.0
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.norm = nn.LayerNorm(dtype=self.dtype)
        x = jnp.zeros((1, self.features), self.dtype)

        def init(key: jax.Array, block: DecoderBlock) -> Any:
            keys = jax.random.split(key, self.repeats)
            return jax.vmap(lambda key: block.init(key, x, lambda k, v: ([], None), method="step")["params"])(keys)

        self.stacked = [self.param(f"blocks_{i}", init, block) for i, block in enumerate(self.blocks())]

    @property
    def repeats(self) -> int:
        """Blocks of each pattern."""
        return self.layers // len(self.patterns)

    def blocks(self) -> list[DecoderBlock]:
        """One block per pattern, without parameters."""
        scale = (2 * self.layers) ** -0.5
        sizes = (self.features, self.heads, self.hidden, self.key_features)
        return [DecoderBlock(*sizes, p, self.dropout_rate, scale, self.dtype, parent=None) for p in self.patterns]

    def scan(self, function: Any, x: Any) -> tuple[Any, Any]:
        """x through all blocks; function(block, parameters, x, place, i) -> (x, what to stack), of block number `place`
        among those of pattern i."""

        def layers(x: Any, inputs: tuple) -> tuple[Any, list]:
            stacked, place = inputs
            outputs = []
            for i, (block, params) in enumerate(zip(self.blocks(), stacked)):
                x, output = function(block, {"params": params}, x, place, i)
                outputs.append(output)
            return x, outputs

        body = jax.checkpoint(layers) if self.remat else layers
        unroll = self.repeats if self.layers <= UNROLLED else 1
        return jax.lax.scan(body, x, (self.stacked, jnp.arange(self.repeats)), unroll=unroll)

    def __call__(self, x: jax.Array, keys: jax.Array | None = None, prefix: int = 0) -> jax.Array:
        """The whole sequence, after a prefix of P positions; keys (B,) are for dropout, None for none."""

        def layer(block: DecoderBlock, params: Any, x: jax.Array, place: jax.Array, i: int) -> tuple[jax.Array, None]:
            own = None if keys is None else rng.fold_in(keys, place * len(self.patterns) + i)
            return block.apply(params, x, own, prefix), None

        return self.norm(self.scan(layer, cast(x, self.dtype))[0])

    def start(self, prefix: jax.Array, length: int) -> list[Cache]:
        """The caches of a sequence of N = `length` positions after a prefix (B, P, features); P may be 0."""

        def layer(block: DecoderBlock, params: Any, x: jax.Array, place: jax.Array, i: int) -> tuple[jax.Array, Any]:
            return block.apply(params, x, method="prefill")

        batch, caches = prefix.shape[0], []
        if prefix.shape[1]:
            prefix_cache = self.scan(layer, cast(prefix, self.dtype))[1]
        else:
            widths = (self.key_features // self.heads, self.features // self.heads)
            empty = tuple(jnp.zeros((self.repeats, batch, 0, self.heads, width), self.dtype) for width in widths)
            prefix_cache = [empty] * len(self.patterns)
        for k, v in prefix_cache:
            keys, values = (jnp.zeros((self.repeats, length, batch, *x.shape[3:]), self.dtype) for x in (k, v))
            caches.append(Cache(keys, values, k, v))
        return caches

    def step(
        self, x: jax.Array, caches: list[Cache], position: jax.Array, temperature: jax.Array | None = None
    ) -> tuple[jax.Array, list[Cache]]:
        """Position number `position` of the sequence, (B, features): its output, and the caches with it.

        Only the keys and values that it attends to are read, and only its own are written. temperature: see
        `DecoderBlock`.
        """

        def layer(block: DecoderBlock, params: Any, carry: Carry, place: jax.Array, i: int) -> tuple[Carry, None]:
            x, caches = carry

            def remember(k: jax.Array, v: jax.Array) -> tuple[list[Source], Cache]:
                cache = write(caches[i], place, position, k, v)
                return read(cache, self.patterns[i], place, position), cache

            x, cache = block.apply(params, x, remember, temperature, method="step")
            return (x, [*caches[:i], cache, *caches[i + 1 :]]), None

        x, caches = self.scan(layer, (cast(x, self.dtype), caches))[0]
        return self.norm(x), caches


def write(cache: Cache, place: jax.Array, position: jax.Array, k: jax.Array, v: jax.Array) -> Cache:
    """The cache with a position's key and value in block number `place`, (B, heads, D).

    It is written before it is read: otherwise XLA would copy the cache for every position.
    """
    start = (place, position, 0, 0, 0)
    keys, values = (jax.lax.dynamic_update_slice(x, new[None, None], start) for x, new in zip(cache, (k, v)))
    return cache._replace(keys=keys, values=values)


def read(cache: Cache, pattern: Pattern, place: jax.Array, position: jax.Array) -> list[Source]:
    """The keys and values that a position of block number `place` attends to, with masks: see `DecoderBlock.step`."""
    positions, is_earlier = earlier_positions(pattern, cache.keys.shape[1], position)
    full = pattern.kind == "full"
    own = [(x[place] if full else x[place, positions]).swapaxes(0, 1) for x in (cache.keys, cache.values)]
    sources: list[Source] = [(own[0], own[1], is_earlier[None, None])]
    if cache.prefix_keys.shape[2]:
        sources.append((cache.prefix_keys[place], cache.prefix_values[place], None))
    return sources


def check_transformer(
    features: int, heads: int, layers: int, hidden: int, key_features: int, patterns: int, dropout_rate: float
) -> None:
    """Raises `UserError` for sizes that the network cannot be built with; `patterns` is their number."""
    require_positive(features=features, heads=heads, layers=layers, hidden=hidden, key_features=key_features)
    for name, value in (("features", features), ("key_features", key_features)):
        require(value % heads == 0, f"{name} is {value}: it must be divisible by the {heads} heads")
    require(layers % patterns == 0, f"layers is {layers}: it must be divisible by {patterns}, patterns that alternate")
    require(0 <= dropout_rate < 1, f"dropout is {dropout_rate}: it must be at least 0 and below 1")
