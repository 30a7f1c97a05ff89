"""What a run of self-improvement refuses before it starts, and what it leaves out where it was asked to."""

import json
import pathlib
import re
import shutil

import pytest

from t5x_selfimprove.data.possessions import Possessions
from tests import tiny_run
from tests.stored import stored
from tests.tiny_run import (
    BATCH,
    QUESTIONS,
    SAMPLES,
    contents,
    events,
    finished,
    improve_arguments,
    nothing_ran,
    pretrained,
)


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
NOT_JSON, NO_FIELD = '{"question": "Hugo\n', '{"text": "Hugo has 1 pen."}\n'


def test_what_is_asked_for_is_left_out_and_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bank(tmp_path / 'bank.jsonl', LONG, LONG, LONG)
    with (tmp_path / 'bank.jsonl').open('a') as file:
        file.write(NO_FIELD + NOT_JSON)
    settings = {
        **FROM_FILE,
        'data__JsonLines__on_error': 'skip',
        'unlabelled/feed.Feed.too_long': 'skip',
        'train__Improve__train_on_evaluation': True,
        'train__Improve__rounds_per_dispatch': 2,
    }
    outcome = tiny_run.done(improve_arguments('run', pretrained().directory, **settings))
    told = events(tmp_path / 'run', 'round')
    assert [(event['questions'], event['skipped_questions']) for event in told] == [(QUESTIONS, 0), (QUESTIONS - 3, 3)]
    assert [event['samples'] for event in told] == [QUESTIONS * SAMPLES, (QUESTIONS - 3) * SAMPLES]
    assert len(stored(tmp_path / 'run/samples/round_0002.parquet')) == QUESTIONS - 3
    assert '3 questions too long' in outcome.out
    (start,) = events(tmp_path / 'run', 'run')
    said = start['batch']['left out']
    assert re.fullmatch(
        r"2 bad lines: .*bank\.jsonl, line 33: there is no field 'question'; .* are: 'text' \.\.\.", said
    )
    assert re.search(rf'^  left out +{re.escape(said)}$', outcome.out, re.MULTILINE)


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
    'evaluation questions in a file': (
        {
            'unlabelled/feed.Feed.bank': '@data.TaskFile()',
            'data__TaskFile__path': 'bank.jsonl',
            'data__TaskFile__task': 'gsm8k',
            'data__TaskFile__labels': False,
        },
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
    'mesh': ({'partitioning__MeshShape__fsdp': 3}, r'does not fit 8 devices: 2 x 3 x 1 x 1 x 1 = 6'),
    'mesh that does not divide the model': (
        {'partitioning__MeshShape__data': 1, 'partitioning__MeshShape__tensor': 8},
        r"axis 'heads' of size \d cannot be split into 8 equal parts",
    ),
    'mesh that does not divide the batch': (
        {'unlabelled/feed.Feed.per_batch': BATCH // 2},
        r'a batch of 4 cannot be split over data x fsdp x expert = 8 devices; make its size .per_batch',
    ),
    'a file in its place': ({'RUN_DIR': 'bank.jsonl/run'}, r'cannot write to the directory bank\.jsonl/run: Not a'),
    'a system folder in its place': ({'RUN_DIR': '/proc/run'}, r'cannot write to the directory /proc/run: '),
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
    before = contents(run) | contents(initial)
    assert len(before) > 20
    for arguments, message in (
        (improve_arguments(run, initial, SEED=1), r"its seed is 0, this one's 1\. Go on with it as it was"),
        (improve_arguments(initial, initial), r"its kind is pretrain, this one's improve"),
        (tiny_run.pretrain_arguments(run), r"its kind is improve, this one's pretrain"),
    ):
        outcome = tiny_run.run(arguments)
        assert outcome.code == 2 and re.search(message, outcome.err), outcome.err
        assert contents(run) | contents(initial) == before
