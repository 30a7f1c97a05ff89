"""Several suites in one run: measured after every round, told apart, and summed up as what was gained and lost."""

import json
import re

import pytest

from tests import tiny_run
from tests.tiny_run import QUESTIONS, events, finished, improve_arguments, nothing_ran, pretrained

OTHER = {
    'other/suite.OutOfDomain.questions': '@other/feed.Feed()',
    'other/feed.Feed.name': 'longer',
    'other/feed.Feed.bank': '@other/data.Possessions()',
    'other/feed.Feed.per_round': 8,
    'other/feed.Feed.per_batch': 8,
    'other/feed.Feed.room': 28,
    'other/data.Possessions.split': 'held_out',
    'other/data.Possessions.min_steps': 3,
    'other/data.Possessions.max_steps': 3,
}
SUITES = '(@other/suite.OutOfDomain(),)'


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run with a suite out of domain, and what it said."""
    directory = tmp_path_factory.mktemp('suites') / 'run'
    told = {**OTHER, 'train.Improve.out_of_domain': SUITES, 'held_out/feed.Feed.name': 'shorter'}
    return directory, tiny_run.done(improve_arguments(directory, pretrained().directory, **told)).out


def test_every_suite_is_measured_after_every_round(run):
    directory, said = run
    measured = events(directory, 'evaluation')
    assert [(event['round'], event['suite']) for event in measured] == [
        (number, suite) for number in range(3) for suite in ('shorter', 'longer')
    ]
    assert [event['questions'] for event in measured] == [QUESTIONS, 8] * 3
    # What is measured beside them changes nothing of the run itself.
    alone = events(finished().directory, 'evaluation')
    names = ('greedy_accuracy', 'maj_at_k', 'share_histogram', 'sampled')
    assert [[event[name] for name in names] for event in measured[::2]] == [
        [event[name] for name in names] for event in alone
    ]
    assert 'longer after round 2: greedy' in said
    samples = sorted(path.name for path in (directory / 'samples').iterdir() if 'evaluation' in path.name)
    assert [name.split('.')[0] for name in samples] == [
        *(f'evaluation_{number:04d}' for number in range(3)),
        *(f'evaluation_longer_{number:04d}' for number in range(3)),
    ]  # fmt: skip


def test_the_summary_says_what_was_gained_and_lost(run):
    directory, said = run
    summary = json.loads((directory / 'summary.json').read_text())
    assert list(summary['suites']) == ['shorter', 'longer']
    for name, suite in summary['suites'].items():
        greedy = [e['greedy_accuracy']['value'] for e in events(directory, 'evaluation') if e['suite'] == name]
        assert [row['greedy_accuracy']['value'] for row in suite['rounds']] == greedy
        assert suite['transfer'] == greedy[2] - greedy[0] and suite['forgetting'] == max(greedy[:2]) - greedy[2]
    assert summary['evaluation_questions'] == QUESTIONS
    held = [e['greedy_accuracy'] for e in events(directory, 'evaluation') if e['suite'] == 'shorter']
    assert [row['greedy_accuracy'] for row in summary['rounds']] == held
    assert summary['backward_transfer'] == summary['suites']['longer']['transfer']
    assert f'domain: {100 * summary["backward_transfer"]:+.1f} points' in said


def test_suites_side_by_side(run, tmp_path):
    directory, _ = run
    told = {**OTHER, 'ask.Evaluate.out_of_domain': SUITES, 'held_out/feed.Feed.name': 'shorter'}
    told |= {'evaluation/sampling.Sampler.temperature': 0.5, 'evaluate.Evaluation.direct_prompt': '%PROMPT'}
    said = tiny_run.done(improve_arguments(tmp_path, directory, 'evaluate', **told)).out
    found = json.loads((tmp_path / 'evaluation' / 'evaluation.json').read_text())
    last = {event['suite']: event for event in events(directory, 'evaluation')}
    assert found['greedy_accuracy'] == last['shorter']['greedy_accuracy'] == found['standard_accuracy']
    assert found['suites']['longer']['greedy_accuracy'] == last['longer']['greedy_accuracy']
    # The evaluation has a temperature of its own, and other draws with it.
    assert found['mean_vote_share'] != last['shorter']['mean_vote_share']
    results = json.loads((tmp_path / 'evaluation' / 'results.json').read_text())['results']
    assert results['longer']['exact_match,strict-match'] == found['suites']['longer']['greedy_accuracy']['value']
    cells = {line.split('│')[1].strip(): line.split('│')[2:-1] for line in said.splitlines() if line[0] == '│'}
    assert [cell.strip() for cell in cells['questions']] == [str(QUESTIONS), '8']
    assert cells['standard'] == cells['greedy']
    assert re.search(r'┃ +shorter +┃ +longer ┃', said)


@pytest.mark.parametrize(
    ('told', 'said'),
    [
        ({'other/feed.Feed.name': "'GSM8K test'"}, "of letters, digits and _; this one is 'GSM8K test'"),
        ({'other/feed.Feed.name': 'held_out'}, '2 suites need names of their own; held_out comes twice'),
        ({'other/feed.Feed.room': 9}, 'tokens, the room is 9'),
        ({'other/data.Possessions.split': 'unlabelled', 'other/feed.Feed.per_round': 8}, 'are evaluation questions'),
    ],
)
def test_bad_suites_are_refused_before_anything_runs(tmp_path, told, said):
    told = {**OTHER, 'train.Improve.out_of_domain': SUITES, **told}
    if 'evaluation questions' in said:  # the very questions that are trained on
        told |= {'other/data.Possessions.min_steps': 2, 'other/data.Possessions.max_steps': 2}
    outcome = tiny_run.run(improve_arguments(tmp_path, pretrained().directory, **told))
    assert outcome.code == 2 and said in outcome.err.replace('\n', ' ')
    assert nothing_ran(tmp_path)
