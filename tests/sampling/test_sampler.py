"""The sampler: its draws have the model's distribution, arrays are exact, a question gets the same paths anywhere."""

import collections
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from t5x_selfimprove.learning.lessons import examples_of, write_rows
from t5x_selfimprove.records import check
from t5x_selfimprove.sampling.sampler import Sampler, sample_keys
from t5x_selfimprove.sampling.transforms import MinP, NoRepeatedNgram, RepetitionPenalty, TopK, TopP
from tests.consolidation.batches import Spelled
from tests.models.tiny import VOCABULARY, close, draw_tokens, host_calls, model, row_logits
from tests.sampling.tables import EOS, LETTERS, SIZE, Table, certain, constant, prompts_of

WORDS = Spelled(tuple(b'' if token < 2 else bytes([64 + token]) for token in range(VOCABULARY)))


@functools.partial(jax.jit, static_argnums=0)
def run(sampler, tiny, prompts, seed):
    return sampler(tiny, prompts, jax.random.key(seed))


def sample(sampler, tiny, prompts, seed=0):
    """Samples as NumPy arrays, checked."""
    samples = jax.tree.map(np.asarray, run(sampler, tiny, prompts, seed))
    check(samples)
    return samples


# What is drawn.

TABLE = Table(1.5 * jnp.asarray(np.random.default_rng(0).normal(size=(SIZE, 3, SIZE, SIZE)), jnp.float32))
STEPS, DRAWS, FIRST, LAST = 3, 200_000, 2, 3  # FIRST and LAST: the tokens of the prompt


def changed(logits, read=(), temperature=1.0, top_k=SIZE, top_p=1.0, min_p=0.0, penalty=1.0, ngram=9, least=0):
    """The distribution that tokens are drawn from after `read`, by the definitions."""
    logits = np.where((np.arange(SIZE) == EOS) & (len(read) < least), -np.inf, logits) / temperature
    logits = np.where(logits >= np.sort(logits)[-top_k], logits, -np.inf)
    probability = np.exp(logits) / np.exp(logits).sum()
    order = np.argsort(-probability)
    count = 1 + np.flatnonzero(np.cumsum(probability[order]) >= min(top_p, 1 - 1e-9))[0]
    probability[order[count:]] = 0
    probability[probability < min_p * probability.max()] = 0
    if penalty != 1:
        again = np.isin(np.arange(SIZE), read)
        probability = np.exp(np.where(again, np.where(logits > 0, logits / penalty, logits * penalty), logits))
    grams = {read[n : n + ngram] for n in range(len(read) - ngram + 1)}
    for token in range(SIZE):
        if len(read) >= ngram - 1 and (*read[len(read) - ngram + 1 :], token) in grams:
            probability[token] = 0
    return probability / probability.sum()


def enumerated(**changes):
    """Completion to probability, for all completions of at most STEPS tokens."""
    table, found = np.asarray(TABLE.table, np.float64), {}
    for tokens in itertools.product(range(SIZE), repeat=STEPS):
        kept = tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens
        steps = zip((LAST, *kept), kept, strict=False)
        chances = [changed(table[FIRST, n, last], kept[:n], **changes)[token] for n, (last, token) in enumerate(steps)]
        probability = np.prod(chances)
        if probability > 0:
            found[kept] = probability
    assert sum(found.values()) == pytest.approx(1)
    return found


def p_value(samples, expected):
    """Of a chi-square test of DRAWS completions; completions expected less than ten times are counted together."""
    place = (SIZE + 1) ** np.arange(STEPS)
    counts = np.bincount(((samples.tokens + 1) * samples.mask) @ place)
    assert counts.sum() == DRAWS
    numbers = [int((np.array(tokens) + 1) @ place[: len(tokens)]) for tokens in expected]
    if counts[np.setdiff1d(np.arange(len(counts)), numbers)].any():
        return 0.0
    counts = np.append(counts, np.zeros((SIZE + 1) ** STEPS, int))[numbers]
    pairs = np.stack([counts, DRAWS * np.array(list(expected.values()))], axis=1)
    rare = pairs[:, 1] < 10
    if rare.any():
        pairs = np.concatenate([pairs[~rare], pairs[rare].sum(axis=0, keepdims=True)])
    return scipy.stats.chisquare(*pairs.T).pvalue


CHANGES = {
    'plain': ({}, {}),
    'cold': ({'temperature': 0.5}, {'temperature': 0.5}),
    'hot': ({'temperature': 2.0}, {'temperature': 2.0}),
    'top k': ({'transforms': (TopK(2),)}, {'top_k': 2}),
    'top p': ({'transforms': (TopP(0.7),)}, {'top_p': 0.7}),
    'min p': ({'transforms': (MinP(0.3),)}, {'min_p': 0.3}),
    'penalty': ({'transforms': (RepetitionPenalty(1.7),)}, {'penalty': 1.7}),
    'no pair twice': ({'transforms': (NoRepeatedNgram(2),)}, {'ngram': 2}),
    'two at least': ({'min_tokens': 2}, {'least': 2}),
    'all': (
        {'temperature': 0.7, 'transforms': (TopK(4), TopP(0.9))},
        {'temperature': 0.7, 'top_k': 4, 'top_p': 0.9},
    ),
}


@pytest.mark.parametrize('name', CHANGES)
def test_draws_have_the_distribution_of_the_model(name):
    fields, changes = CHANGES[name]
    # Half of them wait for a slot, so that paths begin at other steps and in other columns.
    sampler = Sampler(LETTERS, samples=2000, max_tokens=STEPS, slots=100_000, period=2, tail=(), **fields)
    samples = sample(sampler, TABLE, prompts_of([[FIRST, LAST]] * (DRAWS // sampler.samples)))
    assert p_value(samples, enumerated(**changes)) > 1e-3
    other = {'temperature': 1.05 * changes.get('temperature', 1.0)}
    assert p_value(samples, enumerated(**{**changes, **other})) < 1e-4  # the test sees five per cent of temperature


def test_log_probabilities_of_the_distribution_that_was_drawn_from():
    fields, changes = CHANGES['all']
    got = sample(Sampler(LETTERS, samples=50, max_tokens=STEPS, min_tokens=1, **fields), TABLE, prompts_of([[2, 3]]))
    table = np.asarray(TABLE.table, np.float64)
    for tokens, mask, found in zip(got.tokens, got.mask, got.proposal_log_probs, strict=True):
        read = tuple(tokens[mask].tolist())
        for step, (last, token) in enumerate(zip((LAST, *read), read, strict=False)):
            wanted = changed(table[FIRST, step, last], read[:step], least=1, **changes)[token]
            np.testing.assert_allclose(found[step], np.log(wanted), atol=1e-5)
    assert (got.proposal_log_probs[~got.mask] == 0).all() and (got.proposal_log_probs > got.log_probs).any()
    greedy = sample(Sampler(LETTERS, 2, STEPS, temperature=0.0), TABLE, prompts_of([[2, 3]]))
    assert (greedy.proposal_log_probs == 0).all() and (greedy.log_probs[greedy.mask] < 0).all()


def test_greedy_takes_the_likeliest_token_of_every_step():
    tiny = model()
    rows = draw_tokens(3, 5, seed=1).tolist()
    rows = [rows[0], rows[1][:2], rows[2][:4]]
    sampler = Sampler(WORDS, samples=2, max_tokens=6, temperature=0.0)
    samples = sample(sampler, tiny, prompts_of(rows, prefix=[5, 9]))
    for row, prompt in enumerate(rows):
        mine = []
        while len(mine) < 6 and EOS not in mine:
            mine.append(int(row_logits(tiny, np.array([5, 9, *prompt, *mine]))[-1].argmax()))
        for path in (2 * row, 2 * row + 1):
            assert samples.tokens[path][samples.mask[path]].tolist() == mine


# What is written.


def test_arrays_of_a_sample_that_ends():
    got = sample(Sampler(LETTERS, samples=2, max_tokens=5), certain([2, 4, EOS, 3, 3]), prompts_of([[2]]))
    assert got.tokens.tolist() == [[2, 4, EOS, 0, 0]] * 2
    assert got.mask.tolist() == [[True, True, True, False, False]] * 2
    assert got.drawn.all() and got.slot_steps == 6
    assert got.log_probs.tolist() == [[0.0] * 5] * 2
    assert got.ended.tolist() == [True, True]


def test_arrays_of_a_sample_that_is_cut_off():
    got = sample(Sampler(LETTERS, samples=1, max_tokens=2), certain([2, 4, EOS]), prompts_of([[2], [3, 3]]))
    assert got.tokens.tolist() == [[2, 4]] * 2
    assert got.mask.all() and not got.ended.any()
    last = sample(Sampler(LETTERS, samples=1, max_tokens=3), certain([2, 4, EOS]), prompts_of([[2]]))
    assert last.mask.all() and last.ended.all()  # end of text in the last column


def test_samples_end_one_by_one():
    fair = constant([[-np.inf, 0.0, 0.0, -np.inf, -np.inf]] * 6)
    got = sample(Sampler(LETTERS, samples=8, max_tokens=6), fair, prompts_of([[2], [3]]))
    lengths = got.mask.sum(axis=1)
    assert len(set(lengths)) > 2
    for row, length in enumerate(lengths):
        ended = bool(got.ended[row])
        assert got.mask[row].tolist() == [True] * length + [False] * (6 - length)
        assert got.tokens[row].tolist() == [2] * (length - ended) + [EOS] * ended + [0] * (6 - length)
        np.testing.assert_allclose(got.log_probs[row], np.where(got.mask[row], -np.log(2), 0), atol=1e-6)
        assert ended or length == 6


def test_a_drawn_padding_token_is_under_the_mask():
    got = sample(Sampler(LETTERS, samples=1, max_tokens=3), certain([0, 0, EOS]), prompts_of([[2]]))
    assert got.tokens.tolist() == [[0, 0, EOS]] and got.mask.all() and got.ended.all()


def test_log_probabilities_are_of_the_model_as_it_is():
    row = [0.3, -0.2, 1.0, 0.5, -1.0]
    sampler = Sampler(LETTERS, samples=64, max_tokens=2, temperature=0.3, transforms=(TopK(3),))
    got = sample(sampler, constant([row] * 2), prompts_of([[2]]))
    wanted = np.log(np.exp(row) / np.exp(row).sum())[got.tokens]
    np.testing.assert_allclose(got.log_probs, np.where(got.mask, wanted, 0), atol=1e-6)


# The same numbers as the learner.


def test_log_probabilities_equal_the_learners():
    few = Spelled((*LETTERS.spellings, b'd', b'e', b'f'))  # so that many samples end
    tiny, sampler = model(few.size, kv_heads=1, tied=False, vocabulary_chunk=3), Sampler(few, samples=3, max_tokens=6)
    rows = draw_tokens(2, 5, seed=2, vocabulary=few.size).tolist()
    prompts = prompts_of([rows[0], rows[1][:3]], prefix=[4, 6])
    samples = run(sampler, tiny, prompts, 5)
    examples = examples_of(prompts, samples, jnp.ones(6), few.pad_id)
    place = jnp.arange(6, dtype=jnp.int32)
    lessons = write_rows(examples, place, 0 * place, jnp.ones(6, bool), 6, examples.tokens.shape[1])

    @jax.jit
    def score(tiny, lessons):
        return tiny.log_probs(tiny.forward(lessons.tokens, lessons.position, lessons.segment), lessons.targets)

    scores, learnt = np.asarray(score(tiny, lessons)), np.asarray(lessons.loss_weight) > 0
    mask, wanted = np.asarray(samples.mask), np.asarray(samples.log_probs)
    for row in range(6):
        np.testing.assert_array_equal(lessons.targets[row][learnt[row]], samples.tokens[row][mask[row]])
        close(scores[row][learnt[row]], wanted[row][mask[row]])
    assert len(set(mask.sum(axis=1))) > 2  # samples of several lengths


# The same paths anywhere.

ASKED = [[2, 3, 4], [9, 8], [7, 7, 7, 7], [5, 2]]


def paths(samples, question, count):
    """Tokens of the paths of one question."""
    return samples.tokens.reshape(-1, count, samples.tokens.shape[-1])[question]


def test_a_question_gets_the_same_paths_in_any_batch():
    tiny, sampler = model(), Sampler(WORDS, samples=4, max_tokens=6)
    ids = [11, 22, 33, 44]
    together = sample(sampler, tiny, prompts_of(ASKED, ids, prefix=[6]))
    backwards = sample(sampler, tiny, prompts_of(ASKED[::-1], ids[::-1], prefix=[6]))
    alone = sample(sampler, tiny, prompts_of(ASKED[1:2], ids[1:2], prefix=[6]))
    more = sample(dataclasses.replace(sampler, samples=8), tiny, prompts_of(ASKED, ids, prefix=[6]))
    for question in range(4):
        mine = paths(together, question, 4)
        np.testing.assert_array_equal(mine, paths(backwards, 3 - question, 4))
        np.testing.assert_array_equal(mine, paths(more, question, 8)[:4])
    np.testing.assert_array_equal(paths(together, 1, 4), paths(alone, 0, 4))
    close(alone.log_probs, together.log_probs[4:8])


def test_question_sample_position_and_key_all_count():
    ids = [[7, 1], [7, 2], [8, 1]]
    uniform = constant([[0.0] * SIZE] * 13)
    prompts = dataclasses.replace(prompts_of([[2]] * 3), id=jnp.array(ids, jnp.uint32))
    sampler = Sampler(LETTERS, samples=4, max_tokens=12, min_tokens=12)
    got = sample(sampler, uniform, prompts).tokens
    assert len({tuple(row) for row in got.tolist()}) == 12  # the same prompt, other ids and sample numbers
    assert max(collections.Counter(row).most_common(1)[0][1] for row in got.tolist()) < 12  # positions differ
    assert (sample(sampler, uniform, prompts, seed=1).tokens != got).any()
    keys = np.asarray(jax.random.key_data(sample_keys(jax.random.key(0), prompts.id, 4)))
    assert len(np.unique(keys, axis=0)) == 12


def test_the_room_does_not_change_what_is_drawn():
    asked = prompts_of([[2], [3, 4]])
    short, longer = (sample(Sampler(LETTERS, samples=9, max_tokens=room), TABLE, asked) for room in (2, 3))
    np.testing.assert_array_equal(short.tokens, longer.tokens[:, :2])


# The program.


def test_the_program_never_calls_the_host():
    sampler = Sampler(WORDS, samples=4, max_tokens=6)
    assert not host_calls(run.lower(sampler, model(), prompts_of(ASKED, prefix=[6]), 0).compile())
    assert host_calls(jax.jit(lambda x: jax.debug.print('{}', x)).lower(1.0).compile())  # it would be seen


def test_the_loop_stops_when_all_have_ended():
    stopping = Table(certain([2, EOS] + [3] * 998).table)
    got = sample(Sampler(LETTERS, samples=2, max_tokens=1000), stopping, prompts_of([[2]]))
    assert got.mask.sum() == 4 and got.ended.all()


@pytest.mark.parametrize(
    ('fields', 'said'),
    [
        ({'samples': 0}, 'at least 1; they are 0, 4'),
        ({'max_tokens': 0}, '2, 0'),
        ({'temperature': -1.0}, 'positive; it is -1.0'),
        ({'temperature': float('nan')}, 'positive; it is nan'),
        ({'min_tokens': 5}, r'min_tokens = 5 must lie in 0 .. max_tokens = 4'),
        ({'slots': 0}, 'at least 1; they are 0, 16'),
        ({'period': 0}, 'at least 1; they are None, 0'),
        ({'tail': (0.5, 0.5)}, 'falling shares'),
        ({'cache_share': 0.0}, 'between 0 and 1; it is 0.0'),
        ({'stop': ('',)}, 'an empty text'),
        ({'weights': 'int3'}, "'int8'; it is 'int3'"),
        ({'cache': 'int4'}, "cache must be one of 'as computed', 'int8'; it is 'int4'"),
        ({'vocabulary': Spelled((b'', b'a'), eos_id=9)}, r'ends of text \[9\] are outside this vocabulary of 2 tokens'),
    ],
)
def test_settings_out_of_range_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        Sampler(**{'vocabulary': LETTERS, 'samples': 2, 'max_tokens': 4, **fields})


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_embedding_rows_beyond_the_vocabulary_are_never_drawn_and_keep_their_share(temperature):
    logits = [0.0, -2.0, 1.0, 0.5, -1.0, 9.0, 3.0]  # two rows more than there are tokens, the likeliest of all
    samples = sample(Sampler(LETTERS, 64, 3, temperature), constant([logits] * 3), prompts_of([[2, 3]]))
    assert samples.tokens.max() < SIZE and len(np.unique(samples.tokens)) >= (1 if temperature == 0 else 4)
    wanted = np.take(np.asarray(jax.nn.log_softmax(jnp.array(logits))), samples.tokens)
    close(samples.log_probs[samples.mask], wanted[samples.mask], 1e-6)
