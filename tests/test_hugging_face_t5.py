"""A T5 directory of transformers through one round of the embedded task and back, by the commands of a user."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove.checkpoints import read_model
from t5x_selfimprove.models import hugging_face
from t5x_selfimprove.records import Sources
from tests import tiny_run
from tests.models import tiny_t5
from tests.test_hugging_face import arguments, vocabulary

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')


def make(folder):
    """A tiny random T5 1.1 with three rows more than the vocabulary has tokens, its output embedding its own."""
    torch.manual_seed(0)
    sizes = {'d_model': 16, 'd_kv': 8, 'd_ff': 24, 'num_layers': 1, 'num_heads': 2, 'vocab_size': vocabulary().size + 3}
    settings = {'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False, 'decoder_start_token_id': 0}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, **settings)).eval()
    model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape))
    model.save_pretrained(folder)
    return model


def logits(model, prompts, completions):
    """Logits of transformers."""
    ids = [torch.tensor(each, dtype=torch.long) for each in (prompts, completions)]
    with torch.no_grad():
        return model(input_ids=ids[0], decoder_input_ids=ids[1]).logits.numpy()


def test_transformers_loads_the_improved_model_and_computes_the_same(tmp_path):
    before, run, output = make(tmp_path / 't5'), tmp_path / 'run', tmp_path / 'exported'
    rows = {'learning.Packing.row_length': 64, 'learning.Packing.source_length': 40, 'train.Improve.rounds': 1}
    said = tiny_run.done(arguments(tmp_path / 't5', tiny_run.improve_arguments(run, tmp_path / 't5'), **rows)).out
    assert 'rows of 40 + 64 tokens' in said and 'plain (with a bias by relative position)' in said
    said = tiny_run.done(['export', f'--gin.export.Export.initial={run}', f'--gin.export.Export.output={output}']).out
    assert 'as T5ForConditionalGeneration' in said
    theirs, told = transformers.T5ForConditionalGeneration.from_pretrained(output, output_loading_info=True)
    assert not any(told.values()), told
    generator = np.random.default_rng(0)
    prompts, completions = generator.integers(3, vocabulary().size, (2, 3, 9)).astype(np.int32)
    completions[:, 0] = 0  # the start token
    wanted = logits(theirs.eval(), prompts, completions)
    settings = hugging_face.of_directory(str(output))
    ours = read_model(str(run), settings.create(vocabulary().size, jax.random.key(0)))
    place = jnp.broadcast_to(jnp.arange(9), (3, 9))
    ones = jnp.ones((3, 9), jnp.int32)
    got = tiny_t5.forward_logits(ours, jnp.asarray(completions), place, ones, Sources(jnp.asarray(prompts), ones))
    scale = np.abs(wanted).max()
    assert np.abs(np.asarray(got) - wanted).max() < 1e-4 * scale
    assert np.abs(logits(before, prompts, completions) - wanted).max() > 1e-3 * scale


def test_rows_of_the_wrong_kind_are_refused_before_anything_runs(tmp_path):
    make(tmp_path / 't5')
    given = arguments(tmp_path / 't5', tiny_run.improve_arguments(tmp_path / 'run', tmp_path / 't5'))
    outcome = tiny_run.run(given)
    assert outcome.code == 2 and 'set learning.Packing.source_length' in outcome.err.replace('\n', ' ')
    outcome = tiny_run.run([*given, '--gin.learning.Packing.source_length=10'])
    assert outcome.code == 2 and 'source_length' in outcome.err and tiny_run.nothing_ran(tmp_path / 'run')
