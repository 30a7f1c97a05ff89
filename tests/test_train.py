"""Whole runs of self-improvement through the command line: what they write, and what they refuse before they start."""

import contextlib
import json
import math
import pathlib
import re
import shutil
import subprocess
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove import config, train
from t5x_selfimprove.checkpoints import Checkpoints
from t5x_selfimprove.data.possessions import Possessions
from tests import tiny_run
from tests.test_summary import OF_ROUND, OF_RUN
from tests.tiny_run import (
    BATCH,
    QUESTIONS,
    ROUNDS,
    SAMPLES,
    arrays,
    built,
    events,
    finished,
    improve_arguments,
    nothing_ran,
    pretrained,
    same_bits,
    steps,
)


def lines(file: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding='utf-8').splitlines()]


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
    assert (run['command'], run['mesh']) == ('improve', {'data': 8, 'fsdp': 1, 'expert': 1, 'tensor': 1})
    assert run['bytes_per_device'] > 12 * run['parameters']  # parameters and two moments
    (compiled,) = events(directory, 'compile')
    assert compiled['aliased_bytes'] >= run['bytes_per_device']  # all of the state is updated in place
    rounds = events(directory, 'round')
    assert [event['round'] for event in rounds] == [1, 2]
    for event in rounds:
        assert event['questions'] == QUESTIONS and event['samples'] == QUESTIONS * SAMPLES
        assert event['labels_read'] == 0 and event['skipped_questions'] == 0
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
        'evaluation_0000.jsonl', 'evaluation_0001.jsonl', 'evaluation_0002.jsonl', 'round_0001.jsonl', 'round_0002.jsonl'  # noqa: E501
    ]  # fmt: skip
    unlabelled = Possessions('unlabelled', 0, 2, 2, 6, 12).take(0, ROUNDS * QUESTIONS)
    seen = []
    for number, event in enumerate(events(finished().directory, 'round'), 1):
        stored = lines(folder / f'round_{number:04d}.jsonl')
        assert all(question['gold'] is None for question in stored)  # no label comes near a round
        assert all(len(question['paths']) == SAMPLES for question in stored)
        assert sum(question['kept_paths'] for question in stored) == event['kept_paths']
        kept = [path for question in stored for path in question['paths'] if path['kept']]
        assert len(kept) == event['kept_paths'] and all(path['found'] and path['ended'] for path in kept)
        assert sum(path['found'] for question in stored for path in question['paths']) == pytest.approx(
            event['answered'] * event['samples']
        )
        for question in stored:
            assert {path['answer'] for path in question['paths'] if path['kept']} <= {question['chosen']}
            for path in question['paths']:
                assert not path['found'] or path['answer'] in path['text'].rpartition('The answer is')[2]
        seen += [question['question'] for question in stored]
    assert seen == [item.question for item in unlabelled]
    held_out = Possessions('held_out', 0, 2, 2, 6, 12).take(0, QUESTIONS)
    measured = lines(folder / 'evaluation_0000.jsonl')
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
    assert lines(directory / 'samples' / 'round_0002.jsonl')[0]['question'] in text


def test_what_it_says():
    text = finished().outcome.out
    assert '\x1b' not in text
    for pattern in (
        r'starting from .*pretrain, step 120$',
        r'improve: quickstart, seed 0$',
        r'^  platform +8 x cpu \(cpu\)$',
        r'^  mesh +data 8 x fsdp 1 x expert 1 x tensor 1$',
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


def contents(directory: pathlib.Path) -> dict[str, bytes]:
    """What must not change when a finished run is run again."""
    kept = [path for name in ('checkpoints', 'samples') for path in (directory / name).rglob('*') if path.is_file()]
    return {str(path): path.read_bytes() for path in kept}


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


def test_two_rounds_a_dispatch_equal_one(tmp_path):
    settings = {'train__Improve__rounds_per_dispatch': 2}
    outcome = tiny_run.done(improve_arguments(tmp_path, pretrained().directory, **settings))
    assert 'rounds' in outcome.out and '2, 2 a dispatch' in outcome.out
    assert same_bits(arrays(tmp_path), arrays(finished().directory))
    assert without_times(events(tmp_path, 'round')) == without_times(events(finished().directory, 'round'))
    for number in (1, 2):
        name = f'samples/round_{number:04d}.jsonl'
        assert (tmp_path / name).read_bytes() == (finished().directory / name).read_bytes()
    assert [event['round'] for event in events(tmp_path, 'evaluation')] == [0, 2]


def test_vote_is_blind_to_labels(tmp_path):
    """With the labels at hand they are counted as read, and change nothing."""
    tiny_run.done(improve_arguments(tmp_path, pretrained().directory, train__Improve__labels=True))
    assert json.loads((tmp_path / 'summary.json').read_text())['labels_read'] == ROUNDS * QUESTIONS
    assert all(question['gold'] for question in lines(tmp_path / 'samples' / 'round_0001.jsonl'))
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


def bank(file: pathlib.Path, *extra: str) -> None:
    """Questions of the held-out split without answers, and more lines."""
    items = Possessions('held_out', 0, 2, 2, 6, 12).take(0, 2 * QUESTIONS - len(extra))
    file.write_text(''.join(json.dumps({'question': item.question}) + '\n' for item in items) + ''.join(extra))


LONG = json.dumps({'question': 'Hugo has 1 pen. ' * 20}) + '\n'
FROM_FILE = {
    'unlabelled/feed.Feed.bank': '@data.JsonLines()',
    'data__JsonLines__path': 'bank.jsonl',
    'data__JsonLines__answer': None,
}


def test_what_is_asked_for_is_left_out_and_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bank(tmp_path / 'bank.jsonl', LONG, LONG, LONG)
    settings = {
        **FROM_FILE,
        'unlabelled/feed.Feed.too_long': 'skip',
        'train__Improve__train_on_evaluation': True,
        'train__Improve__rounds_per_dispatch': 2,
    }
    outcome = tiny_run.done(improve_arguments('run', pretrained().directory, **settings))
    told = events(tmp_path / 'run', 'round')
    assert [(event['questions'], event['skipped_questions']) for event in told] == [(QUESTIONS, 0), (QUESTIONS - 3, 3)]
    assert [event['samples'] for event in told] == [QUESTIONS * SAMPLES, (QUESTIONS - 3) * SAMPLES]
    assert len(lines(tmp_path / 'run/samples/round_0002.jsonl')) == QUESTIONS - 3
    assert '3 questions too long' in outcome.out


NOT_JSON, NO_FIELD = '{"question": "Hugo\n', '{"text": "Hugo has 1 pen."}\n'
BAD = {
    'too long': ({'unlabelled/feed.Feed.room': 5}, r"has \d\d tokens, the room is 5 .*set too_long='skip'"),
    'too long in a later round': ({**FROM_FILE, 'train__Improve__train_on_evaluation': True}, r'the room is 28'),
    'too long in the evaluation': ({'held_out/feed.Feed.room': 5}, r'has \d\d tokens, the room is 5'),
    'broken line': ({**FROM_FILE, 'data__JsonLines__path': 'broken.jsonl'}, r'broken\.jsonl, line 32: not JSON'),
    'no field': (
        {**FROM_FILE, 'data__JsonLines__path': 'field.jsonl'},
        r"field\.jsonl, line 32: there is no field 'question'; the fields there are: 'text'",
    ),
    'empty bank': ({**FROM_FILE, 'data__JsonLines__path': 'empty.jsonl'}, r"'empty\.jsonl' is empty"),
    'no bank': ({**FROM_FILE, 'data__JsonLines__path': 'nowhere.jsonl'}, r"no file 'nowhere\.jsonl' \(relative to /"),
    'question that cannot be spelled': (
        {**FROM_FILE, 'data__JsonLines__path': 'greek.jsonl', 'train__Improve__train_on_evaluation': True},
        r'α',
    ),
    'evaluation questions to train on': (
        {'unlabelled/data.Possessions.split': 'held_out'},
        r'16 questions of round 1 are evaluation questions .*set train_on_evaluation=True',
    ),
    'evaluation without labels': (
        {
            'held_out/feed.Feed.bank': '@data.JsonLines()',
            'data__JsonLines__path': 'bank.jsonl',
            'data__JsonLines__answer': None,
            'held_out/feed.Feed.too_long': 'skip',
        },
        r'none of the 16 evaluation questions has a label',
    ),
    'vocabulary': (
        {'data__possessions_vocabulary__max_total': 40},
        r'was made with vocabulary \w+, this run uses \w+ \(.*: use the vocabulary that the model was made with',
    ),
    'no initial model': ({'INITIAL': 'nowhere'}, r'nowhere has no checkpoints; pre-train a model there first'),
    'initial model without a checkpoint': ({'INITIAL': '.'}, r'there is no checkpoint in /'),
    'initial model of another shape': (
        {'models__TransformerConfig__feed_forward': 40},
        r'does not fit this configuration: .*down is \(1, 32, 16\) there and \(1, 40, 16\) here; .*gate is .*up is ',
    ),
    'platform': ({'session__Place__platform': 'tpu'}, r"'tpu' was asked for and is not there; jax found \['cpu'\]"),
    'mesh': ({'partitioning__MeshShape__fsdp': 3}, r'does not fit 8 devices: 2 x 3 x 1 x 1 = 6'),
    'mesh that does not divide the model': (
        {'partitioning__MeshShape__data': 2, 'partitioning__MeshShape__tensor': 4},
        r"axis 'kv_heads' of size 2 cannot be split into 4 equal parts",
    ),
    'mesh that does not divide the batch': (
        {'unlabelled/feed.Feed.per_batch': BATCH // 2},
        r'a batch of 4 cannot be split over data x fsdp x expert = 8 devices; make its size \(per_batch',
    ),
    'a file in its place': ({'RUN_DIR': 'bank.jsonl/run'}, r'cannot write to the run directory bank\.jsonl/run: Not a'),
    'a system folder in its place': ({'RUN_DIR': '/proc/run'}, r'cannot write to the run directory /proc/run: '),
    'replay that nobody reads': ({'learning__Supervised__replay_share': 0.0}, r'give both or neither'),
    'no replay': ({'train__Improve__replay': None}, r'replay_share = 0\.3 and replay = None do not go together'),
    'endless replay': ({'labelled/data.Possessions.count': None}, r'this bank is endless; set a count'),
    'replay too long': ({'train__Improve__replay_room': 20}, r'has \d\d tokens, the room is 20'),
    'rounds': ({'train__Improve__rounds_per_dispatch': 3}, r'rounds = 2 must be a positive multiple of'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_input(tmp_path, monkeypatch, name: str):
    bindings, message = BAD[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'checkpoints').mkdir()
    (tmp_path / 'empty.jsonl').touch()
    bank(tmp_path / 'bank.jsonl', LONG)
    bank(tmp_path / 'broken.jsonl', NOT_JSON)
    bank(tmp_path / 'field.jsonl', NO_FIELD)
    bank(tmp_path / 'greek.jsonl', json.dumps({'question': 'Hugo has α.'}) + '\n')
    outcome = tiny_run.run(improve_arguments('run', pretrained().directory, **bindings))
    print(outcome.err)
    assert outcome.code == 2 and re.search(message, outcome.err.replace('\n', ' ')), outcome.err
    assert 'Traceback' not in outcome.err and 'compiled' not in outcome.out
    assert nothing_ran(tmp_path / 'run')


def test_a_directory_goes_on_with_its_own_run_only(tmp_path):
    """Another seed, or another kind of run, is refused and leaves the directory as it was."""
    run, initial = tmp_path / 'run', tmp_path / 'pretrain'
    shutil.copytree(finished().directory, run)
    shutil.copytree(pretrained().directory, initial)
    before = contents(tmp_path)
    for arguments, message in (
        (improve_arguments(run, initial, SEED=1), r"its seed is 0, this one's 1\. Go on with it as it was"),
        (improve_arguments(initial, initial), r"its kind is pretrain, this one's improve"),
        (tiny_run.pretrain_arguments(run), r"its kind is improve, this one's pretrain"),
    ):
        outcome = tiny_run.run(arguments)
        assert outcome.code == 2 and re.search(message, outcome.err), outcome.err
        assert contents(tmp_path) == before


def test_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6))
    for arguments in (
        improve_arguments(tmp_path / 'run', pretrained().directory),
        tiny_run.pretrain_arguments(tmp_path / 'run'),
    ):
        outcome = tiny_run.run(arguments)
        assert outcome.code == 2 and re.search(
            r'run has 976\.6 KiB free and the run needs about 64\.\d MiB for 2 checkpoints; free some', outcome.err
        )
        assert nothing_ran(tmp_path / 'run')


@pytest.fixture
def small_disk(tmp_path) -> Iterator[pathlib.Path]:
    """A file system of one MiB."""
    place = tmp_path / 'disk'
    place.mkdir()
    mounted = shutil.which('mount') and subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(place)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip('this user may not mount a file system')
    yield place
    subprocess.run(['umount', str(place)], check=True)


def test_a_disk_that_is_really_full(small_disk):
    outcome = tiny_run.run(improve_arguments(small_disk / 'run', pretrained().directory))
    assert outcome.code == 2 and re.search(r'free and the run needs about 64\.\d MiB', outcome.err), outcome.err
    assert nothing_ran(small_disk / 'run')
    with contextlib.suppress(OSError), (small_disk / 'filler').open('wb') as file:
        file.write(b'x' * (2 << 20))
    outcome = tiny_run.run(improve_arguments(small_disk / 'other', pretrained().directory))
    assert outcome.code == 2 and 'No space left on device. Choose another one.' in outcome.err, outcome.err


MESHES = [{}, {'data': 2, 'fsdp': 4, 'expert': 1, 'tensor': 1}]  # the vocabulary of the task is of an odd size


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
