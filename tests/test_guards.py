"""Guards against collapse: the figures by hand, every bound, and what a run does when one is passed."""

import contextlib
import json
import types
from unittest import mock

import numpy as np
import pytest

from t5x_selfimprove.guards import BOUNDS, Collapsed, Guards, Watch, figures_of
from tests import tiny_run
from tests.tiny_run import arrays, events, finished, improve_arguments, pretrained, same_bits, steps

A, B, NONE = (7, 0), (7, 7), (0, 0)


def batch(answers: list[tuple[int, int]], found: list[bool], voted: list[bool], log_probs: list[float], questions: int):
    """Samples and a verdict of paths of one and two tokens, taking turns."""
    mask = np.array([[True, number % 2 == 1] for number in range(len(answers))])
    samples = types.SimpleNamespace(
        mask=mask, log_probs=np.float32(log_probs)[:, None] * mask, ended=np.ones(len(answers), bool)
    )
    verdict = types.SimpleNamespace(
        answer=np.array(answers, np.uint8), found=np.array(found), voted=np.array(voted), votes=np.zeros(questions)
    )
    return samples, verdict


def test_figures():
    """Of three questions of four paths, the last of which is padding: 3 votes to 1, and 1 to 1 with one left out."""
    answers = [A, A, B, A, A, B, B, NONE, B, B, B, B]
    found = [True] * 7 + [False] + [True] * 4
    voted = [True] * 6 + [False, False] + [True] * 4
    figures = figures_of(*batch(answers, found, voted, [-0.5] * 8 + [-9.0] * 4, 3), questions=2)
    assert figures == {'entropy': pytest.approx(0.5), 'distinct_answers': 2.0, 'vote_margin': (0.5 + 0.0) / 2}


def test_figures_of_nothing():
    figures = figures_of(*batch([NONE] * 2, [False] * 2, [False] * 2, [-1.0, -3.0], 1), questions=1)
    assert figures == {'entropy': pytest.approx(7 / 3), 'distinct_answers': 0.0, 'vote_margin': None}


@pytest.mark.parametrize('name', BOUNDS)
def test_every_bound(name: str):
    figure, least, words = BOUNDS[name]
    guards = Guards(**{name: 0.5}, canary='held_out' if figure == 'wrong_consensus' else None)
    inside, outside = (0.6, 0.4) if least else (0.4, 0.6)
    assert guards.alarms({figure: inside}) == guards.alarms({figure: 0.5}) == guards.alarms({figure: None}) == []
    (said,) = guards.alarms({figure: outside})
    assert said == f'{words}: {outside}, {"less" if least else "more"} than {name} = 0.5'
    assert guards.alarms({figure: float('nan')}) and not Guards().alarms({figure: outside})


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'action': 'rollback'}, "one of warn, stop, roll_back; it is 'rollback'"),
        ({'canary': 'held_out'}, 'canary = held_out and max_wrong_consensus = None do not go together'),
        ({'max_wrong_consensus': 0.1}, 'canary = None and max_wrong_consensus = 0.1 do not go together'),
    ],
)
def test_guards_that_contradict_themselves(fields: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Guards(**fields)


def guarded(**fields) -> dict[str, object]:
    return {'train.Improve.guards': '@guards.Guards()', **{f'guards.Guards.{name}': fields[name] for name in fields}}


def test_stop_and_go_on_with_a_warning(tmp_path):
    """The round at which the run is stopped is saved, and goes on to the bits of a run without guards. Its checkpoints
    are kept elsewhere, all of them: the best and the last are few."""
    initial, elsewhere = pretrained().directory, tmp_path / 'elsewhere'
    place = {'checkpoint_directory': elsewhere, 'keep_checkpoints': 1, 'keep_best': 1, 'keep_every': 1}
    settings = {f'session.Place.{name}': place[name] for name in place}
    arguments = lambda **fields: improve_arguments(tmp_path, initial, **settings, **guarded(**fields))  # noqa: E731
    stopped = tiny_run.run(arguments(action='stop', min_entropy=9.0))
    assert stopped.code == 2 and steps(elsewhere) == [0, 1] and not steps(tmp_path), stopped.err
    assert 'Collapsed: round 1: entropy of a token, nats: ' in stopped.err
    assert 'less than min_entropy = 9. The round is saved; the same command goes on from there' in stopped.err
    warned = tiny_run.done(arguments(max_wrong_consensus=0.0, canary='held_out', min_distinct_answers=100.0))
    assert 'resumed after round 1 of 2' in warned.out
    assert 'ALARM, round 2: distinct answers of a question: ' in warned.out
    assert 'ALARM, round 2: share of wrong answers among the consolidated ones: ' in warned.out
    alarms = [(event['round'], event['action']) for event in events(tmp_path, 'alarm')]
    assert alarms == [(1, 'stop'), (2, 'warn'), (2, 'warn')]
    assert same_bits(arrays(elsewhere), arrays(finished().directory)) and steps(elsewhere) == [0, 1, 2]
    figure = json.loads((elsewhere / 'checkpoints' / '2' / 'metrics' / 'metrics').read_text())['figure']
    assert figure == events(tmp_path, 'evaluation')[-1]['greedy_accuracy']['value']
    rounds = events(tmp_path, 'round')
    assert all(event['entropy'] > 0 and 0 <= event['vote_margin'] <= 1 for event in rounds)


@pytest.mark.parametrize(
    ('action', 'saved', 'said'),
    [
        ('warn', False, None),
        ('warn', True, None),
        ('stop', False, None),
        ('stop', True, r'round 3: length of a path, tokens: 6, more .*\. The round is saved; the same command goes on'),
        ('roll_back', False, r'^round 3: length .*\. Rolled back: the last state is checkpoint 2, of before;'),
        ('roll_back', True, None),
    ],
)
def test_where_a_run_ends(action: str, saved: bool, said: str | None):
    """Before the round is saved, after it, or not at all."""
    session = mock.Mock()
    session.checkpoints.latest = 2
    watch = Watch(Guards(action, max_length=5.0), session)
    watch.look(3, {'mean_length': 6.0})
    with pytest.raises(Collapsed, match=said) if said else contextlib.nullcontext():
        watch.end_if_alarmed(saved)
    assert bool(watch.alarms) != saved  # a round that is saved is over
    session.writer.write.assert_called_once()
    Watch(Guards(action, max_length=5.0), session).end_if_alarmed(saved)


def test_a_canary_that_is_not_there(tmp_path):
    settings = guarded(max_wrong_consensus=0.1, canary='sparrow')
    outcome = tiny_run.run(improve_arguments(tmp_path, pretrained().directory, **settings))
    assert outcome.code == 2 and "the canary 'sparrow' is no suite of this run; there are held_out" in outcome.err
    assert tiny_run.nothing_ran(tmp_path)
