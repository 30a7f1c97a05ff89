"""Sizes and options of the encoder-decoder: T5, T5 1.1, Flan-T5, mT5, UMT5 and UL2."""

import dataclasses
from typing import TYPE_CHECKING

import jax

from t5x_selfimprove.models.adapters import LowRank, adapt
from t5x_selfimprove.models.config import ACTIVATIONS, DTYPES, REMAT, one_of

if TYPE_CHECKING:
    from t5x_selfimprove.models.encoder_decoder import EncoderDecoder


@dataclasses.dataclass(frozen=True)
class EncoderDecoderConfig:
    """Sizes and options of an encoder-decoder; the defaults are T5 1.1's but for the sizes.

    Raises:
      ValueError: sizes that do not fit together; names the fields.
    """

    width: int = 64  # D
    encoder_layers: int = 2
    decoder_layers: int = 2
    heads: int = 4  # H
    head_size: int = 16  # h
    feed_forward: int = 128  # F
    activation: str = 'gelu_tanh'  # 'silu' in UL2, 'relu' in the first T5
    gated: bool = True  # down(activation(gate(x)) * up(x)); else down(activation(up(x))), as in the first T5
    norm_epsilon: float = 1e-6
    buckets: int = 32  # of distances between tokens, for the position bias
    furthest: int = 128  # distance from which on all share a bucket
    bias_per_layer: bool = False  # every layer has a position bias of its own (UMT5); else a stack shares one
    tied: bool = False  # the output embedding is the input embedding (the first T5)
    logit_scale: float | None = None  # of the logits; None: width ** -0.5 where tied, else 1, as in T5
    embedding_rows: int = 0  # of the embedding, at least the vocabulary's tokens, the rest never drawn; 0: one a token
    start_token: int = 0  # what the decoder reads first; T5 takes the padding token
    low_rank: LowRank | None = None  # adapters that train in place of the model's own weights
    dropout: float = 0.0  # after the embedding and after each attention and feed-forward, in learning only
    dtype: str = 'float32'  # of the computation
    parameter_dtype: str = 'float32'  # of the parameters; 'bfloat16' for models that are not trained
    remat: str = 'none'  # backward pass: 'full' recomputes each layer, 'dots' all but its matrix products
    unroll: int = 1  # layers per iteration of the scan over layers
    vocabulary_chunk: int = 8192  # rows of the output embedding per visit in log_probs

    def __post_init__(self):
        sizes = ('width', 'encoder_layers', 'decoder_layers', 'heads', 'head_size', 'feed_forward', 'unroll')
        for field in (*sizes, 'vocabulary_chunk'):
            if getattr(self, field) < 1:
                raise ValueError(f'{field} must be at least 1; it is {getattr(self, field)}')
        if self.buckets < 4 or self.buckets % 4 or self.furthest <= self.buckets // 2:
            raise ValueError(
                'buckets must be a positive multiple of 4 and furthest more than half of them; '
                f'buckets = {self.buckets}, furthest = {self.furthest}'
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f'dropout must be in [0, 1); it is {self.dropout}')
        if min(self.start_token, self.embedding_rows) < 0:
            raise ValueError(
                f'start_token = {self.start_token} and embedding_rows = {self.embedding_rows} must be 0 or more'
            )
        for field, known in (
            ('dtype', DTYPES),
            ('parameter_dtype', DTYPES),
            ('remat', REMAT),
            ('activation', ACTIVATIONS),
        ):
            one_of(field, getattr(self, field), known)

    @property
    def reads_source(self) -> bool:
        """Prompts are read by an encoder, apart from the completions."""
        return True

    @property
    def layers(self) -> int:
        """Layers of both stacks."""
        return self.encoder_layers + self.decoder_layers

    @property
    def scale(self) -> float:
        """What the logits are multiplied by."""
        return (self.width**-0.5 if self.tied else 1.0) if self.logit_scale is None else self.logit_scale

    def create(self, vocabulary_size: int, key: jax.Array) -> 'EncoderDecoder':
        """A freshly initialised model.

        Raises:
          ValueError: the embedding has no row for a token of the vocabulary, or for the start token.
        """
        from t5x_selfimprove.models.encoder_decoder import EncoderDecoder  # which needs this module

        rows = self.embedding_rows or vocabulary_size
        if rows < vocabulary_size or self.start_token >= rows:
            raise ValueError(
                f'embedding_rows = {rows} are too few for the {vocabulary_size} tokens of the vocabulary or for '
                f"start_token = {self.start_token}; use the model's own vocabulary"
            )
        model = EncoderDecoder(self, rows, key)
        model = jax.tree.map(lambda array: array.astype(self.parameter_dtype), model)
        return adapt(model, self.low_rank, jax.random.fold_in(key, 1))
