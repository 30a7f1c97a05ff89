"""The families of transformers (encoder-decoders: t5.py): what their config.json says in our fields, and back.

A family refuses whatever changes the computation and is not a field of our configuration. Values that a config.json
leaves out are those of the family's configuration class in transformers.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from t5x_selfimprove.models.config import Experts, TransformerConfig
from t5x_selfimprove.models.encoder_decoder_config import EncoderDecoderConfig
from t5x_selfimprove.models.hugging_face import names, ropes, t5
from t5x_selfimprove.models.hugging_face.comparing import Config, shortest
from t5x_selfimprove.models.hugging_face.fields import Fields

ACTIVATIONS = {
    'silu': 'silu',
    'swish': 'silu',
    'gelu': 'gelu',
    'gelu_pytorch_tanh': 'gelu_tanh',
    'gelu_new': 'gelu_tanh',
}
ACTIVATION_NAMES = {'silu': 'silu', 'gelu': 'gelu', 'gelu_tanh': 'gelu_pytorch_tanh'}
BIAS = 'puts a bias on the output projection too, which is not supported'
Values = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Family:
    """One architecture of transformers."""

    architecture: str
    model_type: str
    read: Callable[[Fields], Values]  # fields of our configuration
    write: Callable[[Any], Values]  # fields of config.json
    defaults: Mapping[str, Any]
    made: type = TransformerConfig  # our configuration

    def config(self, fields: Fields) -> Config:
        """Our configuration. Raises ValueError naming the file, the field, its value and the way out."""
        values = self.read(fields)
        fields.off('quantization_config', 'means quantised weights, which are not supported')
        fields.off('attention_dropout', 'drops attention in training, which is not supported')
        fields.finish()
        return self.made(**values)

    def values(self, config: Config) -> Values:
        """The fields of config.json that say what the model computes."""
        return {'architectures': [self.architecture], 'model_type': self.model_type, **self.write(config)}

    def table(self, config: Config, present: Sequence[str] = ()) -> Mapping[str, names.Name]:
        """Which tensor is which parameter, for a checkpoint with the tensors `present`."""
        if isinstance(config, EncoderDecoderConfig):
            return t5.table(config, present)
        return names.table_of(self.architecture, present)


def _read_plain(fields: Fields, activation: str = 'hidden_act', epsilon: str = 'rms_norm_eps') -> Values:
    """What all families have: sizes, activation, norm, tied embeddings."""
    width, heads = fields.integer('hidden_size'), fields.integer('num_attention_heads')
    return {
        'width': width,
        'layers': fields.integer('num_hidden_layers'),
        'heads': heads,
        'kv_heads': fields.integer('num_key_value_heads', heads),
        'head_size': fields.integer('head_dim', width // heads),
        'feed_forward': fields.integer('intermediate_size'),
        'activation': fields.one_of(activation, ACTIVATIONS),
        'norm_epsilon': fields.number(epsilon),
        'tied': fields.flag('tie_word_embeddings'),
        'embedding_rows': fields.integer('vocab_size'),
    }


def _write_plain(config: TransformerConfig, activation: str = 'hidden_act', epsilon: str = 'rms_norm_eps') -> Values:
    return {
        'hidden_size': config.width,
        'num_hidden_layers': config.layers,
        'num_attention_heads': config.heads,
        'num_key_value_heads': config.kv_heads,
        'head_dim': config.head_size,
        'intermediate_size': config.feed_forward,
        activation: ACTIVATION_NAMES[config.activation],
        epsilon: config.norm_epsilon,
        'tie_word_embeddings': config.tied,
        'vocab_size': config.embedding_rows,
        **ropes.write_rope(config.rope),
    }


def _pattern(fields: Fields, layers: int, kinds: list[str] | None = None) -> tuple[str, ...]:
    """Which layers slide: `layer_types`, or else `kinds`."""
    found = fields.get('layer_types')
    if found is None:
        return tuple(kinds or ('full',))
    if len(found) != layers or set(found) - set(ropes.LAYER_TYPES):
        raise fields.refuse('layer_types', f'must be {layers} of {", ".join(ropes.LAYER_TYPES)}')
    return shortest(tuple(kind.removesuffix('_attention') for kind in found))


def _layer_types(config: TransformerConfig) -> list[str]:
    return ['sliding_attention' if slides else 'full_attention' for slides in config.sliding]


def _windowed(fields: Fields, pattern: tuple[str, ...]) -> Values:
    if 'sliding' not in pattern:
        fields.used.add('sliding_window')
        return {}
    return {'sliding_window': fields.integer('sliding_window'), 'attention_pattern': pattern}


def _read_llama(fields: Fields) -> Values:
    fields.off('attention_bias', BIAS)
    fields.off('mlp_bias', 'puts biases on the feed-forward, which is not supported')
    return {**_read_plain(fields), 'rope': ropes.read_rope(fields)}


def _write_llama(config: TransformerConfig) -> Values:
    return {**_write_plain(config), 'attention_bias': False, 'mlp_bias': False}


def _read_all_sliding(fields: Fields) -> Values:
    """Mistral and Mixtral: a window, where there is one, is every layer's."""
    window = fields.get('sliding_window')
    fields.off('layer_types', 'is not read by this family')
    return {
        **_read_plain(fields),
        'rope': ropes.read_rope(fields),
        **({} if window is None else _windowed(fields, ('sliding',))),
    }


def _write_all_sliding(config: TransformerConfig) -> Values:
    return {**_write_plain(config), 'sliding_window': config.sliding_window or None}


def _read_qwen(fields: Fields) -> Values:
    """Qwen 2 and 3: `layer_types`, or a window for the layers from max_window_layers on."""
    plain = _read_plain(fields)
    layers, slides = plain['layers'], fields.flag('use_sliding_window') and fields.get('sliding_window') is not None
    first = fields.get('max_window_layers')
    kinds = ['sliding' if slides and layer >= first else 'full' for layer in range(layers)]
    pattern = _pattern(fields, layers, list(shortest(tuple(kinds))))
    if 'sliding' in pattern and not slides:
        raise fields.refuse('layer_types', 'has sliding layers and use_sliding_window is false', 'Correct one of them')
    return {**plain, 'rope': ropes.read_rope(fields), **_windowed(fields, pattern)}


def _read_qwen2(fields: Fields) -> Values:
    return {**_read_qwen(fields), 'qkv_bias': True}


def _read_qwen3(fields: Fields) -> Values:
    fields.off('attention_bias', BIAS)
    return {**_read_qwen(fields), 'qk_norm': True}


def _write_qwen(config: TransformerConfig) -> Values:
    slides = any(config.sliding)
    window = {'sliding_window': config.sliding_window or None, 'use_sliding_window': slides}
    if slides:  # older releases read this alone; it says the same where the full layers come first
        window['max_window_layers'] = config.sliding.index(True)
    return {**_write_plain(config), **window, 'layer_types': _layer_types(config)}


def _read_experts(fields: Fields, width: int, normalize: bool) -> Experts:
    return Experts(
        count=fields.integer('num_experts', fields.get('num_local_experts')),
        chosen=fields.integer('num_experts_per_tok'),
        feed_forward=width,
        normalize=normalize,
        balance=fields.number('router_aux_loss_coef'),
    )


def _read_qwen3_moe(fields: Fields) -> Values:
    fields.off('attention_bias', BIAS)
    fields.off('mlp_only_layers', 'leaves layers without experts, which is not supported')
    fields.off('decoder_sparse_step', 'leaves layers without experts, which is not supported', 1)
    window = fields.get('sliding_window') if fields.flag('use_sliding_window') else None
    return {
        **_read_plain(fields),
        'qk_norm': True,
        'rope': ropes.read_rope(fields),
        'experts': _read_experts(fields, fields.integer('moe_intermediate_size'), fields.flag('norm_topk_prob')),
        **({} if window is None else _windowed(fields, ('sliding',))),
    }


def _write_qwen3_moe(config: TransformerConfig) -> Values:
    experts = config.experts or Experts(1, 1, 1)
    return {
        **_write_all_sliding(config),
        'use_sliding_window': any(config.sliding),
        'num_experts': experts.count,
        'num_experts_per_tok': experts.chosen,
        'moe_intermediate_size': experts.feed_forward,
        'norm_topk_prob': experts.normalize,
        'router_aux_loss_coef': experts.balance,
        'decoder_sparse_step': 1,
        'mlp_only_layers': [],
    }


def _read_mixtral(fields: Fields) -> Values:
    fields.off('router_jitter_noise', 'shakes the router in training, which is not supported')
    values = _read_all_sliding(fields)
    return {**values, 'experts': _read_experts(fields, values['feed_forward'], True)}


def _write_mixtral(config: TransformerConfig) -> Values:
    experts = config.experts or Experts(1, 1, 1)
    return {
        **_write_all_sliding(config),
        'intermediate_size': experts.feed_forward,
        'num_local_experts': experts.count,
        'num_experts_per_tok': experts.chosen,
        'router_aux_loss_coef': experts.balance,
    }


def _read_gemma(fields: Fields) -> Values:
    fields.off('attention_bias', BIAS)
    fields.off('use_bidirectional_attention', 'lets tokens see what comes after them, which is not supported')
    fields.used.add('hidden_act')  # transformers reads hidden_activation
    return {
        **_read_plain(fields, 'hidden_activation'),
        'norm_offset': 1.0,
        'post_norms': True,
        'embedding_scale': True,
        'query_scale': fields.number('query_pre_attn_scalar') ** -0.5,
        'logit_softcap': float(fields.get('final_logit_softcapping') or 0.0),
    }


def _write_gemma(config: TransformerConfig) -> Values:
    return {
        **_write_plain(config, 'hidden_activation'),
        'query_pre_attn_scalar': round((config.query_scale or config.head_size**-0.5) ** -2),
        'final_logit_softcapping': config.logit_softcap or None,
        'sliding_window': config.sliding_window or None,
        'layer_types': _layer_types(config),
    }


def _read_gemma2(fields: Fields) -> Values:
    values = _read_gemma(fields)
    softcap = float(fields.get('attn_logit_softcapping') or 0.0)
    kinds = list(shortest(('sliding', 'full')[: values['layers']]))
    window = _windowed(fields, _pattern(fields, values['layers'], kinds))
    return {**values, 'rope': ropes.read_rope(fields), 'attention_softcap': softcap, **window}


def _write_gemma2(config: TransformerConfig) -> Values:
    return {**_write_gemma(config), 'attn_logit_softcapping': config.attention_softcap or None}


def _read_gemma3(fields: Fields) -> Values:
    fields.off('attn_logit_softcapping', 'is not read by this family in transformers')
    values, layers = _read_gemma(fields), fields.integer('num_hidden_layers')
    full, local = ropes.read_ropes(fields)
    every = fields.integer('sliding_window_pattern', fields.integer('_sliding_window_pattern', 6))
    kinds = ['sliding' if (layer + 1) % every else 'full' for layer in range(layers)]
    window = _windowed(fields, _pattern(fields, layers, list(shortest(tuple(kinds)))))
    return {**values, 'qk_norm': True, 'rope': full, **({'local_rope': local} if window else {}), **window}


def _write_gemma3(config: TransformerConfig) -> Values:
    local, every = config.local_rope or config.rope, len(shortest(tuple(config.attention_pattern)))
    pattern = {'sliding_window_pattern': every} if every > 1 else {}  # older releases read this alone
    return {**_write_gemma(config), 'rope_local_base_freq': local and local.theta, **pattern}


def _read_cohere(fields: Fields) -> Values:
    fields.off('attention_bias', BIAS)
    fields.off('use_qk_norm', 'has a norm for each head, which is not supported')
    return {
        **_read_plain(fields, epsilon='layer_norm_eps'),
        'rope': ropes.read_rope(fields),
        'norm': 'layer',
        'parallel': True,
        'logit_scale': fields.number('logit_scale'),
    }


def _write_cohere(config: TransformerConfig) -> Values:
    return {**_write_plain(config, epsilon='layer_norm_eps'), 'logit_scale': config.logit_scale}


PLAIN = {'hidden_act': 'silu', 'rms_norm_eps': 1e-6, 'tie_word_embeddings': False, 'rope_theta': 10000.0}
QWEN = {**PLAIN, 'max_position_embeddings': 32768, 'max_window_layers': 28, 'sliding_window': 4096}
QWEN2 = {'num_key_value_heads': 32}
QWEN3 = {'num_key_value_heads': 32, 'head_dim': 128}
MOE = {
    'num_key_value_heads': 4,
    'num_experts_per_tok': 8,
    'moe_intermediate_size': 768,
    'router_aux_loss_coef': 0.001,
    'norm_topk_prob': False,
}
GEMMA = {
    'hidden_activation': 'gelu_pytorch_tanh',
    'hidden_size': 2304,
    'intermediate_size': 9216,
    'num_hidden_layers': 26,
    'num_attention_heads': 8,
    'num_key_value_heads': 4,
    'head_dim': 256,
    'rms_norm_eps': 1e-6,
    'tie_word_embeddings': True,
    'query_pre_attn_scalar': 256,
    'sliding_window': 4096,
}
GEMMA2 = {'vocab_size': 256000, 'attn_logit_softcapping': 50.0, 'final_logit_softcapping': 30.0, 'rope_theta': 10000.0}
GEMMA3 = {'vocab_size': 262208, 'rope_theta': 1000000.0, 'rope_local_base_freq': 10000.0}
COHERE = {**PLAIN, 'layer_norm_eps': 1e-5, 'tie_word_embeddings': True, 'rope_theta': 500000.0, 'logit_scale': 0.0625}
MIXTRAL = {**PLAIN, 'rms_norm_eps': 1e-5, 'rope_theta': 1e6, 'num_local_experts': 8, 'num_experts_per_tok': 2}
LLAMA = {**PLAIN, 'max_position_embeddings': 2048}

# In the order in which an export tries them.
FAMILIES = (
    Family('LlamaForCausalLM', 'llama', _read_llama, _write_llama, LLAMA),
    Family('MistralForCausalLM', 'mistral', _read_all_sliding, _write_all_sliding, {**PLAIN, 'sliding_window': 4096}),
    Family('Qwen2ForCausalLM', 'qwen2', _read_qwen2, _write_qwen, {**QWEN, **QWEN2}),
    Family('Qwen3ForCausalLM', 'qwen3', _read_qwen3, _write_qwen, {**QWEN, **QWEN3}),
    Family(
        'MixtralForCausalLM', 'mixtral', _read_mixtral, _write_mixtral, {**MOE, **MIXTRAL, 'num_key_value_heads': 8}
    ),
    Family('Qwen3MoeForCausalLM', 'qwen3_moe', _read_qwen3_moe, _write_qwen3_moe, {**QWEN, **MOE}),
    Family('Gemma2ForCausalLM', 'gemma2', _read_gemma2, _write_gemma2, {**GEMMA, **GEMMA2}),
    Family('Gemma3ForCausalLM', 'gemma3_text', _read_gemma3, _write_gemma3, {**GEMMA, **GEMMA3}),
    Family('CohereForCausalLM', 'cohere', _read_cohere, _write_cohere, COHERE),
    *(Family(*row, made=EncoderDecoderConfig) for row in t5.ROWS),
)
