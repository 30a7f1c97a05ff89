"""Changes to the distribution that tokens are drawn from, and the draw itself.

A change is a frozen dataclass that is called with the logits and with what each sample has drawn so far; the sampler
applies its changes in order, after the temperature. On a CPU what counts are passes over [S, V]: a sort of 32,000
entries, a full top-k or an `argmax` each take longer than the model's own layers.
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int, Int32

from t5x_selfimprove import partitioning
from t5x_selfimprove.models import native
from t5x_selfimprove.records import record

BLOCK = 256  # tokens that are looked at together
LARGEST_TOP_K = 128  # of `jax.lax.top_k`; for more a threshold is searched


@record
class Drawn:
    """What the samples have drawn, in a ring: the newest token of every sample is in the same column."""

    tokens: Int32[Array, 'S C']
    age: Int32[Array, 'C']  # 0 is the newest, 1 the one before, ...
    count: Int32[Array, 'S']  # tokens of each sample; those of age count and more are not its own

    @property
    def mask(self) -> Bool[Array, 'S C']:
        """Which tokens are the samples' own."""
        return self.age < self.count[:, None]


class Transform(Protocol):
    """A change of the logits; frozen, so that it is static under jit."""

    def __call__(self, logits: Float32[Array, 'S V'], drawn: Drawn) -> Float32[Array, 'S V']:
        """The changed logits; minus infinity forbids a token."""


@dataclasses.dataclass(frozen=True)
class TopK:
    """Keeps the k most likely tokens (and those that tie with the k-th)."""

    k: int

    def __post_init__(self):
        if self.k < 1:
            raise ValueError(f'top-k needs k >= 1; it is {self.k}')

    def __call__(self, logits: Float32[Array, 'S V'], drawn: Drawn) -> Float32[Array, 'S V']:
        """Forbids every token less likely than the k-th."""
        if self.k >= logits.shape[-1]:
            return logits
        if self.k <= LARGEST_TOP_K:
            least = jax.lax.top_k(logits, self.k)[0][:, -1:]
        else:
            least = threshold(logits, lambda above: above.sum(axis=-1) >= self.k)
        return jnp.where(logits >= least, logits, -jnp.inf)


@dataclasses.dataclass(frozen=True)
class TopP:
    """Nucleus sampling (Holtzman et al. 2020, arXiv:1904.09751): the smallest set of most likely tokens that holds
    probability p. The most likely token is always kept; tokens that tie with the last one of the set are kept."""

    p: float

    def __post_init__(self):
        if not 0 < self.p <= 1:
            raise ValueError(f'top-p needs 0 < p <= 1; it is {self.p}')

    def __call__(self, logits: Float32[Array, 'S V'], drawn: Drawn) -> Float32[Array, 'S V']:
        """Forbids every token outside the nucleus."""
        if self.p == 1:
            return logits
        probability = jax.nn.softmax(logits, axis=-1)
        least = threshold(logits, lambda above: jnp.where(above, probability, 0).sum(axis=-1) >= self.p)
        return jnp.where(logits >= least, logits, -jnp.inf)


@dataclasses.dataclass(frozen=True)
class MinP:
    """Keeps the tokens at least `p` times as likely as the likeliest (Nguyen et al. 2024, arXiv:2407.01082)."""

    p: float

    def __post_init__(self):
        if not 0 < self.p <= 1:
            raise ValueError(f'min-p needs 0 < p <= 1; it is {self.p}')

    def __call__(self, logits: Float32[Array, 'S V'], drawn: Drawn) -> Float32[Array, 'S V']:
        """Forbids every token less likely than that."""
        return jnp.where(logits >= logits.max(axis=-1, keepdims=True) + jnp.log(self.p), logits, -jnp.inf)


@dataclasses.dataclass(frozen=True)
class RepetitionPenalty:
    """Divides the positive logits of tokens that the sample has drawn by a penalty, and multiplies the negative ones
    (Keskar et al. 2019, arXiv:1909.05858, section 4.1). Tokens of the prompt are not punished."""

    penalty: float

    def __post_init__(self):
        if self.penalty <= 0:
            raise ValueError(f'the repetition penalty must be positive; it is {self.penalty}')

    def __call__(self, logits: Float32[Array, 'S V'], drawn: Drawn) -> Float32[Array, 'S V']:
        """Makes tokens that were drawn before less likely."""
        punished = jnp.where(logits > 0, logits / self.penalty, logits * self.penalty)
        return jnp.where(_holds(drawn.tokens, drawn.mask, logits.shape[-1]), punished, logits)


@dataclasses.dataclass(frozen=True)
class NoRepeatedNgram:
    """Forbids the token that would complete `size` tokens in a row that the sample has drawn before (Paulus et al.
    2017, arXiv:1705.04304, section 2.5, there with three). A sample that would have no token left is let be."""

    size: int

    def __post_init__(self):
        if self.size < 2:
            raise ValueError(f'an n-gram that must not be repeated has at least 2 tokens; it has {self.size}')

    def __call__(self, logits: Float32[Array, 'S V'], drawn: Drawn) -> Float32[Array, 'S V']:
        """Forbids what would repeat an n-gram."""
        room = drawn.age.shape[0]
        newest = jnp.argmin(drawn.age)
        # Token t follows a stretch that equals the newest size - 1 tokens: then t is forbidden.
        follows = drawn.age + self.size - 1 < drawn.count[:, None]
        for back in range(1, self.size):
            latest = drawn.tokens[:, (newest - back + 1) % room]
            follows &= jnp.roll(drawn.tokens, back, axis=1) == latest[:, None]
        allowed = jnp.where(_holds(drawn.tokens, follows, logits.shape[-1]), -jnp.inf, logits)
        return jnp.where(jnp.isfinite(allowed).any(axis=-1, keepdims=True), allowed, logits)


def _holds(tokens: Int32[Array, 'S C'], mask: Bool[Array, 'S C'], size: int) -> Bool[Array, 'S {size}']:
    """Which tokens of the vocabulary are among those under the mask."""
    row = jnp.arange(tokens.shape[0])[:, None]
    return jnp.zeros((tokens.shape[0], size), bool).at[row, jnp.where(mask, tokens, size)].set(True, mode='drop')


def threshold(
    logits: Float32[Array, 'S V'], enough: Callable[[Bool[Array, 'S V']], Bool[Array, 'S']]
) -> Float32[Array, 'S 1']:
    """The largest number that enough logits reach, by bisection of its 32 bits: 32 passes and no sort.

    Args:
      logits: none of them NaN.
      enough: whether the logits marked are enough; true where more are marked than where it is true. Where not even
        all are, the least of numbers is returned.
    """

    def ordered(bits: Int32[Array, '*n']) -> Int32[Array, '*n']:  # whole numbers in the order of the floats; involution
        return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)

    places = ordered(jax.lax.bitcast_convert_type(logits + 0.0, jnp.int32))  # -0.0 is 0.0
    low = jnp.full(logits.shape[0], ordered(jax.lax.bitcast_convert_type(jnp.float32(-jnp.inf), jnp.int32)))
    high = jnp.full(logits.shape[0], ordered(jax.lax.bitcast_convert_type(jnp.float32(jnp.inf), jnp.int32)))

    def halve(_: jax.Array, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low >> 1) + (high >> 1) + (low & high & 1)  # their sum may not fit
        good = enough(places >= middle[:, None])
        return jnp.where(good, middle, low), jnp.where(good, high, middle)

    low, _ = jax.lax.fori_loop(0, 32, halve, (low, high))
    return jax.lax.bitcast_convert_type(ordered(low), jnp.float32)[:, None]


def draw(logits: Float32[Array, 'S V'], uniform: Float32[Array, 'S']) -> tuple[Int32[Array, 'S'], Float32[Array, 'S']]:
    """Draws one token a row by inverting the cumulative distribution at one uniform number in [0, 1).

    One random number a token, where the Gumbel trick takes one for each entry of the vocabulary; and running sums of
    blocks, then within the block that was found, instead of one over the vocabulary. On a CPU by a kernel of our own.

    Returns:
      The token, and the logarithm of the sum of the exponentials of its row.
    """
    if not native.trouble('float32'):

        def drawn(logits: jax.Array, uniform: jax.Array) -> list[jax.Array]:
            shape = logits.shape[:1]
            found = [jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.float32)]
            return native.call('draw_tokens', found, logits, uniform)

        token, total = partitioning.by_rows(drawn, (logits, uniform))
        return token, total
    peak = logits.max(axis=-1)
    weight = jnp.exp(logits - peak[:, None])
    blocks = _blocks(weight, 0.0)
    sums = blocks.sum(axis=-1)
    ends = jnp.cumsum(sums, axis=-1)
    total = ends[:, -1]
    aim = uniform * total
    chosen = _first(ends > aim[:, None], sums > 0)
    before = jnp.where(chosen > 0, _at(ends, jnp.maximum(chosen - 1, 0)), 0.0)
    inside = _at(blocks, chosen)
    token = chosen * blocks.shape[-1] + _first(before[:, None] + jnp.cumsum(inside, axis=-1) > aim[:, None], inside > 0)
    return token, peak + jnp.log(total)


def log_sum_exp(logits: Float32[Array, 'S V']) -> Float32[Array, 'S']:
    """The logarithm of the sum of the exponentials of each row. On a CPU by a kernel of our own."""
    if native.trouble('float32'):
        return jax.nn.logsumexp(logits, axis=-1)
    of = lambda logits: native.call('log_sum_exp', jax.ShapeDtypeStruct(logits.shape[:1], jnp.float32), logits)  # noqa: E731
    return partitioning.by_rows(of, (logits,))


def likeliest(logits: Float32[Array, 'S V']) -> Int32[Array, 'S']:
    """The first token of the largest logit of each row: the largest of each block, then within its block."""
    blocks = _blocks(logits, -jnp.inf)
    peaks = blocks.max(axis=-1)
    chosen = jnp.argmax(peaks, axis=-1)
    return (chosen * blocks.shape[-1] + jnp.argmax(_at(blocks, chosen), axis=-1)).astype(jnp.int32)


def _first(beyond: Bool[Array, 'S n'], able: Bool[Array, 'S n']) -> Int32[Array, 'S']:
    """The first place beyond the aim that has weight. A running sum is not flat to the last bit over places without
    weight, and rounding may carry the aim past the last place with weight: that one is then answered."""
    beyond &= able
    last = able.shape[-1] - 1 - jnp.argmax(able[:, ::-1], axis=-1)
    return jnp.where(beyond.any(axis=-1), jnp.argmax(beyond, axis=-1), last).astype(jnp.int32)


def _blocks(x: Float32[Array, 'S V'], filling: float) -> Float32[Array, 'S b B']:
    """Rows cut into blocks; those of a small vocabulary are one block."""
    size = x.shape[-1]
    block = BLOCK if size > 4 * BLOCK else size
    return jnp.pad(x, ((0, 0), (0, -size % block)), constant_values=filling).reshape(x.shape[0], -1, block)


def _at(x: jax.Array, index: Int[Array, 'S']) -> jax.Array:
    """x[row, index[row]] of each row."""
    return jax.vmap(lambda row, place: row[place])(x, index)
