"""One path in several formats: exact examples, and the token in which an answer begins."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove.consolidation import AnswerFormat
from t5x_selfimprove.formats import LessonFormat, examples_in, from_token
from t5x_selfimprove.improve import Recipe
from t5x_selfimprove.records import Questions, check
from t5x_selfimprove.templates import Template
from t5x_selfimprove.vocabulary import WordVocabulary
from tests.consolidation.batches import BYTES, OPTIONS, samples_of
from tests.test_improve import recipe

SHOT = 'Q: 1? A: Hm. The answer is B. Q: {question} A:'
FORMATS = (
    LessonFormat('few_shot', Template(BYTES, SHOT)),
    LessonFormat('few_shot_direct', Template(BYTES, SHOT.replace(' Hm.', '')), 'answer'),
    LessonFormat('zero_shot', Template(BYTES, "Q: {question} A: Let's think step by step.")),
    LessonFormat('direct', Template(BYTES, '{question} The answer:'), 'answer'),
)
TEXTS = [' So. The answer is A.', ' The answer is Z; no: the answer is B. Yes.', ' Nothing.', ' The answer is C~']


def asked(*texts: str) -> Questions:
    room = max(map(len, texts))
    tokens = np.full((len(texts), room), BYTES.pad_id, np.int32)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = BYTES.encode(text)
    count = len(texts)
    return Questions(
        tokens=tokens,
        length=np.array([len(text) for text in texts], np.int32),
        answer=np.zeros((count, 1), np.uint8),
        known=np.zeros(count, bool),
        weight=np.ones(count, np.float32),
        id=np.zeros((count, 2), np.uint32),
    )


def pairs(formats: tuple[LessonFormat, ...], keep: list[float]) -> list[tuple[str, str, bool, float]]:
    """(prompt, completion, whether it ends, weight) of the examples of two questions with two paths each."""

    @jax.jit
    def made(questions, samples, keep):
        return examples_in(formats, questions, samples, keep, OPTIONS, BYTES.pad_id)

    got = jax.tree.map(np.asarray, made(asked('What?', 'Who then?'), samples_of(TEXTS), np.float32(keep)))
    check(got)
    assert got.rooms[0] + got.rooms[1] == got.tokens.shape[1] or len(formats) > 1
    found = []
    for tokens, middle, end, weight in zip(got.tokens, got.prompt_length, got.length, got.weight, strict=True):
        assert (tokens[end:] == BYTES.pad_id).all() and middle <= got.rooms[0] and end - middle <= got.rooms[1]
        ended = end > middle and tokens[end - 1] == BYTES.eos_id
        found.append((BYTES.decode(tokens[:middle]), BYTES.decode(tokens[middle:end]), bool(ended), float(weight)))
    return found


def test_a_path_is_trained_in_every_format():
    got = pairs(FORMATS, [1, 0.5, 1, 2])
    questions = ['What?', 'What?', 'Who then?', 'Who then?']
    whole = [text.rstrip('~') for text in TEXTS]
    answers = [' The answer is A.', ' the answer is B. Yes.', '', ' The answer is C']
    ends, weights = [True, True, True, False], [1, 0.5, 1, 2]
    for number, one in enumerate(FORMATS):
        here = got[4 * number : 4 * number + 4]
        assert [prompt for prompt, *_ in here] == [one.prompt.text.replace('{question}', q) for q in questions]
        direct = one.target == 'answer'
        assert [text for _, text, *_ in here] == (answers if direct else whole)
        assert [end for *_, end, _ in here] == ([True, True, False, False] if direct else ends)
        assert [weight for *_, weight in here] == ([1, 0.5, 0, 2] if direct else weights)


def test_one_format_is_the_plain_lesson():
    plain = pairs((LessonFormat('path', Template(BYTES, '{question}')),), [1, 0, 1, 1])
    assert ''.join(plain[0][:2]) == 'What? So. The answer is A.'
    assert [weight for *_, weight in plain] == [1, 0, 1, 1]


def test_from_a_token_on():
    samples = samples_of(['abc', 'de~', 'f'])
    got = from_token(samples, jnp.array([1, 0, -1]))
    assert [BYTES.decode(t[m]) for t, m in zip(np.asarray(got.tokens), np.asarray(got.mask), strict=True)] == [
        'bc',
        'de',
        '',
    ]
    assert np.asarray(got.log_probs).sum(axis=1).tolist() == [-1.5, -1.0, 0.0]


def test_the_token_in_which_the_last_phrase_begins():
    words = WordVocabulary((' ', ' So', ' The', ' the', ' answer', ' is', ' 7', '.', ' answerThe', 'The'))
    form = AnswerFormat(words)
    texts = [
        ' So The answer is 7.',
        ' The answer is The answer is 7',
        ' So.',
        'The answer',
        ' answerThe answer is 7',
        ' So The answer is 7',
    ]
    rows = [[words.eos_id, *words.encode(text)] for text in texts]  # a token that spells nothing comes first
    the, apart = words.encode(' The'), words.encode(' ') + words.encode('The')
    rows[-1] = [part for token in rows[-1] for part in (apart if [token] == the else [token])]
    tokens = np.full((len(rows), max(map(len, rows))), words.pad_id, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
    got = jax.jit(form.phrase_start)(tokens, mask)
    spelled = words.token_bytes()
    for start, ids, text in zip(got.tolist(), rows, texts, strict=True):
        places = [one.start() for one in re.finditer('(?i)the answer is', text)]
        ends = np.cumsum([len(spelled[token]) for token in ids])
        wanted = int(np.searchsorted(ends, places[-1], side='right')) if places else -1
        space_apart = wanted > 0 and spelled[ids[wanted - 1]] == b' '
        assert start == wanted - space_apart, text
    assert space_apart  # the last text has its space as a token of its own


def test_formats_of_a_recipe():
    plain = recipe()
    assert [(one.prompt, one.target) for one in plain.lessons] == [(plain.prompt, 'path')]
    other = Template(plain.sampler.vocabulary)
    assert dataclasses.replace(plain, lesson_prompt=other).lessons[0].prompt == other
    with pytest.raises(ValueError, match='either lesson_prompt or formats'):
        dataclasses.replace(plain, lesson_prompt=other, formats=FORMATS)
    with pytest.raises(ValueError, match='name of its own; they are direct, direct'):
        dataclasses.replace(plain, formats=FORMATS[-1:] * 2)
    assert isinstance(dataclasses.replace(plain, formats=FORMATS), Recipe)
    # Examples have rationales.
    assert dataclasses.replace(plain, formats=FORMATS[1:]).replay_prompt == FORMATS[2].prompt
    assert dataclasses.replace(plain, formats=FORMATS[1::2]).replay_prompt == plain.prompt
    assert dataclasses.replace(plain, lesson_prompt=FORMATS[0].prompt).replay_prompt == FORMATS[0].prompt
    with pytest.raises(ValueError, match="without a comma; it is 'a,b'"):
        LessonFormat('a,b', other)
    with pytest.raises(ValueError, match="it is 'rationale'"):
        LessonFormat('a', other, 'rationale')
