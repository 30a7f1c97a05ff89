"""Whole runs of self-improvement through the command line: what they write, and how they go on."""

import contextlib
import json
import math
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove import config, profiling, train
from t5x_selfimprove.checkpoints import Checkpoints
from t5x_selfimprove.data.possessions import Possessions
from tests import tiny_run
from tests.stored import stored
from tests.test_summary import OF_ROUND, OF_RUN
from tests.tiny_run import (
    QUESTIONS,
    ROUNDS,
    SAMPLES,
    arrays,
    built,
    contents,
    events,
    finished,
    improve_arguments,
    pretrained,
    same_bits,
    steps,
)


def model_of(state: dict[str, np.ndarray], part: str = 'model') -> dict[str, np.ndarray]:
    return {name.removeprefix(part): array for name, array in state.items() if name.startswith(f'{part}.')}


def test_summary():
    summary = json.loads((finished().directory / 'summary.json').read_text())
    assert all(name in summary for name in OF_RUN)
    assert [row['round'] for row in summary['rounds']] == [0, 1, 2]
    assert all(name in row for row in summary['rounds'] for name in OF_ROUND)
    assert (summary['name'], summary['seed'], summary['labels_read']) == ('quickstart', 0, 0)
    assert (summary['replay_examples'], summary['evaluation_questions']) == (64, QUESTIONS)
    assert summary['devices'] == ['cpu: cpu'] * 8 and summary['versions']['jax'] == jax.__version__
    assert summary['parameters'] == sum(array.size for array in model_of(arrays(finished().directory)).values())
    for row in summary['rounds'][1:]:
        assert row['kept_paths'] > 0 and row['training_tokens'] > 0
        assert {'round', 'store', 'evaluate'} <= set(row['seconds'])
    assert sum(sum(row['seconds'].values()) for row in summary['rounds']) < summary['wall_seconds']


def test_metrics():
    directory = finished().directory
    (run,) = events(directory, 'run')
    assert (run['command'], run['mesh']) == ('improve', {'data': 8, 'fsdp': 1, 'expert': 1, 'sequence': 1, 'tensor': 1})
    assert run['bytes_per_device'] > 12 * run['parameters']  # parameters and two moments
    (compiled,) = events(directory, 'compile')
    assert compiled['aliased_bytes'] >= run['bytes_per_device']  # all of the state is updated in place
    rounds = events(directory, 'round')
    assert [event['round'] for event in rounds] == [1, 2]
    for event in rounds:
        assert event['questions'] == QUESTIONS and event['samples'] == QUESTIONS * SAMPLES
        assert event['labels_read'] == 0 and event['skipped_questions'] == 0 and event['mfu'] is None  # of a CPU
        assert 0 < event['answered'] <= 1 and 0 < event['mean_vote_share'] <= 1
        assert 0 < event['kept_questions'] <= event['kept_paths'] <= 4 * event['kept_questions']
        assert sum(event['length_histogram']['counts']) == event['samples']
        assert event['sampled_tokens'] == pytest.approx(event['mean_length'] * event['samples'])
    measured = events(directory, 'evaluation')
    assert [event['round'] for event in measured] == [0, 1, 2]
    assert all(event['questions'] == QUESTIONS and len(event['reliability']) == 10 for event in measured)


def test_samples():
    folder = finished().directory / 'samples'
    assert sorted(path.name for path in folder.iterdir()) == [
        *(f'evaluation_{number:04d}.parquet' for number in range(3)), 'round_0001.parquet', 'round_0002.parquet'
    ]  # fmt: skip
    unlabelled = Possessions('unlabelled', 0, 2, 2, 6, 12).take(0, ROUNDS * QUESTIONS)
    seen = []
    for number, event in enumerate(events(finished().directory, 'round'), 1):
        questions = stored(folder / f'round_{number:04d}.parquet')
        assert all(question['gold'] is None for question in questions)  # no label comes near a round
        assert all(len(question['paths']) == SAMPLES for question in questions)
        assert sum(question['kept_paths'] for question in questions) == event['kept_paths']
        kept = [path for question in questions for path in question['paths'] if path['kept']]
        assert len(kept) == event['kept_paths'] and all(path['found'] and path['ended'] for path in kept)
        assert sum(path['found'] for question in questions for path in question['paths']) == pytest.approx(
            event['answered'] * event['samples']
        )
        for question in questions:
            assert {path['answer'] for path in question['paths'] if path['kept']} <= {question['chosen']}
            for path in question['paths']:
                assert not path['found'] or path['answer'] in path['text'].rpartition('The answer is')[2]
        seen += [question['question'] for question in questions]
    assert seen == [item.question for item in unlabelled]
    held_out = Possessions('held_out', 0, 2, 2, 6, 12).take(0, QUESTIONS)
    measured = stored(folder / 'evaluation_0000.parquet')
    assert [(one['question'], one['gold']) for one in measured] == [(item.question, item.answer) for item in held_out]


def test_configuration_builds_the_same_run():
    saved = finished().directory / 'config.gin'
    again = config.build('train.Improve', [str(saved)])
    assert again.value == built(finished().arguments).value
    assert again.text == saved.read_text()


def test_checkpoints():
    directory = finished().directory
    assert steps(directory) == [1, 2]
    found = Checkpoints(directory).describe()
    assert (found.kind, found.step, found.data_position) == ('improve', 8, ROUNDS * QUESTIONS)
    assert found.config == (directory / 'config.gin').read_text()
    first, second = arrays(directory, 1), arrays(directory, 2)
    assert (first['round'], first['step'], second['round'], second['step']) == (1, 4, 2, 8)
    assert not same_bits(model_of(first), model_of(second))


def test_tensorboard():
    (file,) = (finished().directory / 'tensorboard').iterdir()
    content = file.read_bytes()
    for name in (b'evaluation/greedy_accuracy', b'round/mean_vote_share', b'round/seconds/round', b'round/loss'):
        assert name in content


def test_report():
    directory = finished().directory
    page = directory / 'report.html'
    assert page.stat().st_size > 10_000
    page.unlink()
    outcome = tiny_run.done(['report', str(directory)])
    assert outcome.out == f'report: {page}\n'
    text = page.read_text(encoding='utf-8')
    assert stored(directory / 'samples' / 'round_0002.parquet')[0]['question'] in text


def test_what_it_says():
    text = finished().outcome.out
    assert '\x1b' not in text
    for pattern in (
        r'starting from .*pretrain, step 120$',
        r'improve: quickstart, seed 0$',
        r'^  platform +8 x cpu \(cpu\)$',
        r'^  mesh +data 8 x fsdp 1 x expert 1 x sequence 1 x tensor 1$',
        r'^  attention +plain \(no kernel for CPUs\)$',
        r'^  round +16 questions x 4 samples = 64 paths of at most 32 tokens, 8 questions at a time$',
        r'^  training +4 updates x 8 rows of 63 tokens \(1 accumulated\), 2 rows of them replay$',
        r'compiled sampling, vote and training as one program in \d+\.\d s: [\d.]+ KiB updated in place',
        r'before training: greedy \d+\.\d \[\d+\.\d, \d+\.\d\] %, majority ',
        r'round 2: \d+\.\d % of 64 paths answered, .* kept \d+ paths of \d+ questions, loss \d\.\d{3}, ',
        r'after round 2: greedy ',
        r'^│ 2 +│ +\d+\.\d \[\d+\.\d, \d+\.\d\] │ ',
        r'summary: .*summary\.json$',
    ):
        assert len(re.findall(pattern, text, re.MULTILINE)) == 1, pattern
    assert 'quickstart, seed 0: 16 held-out questions, per cent [95 % interval]' in text


def test_a_finished_run_only_shows_its_table(tmp_path):
    shutil.copytree(finished().directory, tmp_path / 'run')
    before = contents(tmp_path / 'run')
    outcome = tiny_run.done(improve_arguments(tmp_path / 'run', pretrained().directory))
    assert f'resumed after round {ROUNDS} of {ROUNDS}' in outcome.out
    table = outcome.out[outcome.out.index('quickstart, seed 0:') : outcome.out.index('└')]
    assert table in finished().outcome.out
    assert 'compiled' not in outcome.out and 'after round' not in outcome.out.replace('resumed after round', '')
    assert contents(tmp_path / 'run') == before
    first, second = (
        json.loads((path / 'summary.json').read_text()) for path in (finished().directory, tmp_path / 'run')
    )
    assert second['rounds'] == first['rounds'] and second['sessions'] == 2


def test_more_rounds_go_on_from_the_last(tmp_path):
    """Two rounds in one dispatch; then the same in a run that was first asked for one round."""
    arguments = {'directory': tmp_path / 'run', 'initial': pretrained().directory}
    tiny_run.done(improve_arguments(**arguments, train__Improve__rounds=1))
    outcome = tiny_run.done(improve_arguments(**arguments))
    assert 'resumed after round 1 of 2' in outcome.out
    assert same_bits(arrays(tmp_path / 'run'), arrays(finished().directory))


def without_times(found: list[dict]) -> list[dict]:
    return [{name: value for name, value in event.items() if name not in ('time', 'seconds')} for event in found]


def test_two_rounds_a_dispatch_equal_one(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(profiling, 'traced', lambda *arguments: asked.append(arguments) or contextlib.nullcontext())
    settings = {'train__Improve__rounds_per_dispatch': 2, 'session__Place__profile': '(2,)'}
    outcome = tiny_run.done(improve_arguments(tmp_path, pretrained().directory, **settings))
    assert 'rounds' in outcome.out and '2, 2 a dispatch' in outcome.out
    assert [(path, chosen, [*numbers]) for path, chosen, numbers in asked] == [(tmp_path, (2,), [1, 2])]
    assert same_bits(arrays(tmp_path), arrays(finished().directory))
    assert without_times(events(tmp_path, 'round')) == without_times(events(finished().directory, 'round'))
    for number in (1, 2):
        name = f'samples/round_{number:04d}.parquet'
        assert (tmp_path / name).read_bytes() == (finished().directory / name).read_bytes()
    assert [event['round'] for event in events(tmp_path, 'evaluation')] == [0, 2]


def test_vote_is_blind_to_labels(tmp_path):
    """With the labels at hand they are counted as read, and change nothing."""
    tiny_run.done(improve_arguments(tmp_path, pretrained().directory, train__Improve__labels=True))
    assert json.loads((tmp_path / 'summary.json').read_text())['labels_read'] == ROUNDS * QUESTIONS
    assert all(question['gold'] for question in stored(tmp_path / 'samples' / 'round_0001.parquet'))
    assert same_bits(arrays(tmp_path), arrays(finished().directory))


WITHOUT_REPLAY = {'train__Improve__replay': None, 'learning__Supervised__replay_share': 0.0}


def test_every_round_from_the_base(tmp_path):
    tiny_run.done(
        improve_arguments(tmp_path, pretrained().directory, learning__Supervised__start_from='base', **WITHOUT_REPLAY)
    )
    first, second, start = arrays(tmp_path, 1), arrays(tmp_path, 2), model_of(arrays(pretrained().directory))
    for state in (first, second):
        assert same_bits(model_of(state, 'base'), start)
        assert not same_bits(model_of(state), start)
    assert not same_bits(model_of(first), model_of(second))
    assert json.loads((tmp_path / 'summary.json').read_text())['replay_examples'] == 0


def test_rounds_that_keep_nothing_leave_the_model_alone(tmp_path):
    settings = {'vote/consolidation.MajorityVote.min_votes': SAMPLES + 1, 'learning__AdamW__weight_decay': 0.0}
    outcome = tiny_run.done(improve_arguments(tmp_path, pretrained().directory, **settings, **WITHOUT_REPLAY))
    assert 'round 2: no path was kept; the round trained on nothing' in outcome.out
    assert [(event['loss'], event['kept_paths']) for event in events(tmp_path, 'round')] == [(None, 0), (None, 0)]
    assert same_bits(model_of(arrays(tmp_path)), model_of(arrays(pretrained().directory)))


def test_loss_that_is_no_number(tmp_path, monkeypatch):
    """A round that goes wrong stops the run and is not saved; from the last good one it goes on as if never stopped."""
    compile = train._Run.compile

    def poisoned(self, state):
        step = compile(self, state)

        def one(state, questions, replay):
            if int(state.round) == 1:
                leaves, tree = jax.tree.flatten(state.model)
                bad = [jax.device_put(jnp.full_like(leaf, math.nan), leaf.sharding) for leaf in leaves]
                state = train.dataclasses.replace(state, model=jax.tree.unflatten(tree, bad))
            return step(state, questions, replay)

        return one

    monkeypatch.setattr(train._Run, 'compile', poisoned)
    arguments = improve_arguments(tmp_path, pretrained().directory)
    outcome = tiny_run.run(arguments)
    assert outcome.code == 2
    assert 'the loss of round 2 is nan; the last good state is checkpoint 1. Lower the learning rate' in outcome.err
    assert steps(tmp_path) == [0, 1]
    assert [event['round'] for event in events(tmp_path, 'round')] == [1]
    monkeypatch.undo()
    assert 'resumed after round 1 of 2' in tiny_run.done(arguments).out
    assert same_bits(arrays(tmp_path), arrays(finished().directory))


def test_drift_stops_the_run(tmp_path):
    """Weights rounded for sampling are not what learns: told, and stopped where the limit says so."""
    settings = {'sampling.Sampler.weights': 'int8', 'train.Improve.drift_limit': 1e-6}
    outcome = tiny_run.run(improve_arguments(tmp_path, pretrained().directory, **settings))
    assert outcome.code == 2
    assert 'in round 1 the log-probability of a token differs by' in outcome.err
    assert 'nats between sampling and learning (limit 1e-06)' in outcome.err
    assert steps(tmp_path) == [0]


# The vocabulary of the task is of an odd size.
MESHES = [{}, {'data': 2, 'fsdp': 4, 'expert': 1, 'sequence': 1, 'tensor': 1}]


def test_a_run_goes_on_on_another_mesh(tmp_path):
    """Two more rounds, on the mesh of the first two and on one that splits the parameters too."""
    for number, mesh in enumerate(MESHES):
        shutil.copytree(finished().directory, tmp_path / str(number))
        sizes = {f'partitioning__MeshShape__{axis}': size for axis, size in mesh.items()}
        settings = {**sizes, 'train__Improve__rounds': ROUNDS + 2}
        tiny_run.done(improve_arguments(tmp_path / str(number), pretrained().directory, **settings))
    same, split = ([event for event in events(tmp_path / number, 'round')][ROUNDS:] for number in ('0', '1'))  # noqa: C416
    assert [event['round'] for event in same] == [event['round'] for event in split] == [3, 4]
    assert events(tmp_path / '1', 'run')[-1]['mesh'] == MESHES[1]
    states = [event['bytes_per_device'] for number in ('0', '1') for event in events(tmp_path / number, 'run')[-1:]]
    assert states[1] < 0.4 * states[0]  # in four parts, but for the norms and counters
    for one, other in zip(same, split, strict=True):
        assert (one['sampled_tokens'], one['kept_paths']) == (other['sampled_tokens'], other['kept_paths'])
        assert one['loss'] == pytest.approx(other['loss'], rel=1e-4)
    whole, parts = arrays(tmp_path / '0'), arrays(tmp_path / '1')
    assert all(np.allclose(whole[name], parts[name], rtol=1e-2, atol=1e-3) for name in whole)
