"""Directories in and out: bit-identical round trips, shards, meshes, what is held on the host, tensors left out."""

import dataclasses
import inspect
import json
import weakref

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from t5x_selfimprove.models import hugging_face, parameters
from t5x_selfimprove.models.adapters import LowRank
from t5x_selfimprove.models.config import Experts, Rope
from t5x_selfimprove.models.hugging_face import comparing, importing, stored
from t5x_selfimprove.models.hugging_face.comparing import OWN
from t5x_selfimprove.partitioning import LEARNING, MeshShape
from tests.models import tiny
from tests.models.hugging_face import made

MOE, QWEN = 'qwen3 moe', 'qwen3'


def tensors(folder):
    """All tensors of a directory by name, read without the code under test."""
    return {name: array for file in sorted(folder.glob('*.safetensors')) for name, array in load_file(file).items()}


def same(one, other):
    """Whether two sets of tensors are equal to the bit."""
    assert set(one) == set(other)
    return all(one[name].dtype == other[name].dtype and one[name].tobytes() == other[name].tobytes() for name in one)


@pytest.mark.parametrize('name', made.CASES)
def test_a_round_trip_changes_no_bit(tmp_path, name):
    folder = made.save(name, tmp_path / 'theirs')
    written = hugging_face.write_model(made.read(folder), tmp_path / 'ours', source=folder)
    assert written['architecture'] == made.CASES[name].model
    assert same(tensors(folder), tensors(tmp_path / 'ours'))
    model = getattr(made.transformers, made.CASES[name].model)
    again, told = model.from_pretrained(tmp_path / 'ours', output_loading_info=True)
    assert not any(told.values()), told
    before, after = made.make(name).config.to_dict(), again.config.to_dict()
    differing = {field for field in before.keys() | after.keys() if before.get(field) != after.get(field)}
    assert differing <= {'_name_or_path', 'head_dim', 'architectures', 'dtype', '_sliding_window_pattern'}


def test_a_round_trip_in_bfloat16_and_in_shards(tmp_path):
    import copy

    theirs = copy.deepcopy(made.make(QWEN)).to(made.torch.bfloat16)
    theirs.save_pretrained(tmp_path / 'theirs', max_shard_size='10KB')
    assert len(list((tmp_path / 'theirs').glob('*.safetensors'))) > 3
    ours = made.read(tmp_path / 'theirs')  # parameters in float32
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {np.dtype('float32')}
    hugging_face.write_model(ours, tmp_path / 'ours', 'bfloat16', '10KB')
    assert same(tensors(tmp_path / 'theirs'), tensors(tmp_path / 'ours'))
    assert max(file.stat().st_size for file in (tmp_path / 'ours').glob('*.safetensors')) < 12_000
    index = json.loads((tmp_path / 'ours/model.safetensors.index.json').read_text())
    assert index['metadata']['total_size'] == sum(array.nbytes for array in tensors(tmp_path / 'theirs').values())
    narrow = made.read(tmp_path / 'ours', parameter_dtype='bfloat16')
    assert {leaf.dtype.name for leaf in jax.tree.leaves(narrow)} == {'bfloat16'}
    assert tiny.largest_difference(narrow, ours) == 0


def test_experts_in_one_tensor_are_those_in_many(tmp_path):
    folder = made.save(MOE, tmp_path / 'many')
    (tmp_path / 'fused').mkdir()
    (tmp_path / 'fused/config.json').write_bytes((folder / 'config.json').read_bytes())
    fused = {name: tensor.numpy() for name, tensor in made.make(MOE).state_dict().items()}
    assert fused['model.layers.1.mlp.experts.gate_up_proj'].shape == (6, 48, 32)
    save_file(
        {name: np.ascontiguousarray(array) for name, array in fused.items()}, tmp_path / 'fused/model.safetensors'
    )
    assert tiny.largest_difference(made.read(tmp_path / 'fused'), made.read(folder)) == 0


@pytest.mark.parametrize('name', [MOE, 'cohere (PaLM style)'])
def test_a_mesh_reads_what_its_devices_need(tmp_path, monkeypatch, name):
    folder = made.save(name, tmp_path)
    config = dataclasses.replace(hugging_face.of_directory(str(folder)))
    abstract = jax.eval_shape(lambda: config.create(1, jax.random.key(0)))
    mesh = MeshShape(data=4, fsdp=2).build()
    placed = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        parameters.shardings(abstract, mesh, LEARNING),
    )
    sizes, read = [], importing.read_slice
    monkeypatch.setattr(importing, 'read_slice', lambda *found: sizes.append(read(*found).nbytes) or read(*found))
    ours = hugging_face.read_model(folder, placed)
    assert all(
        leaf.sharding == wanted.sharding for leaf, wanted in zip(*map(jax.tree.leaves, (ours, placed)), strict=True)
    )
    assert sum(sizes) == sum(array.nbytes for array in tensors(folder).values())  # each number once
    assert max(sizes) <= max(array.nbytes for array in tensors(folder).values()) // 2
    assert tiny.largest_difference(ours, made.read(folder)) == 0
    assert same(tensors(folder), tensors_written(ours, tmp_path / 'ours'))


def tensors_written(model, folder):
    """The tensors of an exported model."""
    hugging_face.write_model(model, folder)
    return tensors(folder)


def test_one_tensor_at_a_time_is_held_on_the_host(tmp_path, monkeypatch):
    """On a CPU the devices may share the host's array: what is read must be gone before the next is."""
    folder = made.save(MOE, tmp_path)
    held, most, read = {}, [], importing.read_slice

    def counted(tensor, index):
        array = read(tensor, index)
        held[id(array)] = array.nbytes
        weakref.finalize(array, held.pop, id(array))
        most.append(sum(held.values()))
        return array

    monkeypatch.setattr(importing, 'read_slice', counted)
    made.read(folder)
    largest = max(array.nbytes for array in tensors(folder).values())
    assert len(most) == len(tensors(folder)) and max(most) == largest


def test_blocks_of_a_tensor_are_the_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, 'BLOCK', 100)
    folder = made.save(QWEN, tmp_path)
    wanted, there = tensors(folder), stored.stored_tensors(folder)
    name = 'model.layers.1.mlp.down_proj.weight'
    for index in ((slice(0, 32), slice(0, 48)), (slice(5, 21), slice(7, 40)), (slice(31, 32), slice(0, 1))):
        found = stored.read_slice(there[name], index)
        np.testing.assert_array_equal(found, wanted[name][index])
        assert found.ctypes.data % stored.ALIGNMENT == 0


def test_what_no_directory_speaks_of_can_be_given(tmp_path):
    given = {**dict.fromkeys(OWN), 'dtype': 'bfloat16', 'parameter_dtype': 'bfloat16', 'remat': 'full', 'unroll': 2}
    given.update(attention='plain', vocabulary_chunk=7, dropout=0.1, low_rank=LowRank(rank=2))
    assert set(inspect.signature(hugging_face.of_directory).parameters) == {'directory', *OWN} == {'directory', *given}
    config = hugging_face.of_directory(str(made.save(QWEN, tmp_path)), **given)
    assert {name: getattr(config, name) for name in given} == given
    plain = hugging_face.of_directory(str(tmp_path))
    assert config != plain and not comparing.differences(config, plain)


def test_arrays_that_are_there_are_written_over(tmp_path):
    folder = made.save(QWEN, tmp_path)
    config = hugging_face.of_directory(str(folder))
    like = config.create(1, jax.random.key(0))
    ours = hugging_face.read_model(folder, like)
    assert like.embedding[...].is_deleted() and tiny.largest_difference(ours, made.read(folder)) == 0


def test_constants_and_a_second_copy_of_a_tied_embedding_are_no_left_overs(tmp_path):
    folder = made.save(QWEN, tmp_path)
    found = tensors(folder)
    found['model.layers.0.self_attn.rotary_emb.inv_freq'] = np.ones(8, np.float32)
    found['lm_head.weight'] = found['model.embed_tokens.weight']
    save_file(found, folder / 'model.safetensors')
    assert tiny.largest_difference(made.read(folder), made.read(made.save(QWEN, tmp_path / 'plain'))) == 0


@pytest.mark.parametrize(
    ('fields', 'architecture'),
    [
        ({}, 'LlamaForCausalLM'),
        ({'qkv_bias': True}, 'Qwen2ForCausalLM'),
        ({'sliding_window': 3, 'attention_pattern': ('sliding',)}, 'MistralForCausalLM'),
        ({'sliding_window': 3, 'attention_pattern': ('full', 'sliding'), 'qk_norm': True}, 'Qwen3ForCausalLM'),
        ({'experts': Experts(4, 2, 8)}, 'MixtralForCausalLM'),
        ({'experts': Experts(4, 2, 8, False), 'qk_norm': True}, 'Qwen3MoeForCausalLM'),
        ({'parallel': True, 'norm': 'layer', 'kv_heads': 1, 'logit_scale': 0.25}, 'CohereForCausalLM'),
    ],
)
def test_our_own_models_find_their_architecture(tmp_path, fields, architecture):
    ours = tiny.model(**fields)
    assert hugging_face.write_model(ours, tmp_path / 'ours')['architecture'] == architecture
    again = hugging_face.read_model(tmp_path / 'ours', jax.eval_shape(lambda: ours))
    assert tiny.largest_difference(again, ours) == 0


@pytest.mark.parametrize(
    ('fields', 'said'),
    [
        ({'norm_offset': 1.0}, r'comes nearest, and differs in norm_offset = 1\.0'),
        ({'rope': None}, r'rope = None'),
        ({'qkv_bias': True, 'qk_norm': True}, r'(Qwen2\w+ comes nearest, and differs in qk_norm|differs in qkv_bias)'),
        ({'rope': Rope(100.0), 'logit_softcap': 3.0}, r'differs in logit_softcap = 3\.0'),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else '',
)
def test_a_model_that_no_architecture_computes_is_refused(tmp_path, fields, said):
    with pytest.raises(ValueError, match=said):
        hugging_face.write_model(tiny.model(**fields), tmp_path / 'ours')
    assert not list(tmp_path.iterdir())
