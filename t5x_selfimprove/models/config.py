"""Sizes and options of the decoder-only transformer: one set of fields for all families.

`hugging_face/` fills these from a checkpoint's config.json; gin/models/ has the public sizes.
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np

from t5x_selfimprove.models.adapters import LowRank, adapt

if TYPE_CHECKING:
    from t5x_selfimprove.models.transformer import Transformer

# How it is computed, not what: results agree to rounding.
EXECUTION_FIELDS = ('attention', 'remat', 'unroll', 'vocabulary_chunk')
DTYPES = ('float32', 'bfloat16')
REMAT = ('none', 'dots', 'full')
ACTIVATIONS = ('silu', 'gelu', 'gelu_tanh', 'relu')
NORMS = ('rms', 'layer')
KINDS = ('full', 'sliding')
KERNELS = ('auto', 'plain', 'fused', 'splash')


def one_of(field: str, value: Any, known: tuple[str, ...]) -> None:
    """Raises ValueError unless the value of a field is one of those known."""
    if value not in known:
        *others, last = (repr(word) for word in known)
        raise ValueError(f'{field} must be {", ".join(others)} or {last}; it is {value!r}')


class ModelConfig(Protocol):
    """What a run asks of a model's settings, of whatever kind; frozen dataclasses."""

    @property
    def reads_source(self) -> bool:
        """Whether prompts are read by an encoder, apart from the completions."""
        ...

    def create(self, vocabulary_size: int, key: jax.Array) -> Any:
        """A freshly initialised model."""


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864), with the scaling of longer contexts.

    'linear' divides every frequency by `factor` (Chen et al. 2023, arXiv:2306.15595). 'llama3' (Llama 3.1, Grattafiori
    et al. 2024, arXiv:2407.21783) divides those whose wavelength is longer than original_length /
    low_frequency_factor, leaves those shorter than original_length / high_frequency_factor, and blends between.

    Raises:
      ValueError: an unknown scaling, or a number out of range.
    """

    theta: float = 10000.0
    scaling: str = 'none'  # or 'linear', 'llama3'
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_length: int = 8192  # tokens, before scaling

    def __post_init__(self):
        one_of('Rope.scaling', self.scaling, ('none', 'linear', 'llama3'))
        if self.theta <= 0 or self.factor <= 0 or self.original_length < 1:
            raise ValueError(
                f'Rope needs theta, factor and original_length above 0; they are {self.theta}, {self.factor}, '
                f'{self.original_length}'
            )
        if self.low_frequency_factor >= self.high_frequency_factor:
            raise ValueError(
                f'Rope.low_frequency_factor = {self.low_frequency_factor} must be below '
                f'high_frequency_factor = {self.high_frequency_factor}'
            )

    def frequencies(self, head_size: int) -> np.ndarray:
        """Radians per position of each pair of a head's numbers, float32 [head_size / 2]."""
        plain = 1.0 / self.theta ** (np.arange(0, head_size, 2, dtype=np.float64) / head_size)
        if self.scaling == 'linear':
            plain = plain / self.factor
        if self.scaling == 'llama3':
            turns = self.original_length * plain / (2 * math.pi)  # full turns within the original length
            width = self.high_frequency_factor - self.low_frequency_factor
            kept = np.clip((turns - self.low_frequency_factor) / width, 0.0, 1.0)
            plain = kept * plain + (1 - kept) * plain / self.factor
        return plain.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of each feed-forward: the k experts with the largest router probability answer.

    Mixtral (Jiang et al. 2024, arXiv:2401.04088) and Qwen3-MoE (arXiv:2505.09388). No token is dropped.

    Raises:
      ValueError: fewer experts than are chosen.
    """

    count: int
    chosen: int  # k, experts a token is sent to
    feed_forward: int  # width of each expert
    normalize: bool = True  # the k probabilities are divided by their sum
    balance: float = 0.001  # weight of the load-balancing loss (Fedus et al. 2021, arXiv:2101.03961, eq. 4)

    def __post_init__(self):
        if not 1 <= self.chosen <= self.count or self.feed_forward < 1 or self.balance < 0:
            raise ValueError(f'Experts needs 1 <= chosen <= count, feed_forward >= 1 and balance >= 0; it is {self}')


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and options of a decoder-only transformer.

    Raises:
      ValueError: sizes that do not fit together; names the fields.
    """

    width: int = 96  # D
    layers: int = 2  # L
    heads: int = 4  # H
    kv_heads: int = 4  # K
    head_size: int = 24  # h, even
    feed_forward: int = 256  # F
    experts: Experts | None = None  # in place of the feed-forward
    activation: str = 'silu'  # of the gate; 'gelu' is exact, 'gelu_tanh' its approximation
    norm: str = 'rms'  # or 'layer': with the mean taken off; neither has a bias
    norm_epsilon: float = 1e-6
    norm_offset: float = 0.0  # added to every norm's scale (Gemma: 1)
    post_norms: bool = False  # norms after attention and after the feed-forward too (Gemma 2, 3)
    parallel: bool = False  # x + attention(norm(x)) + feed_forward(norm(x)) (PaLM)
    rope: Rope | None = Rope()  # None: no positions but those the causal mask tells (arXiv:2305.19466)
    local_rope: Rope | None = None  # of the sliding layers; None: `rope`
    sliding_window: int = 0  # tokens a sliding layer sees, itself included; 0: no layer slides
    attention_pattern: tuple[str, ...] = ('full',)  # 'full' or 'sliding', repeated over the layers
    qkv_bias: bool = False  # (Qwen 2.5)
    qk_norm: bool = False  # norms over each head of queries and keys (Qwen 3, Gemma 3)
    query_scale: float | None = None  # of the scores; None: head_size ** -0.5
    attention_softcap: float = 0.0  # scores become cap * tanh(scores / cap); 0: as they are
    embedding_scale: bool = False  # embeddings are multiplied by sqrt(width) (Gemma)
    tied: bool = True  # the output embedding is the input embedding
    embedding_rows: int = 0  # of the embedding, at least the vocabulary's tokens, the rest never drawn; 0: one a token
    logit_scale: float = 1.0  # of the logits (PaLM: width ** -0.5)
    logit_softcap: float = 0.0
    low_rank: LowRank | None = None  # adapters that train in place of the model's own weights
    dropout: float = 0.0  # after the embedding and after each attention and feed-forward, in learning only
    dtype: str = 'float32'  # of the computation
    parameter_dtype: str = 'float32'  # of the parameters; 'bfloat16' for models that are not trained
    attention: str = 'auto'  # the kernel for whole rows (models/kernels.py): 'plain', 'fused', 'splash'
    remat: str = 'none'  # backward pass: 'full' recomputes each layer, 'dots' all but its matrix products
    unroll: int = 1  # layers per iteration of the scan over layers
    vocabulary_chunk: int = 8192  # rows of the output embedding per visit in log_probs

    def __post_init__(self):
        sizes = ('width', 'layers', 'heads', 'kv_heads', 'head_size', 'feed_forward', 'unroll', 'vocabulary_chunk')
        for field in sizes:
            if getattr(self, field) < 1:
                raise ValueError(f'{field} must be at least 1; it is {getattr(self, field)}')
        if self.heads % self.kv_heads:
            raise ValueError(f'heads = {self.heads} must be a multiple of kv_heads = {self.kv_heads}')
        if self.head_size % 2:
            raise ValueError(f'head_size must be even for rotary positions; it is {self.head_size}')
        if not 0 <= self.dropout < 1:
            raise ValueError(f'dropout must be in [0, 1); it is {self.dropout}')
        for field, known in (
            ('dtype', DTYPES),
            ('parameter_dtype', DTYPES),
            ('attention', KERNELS),
            ('remat', REMAT),
            ('activation', ACTIVATIONS),
            ('norm', NORMS),
        ):
            one_of(field, getattr(self, field), known)
        self._check_attention()

    def _check_attention(self) -> None:
        if not self.attention_pattern:
            raise ValueError("attention_pattern must name at least one of 'full', 'sliding'")
        for kind in self.attention_pattern:
            one_of('attention_pattern', kind, KINDS)
        if ('sliding' in self.attention_pattern) != (self.sliding_window > 0):
            raise ValueError(
                f'sliding_window = {self.sliding_window} and attention_pattern = {self.attention_pattern} contradict '
                "each other: give both a window and a pattern with 'sliding', or neither"
            )
        if self.local_rope is not None and not (self.sliding_window and self.rope):
            raise ValueError(
                'local_rope is of the sliding layers, beside the rope of the others; one of them is missing'
            )
        if min(self.attention_softcap, self.logit_softcap) < 0:
            raise ValueError(
                f'soft-caps must be positive, or 0 for none; they are {self.attention_softcap}, {self.logit_softcap}'
            )
        if self.attention == 'fused' and self.attention_softcap:
            raise ValueError(
                f"attention = 'fused' has no soft-cap, and attention_softcap is {self.attention_softcap}; set "
                "attention to 'auto', 'plain' or, on TPUs, 'splash'"
            )
        if self.parallel and self.post_norms:
            raise ValueError('parallel blocks have one norm, before; post_norms must be False')

    @property
    def sliding(self) -> tuple[bool, ...]:
        """Whether each layer sees the sliding window alone."""
        pattern = self.attention_pattern
        return tuple(pattern[layer % len(pattern)] == 'sliding' for layer in range(self.layers))

    @property
    def reads_source(self) -> bool:
        """Prompts and completions are rows of one kind."""
        return False

    def create(self, vocabulary_size: int, key: jax.Array) -> 'Transformer':
        """A freshly initialised model. Raises ValueError where `embedding_rows` are fewer than the tokens."""
        from t5x_selfimprove.models.transformer import Transformer  # which needs this module

        rows = self.embedding_rows or vocabulary_size
        if rows < vocabulary_size:
            raise ValueError(
                f'embedding_rows = {rows} are fewer than the {vocabulary_size} tokens of the vocabulary; use the '
                "model's own vocabulary"
            )
        model = Transformer(self, rows, key)
        model = jax.tree.map(lambda array: array.astype(self.parameter_dtype), model)
        return adapt(model, self.low_rank, jax.random.fold_in(key, 1))
