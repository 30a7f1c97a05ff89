"""Two stages: reasoning as the sampler draws it, the cue, and the greedy answer to both."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove.consolidation import AnswerFormat, answer_bytes
from t5x_selfimprove.consolidation.grading import answer_of
from t5x_selfimprove.records import Prompts, check
from t5x_selfimprove.sampling.adaptive import Adaptive
from t5x_selfimprove.sampling.sampler import Sampler
from t5x_selfimprove.sampling.two_stage import CUES, TwoStage, two_stage
from tests.consolidation.batches import Spelled
from tests.models.tiny import close
from tests.sampling.tables import Table, prompts_of

WORDS = Spelled((b'', b'', b'a', b'b', b'c', b'\n', b':'))
CUE = [5, 2, 3, 6]  # a line end, 'ab:'
SAMPLER = Sampler(WORDS, samples=5, max_tokens=6, temperature=1.5)
STAGES = two_stage(SAMPLER, 'ab:', 4)
ASKED = prompts_of([[5, 3], [4, 3, 2], [4]], prefix=[2, 2, 3])
LOGITS = np.random.default_rng(0).normal(size=(7, 9, 7, 7)).astype(np.float32)
LOGITS += np.float32([-9, 0.5, 0, 0, 0, -9, -9])  # ends of text are likely
LOGITS[4, :, :, 1] = -9  # but not for questions that begin with token 4
TABLE = Table(jnp.asarray(LOGITS))


def sample(sampler: Sampler, prompts: Prompts, limit: jax.Array | None = None):
    draw = jax.jit(lambda table, key: sampler(table, prompts, key, None, limit))
    samples = jax.tree.map(np.asarray, draw(TABLE, jax.random.key(1)))
    check(samples)
    return samples


@pytest.fixture(scope='module')
def drawn():
    return sample(STAGES, ASKED)


def test_stages_one_behind_the_other(drawn):
    reasoning = sample(SAMPLER, ASKED)
    assert STAGES.max_tokens == drawn.tokens.shape[1] == 6 + 4 + 4
    told = [row[mask & (row != WORDS.eos_id)].tolist() for row, mask in zip(reasoning.tokens, reasoning.mask,
                                                                          strict=True)]  # fmt: skip
    asked = [np.asarray(ASKED.tokens[row // 5])[: int(ASKED.length[row // 5])].tolist() for row in range(15)]
    again = prompts_of([one + other + CUE for one, other in zip(asked, told, strict=True)], prefix=[2, 2, 3])
    answer = sample(Sampler(WORDS, samples=1, max_tokens=4, temperature=0.0), again)
    for row in range(15):
        wanted = [*told[row], *CUE, *answer.tokens[row][answer.mask[row]]]
        rest = 14 - len(wanted)
        assert drawn.tokens[row].tolist() == wanted + [0] * rest
        assert drawn.mask[row].tolist() == [True] * len(wanted) + [False] * rest
        parts = [reasoning.log_probs[row][: len(told[row])], np.zeros(4), answer.log_probs[row][answer.mask[row]]]
        close(drawn.log_probs[row], np.concatenate([*parts, np.zeros(rest)]))
    assert (drawn.ended == answer.ended).all()
    assert {len(one) for one in told} > {1, 6} and len(set(answer.ended.tolist())) == 2
    assert drawn.proposal_log_probs.shape == drawn.log_probs.shape and drawn.drawn.all()


def test_the_answer_is_read_behind_the_cue(drawn):
    answers = AnswerFormat(WORDS, trigger='ab:', kind='text')
    found, there = answers.extract_host(drawn.tokens, drawn.mask, drawn.ended)
    texts = [WORDS.decode(row[mask]) for row, mask in zip(drawn.tokens, drawn.mask, strict=True)]
    wanted = [answer_of(answers, text, ended) for text, ended in zip(texts, drawn.ended.tolist(), strict=True)]
    assert [answer_bytes(one) for one in found] == wanted
    assert all('\nab:' in text for text in texts) and 0 < there.sum() < 15


def test_a_limit_is_on_the_reasoning(drawn):
    short = sample(STAGES, ASKED, jnp.full(15, 2))
    assert (short.mask.sum(axis=1) <= 2 + 4 + 4).all()
    np.testing.assert_array_equal(short.tokens[:, 0], drawn.tokens[:, 0])


def test_greedy_of_an_evaluation():
    greedy = dataclasses.replace(STAGES, samples=1, temperature=0.0)
    assert isinstance(greedy, TwoStage) and greedy.reasoning_tokens == 6
    assert greedy.stage(max_tokens=6) == dataclasses.replace(SAMPLER, samples=1, temperature=0.0)


def test_there_are_cues_for_every_kind():
    from t5x_selfimprove.consolidation.kinds import KINDS

    assert set(CUES) == set(KINDS)
    assert all(cue == cue.strip() and cue.startswith('Therefore') for cue in CUES.values())


@pytest.mark.parametrize(
    ('fields', 'said'),
    [
        ({'answer_tokens': 0}, 'answer_tokens = 0, at least 1, together'),
        ({'max_tokens': 8}, 'max_tokens = 8 must be more than the 4 tokens of the cue'),
        ({'adaptive': Adaptive(AnswerFormat(WORDS))}, 'adaptive counts answers while paths are drawn'),
    ],
)
def test_what_cannot_be_is_told(fields, said):
    with pytest.raises((TypeError, ValueError), match=re.escape(said)):
        dataclasses.replace(STAGES, **fields)


def test_several_prompts_a_question_are_refused():
    twice = dataclasses.replace(ASKED, id=ASKED.id[:1])
    with pytest.raises(ValueError, match='reads one prompt a question'):
        STAGES(TABLE, twice, jax.random.key(0))
