"""Pre-training: it learns, it saves, and interrupted it ends in the same bits."""

import contextlib
import json
import math
import re

import numpy as np
import pytest

from t5x_selfimprove import profiling
from t5x_selfimprove.checkpoints import Checkpoints
from tests import tiny_run
from tests.tiny_run import CHUNKS, STEPS, arrays, events, nothing_ran, pretrain_arguments, pretrained, same_bits, steps


def test_loss_falls_and_files_are_written():
    run = pretrained()
    told = events(run.directory, 'pretrain')
    assert [event['step'] for event in told] == [STEPS * (number + 1) for number in range(CHUNKS)]
    losses = [event['loss'] for event in told]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.5 < losses[0]
    assert all(event['tokens'] == event['training_tokens'] > 0 and event['skipped'] == 0 for event in told)
    assert steps(run.directory) == [CHUNKS - 1, CHUNKS]  # the last two
    found = Checkpoints(run.directory).describe()
    assert (found.step, found.kind, found.data_position) == (CHUNKS * STEPS, 'pretrain', CHUNKS * 64)
    assert found.config == (run.directory / 'config.gin').read_text()
    state = arrays(run.directory)
    assert state['step'] == CHUNKS * STEPS and state['round'] == CHUNKS
    assert all(np.isfinite(array).all() for array in state.values())


def test_what_it_says():
    lines = pretrained().outcome.out.splitlines()
    text = '\n'.join(lines)
    assert '8 x cpu' in text and 'data 8 x fsdp 1 x expert 1 x sequence 1 x tensor 1' in text
    assert '3 chunks x 40 = 120' in text
    assert re.search(r'parameters +6,\d\d\d', text) and re.search(r'state +\d+\.\d KiB per device', text)
    told = [line for line in lines if re.search(r'step [\d,]+: loss \d\.\d{3}, [\d,]+ tokens/s, \d+\.\d s$', line)]
    assert len(told) == CHUNKS
    assert '\x1b' not in text and 'Traceback' not in pretrained().outcome.err


def test_interrupted_equals_uninterrupted(tmp_path, monkeypatch):
    """Stopped after its first chunk, in the second session by a failing disk: the third ends in the same bits."""
    save = Checkpoints.save

    def interrupted(self, step, state, described):
        save(self, step, state, described)
        raise KeyboardInterrupt

    def failing(self, step, state, described):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Checkpoints, 'save', interrupted)
    assert tiny_run.run(pretrain_arguments(tmp_path)).code == 130
    assert steps(tmp_path) == [1]
    monkeypatch.setattr(Checkpoints, 'save', failing)
    stopped = tiny_run.run(pretrain_arguments(tmp_path))
    assert stopped.code == 2 and 'No space left on device' in stopped.err and steps(tmp_path) == [1]
    monkeypatch.undo()
    assert f'resumed after chunk 1 of {CHUNKS}' in tiny_run.done(pretrain_arguments(tmp_path)).out
    assert [event['step'] for event in events(tmp_path, 'pretrain')] == [40, 80, 120]  # the lost chunk is told once
    assert same_bits(arrays(tmp_path), arrays(pretrained().directory))
    before = (tmp_path / 'checkpoints').stat()
    again = tiny_run.done(pretrain_arguments(tmp_path))
    assert f'resumed after chunk {CHUNKS} of {CHUNKS}' in again.out and 'loss' not in again.out
    assert (tmp_path / 'checkpoints').stat().st_mtime_ns == before.st_mtime_ns


def test_loss_that_is_no_number(tmp_path):
    """The chunk that went wrong is not saved."""
    outcome = tiny_run.run(pretrain_arguments(tmp_path, learning__Schedule__peak=1e30))
    assert outcome.code == 2 and re.search(r'the loss is (nan|inf) after chunk 1; lower the learning rate', outcome.err)
    assert steps(tmp_path) == []


BANK = {'pretrain__Pretrain__examples': '@data.JsonLines()', 'data__JsonLines__path': 'bank.jsonl'}
BAD = {
    'too long': ({'pretrain__Pretrain__example_room': 20}, r'has \d\d tokens, the room is 20.*too_long=.skip'),
    'all too long': (
        {'pretrain__Pretrain__example_room': 5, 'pretrain__Pretrain__too_long': 'skip'},
        r'all 64 examples of chunk 1 are longer than example_room = 5',
    ),
    'empty bank': (BANK, r"'bank.jsonl' is empty"),
    'replay': ({'learning__Supervised__replay_share': 0.5}, 'replay_share=0'),
    'mesh': ({'partitioning__MeshShape__data': 3}, r'does not fit 8 devices: 3 x 1 x 1 x 1 x 1 = 3'),
    'a file in its place': ({'RUN_DIR': 'bank.jsonl/run'}, r'cannot write to the directory bank.jsonl/run: Not a'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_input(tmp_path, monkeypatch, name: str):
    bindings, message = BAD[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'bank.jsonl').touch()
    outcome = tiny_run.run(pretrain_arguments('run', **bindings))
    assert outcome.code == 2 and re.search(message, outcome.err.replace('\n', ' ')), outcome.err
    assert nothing_ran(tmp_path / 'run')


def test_a_later_example_that_is_too_long_is_found_before_the_first_step(tmp_path, monkeypatch):
    items = [{'question': 'Hugo has 1 pen.', 'answer': 1}] * 64
    items += [{'question': 'Hugo has 1 pen. ' * 20, 'answer': 1}]
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'bank.jsonl').write_text(''.join(json.dumps(item) + '\n' for item in items))
    outcome = tiny_run.run(pretrain_arguments('run', **BANK))
    assert outcome.code == 2 and 'the room is 63' in outcome.err and nothing_ran(tmp_path / 'run')


def test_left_out_examples_are_counted(tmp_path, monkeypatch):
    items = [{'question': f'Hugo has {1 + number % 9} pens.', 'answer': 1} for number in range(60)]
    items += [{'question': 'Hugo has 1 pen. ' * 20, 'answer': 1}] * 4
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'bank.jsonl').write_text(''.join(json.dumps(item) + '\n' for item in items))
    settings = {**BANK, 'pretrain__Pretrain__too_long': 'skip', 'learning__Supervised__total_rounds': 1}
    settings |= {'learning__Supervised__steps': 2, 'session__Place__profile': '(1,)'}
    asked = []
    monkeypatch.setattr(profiling, 'traced', lambda *arguments: asked.append(arguments) or contextlib.nullcontext())
    outcome = tiny_run.done(pretrain_arguments('run', **settings))
    assert [(path.name, chosen, [*numbers]) for path, chosen, numbers in asked] == [('run', (1,), [1])]
    assert '4 examples too long and left out' in outcome.out
    (told,) = events(tmp_path / 'run', 'pretrain')
    assert told['skipped'] == 4 and math.isfinite(told['loss'])
