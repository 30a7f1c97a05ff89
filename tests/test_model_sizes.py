"""The models of public sizes under gin/models/ have the number of parameters that they open with; no memory is used."""

import pathlib
import re

import jax
import pytest

from t5x_selfimprove import config
from t5x_selfimprove.models import hugging_face, parameters
from tests.test_gin_files import ROOT, commands

STATED = re.compile(r'^# .*: ([\d,]+) parameters', re.MULTILINE)
FILES = {path.stem: path for path in sorted((ROOT / 'gin/models').glob('*.gin')) if STATED.search(path.read_text())}
# From the papers and model cards, where they say more than the name does: billions, as they are rounded there.
PUBLISHED = {
    'llama3_1_8b': 8.03,
    'llama3_1_70b': 70.6,
    'qwen3_0_6b': 0.6,
    'qwen3_1_7b': 1.7,
    'qwen3_4b': 4.0,
    'qwen3_8b': 8.2,
    'qwen3_14b': 14.8,
    'qwen3_32b': 32.8,
    'qwen3_30b_a3b': 30.5,
    'gemma3_1b': 1.0,
    'gemma3_4b': 3.88,  # without the image encoder's 0.42
    'gemma3_12b': 11.77,
    'gemma3_27b': 27.01,
    'palm_8b': 8.63,
    'palm_62b': 62.5,
    'palm_540b': 540.35,
    't5_1_1_small': 0.08,  # of Flan-T5, arXiv:2210.11416
    't5_1_1_base': 0.25,
    't5_1_1_large': 0.78,
    't5_1_1_xl': 3,
    't5_1_1_xxl': 11,
    'ul2_20b': 20,
}
ARCHITECTURES = {
    'llama3_1': 'LlamaForCausalLM',
    'qwen3': 'Qwen3ForCausalLM',
    'qwen3_30b_a3b': 'Qwen3MoeForCausalLM',
    'gemma3': 'Gemma3ForCausalLM',
    'palm': 'CohereForCausalLM',
    't5_1_1': 'T5ForConditionalGeneration',
    'ul2': 'T5ForConditionalGeneration',
}


def model_of(path: pathlib.Path):
    """The model of the command that opens a file."""
    (argv,) = commands(path.read_text(encoding='utf-8'))
    asked = config.parse_arguments(argv)
    return config.build(config.ROOTS[asked.command], asked.files, asked.bindings).value.model


@pytest.mark.parametrize('name', FILES)
def test_a_public_size_has_the_parameters_it_states(name):
    stated = int(STATED.search(FILES[name].read_text())[1].replace(',', ''))
    model = model_of(FILES[name])
    abstract = jax.eval_shape(lambda: model.create(1, jax.random.key(0)))
    assert parameters.count(abstract) == stated
    if name in PUBLISHED:
        digits = len(str(PUBLISHED[name]).partition('.')[2])  # some round, PaLM's table cuts off
        assert abs(stated / 1e9 - PUBLISHED[name]) < 0.7 * 10**-digits


def test_all_public_sizes_are_there():
    assert set(PUBLISHED) <= set(FILES)


@pytest.mark.parametrize('name', PUBLISHED)
def test_a_public_size_has_all_the_options_of_its_architecture(name):
    family = max((start for start in ARCHITECTURES if name.startswith(start)), key=len)
    assert hugging_face.family_of(model_of(FILES[name])).architecture == ARCHITECTURES[family]
