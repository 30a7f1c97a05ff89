"""The supervised learner: its updates, what it mixes, where it starts, what it counts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove import metrics
from t5x_selfimprove.improve import new_state
from t5x_selfimprove.learning.lessons import Packing
from t5x_selfimprove.learning.optimizers import Adafactor, AdamW, Schedule
from t5x_selfimprove.learning.supervised import Supervised
from tests.learning.batches import bigram, examples_of, packed, random_examples
from tests.models.tiny import largest_difference, model

ROOM = 8
STEADY = AdamW(Schedule(peak=1e-2, warmup=0, shape='constant'), weight_decay=0.0)
LEARNER = Supervised(Packing(ROOM), STEADY, steps=3, batch_rows=8, replay_share=0.0)
EXAMPLES = random_examples(20, ROOM)


@functools.partial(jax.jit, static_argnums=0)
def one_round(learner, state, examples, replay, seed):
    return learner(state, examples, replay, jax.random.key(seed))


@functools.partial(jax.jit, static_argnums=0)
def one_update(learner, state, rows, seed):
    return learner.update(state, rows, jax.random.key(seed))


def learn(learner, examples=EXAMPLES, replay=None, seed=0, tiny=None, state=None):
    """(state before, state after, metrics as numbers) of one round."""
    state = state or new_state(bigram() if tiny is None else tiny, learner, 0, keep_base=learner.start_from == 'base')
    after, counted = one_round(learner, state, examples, replay, seed)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    return state, after, metrics.values(counted)


def replay_of(*rows):
    return packed(examples_of(list(rows), room=ROOM), ROOM)


def test_training_lowers_the_loss():
    learner, state, losses = dataclasses.replace(LEARNER, steps=40), None, []
    for _ in range(3):
        _, state, got = learn(learner, tiny=model(vocabulary_chunk=64), state=state)
        losses.append(got['loss'])
    assert losses[2] < losses[1] < losses[0] - 0.6
    assert int(state.step) == 120


def test_optimizers_differ_and_both_learn():
    other = dataclasses.replace(LEARNER, optimizer=Adafactor(STEADY.schedule))
    ends = []
    for learner in (LEARNER, other):
        _, state, first = learn(learner)
        _, state, second = learn(learner, state=state)
        assert second['loss'] < first['loss'] - 0.01
        ends.append(state.model)
    assert largest_difference(*ends) > 1e-4


def test_accumulation_equals_the_whole_batch(parts=4):
    smooth = AdamW(STEADY.schedule, epsilon=1e-2)  # so that rounding is not blown up where gradients are tiny
    whole = dataclasses.replace(LEARNER, optimizer=smooth)
    rows = jax.tree.map(lambda x: x[:8] if x.ndim else x, packed(EXAMPLES, ROOM))  # of different numbers of tokens
    state = new_state(bigram(), whole, 0, keep_base=False)
    wanted, counted = one_update(whole, state, rows, 0)
    got, also = one_update(dataclasses.replace(whole, accumulate=parts), state, rows, 0)
    assert largest_difference(got.model, wanted.model) < 1e-6
    assert largest_difference(counted, also) < 1e-3  # sums of some 40 tokens
    assert largest_difference(wanted.model, state.model) > 1e-3


def test_metrics_are_sums_over_tokens():
    examples = examples_of([(1, [5, 6, 7, 8])] * 20, [1.0] * 18 + [0.0] * 2, room=ROOM)  # two to a row
    learner = dataclasses.replace(LEARNER, packing=Packing(ROOM, rows=7), steps=1)
    before, after, got = learn(learner, examples)
    assert got['training_tokens'] == 8 * 8
    assert got['filled_rows'] == 7
    assert got['dropped_examples'] == 18 - 14
    assert got['passes'] == pytest.approx(8 / 7)
    assert int(after.step) == 1
    hidden = before.model.forward(jnp.array([5, 6, 7]), None, None)
    wanted = -before.model.log_probs(hidden, jnp.array([6, 7, 8]))
    assert got['loss'] == pytest.approx(float(wanted.mean()), rel=1e-5)
    assert got['gradient_norm'] > 0


@pytest.mark.parametrize(('share', 'replayed'), [(0.25, 2), (1.0, 8)])
def test_a_batch_holds_its_share_of_replay(share, replayed):
    learner = dataclasses.replace(LEARNER, replay_share=share, steps=5)
    fresh = examples_of([(1, [5, 6])] * 20, room=ROOM)
    fresh = dataclasses.replace(fresh, tokens=jnp.broadcast_to(fresh.tokens, (20, ROOM)))
    learner = dataclasses.replace(learner, packing=Packing(ROOM, rows=5))  # four of two tokens fill a row of eight
    _, _, got = learn(learner, fresh, replay_of(*[(1, [9, 8, 7])] * 6))
    in_row_of_replay = 6  # two of three tokens in a row of eight
    assert learner.replay_rows == replayed
    assert got['training_tokens'] == 5 * ((8 - replayed) * 8 + replayed * in_row_of_replay)
    assert got['passes'] == pytest.approx(5 * (8 - replayed) / 5)


def test_replay_moves_the_parameters():
    learner = dataclasses.replace(LEARNER, replay_share=0.5)
    one, other = (learn(learner, replay=replay_of((1, [9, 8, last]))) for last in (8, 7))
    assert largest_difference(one[1].model, other[1].model) > 1e-3


def test_where_nothing_was_kept_replay_alone_is_learnt():
    nothing = dataclasses.replace(EXAMPLES, weight=0 * EXAMPLES.weight)
    learner = dataclasses.replace(LEARNER, replay_share=0.5)
    other = dataclasses.replace(random_examples(20, ROOM, seed=9), weight=nothing.weight)
    rows = replay_of((1, [9, 8, 7]))
    before, after, got = learn(learner, nothing, rows)
    assert largest_difference(before.model, after.model) > 1e-3
    assert largest_difference(learn(learner, other, rows)[1].model, after.model) == 0
    assert got['filled_rows'] == 0 and np.isfinite(got['loss'])
    assert got['training_tokens'] == 3 * 4 * 3


@pytest.mark.parametrize('optimizer', [AdamW(weight_decay=0.0), Adafactor()], ids=['adamw', 'adafactor'])
def test_where_there_is_nothing_to_learn_nothing_changes(optimizer):
    nothing = dataclasses.replace(EXAMPLES, weight=0 * EXAMPLES.weight)
    before, after, got = learn(dataclasses.replace(LEARNER, optimizer=optimizer), nothing)
    assert largest_difference(before.model, after.model) == 0
    assert got['loss'] is None and got['training_tokens'] == 0


def test_passes_are_counted_without_replay_rows_where_there_is_no_replay():
    learner = dataclasses.replace(LEARNER, replay_share=0.5, packing=Packing(ROOM, rows=4))
    _, _, got = learn(learner, examples_of([(1, [5] * ROOM)] * 4))
    assert got['training_tokens'] == 3 * 8 * ROOM  # every row of the batch is fresh
    assert got['passes'] == pytest.approx(3 * 8 / 4)


def test_a_round_starts_from_the_base_where_asked():
    learner = dataclasses.replace(LEARNER, start_from='base')
    base = bigram(seed=1)
    state = dataclasses.replace(new_state(base, learner, 0, keep_base=True), model=bigram(seed=2))
    _, after, _ = learn(learner, state=state)
    _, wanted, _ = learn(LEARNER, tiny=base)
    assert largest_difference(after.model, wanted.model) == 0
    assert largest_difference(after.base, base) == 0
    _, previous, _ = learn(LEARNER, tiny=bigram(seed=2))
    assert largest_difference(previous.model, after.model) > 0.1


def test_the_optimizer_is_fresh_every_round_or_goes_on():
    def second_round(**fields):
        learner = dataclasses.replace(LEARNER, **fields)
        state = learn(learner)[1]
        return learn(learner, state=state)[1]

    def updates(state):
        return {int(leaf) for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim == 0}

    assert updates(second_round()) == {3}
    assert updates(second_round(fresh_optimizer=False, total_rounds=2)) == {6}
    assert int(second_round().step) == 6


def test_a_schedule_spans_a_round_or_the_run():
    line = AdamW(Schedule(peak=1e-2, warmup=0, shape='linear'), weight_decay=0.0)
    one = dataclasses.replace(LEARNER, optimizer=line, steps=4)
    run = dataclasses.replace(one, fresh_optimizer=False, total_rounds=2)

    def steps(learner):
        """What each of four updates adds to a parameter of constant gradient."""
        gradient = jnp.ones(1)
        update = lambda state, _: learner.transformation.update(gradient, state, gradient)[::-1]  # noqa: E731
        return jax.lax.scan(update, learner.transformation.init(gradient), None, length=4)[1].ravel()

    np.testing.assert_allclose(steps(one), [-1e-2, -0.75e-2, -0.5e-2, -0.25e-2], rtol=1e-3)
    np.testing.assert_allclose(steps(run), [-1e-2, -0.875e-2, -0.75e-2, -0.625e-2], rtol=1e-3)


def test_dropout_is_used_and_seeded():
    rows = jax.tree.map(lambda x: x[:4] if x.ndim else x, packed(EXAMPLES, ROOM))
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]) if x.ndim else x, rows)

    def loss(rate, seed, rows=rows, accumulate=1):
        learner = dataclasses.replace(LEARNER, accumulate=accumulate)
        state = new_state(bigram(dropout=rate), learner, 0, keep_base=False)
        return metrics.values(one_update(learner, state, rows, seed)[1])['loss']

    assert loss(0.0, 1) == loss(0.0, 2)
    assert loss(0.5, 1) == loss(0.5, 1) != loss(0.5, 2)
    assert loss(0.5, 1) != pytest.approx(loss(0.0, 1), abs=1e-3)
    assert loss(0.5, 1) != pytest.approx(loss(0.5, 1, twice, 2), abs=1e-4)  # equal parts are dropped differently


def test_the_order_of_rows_is_seeded():
    one, same, other = (learn(LEARNER, seed=seed)[1].model for seed in (1, 1, 2))
    assert largest_difference(one, same) == 0
    assert largest_difference(one, other) > 1e-4


def test_equal_settings_are_equal_values():
    assert dataclasses.replace(LEARNER) == LEARNER and hash(dataclasses.replace(LEARNER)) == hash(LEARNER)


@pytest.mark.parametrize(
    ('fields', 'said'),
    [
        ({'start_from': 'zero'}, "'previous' or 'base'; it is 'zero'"),
        ({'replay_share': 1.5}, r'in \[0, 1\]; it is 1.5'),
        ({'steps': 0}, 'at least 1'),
        ({'accumulate': 3}, 'batch_rows = 8 must be a multiple of accumulate = 3'),
    ],
)
def test_settings_out_of_range_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(LEARNER, **fields)
