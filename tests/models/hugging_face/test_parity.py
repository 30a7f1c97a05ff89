"""Every family computes what transformers computes."""

import numpy as np
import pytest

from tests.models.hugging_face import made, parity

TOLERANCE = 1e-4


@pytest.fixture(scope='module', params=list(made.CASES))
def pair(request, tmp_path_factory):
    """(the transformers model, ours read from what it saved)."""
    folder = tmp_path_factory.mktemp('checkpoint')
    return made.make(request.param), made.read(made.save(request.param, folder))


@pytest.mark.parametrize('check', parity.CHECKS)
def test_logits_are_those_of_transformers(pair, check):
    assert parity.logits_differ(*pair, check) < TOLERANCE


def test_greedy_tokens_are_those_of_transformers(pair):
    assert parity.tokens_equal(*pair) == parity.STEPS


def test_the_checks_see_a_small_change(tmp_path):
    """Each option that a case is about is one that the tolerance notices."""
    for name, other in {
        'mistral (window)': {'sliding_window': made.WINDOW + 1},
        'llama (llama3 rope)': {'rope_parameters': {'rope_type': 'default', 'rope_theta': 10000.0}},
        'cohere (PaLM style)': {'layer_norm_eps': 1e-3},
    }.items():
        folder = made.save(name, tmp_path / name)
        made.change(folder / 'config.json', **other)
        assert parity.logits_differ(made.make(name), made.read(folder), 'whole rows') > 10 * TOLERANCE


def test_bfloat16_computes_within_three_hundredths(tmp_path):
    """8 bits of mantissa over two layers; parameters stay float32, sums, norms and softmax are float32."""
    name = 'llama (llama3 rope)'
    narrow = made.read(made.save(name, tmp_path), dtype='bfloat16')
    gap = parity.logits_differ(made.make(name), narrow, 'whole rows')
    assert 10 * TOLERANCE < gap < 0.03


def test_a_text_model_inside_a_model_of_images(tmp_path):
    config = made.transformers.Gemma3Config(
        text_config={**made.SIZES, **made.CASES['gemma3 (window, linear rope)'].fields},
        vision_config={
            'hidden_size': 16,
            'intermediate_size': 16,
            'num_hidden_layers': 1,
            'num_attention_heads': 2,
            'image_size': 28,
            'patch_size': 14,
        },
        mm_tokens_per_image=4,
        image_token_index=made.VOCABULARY + 1,
    )
    theirs = made.randomize(made.transformers.Gemma3ForConditionalGeneration(config).eval())
    theirs.save_pretrained(tmp_path)
    ids, place, seen = parity.inputs('whole rows')
    wanted = made.torch_logits(theirs, ids, place, seen)
    got = np.asarray(made.our_logits(made.read(tmp_path), ids, place, seen))
    assert parity.relative(got, wanted, seen) < TOLERANCE
