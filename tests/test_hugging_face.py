"""From a Hugging Face directory through a run and back: the commands, as a user runs them, and what they refuse."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest

from t5x_selfimprove import config
from t5x_selfimprove.checkpoints import describe_model, kind_of, read_model
from t5x_selfimprove.models import hugging_face
from tests import tiny_run
from tests.models.hugging_face import made, parity
from tests.tiny_run import done

STEPS = 12  # of the sampled completions that are compared


def vocabulary():
    """The vocabulary of the tiny runs."""
    return tiny_run.built(tiny_run.pretrain_arguments('nowhere')).value.vocabulary


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory) -> pathlib.Path:
    """A tiny random Qwen 3 with three rows more than the vocabulary has tokens, and a file of a tokenizer."""
    folder = tmp_path_factory.mktemp('qwen3')
    sizes = {**made.SIZES, 'vocab_size': vocabulary().size + 3, 'head_dim': 16, 'eos_token_id': 1}
    theirs = made.transformers.Qwen3ForCausalLM(made.transformers.Qwen3Config(**sizes)).eval()
    made.randomize(theirs).save_pretrained(folder)
    (folder / 'tokenizer_config.json').write_text('{}', encoding='utf-8')
    return folder


def arguments(folder: pathlib.Path, given: list[str], **bindings: object) -> list[str]:
    """The arguments of a tiny run with the model of a directory in place of its own."""
    kept = [word for word in given if not any(f'--gin.{name}=' in word for name in tiny_run.MODEL)]
    named = {'CHECKPOINT': folder, **bindings}
    return [*kept, '--gin_file=gin/models/checkpoint.gin', *(f'--gin.{name}={value}' for name, value in named.items())]


@pytest.fixture(scope='module')
def improved(checkpoint, tmp_path_factory) -> pathlib.Path:
    """The run directory of one round from the checkpoint."""
    run = tmp_path_factory.mktemp('run') / 'run'
    done(arguments(checkpoint, tiny_run.improve_arguments(run, checkpoint), **{'train.Improve.rounds': 1}))
    return run


@pytest.fixture(scope='module')
def exported(improved) -> pathlib.Path:
    """What `export` wrote of that run."""
    output = improved.parent / 'exported'
    names = {'initial': improved, 'output': output, 'shard': '20KB'}
    said = done(['export', *(f'--gin.export.Export.{name}={value}' for name, value in names.items())]).out
    assert 'as Qwen3ForCausalLM' in said and 'model.safetensors.index.json' in said
    return output


def test_the_run_changed_the_model_of_the_directory(checkpoint, improved):
    assert kind_of(str(checkpoint)) == 'hugging_face' and kind_of(str(improved)) == 'run'
    at_start, after = tiny_run.arrays(improved, 0), tiny_run.arrays(improved, 1)
    theirs = made.transformers.Qwen3ForCausalLM.from_pretrained(checkpoint)
    np.testing.assert_array_equal(at_start['model.embedding'], theirs.model.embed_tokens.weight.detach().numpy())
    assert np.abs(after['model.embedding'] - at_start['model.embedding']).max() > 1e-4


def test_transformers_loads_the_improved_model_and_computes_the_same(checkpoint, improved, exported):
    theirs, told = made.transformers.Qwen3ForCausalLM.from_pretrained(exported, output_loading_info=True)
    assert not any(told.values()), told
    assert theirs.config.eos_token_id == 1 and (exported / 'tokenizer_config.json').is_file()
    settings = hugging_face.of_directory(str(exported))
    ours = read_model(str(improved), settings.create(vocabulary().size, jax.random.key(0)))
    ids, place, seen = parity.inputs('padding left')
    ids = np.minimum(ids, vocabulary().size - 1)
    wanted = made.torch_logits(theirs, ids, place, seen)
    assert parity.relative(np.asarray(made.our_logits(ours, ids, place, seen)), wanted, seen) < 1e-4
    before = made.torch_logits(made.transformers.Qwen3ForCausalLM.from_pretrained(checkpoint), ids, place, seen)
    assert parity.relative(before, wanted, seen) > 1e-3


def test_questions_are_put_to_a_directory(exported, tmp_path):
    question = "--gin.ask.SampleRun.ask=('Hugo has 1 pen.',)"
    asked = tiny_run.improve_arguments(tmp_path, exported, 'sample')
    asked = [word for word in asked if 'train.Improve' not in word and 'learning' not in word and 'Feed' not in word]
    asked = [word for word in asked if 'LABELLED' not in word and 'session' not in word and 'RUN_DIR' not in word]
    asked = [*asked, question, f'--gin.ask.SampleRun.output={tmp_path / "paths.json"}']
    done(arguments(exported, asked))
    paths = json.loads((tmp_path / 'paths.json').read_text())[0]['paths']
    assert len(paths) == tiny_run.SAMPLES


def test_pretraining_goes_on_from_a_directory(checkpoint, tmp_path):
    given = {'learning.Supervised.total_rounds': 1, 'learning.Supervised.steps': 2, 'learning.Schedule.peak': 1e-6}
    named = {**given, 'learning.Schedule.warmup': 1, 'pretrain.Pretrain.initial': checkpoint}
    said = done(arguments(checkpoint, tiny_run.pretrain_arguments(tmp_path / 'run'), **named)).out
    assert f'starting from {checkpoint}' in said
    theirs = made.transformers.Qwen3ForCausalLM.from_pretrained(checkpoint)
    gap = tiny_run.arrays(tmp_path / 'run')['model.embedding'] - theirs.model.embed_tokens.weight.detach().numpy()
    assert 0 < np.abs(gap).max() < 1e-4


def test_a_vocabulary_larger_than_the_embedding(checkpoint, tmp_path):
    folder = tmp_path / 'small'
    made.transformers.Qwen3ForCausalLM(made.transformers.Qwen3Config(**made.SIZES, head_dim=16)).save_pretrained(folder)
    made.change(folder / 'config.json', vocab_size=7)
    with pytest.raises(ValueError, match=r'tokens and the embedding of the model 7 rows'):
        describe_model(str(folder), vocabulary())
    run = tmp_path / 'run'
    outcome = tiny_run.run(arguments(folder, tiny_run.improve_arguments(run, folder)))
    assert outcome.code == 2 and 'the embedding of the model 7 rows' in outcome.err.replace('\n', ' ')
    assert tiny_run.nothing_ran(run)


def test_a_configuration_that_is_not_the_directorys(checkpoint):
    other = hugging_face.of_directory(str(checkpoint))
    other = type(other)(**{**vars(other), 'norm_epsilon': 1e-3})
    with pytest.raises(ValueError, match=r'here norm_epsilon = 0\.001\. Take the configuration from the directory'):
        hugging_face.read_model(checkpoint, jax.eval_shape(lambda: other.create(1, jax.random.key(0))))


KINDS = {
    'T5X': ('checkpoint', ValueError, r'is a T5X checkpoint, which is not read here\. The public T5 models'),
    'Orbax': ('_CHECKPOINT_METADATA', ValueError, r'is an Orbax checkpoint\. .*name the run directory'),
    'something': ('notes.txt', FileNotFoundError, r'has no checkpoints; .*\(found there: notes\.txt\)'),
}


@pytest.mark.parametrize('name', KINDS)
def test_directories_are_told_apart(tmp_path, name):
    file, error, message = KINDS[name]
    (tmp_path / file).touch()
    with pytest.raises(error, match=message):
        kind_of(str(tmp_path))


@pytest.mark.parametrize(
    ('named', 'message'),
    [
        ({'initial': 'nowhere'}, r'nowhere has no checkpoints'),
        ({'tokenizer': 'nowhere'}, r"tokenizer = 'nowhere' is no directory"),
        ({'dtype': 'float16'}, r"dtype must be one of float32, bfloat16; it is 'float16'"),
        ({'shard': 'much'}, r"a size in bytes is written as 5GB, 500MB or 1000000; it is 'much'"),
        ({'output': '.'}, r'is there and not empty; name another directory'),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else '',
)
def test_export_refuses(checkpoint, tmp_path, monkeypatch, named, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'file').touch()
    given = {'initial': checkpoint, 'output': 'exported', **named}
    outcome = tiny_run.run(['export', *(f'--gin.export.Export.{name}={value}' for name, value in given.items())])
    assert outcome.code == 2 and re.search(message, outcome.err.replace('\n', ' ')), outcome.err
    assert not (tmp_path / 'exported').exists()


def test_the_commands_configuration_builds_the_same_export(checkpoint):
    given = {'initial': str(checkpoint), 'output': 'exported'}
    built = config.build('export.Export', [], [f'export.Export.{name}={value}' for name, value in given.items()])
    assert built.value.model is None and built.value.shard == '5GB'
