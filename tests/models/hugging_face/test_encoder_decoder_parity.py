"""The encoder-decoder against T5, mT5 and UMT5 of transformers: logits, greedy tokens, checkpoints in and out."""

import dataclasses
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from t5x_selfimprove.models import hugging_face
from t5x_selfimprove.models.relative_position import buckets
from tests.models import tiny_t5
from tests.models.hugging_face import made, made_t5, parity, parity_t5
from tests.models.hugging_face.made_t5 import torch, transformers
from tests.models.hugging_face.test_parity import TOLERANCE


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """Name of a case -> the directory that transformers makes of it."""
    root = tmp_path_factory.mktemp('checkpoints')
    return lambda name: root / name if (root / name).is_dir() else made_t5.save(name, root / name)


@pytest.fixture(scope='module', params=list(made_t5.CASES))
def pair(request, saved):
    """(the transformers model, ours read from what it saved)."""
    return made_t5.make(request.param), made_t5.read(saved(request.param))


@pytest.mark.parametrize('check', parity.CHECKS)
def test_logits_are_those_of_transformers(pair, check):
    assert parity_t5.logits_differ(*pair, check) < TOLERANCE


def test_greedy_tokens_are_those_of_transformers(pair):
    assert parity_t5.tokens_equal(*pair) == parity.STEPS


def test_there_is_something_to_see(saved):
    """Logits are not small, tokens not all alike, and the tolerance notices what is special to a family."""
    theirs = made_t5.make('t5 1.1')
    prompts = made_t5.tokens(3, parity_t5.PROMPT, seed=0)
    assert np.abs(made_t5.torch_logits(theirs, prompts, np.ones(prompts.shape), prompts)).max() > 0.5
    assert len(np.unique(made_t5.torch_greedy(theirs, prompts, np.ones(prompts.shape), 20))) > 5
    assert parity_t5.logits_differ(theirs, made_t5.read(saved('ul2')), 'whole rows') > 10 * TOLERANCE


@pytest.mark.parametrize(('count', 'furthest'), [(32, 128), (16, 20), (8, 12), (64, 128)])
@pytest.mark.parametrize('both', [True, False])
def test_buckets(count, furthest, both):
    distance = np.arange(-600, 601)
    of = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket
    wanted = of(torch.tensor(distance), both, count, furthest).numpy()
    np.testing.assert_array_equal(buckets(distance, count, furthest, both), wanted)


def tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of a directory, read without the code under test."""
    return load_file(folder / 'model.safetensors')


@pytest.mark.parametrize('name', made_t5.CASES)
def test_a_round_trip_changes_no_bit(tmp_path, saved, name):
    folder, wanted = saved(name), made_t5.our_config(name)
    config = hugging_face.of_directory(str(folder))
    assert config == dataclasses.replace(wanted, embedding_rows=made_t5.VOCABULARY, logit_scale=wanted.scale)
    written = hugging_face.write_model(made_t5.read(folder), tmp_path / 'ours', source=folder)
    kind = f'{made_t5.CASES[name].kind}ForConditionalGeneration'
    assert written['architecture'] == kind
    before, after = tensors(folder), tensors(tmp_path / 'ours')
    assert set(before) == set(after)
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    again, told = getattr(transformers, kind).from_pretrained(tmp_path / 'ours', output_loading_info=True)
    assert not any(told.values()), told
    ids = made_t5.tokens(3, parity_t5.PROMPT, seed=0)
    logits = [made_t5.torch_logits(each, ids, np.ones(ids.shape), ids) for each in (made_t5.make(name), again.eval())]
    np.testing.assert_array_equal(*logits)


@pytest.fixture
def changed(tmp_path, saved):
    """Makes a directory with the files of the T5 1.1 case and other fields in its config.json."""

    def make(name: str = 'changed', **fields: object) -> pathlib.Path:
        folder = tmp_path / name
        shutil.copytree(saved('t5 1.1'), folder)
        made.change(folder / 'config.json', **fields)
        return folder

    return make


def test_config_files_of_earlier_releases(changed, saved):
    """Before release 5, tie_word_embeddings alone said whether logits are scaled."""
    old = changed('old', tie_word_embeddings=False, scale_decoder_outputs=..., n_positions=512)
    assert hugging_face.of_directory(str(old)) == hugging_face.of_directory(str(saved('t5 1.1')))
    first = changed('first', tie_word_embeddings=..., scale_decoder_outputs=...)
    assert hugging_face.of_directory(str(first)).scale == made_t5.CONFIG.width**-0.5


@pytest.mark.parametrize(
    ('fields', 'said'),
    [
        ({'feed_forward_proj': 'gated-swiglu'}, r'config.json: feed_forward_proj = "gated-swiglu" is not supported'),
        ({'is_encoder_decoder': False}, 'leaves out the encoder'),
        ({'d_model': 0}, 'd_model = 0 is not a positive whole number'),
        ({'scores': 'capped'}, 'scores = "capped" is not known here'),
        ({'d_ff': 39}, r'wi_0.weight is \[40, 24\], not \[39, 24\]'),
        ({'num_layers': 3}, 'encoder.block.2.* is missing'),
        ({'num_layers': 1}, 'encoder.block.1.* is left over'),
    ],
)
def test_what_is_not_supported_or_does_not_fit_is_refused(changed, fields, said):
    with pytest.raises(ValueError, match=said):
        made_t5.read(changed(**fields))


def test_a_model_that_no_family_says_is_refused(tmp_path):
    odd = tiny_t5.model(logit_scale=0.3)
    with pytest.raises(ValueError, match=r'no architecture of transformers .*logit_scale = 0\.3'):
        hugging_face.write_model(odd, tmp_path / 'ours')
    assert not list(tmp_path.iterdir())
