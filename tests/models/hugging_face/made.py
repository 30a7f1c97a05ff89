"""Small checkpoints of every family, made by transformers from a configuration and random numbers."""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove.models import hugging_face
from t5x_selfimprove.models.transformer import Transformer

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
torch.set_num_threads(1)

VOCABULARY, WINDOW = 61, 5
SIZES = {
    'vocab_size': VOCABULARY,
    'hidden_size': 32,
    'intermediate_size': 48,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'pad_token_id': None,
    'bos_token_id': None,
    'eos_token_id': None,
}
LLAMA3 = {
    'rope_type': 'llama3',
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 16,
}
LINEAR = {'rope_type': 'linear', 'factor': 4.0}


@dataclasses.dataclass(frozen=True)
class Case:
    """A family and the options of it that are put to the test."""

    model: str
    config: str
    fields: dict[str, Any]


CASES = {
    'llama (llama3 rope)': Case('LlamaForCausalLM', 'LlamaConfig', {'head_dim': 16, 'rope_scaling': LLAMA3}),
    'llama (linear rope, tied)': Case(
        'LlamaForCausalLM', 'LlamaConfig', {'rope_scaling': LINEAR, 'tie_word_embeddings': True, 'rope_theta': 500.0}
    ),
    'mistral (window)': Case('MistralForCausalLM', 'MistralConfig', {'sliding_window': WINDOW}),
    'qwen2': Case('Qwen2ForCausalLM', 'Qwen2Config', {'num_key_value_heads': 1}),
    'qwen2 (window)': Case(
        'Qwen2ForCausalLM',
        'Qwen2Config',
        {'use_sliding_window': True, 'sliding_window': WINDOW, 'max_window_layers': 1},
    ),
    'qwen3': Case('Qwen3ForCausalLM', 'Qwen3Config', {'head_dim': 16, 'tie_word_embeddings': True}),
    'qwen3 moe': Case(
        'Qwen3MoeForCausalLM',
        'Qwen3MoeConfig',
        {'num_experts': 6, 'num_experts_per_tok': 2, 'moe_intermediate_size': 24, 'norm_topk_prob': True},
    ),
    'mixtral': Case('MixtralForCausalLM', 'MixtralConfig', {'num_local_experts': 4}),
    'gemma2 (window)': Case(
        'Gemma2ForCausalLM',
        'Gemma2Config',
        {'head_dim': 16, 'sliding_window': WINDOW, 'attn_logit_softcapping': 2.0, 'final_logit_softcapping': 3.0},
    ),
    'gemma3 (window, linear rope)': Case(
        'Gemma3ForCausalLM',
        'Gemma3TextConfig',
        {
            'num_hidden_layers': 4,
            'head_dim': 16,
            'sliding_window': WINDOW,
            'sliding_window_pattern': 3,
            'rope_scaling': LINEAR,
            'query_pre_attn_scalar': 20,
        },
    ),
    'cohere (PaLM style)': Case('CohereForCausalLM', 'CohereConfig', {'num_key_value_heads': 1, 'logit_scale': 0.25}),
}


@functools.cache
def make(name: str) -> Any:
    """The transformers model of a case, with numbers that leave nothing at its start (norms at one, biases at zero)."""
    case = CASES[name]
    config = getattr(transformers, case.config)(**{**SIZES, **case.fields})
    config._attn_implementation = 'eager'  # Gemma 2 caps its scores only so
    return randomize(getattr(transformers, case.model)(config).eval())


def randomize(model: Any) -> Any:
    """The model with seeded random parameters, large enough that every one of them is seen in the logits."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            wide = 0.3 if parameter.ndim == 1 else 1.5 * parameter.shape[-1] ** -0.5
            parameter.copy_(wide * draw + (parameter if parameter.ndim == 1 else 0))
    return model


def save(name: str, folder: pathlib.Path, **options: Any) -> pathlib.Path:
    """The directory of a case, as transformers writes it."""
    make(name).save_pretrained(folder, **options)
    return folder


def change(file: pathlib.Path, **fields: Any) -> None:
    """Writes other fields into a JSON file; a field whose value is `...` is taken out."""
    values = {**json.loads(file.read_text(encoding='utf-8')), **fields}
    kept = {name: value for name, value in values.items() if value is not ...}
    file.write_text(json.dumps(kept), encoding='utf-8')


def read(folder: pathlib.Path, **fields: Any) -> Transformer:
    """Our model of a directory."""
    config = hugging_face.of_directory(str(folder), **fields)
    return hugging_face.read_model(folder, jax.eval_shape(lambda: config.create(VOCABULARY, jax.random.key(0))))


def tokens(rows: int, time: int, seed: int = 0) -> np.ndarray:
    """Random token ids."""
    return np.random.default_rng(seed).integers(3, VOCABULARY, (rows, time)).astype(np.int32)


def torch_logits(model: Any, ids: np.ndarray, position: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Logits [B, T, V] of transformers."""
    with torch.no_grad():
        found = model(
            input_ids=torch.tensor(ids, dtype=torch.long),
            position_ids=torch.tensor(position, dtype=torch.long),
            attention_mask=torch.tensor(seen, dtype=torch.long),
        )
    return found.logits.float().numpy()


@jax.jit
def our_logits(model: Transformer, ids: jax.Array, position: jax.Array, seen: jax.Array) -> jax.Array:
    """Logits [B, T, V] of ours."""
    return model.logits(model.forward(ids, position, seen))


@functools.partial(jax.jit, static_argnames='steps')
def our_greedy(model: Transformer, ids: jax.Array, length: jax.Array, steps: int) -> jax.Array:
    """The likeliest token after another, [B, steps], of prompts padded at the right."""
    hidden, context = model.prefill(ids, length)
    first = jnp.argmax(model.logits(hidden), axis=-1).astype(jnp.int32)

    def step(carry, _):
        token, own = carry
        hidden, own = model.extend(token, context, own)
        return (jnp.argmax(model.logits(hidden), axis=-1).astype(jnp.int32), own), token

    start = (first, model.new_own(ids.shape[0], steps))
    return jax.lax.scan(step, start, None, length=steps)[1].T


def torch_greedy(model: Any, ids: np.ndarray, length: np.ndarray, steps: int) -> np.ndarray:
    """The same by transformers, which wants padding at the left."""
    time = ids.shape[1]
    seen = np.arange(time)[None] >= time - length[:, None]
    left = np.zeros_like(ids)
    for row, count in enumerate(length):
        left[row, time - count :] = ids[row, :count]
    found = model.generate(
        input_ids=torch.tensor(left, dtype=torch.long),
        attention_mask=torch.tensor(seen, dtype=torch.long),
        do_sample=False,
        max_new_tokens=steps,
        eos_token_id=None,
        pad_token_id=0,
    )
    return found[:, time:].numpy()
