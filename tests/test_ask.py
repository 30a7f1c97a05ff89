"""Evaluating and asking a finished model: the figures of the run's own evaluation, and what is refused beforehand."""

import json
import pathlib
import re
import shutil

import jax
import pytest

from t5x_selfimprove.ask import _draw, ask
from t5x_selfimprove.data.possessions import Possessions
from t5x_selfimprove.sampling.sampler import Sampler
from t5x_selfimprove.vocabulary import ByteVocabulary
from tests import tiny_run
from tests.stored import stored
from tests.tiny_run import (
    QUESTIONS,
    ROUNDS,
    SAMPLES,
    contents,
    events,
    finished,
    improve_arguments,
    nothing_ran,
    pretrained,
)

ASKED = [item.question for item in Possessions('held_out', 0, 2, 2, 6, 12).take(0, 3)]


def arguments(command: str, initial: pathlib.Path | str, directory: pathlib.Path | str, **bindings) -> list[str]:
    return improve_arguments(directory, initial, command, **bindings)


@pytest.fixture(scope='module')
def evaluated(tmp_path_factory) -> tuple[pathlib.Path, str]:
    """A copy of the finished run, evaluated where it stands, and what that said."""
    run = tmp_path_factory.mktemp('evaluated') / 'run'
    shutil.copytree(finished().directory, run)
    return run, tiny_run.done(arguments('evaluate', run, run)).out


def test_the_figures_are_those_of_the_last_evaluation_of_the_run(evaluated):
    run, said = evaluated
    last = events(run, 'evaluation')[-1]
    found = json.loads((run / 'evaluation' / 'evaluation.json').read_text())
    assert last['round'] == ROUNDS and (found.pop('model'), found.pop('step')) == (str(run), 8)
    told = {'kind', 'time', 'round', 'suite', 'share_histogram', 'length_histogram', 'seconds'}
    ours = {'kept_share', 'kept_precision'}  # of the run's recipe, which an evaluation does not know
    assert {name: found[name] for name in found.keys() - ours} == {
        name: last[name] for name in last.keys() - told - ours
    }
    assert found['questions'] == QUESTIONS and found['samples_per_question'] == SAMPLES
    (again,) = events(run / 'evaluation', 'evaluation')
    assert again['round'] == ROUNDS and again['share_histogram'] == last['share_histogram']
    files = [folder / 'samples/evaluation_0002.parquet' for folder in (run, run / 'evaluation')]
    paths = [[[path['text'] for path in question['paths']] for question in stored(file)] for file in files]
    assert paths[0] == paths[1]
    assert 'evaluate: quickstart, seed 0\n' in said and f'{run}, step 8' in said
    assert re.search(rf'^│ greedy +│ +{100 * found["greedy_accuracy"]["value"]:.1f} \[', said, re.MULTILINE)
    assert re.search(rf'^│ pass@{SAMPLES} +│ +{100 * found["pass_at_n"]["value"]:.1f} \[', said, re.MULTILINE)


def test_the_record_of_the_run_stays_as_it_is(evaluated):
    run, _ = evaluated
    before = finished().directory
    relative = [{str(pathlib.Path(name).relative_to(place)): text for name, text in contents(place).items()}
                for place in (run, before)]  # fmt: skip
    assert relative[0] == relative[1] and len(relative[0]) > 20
    for name in ('metrics.jsonl', 'summary.json', 'config.gin'):
        assert (run / name).read_bytes() == (before / name).read_bytes()


BANK = {
    'held_out/feed.Feed.bank': '@data.JsonLines()',
    'data__JsonLines__path': 'bank.jsonl',
}
BAD = {
    'no model': ({'INITIAL': 'nowhere'}, r'nowhere has no checkpoints; pre-train a model there first'),
    'model of another vocabulary': (
        {'data__possessions_vocabulary__max_total': 40},
        r'was made with vocabulary \w+, this run uses \w+ ',
    ),
    'model of another shape': (
        {'models__TransformerConfig__feed_forward': 40},
        r'down is \(1, 32, 16\) there and \(1, 40, 16\) here',
    ),
}
BAD_EVALUATION = BAD | {
    'broken line': (BANK, r'bank\.jsonl, line 3: not JSON'),
    'too long': ({'held_out/feed.Feed.room': 5}, r'has \d\d tokens, the room is 5'),
    'no label': (
        {**BANK, 'data__JsonLines__count': 2, 'data__JsonLines__answer': None},
        r'none of the 16 .* has a label',
    ),
    'no answer of the kind': ({**BANK, 'data__JsonLines__count': 2}, r"its label 'a lot' is no answer of the kind"),
    'platform': ({'session__Place__platform': 'tpu'}, r"'tpu' was asked for and is not there"),
    'a file in its place': ({'RUN_DIR': 'bank.jsonl'}, r'cannot write to the directory bank\.jsonl/evaluation: Not a'),
}


@pytest.mark.parametrize('name', BAD_EVALUATION)
def test_bad_evaluation(tmp_path, monkeypatch, name: str):
    bindings, message = BAD_EVALUATION[name]
    monkeypatch.chdir(tmp_path)
    items = [json.dumps({'question': question, 'answer': 'a lot'}) for question in ASKED[:2]]
    (tmp_path / 'bank.jsonl').write_text('\n'.join([*items, '{"question": "Hugo']))
    outcome = tiny_run.run(arguments('evaluate', finished().directory, 'run', **bindings))
    assert outcome.code == 2 and re.search(message, outcome.err.replace('\n', ' ')), outcome.err
    assert 'greedy' not in outcome.out and nothing_ran(tmp_path / 'run' / 'evaluation')


def sample(initial: pathlib.Path | str, **bindings) -> tiny_run.Outcome:
    return tiny_run.run(
        arguments('sample', initial, 'unused', **{f'ask__SampleRun__{name}': value for name, value in bindings.items()})
    )


def test_questions_are_asked(tmp_path):
    """Typed and from a file, with and without others beside them: the same paths, counted and shown."""
    (tmp_path / 'questions.txt').write_text(f'\n{ASKED[0]}\n\n   {ASKED[1]}  \n{ASKED[2]}\n')
    first = sample(finished().directory, ask=tuple(ASKED[:1]), output=tmp_path / 'one.json', shown_paths=1)
    found = sample(finished().directory, file=tmp_path / 'questions.txt', output=tmp_path / 'deep' / 'all.json')
    assert first.code == found.code == 0, first.err + found.err
    one, three = (json.loads((tmp_path / name).read_text()) for name in ('one.json', 'deep/all.json'))
    assert [entry['question'] for entry in three] == ASKED and one == three[:1]
    for entry in three:
        assert len(entry['paths']) == SAMPLES and entry['gold'] is None
        answers = [path['answer'] for path in entry['paths'] if path['found']]
        assert entry['votes'] == len(answers) and entry['chosen'] in ['', *answers]
        for path in entry['paths']:
            votes = answers.count(path['answer']) if path['found'] else SAMPLES - len(answers)
            answer = path['answer'] if path['found'] else 'no answer'
            assert re.search(rf'│ {answer} +│ +{votes} │ +{100 * votes / SAMPLES:.0f} │', found.out)
    assert 'step 8, on cpu' in found.out
    texts = [path['text'].strip() for path in one[0]['paths']]
    assert f'  {texts[0]}\n' in first.out and all(
        f'  {text}\n' not in first.out for text in set(texts[1:]) - {texts[0]}
    )


def test_ask_in_python_is_the_command(tmp_path):
    """The parts of a gin file and a model of its own loading; other numbers of paths; nothing compiled twice."""
    arguments = improve_arguments('unused', finished().directory, 'sample', ask__SampleRun__ask=tuple(ASKED))
    parts = tiny_run.built(arguments).value
    model, vocabulary = parts.load(), parts.vocabulary
    how = {'prompt': parts.prompt, 'sampler': parts.sampler, 'consolidator': parts.consolidator}
    asked = ask(model, vocabulary, ASKED, **how)
    sample(finished().directory, ask=tuple(ASKED), output=tmp_path / 'all.json')
    assert json.loads((tmp_path / 'all.json').read_text()) == json.loads(json.dumps([one.stored for one in asked]))
    for one in asked:
        assert len(one.texts) == len(one.answers) == sum(one.votes.values()) == SAMPLES
        assert list(one.votes.values()) == sorted(one.votes.values(), reverse=True)
    compiled = _draw._cache_size()
    few, again = (ask(model, vocabulary, [question], 2, room=20, **how)[0] for question in ASKED[:2])
    assert few.texts == asked[0].texts[:2] and again.texts == asked[1].texts[:2]
    assert _draw._cache_size() == compiled + 1


def test_ask_without_parts():
    parts = tiny_run.built(improve_arguments('unused', 'unused', 'sample', ask__SampleRun__ask=tuple(ASKED))).value
    model = parts.model.create(parts.vocabulary.size, jax.random.key(0))
    (asked,) = ask(model, parts.vocabulary, ASKED[:1], 3)
    assert asked.question == ASKED[0] and len(asked.answers) == 3 == sum(asked.votes.values())
    with pytest.raises(ValueError, match='sampler have another vocabulary than'):
        ask(model, parts.vocabulary, ASKED[:1], sampler=Sampler(ByteVocabulary()))


def test_another_seed_draws_others(tmp_path):
    runs = [sample(pretrained().directory, ask=tuple(ASKED), seed=seed, output=tmp_path / str(seed)) for seed in (0, 1)]
    assert [run.code for run in runs] == [0, 0]
    assert (tmp_path / '0').read_text() != (tmp_path / '1').read_text()


BAD_QUESTIONS = {
    'no question': ({}, r'give questions either typed \(ask\) or as a file; got ask = \(\), file = None'),
    'typed and a file': ({'ask': ('Hugo',), 'file': 'empty.txt'}, r'give questions either typed \(ask\) or as a file'),
    'no file': ({'file': 'nowhere.txt'}, r"No such file or directory: 'nowhere\.txt'"),
    'empty file': ({'file': 'empty.txt'}, r'empty\.txt holds no question; write one a line'),
    'word that is not known': ({'ask': ('Hugo has α.',)}, r'α'),
    'place of the output': (
        {'ask': ('Hugo',), 'output': 'empty.txt/x.json'},
        r'cannot write to the directory empty\.txt',
    ),
}


@pytest.mark.parametrize('name', BAD_QUESTIONS)
def test_bad_questions(tmp_path, monkeypatch, name: str):
    bindings, message = BAD_QUESTIONS[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty.txt').write_text('\n  \n')
    outcome = sample(finished().directory, **bindings)
    assert outcome.code == 2 and re.search(message, outcome.err), outcome.err
    assert 'per cent' not in outcome.out and not (tmp_path / 'x.json').exists()


@pytest.mark.parametrize('name', BAD)
def test_bad_model(name: str):
    bindings, message = BAD[name]
    asked = {'ask__SampleRun__ask': ('Hugo',), **bindings}
    outcome = tiny_run.run(arguments('sample', finished().directory, 'unused', **asked))
    assert outcome.code == 2 and re.search(message, outcome.err), outcome.err
