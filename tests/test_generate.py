"""Questions and exemplars that a model writes itself, and what becomes of them in a run."""

import dataclasses
import json
import random

import pytest

from t5x_selfimprove.data.possessions import Possessions
from t5x_selfimprove.data.question_files import JsonLines
from t5x_selfimprove.generate import GenerateQuestions, Lists
from tests import tiny_run
from tests.tiny_run import IMPROVE, built, done, improve_arguments, pretrained

BANK = Possessions('labelled', 0, 2, 2, 6, 12)
NEW = [item.question for item in BANK.take(100, 6)]


def test_lists_of_questions():
    lists = Lists(shots=2)
    seeds = ['What? ', 'Who?', 'Where?']
    texts = {lists.prompt(seeds, random.Random(seed)) for seed in range(50)}
    assert texts == {f'Q: {a}\nQ: {b}\nQ:' for a in seeds_of(seeds) for b in seeds_of(seeds) if a != b}
    assert lists.prompt(seeds, random.Random(3)) == lists.prompt(seeds, random.Random(3))
    assert lists.question(' When?\nQ: Why?\n') == 'When?' and lists.question(' When') is lists.question('\nQ:') is None
    marked = Lists(shots=3, before='', mark='?')
    assert marked.prompt(['a?', 'b?', 'c?'], random.Random(0)).count('?') == 3
    assert marked.question('Why? What') == 'Why?'
    with pytest.raises(ValueError, match='2 seeds are too few for prompts of 3; lower shots'):
        marked.prompt(seeds[:2], random.Random(0))
    with pytest.raises(ValueError, match='shots of at least 1 and a mark'):
        Lists(mark='')


def seeds_of(seeds: list[str]) -> list[str]:
    return [seed.strip() for seed in seeds]


def arguments(command: str, output, **more) -> list[str]:
    part = {'questions': 'generate.GenerateQuestions', 'exemplars': 'generate.GenerateExemplars'}[command]
    settings = {'vocabulary': '%VOCABULARY', 'model': '%MODEL', 'initial': pretrained().directory, 'prompt': '%PROMPT'}
    settings |= {'sampler': '@sampling.Sampler()', 'consolidator': '@majority/consolidation.MajorityVote()'}
    if command == 'questions':
        settings |= {'seeds': '@labelled/data.Possessions()', 'lists': '@generate.Lists()', 'question_room': 28}
        settings |= {'vote_sampler': '@sampling.Sampler()', 'prompts': 4, 'per_batch': 3}
        more = {'generate.Lists.before': "''", 'generate.Lists.mark': "'?'", 'generate.Lists.shots': 2, **more}
    else:
        settings |= {'questions': '@labelled/data.Possessions()', 'exemplars': 2}
        settings |= {'layout': "'{question} A:{path}'", 'ending': "'{question} A:'"}
    told = {f'{part}.{name}': value for name, value in {**settings, 'output': output}.items()}
    return tiny_run._arguments(command, 'gin/runs/quickstart.gin', {**IMPROVE, **told}, more)


def test_what_a_model_goes_on_with(tmp_path):
    made = built(arguments('questions', tmp_path / 'new.jsonl')).value
    seeds = [item.question for item in BANK.take(0, 10)]
    model = pretrained_model(made)
    texts = made.continuations(model, seeds)
    assert len(texts) == 4 * made.sampler.samples and len(set(texts)) > 1
    assert texts == made.continuations(model, seeds)
    one = dataclasses.replace(made, lists=Lists(1, '', '?'), prompts=6, per_batch=4)
    assert len(set(one.continuations(model, seeds[:1]))) > 4  # the same list, six times


def pretrained_model(made: GenerateQuestions):
    from t5x_selfimprove.checkpoints import read_model

    return read_model(made.initial, made.model.create(made.vocabulary.size, tiny_run.jax.random.key(0)))


def test_new_questions_on_which_the_vote_is_confident_are_a_bank(tmp_path, monkeypatch):
    seeds = [item.question for item in BANK.take(0, 10)]
    long = NEW[0].removesuffix('?') + ' she has' * 9 + '?'
    written = [f'{NEW[0]} A: 3', NEW[1], f' {NEW[0]}', seeds[3], 'Hugo has', f'{long}', 'is penspens?', *NEW[2:]]
    monkeypatch.setattr(GenerateQuestions, 'continuations', lambda self, model, seeds: written)
    out = tmp_path / 'new.jsonl'
    said = done(arguments('questions', out)).out
    assert 'continuations 11, without end 1, known 2, not spelled 1, too long 1, not confident ' in said
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert 0 < len(found) <= len(NEW) and [one['question'] for one in found] == [
        question for question in NEW if question in {one['question'] for one in found}
    ]
    assert all(one['answer'].isdigit() and 0 < one['share'] <= 1 for one in found)
    assert [item.question for item in JsonLines(str(out)).take(0, len(found))] == [one['question'] for one in found]
    # Nothing is so confident: what is asked of the vote is asked here.
    strict = {'majority/consolidation.MajorityVote.min_votes': 99}
    assert f'not confident {len(NEW)}, written 0' in done(arguments('questions', out, **strict)).out
    assert out.read_text() == ''


def test_exemplars_are_a_prompt_for_other_runs(tmp_path):
    out = tmp_path / 'exemplars.gin'
    said = done(arguments('exemplars', out)).out
    assert 'answers could be read; 2 are exemplars' in said
    used = built([*improve_arguments(tmp_path / 'run', pretrained().directory), f'--gin_file={out}']).value
    first, second, last, end = used.recipe.prompt.text.split(' A:')
    asked = [item.question for item in BANK.take(0, 16)]
    assert first in asked and any(second.endswith(f'.{question}') for question in asked)
    assert ' The answer is' in second and ' The answer is' in last and last.endswith('.{question}') and end == ''


def test_too_few_answers_that_can_be_read(tmp_path):
    few = {'generate.GenerateExemplars.tried': 2, 'sampling.Sampler.max_tokens': 2}
    outcome = tiny_run.run(arguments('exemplars', tmp_path / 'exemplars.gin', **few))
    assert outcome.code == 2
    assert 'of 2 questions 0 were answered so that it can be read, and 2 are needed' in outcome.err
