"""The encoder-decoder families of transformers: T5 (1.1, Flan and UL2 too), mT5 and UMT5.

Whether an output embedding is tied, and whether logits are scaled by width ** -0.5, are two questions. Releases of
transformers before 5 wrote one answer to both, `tie_word_embeddings`. Release 5 ties whatever has no `lm_head.weight`
of its own; it scales T5 as `scale_decoder_outputs` says (which it writes), mT5 never, UMT5 always before 5.24 and as T5
since. Here a `scale_decoder_outputs` is believed wherever there is one. An UMT5 checkpoint with `tie_word_embeddings` =
false is read as it was meant, without a scale.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from t5x_selfimprove.models.encoder_decoder_config import EncoderDecoderConfig
from t5x_selfimprove.models.hugging_face.fields import Fields
from t5x_selfimprove.models.hugging_face.names import Name
from t5x_selfimprove.models.hugging_face.stored import stored_tensors

Values = dict[str, Any]
HEAD = 'lm_head.weight'

# feed_forward_proj -> our activation and whether there is a gate. 'gated-gelu' is the tanh approximation, by decree.
PROJECTIONS = {
    'gated-gelu': ('gelu_tanh', True),
    'gated-silu': ('silu', True),
    'gated-relu': ('relu', True),
    'relu': ('relu', False),
    'silu': ('silu', False),
    'gelu': ('gelu', False),
    'gelu_new': ('gelu_tanh', False),
}
# Of training, of tokens, or said again by feed_forward_proj: they change nothing in what the model computes.
WITHOUT_EFFECT = frozenset(
    'dropout_rate classifier_dropout initializer_factor n_positions task_specific_params output_past is_decoder '
    'gradient_checkpointing dense_act_fn is_gated_act tokenizer_class scalable_attention problem_type '
    'chunk_size_feed_forward output_hidden_states output_attentions'.split()
)
DEFAULTS = {
    'd_model': 512,
    'd_kv': 64,
    'd_ff': 2048,
    'num_layers': 6,
    'num_heads': 8,
    'relative_attention_num_buckets': 32,
    'relative_attention_max_distance': 128,
    'layer_norm_epsilon': 1e-6,
    'feed_forward_proj': 'relu',
    'is_encoder_decoder': True,
    'tie_word_embeddings': True,
    'pad_token_id': 0,
    'vocab_size': 32128,
}
MT5 = {
    **DEFAULTS,
    'd_ff': 1024,
    'num_layers': 8,
    'num_heads': 6,
    'feed_forward_proj': 'gated-gelu',
    'vocab_size': 250112,
}


def _read(scales: bool, per_layer: bool) -> Callable[[Fields], Values]:
    """The reader of a family: whether it can scale its logits, whether every layer has a bias of its own."""

    def read(fields: Fields) -> Values:
        fields.used |= WITHOUT_EFFECT
        if not fields.flag('is_encoder_decoder'):
            raise fields.refuse('is_encoder_decoder', 'leaves out the encoder, which is not supported')
        layers, width = fields.integer('num_layers'), fields.integer('d_model')
        projection = PROJECTIONS[fields.one_of('feed_forward_proj', {name: name for name in PROJECTIONS})]
        tie, scaled = fields.flag('tie_word_embeddings'), fields.get('scale_decoder_outputs')
        scaled = scales and (tie if scaled is None else bool(scaled))
        start = fields.get('decoder_start_token_id')
        return {
            'width': width,
            'encoder_layers': layers,
            'decoder_layers': fields.integer('num_decoder_layers', layers),
            'heads': fields.integer('num_heads'),
            'head_size': fields.integer('d_kv'),
            'feed_forward': fields.integer('d_ff'),
            'activation': projection[0],
            'gated': projection[1],
            'norm_epsilon': fields.number('layer_norm_epsilon'),
            'buckets': fields.integer('relative_attention_num_buckets'),
            'furthest': fields.integer('relative_attention_max_distance'),
            'bias_per_layer': per_layer,
            'tied': tie and not _has_head(fields),
            'logit_scale': width**-0.5 if scaled else 1.0,
            'embedding_rows': fields.integer('vocab_size'),
            'start_token': fields.get('pad_token_id') if start is None else start,
        }

    return read


def _has_head(fields: Fields) -> bool:
    """Whether the checkpoint holds an output embedding of its own; False where there is no checkpoint yet."""
    folder = fields.file.parent
    return any(folder.glob('*.safetensors')) and HEAD in stored_tensors(folder)


def _write(scales: bool, per_layer: bool) -> Callable[[EncoderDecoderConfig], Values]:
    """The writer of a family. It raises ValueError naming a field that the family cannot say."""

    def write(config: EncoderDecoderConfig) -> Values:
        if config.bias_per_layer != per_layer:
            raise ValueError(f'bias_per_layer = {config.bias_per_layer}')
        names = {ours: name for name, ours in PROJECTIONS.items()}
        if (config.activation, config.gated) not in names:
            raise ValueError(f'activation = {config.activation!r} with gated = {config.gated}')
        scaled = config.scale != 1
        if config.scale not in (1.0, config.width**-0.5) or (scaled and not scales):
            raise ValueError(f'logit_scale = {config.scale}')
        apart = {} if scaled == config.tied or not scales else {'scale_decoder_outputs': scaled}
        return {
            'is_encoder_decoder': True,
            'd_model': config.width,
            'd_kv': config.head_size,
            'd_ff': config.feed_forward,
            'num_layers': config.encoder_layers,
            'num_decoder_layers': config.decoder_layers,
            'num_heads': config.heads,
            'relative_attention_num_buckets': config.buckets,
            'relative_attention_max_distance': config.furthest,
            'layer_norm_epsilon': config.norm_epsilon,
            'feed_forward_proj': names[config.activation, config.gated],
            'tie_word_embeddings': config.tied,
            'vocab_size': config.embedding_rows,
            'decoder_start_token_id': config.start_token,
            **apart,
        }

    return write


def table(config: EncoderDecoderConfig, present: Sequence[str] = ()) -> Mapping[str, Name]:
    """Which tensor is which parameter. The checkpoint's tensors `present` change nothing."""
    del present
    found = {'embedding': Name('shared.weight', 'vocabulary model'), 'head': Name(HEAD, 'vocabulary model')}
    for stack, last in (('encoder', 1), ('decoder', 2)):
        layer, ours = f'{stack}.block.{{layer}}.layer.', f'{stack}.blocks.'
        found |= _attention(f'{layer}0.', 'SelfAttention', f'{ours}attention.')
        if stack == 'decoder':
            found |= _attention(f'{layer}1.', 'EncDecAttention', f'{ours}cross_attention.')
        bias = '0.SelfAttention.relative_attention_bias.weight'
        found[f'{ours}bias'] = Name(layer + bias, 'buckets heads')
        found[f'{stack}.bias'] = Name(f'{stack}.block.0.layer.{bias}', 'buckets heads')
        names = {'gate': 'wi_0', 'up': 'wi_1'} if config.gated else {'up': 'wi'}
        for name, theirs in names.items():
            found[f'{ours}feed_forward.{name}'] = Name(
                f'{layer}{last}.DenseReluDense.{theirs}.weight', 'feed_forward model'
            )
        found[f'{ours}feed_forward.down'] = Name(f'{layer}{last}.DenseReluDense.wo.weight', 'model feed_forward')
        found[f'{ours}feed_forward_norm.scale'] = Name(f'{layer}{last}.layer_norm.weight', 'norm')
        found[f'{stack}.final_norm.scale'] = Name(f'{stack}.final_layer_norm.weight', 'norm')
    return found


def _attention(place: str, kind: str, ours: str) -> dict[str, Name]:
    inputs = {'query': 'q', 'key': 'k', 'value': 'v'}
    return {
        **{ours + name: Name(f'{place}{kind}.{theirs}.weight', 'heads.head model') for name, theirs in inputs.items()},
        f'{ours}out': Name(f'{place}{kind}.o.weight', 'model heads.head'),
        f'{ours}norm.scale': Name(f'{place}layer_norm.weight', 'norm'),
    }


# Architecture, model_type, reader, writer, the values that transformers gives to fields left out.
ROWS = (
    ('T5ForConditionalGeneration', 't5', _read(True, False), _write(True, False), DEFAULTS),
    ('MT5ForConditionalGeneration', 'mt5', _read(False, False), _write(False, False), MT5),
    ('UMT5ForConditionalGeneration', 'umt5', _read(True, True), _write(True, True), MT5),
)
