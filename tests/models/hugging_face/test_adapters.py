"""Adapters written for the library peft compute the same on transformers' model as ours do here."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove.checkpoints import read_model
from t5x_selfimprove.models import adapters, hugging_face
from t5x_selfimprove.models.adapters import LowRank
from tests.models.hugging_face import made, parity

peft = pytest.importorskip('peft')

LOW_RANK = LowRank(rank=3, alpha=6.0)


def adapted(folder, low_rank=LOW_RANK):
    """Our adapted model of a directory, its adapters not at their start."""
    config = hugging_face.of_directory(str(folder), low_rank=low_rank)
    model = read_model(str(folder), config.create(made.VOCABULARY, jax.random.key(0)))
    for number, adapter in enumerate(adapters.adapters_of(model)):
        adapter.second[...] = 0.3 * jax.random.normal(jax.random.key(number), adapter.second.shape)
    return model


@pytest.mark.parametrize('name', ['qwen3', 'cohere (PaLM style)'])
def test_peft_loads_the_adapters_and_transformers_the_merged_model(name, tmp_path):
    base = made.save(name, tmp_path / 'base')
    ours = adapted(base)
    written = hugging_face.write_adapters(ours, tmp_path / 'adapters', base)
    assert written['tensors'] == 2 * 7 * 2  # A and B of seven weights in two layers
    hugging_face.write_model(ours, tmp_path / 'merged', source=base)
    ids, place, seen = parity.inputs('padding right')
    wanted = np.asarray(made.our_logits(ours, *map(jnp.asarray, (ids, place, seen))))
    plain = made.transformers.AutoModelForCausalLM.from_pretrained(base)
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path / 'adapters').eval()
    merged = made.transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'merged').eval()
    for model in (theirs, merged):
        assert parity.relative(made.torch_logits(model, ids, place, seen), wanted, seen) < 1e-4
    with theirs.disable_adapter():
        assert parity.relative(made.torch_logits(theirs, ids, place, seen), wanted, seen) > 1e-2


def test_only_the_weights_that_are_adapted_are_named(tmp_path):
    base = made.save('qwen3', tmp_path / 'base')
    model = adapted(base, LowRank(rank=2, targets=('query', 'value')))
    assert hugging_face.write_adapters(model, tmp_path / 'adapters', base)['tensors'] == 2 * 2 * 2
    said = json.loads((tmp_path / 'adapters' / 'adapter_config.json').read_text())
    assert said['target_modules'] == ['q_proj', 'v_proj'] and said['r'] == 2


def test_a_model_without_adapters_and_a_full_directory_are_refused(tmp_path):
    base = made.save('qwen3', tmp_path / 'base')
    with pytest.raises(ValueError, match='the model has no adapters'):
        hugging_face.write_adapters(made.read(base), tmp_path / 'adapters', base)
    with pytest.raises(FileExistsError, match='not empty; name another directory'):
        hugging_face.write_adapters(adapted(base), base, base)
