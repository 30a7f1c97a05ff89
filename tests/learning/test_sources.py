"""Lessons of encoder-decoders: prompts in rows of their own, two budgets a row, and a loss that is blind to both."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove import metrics
from t5x_selfimprove.data.items import encode_examples, make_item
from t5x_selfimprove.improve import new_state
from t5x_selfimprove.learning.lessons import Packing, minibatch, tokens_in
from t5x_selfimprove.learning.losses import next_token
from t5x_selfimprove.learning.optimizers import AdamW, Schedule
from t5x_selfimprove.learning.supervised import Supervised
from t5x_selfimprove.models.config import TransformerConfig
from t5x_selfimprove.records import check
from t5x_selfimprove.vocabulary import ByteVocabulary
from tests.learning.batches import examples_of, random_examples
from tests.models import tiny, tiny_t5
from tests.models.tiny import close, largest_difference

ROOM = 8  # of a prompt and completion together
TINY = tiny_t5.model(vocabulary_chunk=64)

loss_and_gradient = jax.jit(jax.value_and_grad(lambda model, lessons: next_token(model, lessons, None), has_aux=True))


def packed(examples, row_length, source_length, rows=None, seed=0):
    """Lessons, none of the examples dropped."""
    lessons, dropped = jax.jit(Packing(row_length, rows, source_length))(examples, jax.random.key(seed))
    assert int(dropped) == 0
    check(lessons)
    check(lessons.source)
    return lessons


def unpacked(lessons):
    """(prompt, tokens, targets, weights) of every example in the rows, sorted."""
    rows, found = jax.tree.map(np.asarray, lessons), []
    for row in range(rows.tokens.shape[0]):
        for segment in range(1, rows.segment[row].max() + 1):
            here, there = rows.segment[row] == segment, rows.source.segment[row] == segment
            inside = [array[row][here].tolist() for array in (rows.tokens, rows.targets, rows.loss_weight)]
            assert rows.position[row][here].tolist() == list(range(here.sum()))
            found.append((rows.source.tokens[row][there].tolist(), *inside))
    return sorted(found)


def test_rows_as_drawn():
    # a: 5 6 | 7 8     b: 4 | 9
    examples = examples_of([(2, [5, 6, 7, 8]), (1, [4, 9])], [1, 0.5])
    got = packed(examples, 7, 4, rows=1)
    first = got.source.tokens[0, 0].tolist()  # the order is drawn
    tokens = {5: [0, 7, 8, 0, 9, 0, 0], 4: [0, 9, 0, 7, 8, 0, 0]}[first]
    assert got.tokens.tolist() == [tokens]
    assert got.source.tokens.tolist() == [{5: [5, 6, 4, 0], 4: [4, 5, 6, 0]}[first]]
    assert got.source.segment.tolist() == [{5: [1, 1, 2, 0], 4: [1, 2, 2, 0]}[first]]
    assert got.segment.tolist() == [{5: [1, 1, 1, 2, 2, 0, 0], 4: [1, 1, 2, 2, 2, 0, 0]}[first]]
    assert got.loss_weight.tolist() == [{5: [1, 1, 0, 0.5, 0, 0, 0], 4: [0.5, 0, 1, 1, 0, 0, 0]}[first]]
    learnt = np.asarray(got.loss_weight[0]) > 0
    assert np.asarray(got.targets[0])[learnt].tolist() == {5: [7, 8, 9], 4: [9, 7, 8]}[first]
    assert float(tokens_in(got)) == 5 + 3


@pytest.mark.parametrize(('row_length', 'source_length'), [(9, 7), (30, 7), (9, 40), (30, 40)])
def test_every_example_is_placed_once(row_length, source_length):
    examples = random_examples(30, ROOM, seed=row_length)
    wanted = []
    for tokens, prompt, length in zip(*map(np.asarray, jax.tree.leaves(examples)[:3]), strict=True):
        completion = tokens[prompt:length].tolist()
        weights = [1.0] * len(completion) + [0.0]
        wanted.append((tokens[:prompt].tolist(), [0, *completion], completion, weights))
    rooms = (7, 8) if source_length < ROOM else None  # prompts are shorter than an example
    got = packed(dataclasses.replace(examples, rooms=rooms), row_length, source_length)
    found = [(source, tokens, targets[:-1], weights) for source, tokens, targets, weights in unpacked(got)]
    assert found == sorted(wanted)
    filled = int(got.filled)
    assert not np.asarray(got.source.segment[filled:]).any() and (np.asarray(got.source.segment[:filled, 0]) == 1).all()


def test_both_budgets_close_a_row():
    completions_alone = Packing(6, source_length=100).places(jnp.array([3, 2, 2], jnp.int32), jnp.array([1, 1, 1]))
    assert [x.tolist() for x in completions_alone] == [[0, 0, 1], [0, 3, 0], [0, 1, 0]]
    prompts_too = Packing(6, source_length=4).places(jnp.array([3, 2, 2], jnp.int32), jnp.array([3, 2, 2]))
    assert [x.tolist() for x in prompts_too] == [[0, 1, 1], [0, 0, 2], [0, 0, 2]]


def test_rows_are_enough_in_the_worst_case():
    assert Packing(12, source_length=20).rows_for(7, 63, (5, 3)) == 3  # three completions with their start
    assert Packing(12, source_length=10).rows_for(7, 63, (5, 3)) == 4  # two prompts
    assert Packing(12, source_length=11).rows_for(7, 11) == 7
    for lengths in ([(5, 3)] * 7, [(1, 3), (5, 1)] * 3):
        rows = [(prompt, [4] * (prompt + completion)) for prompt, completion in lengths]
        packed(dataclasses.replace(examples_of(rows, room=8), rooms=(5, 3)), 12, 10)


def test_overflow_is_counted():
    examples = dataclasses.replace(examples_of([(3, [4, 5, 6, 7])] * 5), rooms=(3, 1))
    got, dropped = Packing(4, rows=2, source_length=3)(examples, jax.random.key(0))
    assert int(dropped) == 3 and len(unpacked(got)) == 2


BYTES = ByteVocabulary()


@pytest.mark.parametrize(
    ('make', 'error', 'said'),
    [
        (lambda: Packing(8, source_length=0), ValueError, 'source_length of at least 1.*they are 0, 8'),
        (lambda: Packing(1, source_length=4), ValueError, 'row_length of at least 2; they are 4, 1'),
        (lambda: Packing(9, source_length=4).rows_for(3, 9, (5, 4)), ValueError, 'raise source_length to 5'),
        (lambda: Packing(9, source_length=4).rows_for(3, 13, (4, 9)), ValueError, 'one more.*raise row_length to 10'),
        (lambda: Packing(9).check_kind(tiny_t5.CONFIG), ValueError, 'set learning.Packing.source_length'),
        (lambda: Packing(9, source_length=4).check_kind(TransformerConfig()), ValueError, 'model is decoder-only'),
        (lambda: loss_and_gradient(tiny.model(), packed(random_examples(3, 8), 9, 8)), TypeError, "argument 'source'"),
        (lambda: encode([make_item('abc', None, '1')], (4, 30)), ValueError, r'prompt \(in.*has 5 tokens.*is 4'),
        (lambda: encode([make_item('abc', None, '1')], (5, 3)), ValueError, r'completion \(in.*has \d+ tokens'),
        (lambda: encode([make_item('', 'Words.')], (5, 30)), ValueError, 'is plain text.*decoder-only'),
    ],
)  # fmt: skip
def test_what_cannot_be_packed_is_refused(make, error, said):
    with pytest.raises(error, match=f'(?s){said}'):
        make()
    Packing(9).check_kind(TransformerConfig())
    Packing(9, source_length=4).check_kind(tiny_t5.CONFIG)


def encode(items, rooms, too_long='refuse'):
    return encode_examples(items, BYTES, [40], [41], 60, too_long, rooms=rooms)


def test_examples_that_do_not_fit_apart_are_left_out_where_asked():
    items = [make_item('ab', None, '1'), make_item('abcdef', None, '1'), make_item('cd', 'long ' * 6, '1')]
    examples, skipped = encode(items, (6, 30), 'skip')
    assert skipped == 2 and examples.rooms == (6, 30) and examples.prompt_length.tolist() == [4, 0, 0]
    check(examples)


def test_the_loss_by_its_formula_however_packed():
    examples = dataclasses.replace(random_examples(10, ROOM), weight=jnp.array([1, 0.5, 2, 0, 1] * 2))
    total = weights = 0.0
    for tokens, prompt, length, weight in zip(*map(np.asarray, jax.tree.leaves(examples)), strict=True):
        completion = tokens[prompt:length].tolist()
        logits = tiny_t5.pair_logits(TINY, tokens[:prompt].tolist(), completion).astype(np.float64)
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        total -= weight * sum(log_probs[place, token] for place, token in enumerate(completion))
        weights += weight * len(completion)
    (wanted, weight), gradient = loss_and_gradient(TINY, packed(examples, 9, 8, rows=10))  # one a row
    close(wanted, total)
    close(weight, weights)
    together = packed(examples, 27, 30, rows=10, seed=1)
    assert int(together.segment.max()) > 3
    (got, same), other = loss_and_gradient(TINY, together)
    close(got / same, wanted / weight, 1e-6)
    largest = max(float(abs(array).max()) for array in jax.tree.leaves(gradient))
    assert same == weight and largest_difference(other, gradient) < 4e-6 * largest  # sums of float32 in another order
    nothing = dataclasses.replace(together, loss_weight=0 * together.loss_weight)
    (total, weight), gradient = loss_and_gradient(TINY, nothing)
    assert total == weight == 0 and all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))


def test_an_encoder_decoder_learns_with_replay():
    smooth = AdamW(Schedule(peak=1e-2, warmup=0, shape='constant'), weight_decay=0.0)
    packing = Packing(18, source_length=16)
    learner = Supervised(packing, smooth, steps=30, batch_rows=8, accumulate=2, replay_share=0.25)
    examples = random_examples(20, ROOM)
    replay = packing(random_examples(6, ROOM, seed=1), jax.random.key(0))[0]
    batch = minibatch(replay, jnp.arange(replay.tokens.shape[0])[None], jnp.int32(0), 4)
    assert batch.source.tokens.shape == (4, 16)
    train = jax.jit(learner)
    state, losses = new_state(TINY, learner, 0, keep_base=False), []
    for number in range(3):
        state, counted = train(state, examples, replay, jax.random.key(number))
        losses.append(metrics.values(counted)['loss'])
    assert losses[2] < losses[1] < losses[0] - 0.3
