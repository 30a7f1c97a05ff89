"""What a directory may have wrong: each is said with the file, the field or tensor and the way out, before reading."""

import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from t5x_selfimprove.models import hugging_face
from t5x_selfimprove.models.hugging_face import importing
from tests.models.hugging_face import made

LLAMA = 'llama (llama3 rope)'
YARN = {'rope_type': 'yarn', 'factor': 4.0, 'rope_theta': 1e4}
# The case, fields that are changed, and what is said after the file's name.
FIELDS = {
    'unknown architecture': (
        LLAMA,
        {'architectures': ['FalconForCausalLM']},
        r"architectures = \['FalconFor.* is not sup",
    ),
    'no architecture': (
        LLAMA,
        {'architectures': ..., 'model_type': ...},
        r'architectures = None, model_type = None is not',
    ),
    'yarn': (LLAMA, {'rope_parameters': YARN}, r"rope_parameters = .* scales rotary positions as 'yarn'"),
    'old yarn': (
        LLAMA,
        {'rope_parameters': ..., 'rope_scaling': {'type': 'yarn', 'factor': 4.0}},
        r'rope_scaling = .*yarn',
    ),
    'dynamic': (
        LLAMA,
        {'rope_scaling': {'type': 'dynamic', 'factor': 2.0}},
        r"as 'dynamic', and only default, linear, llama3",
    ),
    'longrope': (LLAMA, {'rope_scaling': {'rope_type': 'longrope', 'short_factor': [1]}}, r"as 'longrope'"),
    'rope without factor': (LLAMA, {'rope_scaling': {'rope_type': 'linear'}}, r'is not understood \(missing: factor\)'),
    'rope with more': (LLAMA, {'rope_scaling': {**made.LINEAR, 'mscale': 2}}, r'is not understood \(unknown: mscale\)'),
    'partial rotary': (
        LLAMA,
        {'partial_rotary_factor': 0.5},
        r'partial_rotary_factor = 0\.5 rotates a part of each head',
    ),
    'bias': (LLAMA, {'attention_bias': True}, r'attention_bias = true puts a bias on the output projection too'),
    'feed-forward bias': (LLAMA, {'mlp_bias': True}, r'mlp_bias = true puts biases on the feed-forward'),
    'activation': (LLAMA, {'hidden_act': 'relu2'}, r'hidden_act = "relu2" is not supported, only silu, swish'),
    'quantised': (LLAMA, {'quantization_config': {'bits': 4}}, r'quantization_config = .* means quantised weights'),
    'attention dropout': (LLAMA, {'attention_dropout': 0.1}, r'attention_dropout = 0\.1 drops attention in training'),
    'unknown field': (LLAMA, {'residual_multiplier': 0.5}, r'residual_multiplier = 0\.5 is not known here'),
    'no size': (LLAMA, {'hidden_size': ...}, r'has no hidden_size; the directory is not complete'),
    'a size that is text': (
        LLAMA,
        {'num_hidden_layers': '2'},
        r'num_hidden_layers = "2" is not a positive whole number',
    ),
    'heads': (LLAMA, {'num_key_value_heads': 3}, r'heads = 4 must be a multiple of kv_heads = 3'),
    'layers without experts': ('qwen3 moe', {'mlp_only_layers': [0]}, r'mlp_only_layers = \[0\] leaves layers without'),
    'every second layer': ('qwen3 moe', {'decoder_sparse_step': 2}, r'decoder_sparse_step = 2 leaves layers without'),
    'layer types': (
        'qwen3',
        {'layer_types': ['full_attention', 'linear_attention']},
        r'layer_types = .* must be 2 of full',
    ),
    'window off': (
        'qwen2 (window)',
        {'use_sliding_window': False},
        r'has sliding layers and use_sliding_window is false',
    ),
    'both ways': ('gemma2 (window)', {'use_bidirectional_attention': True}, r'lets tokens see what comes after them'),
    'head norms': ('cohere (PaLM style)', {'use_qk_norm': True}, r'use_qk_norm = true has a norm for each head'),
    'ropes by layer': (
        LLAMA,
        {'rope_parameters': {'full_attention': {'rope_theta': 1.0}, 'sliding_attention': {'rope_theta': 2.0}}},
        r'differs by layer, which this family does not have',
    ),
}


@pytest.mark.parametrize('name', FIELDS)
def test_a_field_that_is_not_supported(tmp_path, name):
    case, fields, said = FIELDS[name]
    file = made.save(case, tmp_path) / 'config.json'
    made.change(file, **fields)
    with pytest.raises(ValueError, match=said) as caught:
        hugging_face.of_directory(str(tmp_path))
    assert str(file) in str(caught.value) or name == 'heads'
    assert re.search(r'Use a |Correct|Fetch|fetch|multiple', str(caught.value))


def without(name):
    """The directory without a tensor."""
    return lambda found, folder: (found.pop(name), found)[1]


def with_tensor(name, array):
    """The directory with another tensor in place."""
    return lambda found, folder: {**found, name: array}


DOWN, HEAD = 'model.layers.1.mlp.down_proj.weight', 'lm_head.weight'
TENSORS = {
    'missing': (without(DOWN), rf'{DOWN} is missing'),
    'missing head': (without(HEAD), rf'{HEAD} is missing'),
    'left over': (
        with_tensor('model.layers.2.mlp.down_proj.weight', np.ones((2, 2), np.float32)),
        r'layers\.2\..* left over',
    ),
    'bias left over': (
        with_tensor('model.layers.0.self_attn.q_proj.bias', np.ones(64, np.float32)),
        r'bias is left over',
    ),
    'shape': (with_tensor(DOWN, np.ones((48, 32), np.float32)), rf'{DOWN} is \[48, 32\], not \[32, 48\]'),
    'dtype': (with_tensor(DOWN, np.ones((32, 48), np.int8)), rf'{DOWN} is of dtype I8, not one of F32, F16, BF16'),
}


def refused(folder, error, said):
    """Reading fails so, and no tensor was read."""
    config = hugging_face.of_directory(str(folder))
    like = jax.eval_shape(lambda: config.create(1, jax.random.key(0)))
    with pytest.raises(error, match=said) as caught:
        hugging_face.read_model(folder, like)
    assert str(folder) in str(caught.value) and re.search('[Ff]etch', str(caught.value))


@pytest.fixture(autouse=True)
def nothing_is_read(monkeypatch):
    """No tensor is read where something is wrong."""

    def read(*_):
        raise AssertionError('a tensor was read')

    monkeypatch.setattr(importing, 'read_slice', read)


@pytest.mark.parametrize('name', TENSORS)
def test_tensors_that_are_not_as_described(tmp_path, name):
    changed, said = TENSORS[name]
    file = made.save(LLAMA, tmp_path) / 'model.safetensors'
    save_file(changed(load_file(file), tmp_path), file)
    refused(tmp_path, ValueError, said)


@pytest.mark.parametrize('kept', [0, 5, 1000, -1])
def test_a_file_that_is_cut_off(tmp_path, kept):
    made.save(LLAMA, tmp_path, max_shard_size='20KB')
    file = sorted(tmp_path.glob('*.safetensors'))[1]
    file.write_bytes(file.read_bytes()[:kept])
    refused(tmp_path, ValueError, rf'{file.name} is cut off or damaged \([\d,]+ bytes: ')


def test_an_index_that_names_a_file_that_is_not_there(tmp_path):
    made.save(LLAMA, tmp_path, max_shard_size='20KB')
    file = sorted(tmp_path.glob('*.safetensors'))[1]
    file.unlink()
    refused(tmp_path, FileNotFoundError, rf'names 1 of \d files that are not there: {file.name}\. Fetch them')


def test_an_index_that_names_the_wrong_file(tmp_path):
    made.save(LLAMA, tmp_path, max_shard_size='20KB')
    index = tmp_path / 'model.safetensors.index.json'
    values = json.loads(index.read_text())
    values['weight_map'][DOWN] = sorted(set(values['weight_map'].values()))[0]
    index.write_text(json.dumps(values))
    refused(tmp_path, ValueError, rf'says that {DOWN} is in .*, and it is not')
    index.write_text('{"weight_map": {"a')
    refused(tmp_path, ValueError, r'index\.json is damaged: ')
    index.write_text('{}')
    refused(tmp_path, ValueError, r'has no weight_map')


def test_other_formats(tmp_path):
    file = made.save(LLAMA, tmp_path) / 'model.safetensors'
    file.rename(tmp_path / 'pytorch_model.bin')
    config = hugging_face.of_directory(str(tmp_path))
    like = jax.eval_shape(lambda: config.create(1, jax.random.key(0)))
    with pytest.raises(
        FileNotFoundError, match=r'but pytorch_model\.bin\. Load it with transformers .* save_pretrained'
    ):
        hugging_face.read_model(tmp_path, like)
    (tmp_path / 'pytorch_model.bin').unlink()
    refused(tmp_path, FileNotFoundError, r'has neither model\.safetensors nor .*; fetch the checkpoint again')


def test_config_that_is_no_json(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'config\.json is not there'):
        hugging_face.of_directory(str(tmp_path))
    for text, said in (('{"a": ', r'config\.json is damaged'), ('[]', r'config\.json holds a list, not an object')):
        (tmp_path / 'config.json').write_text(text)
        with pytest.raises(ValueError, match=said):
            hugging_face.of_directory(str(tmp_path))


OLD_STYLE = {
    LLAMA: {'rope_theta': 10000.0, 'rope_scaling': made.LLAMA3},
    'llama (linear rope, tied)': {'rope_theta': 500.0, 'rope_scaling': {'type': 'linear', 'factor': 4.0}},
    'gemma3 (window, linear rope)': {
        'rope_theta': 1e6,
        'rope_local_base_freq': 1e4,
        'rope_scaling': made.LINEAR,
        'layer_types': ...,
        '_sliding_window_pattern': ...,
        'sliding_window_pattern': 3,
    },
    'qwen2 (window)': {'rope_theta': 10000.0, 'layer_types': ..., 'max_window_layers': 1},
    'gemma2 (window)': {'rope_theta': 10000.0, 'layer_types': ..., 'hidden_act': 'gelu_pytorch_tanh'},
}


@pytest.mark.parametrize('name', OLD_STYLE)
def test_configurations_of_older_releases_say_the_same(tmp_path, name):
    folder = made.save(name, tmp_path)
    wanted = hugging_face.of_directory(str(folder))
    made.change(folder / 'config.json', rope_parameters=..., **OLD_STYLE[name])
    assert hugging_face.of_directory(str(folder)) == wanted
