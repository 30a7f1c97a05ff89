"""The ring that samples write, the seats from which they read, and the form of a model that is sampled from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove.models import cache, decoding
from t5x_selfimprove.models.adapters import LowRank
from t5x_selfimprove.models.cache import Seats
from t5x_selfimprove.models.config import Rope
from tests.models import tiny_t5
from tests.models.tiny import close, draw_tokens, largest_difference, model, row_logits

LENGTHS = (4, 2)
SLIDING = {'sliding_window': 3, 'attention_pattern': ('sliding', 'full'), 'local_rope': Rope(theta=7.0)}


def seats_of(prompt_of, lanes):
    """Seats of samples that read the given prompts, in the order in which they come."""
    seat = [int(prompt) * lanes + int((prompt_of[:n] == prompt).sum()) for n, prompt in enumerate(prompt_of)]
    occupant = [seat.index(place) if place in seat else 0 for place in range(len(LENGTHS) * lanes)]
    return Seats(jnp.array([seat], jnp.int32), jnp.array([occupant], jnp.int32))


def paths_that_come_and_go(tiny, before, one_logits, prompt_of, seats):
    """Steps of three slots in a ring of four columns: slot 1 begins anew at step 3, slot 2 at step 2 and step 5."""
    prompts, lengths = draw_tokens(2, max(LENGTHS), seed=2), jnp.array(LENGTHS, jnp.int32)
    begins = {3: [1], 2: [2], 5: [2]}
    drawn = np.asarray(draw_tokens(7, 3, seed=3))

    @jax.jit
    def prefill(tiny):
        tiny = decoding.for_sampling(tiny)
        shared = (tiny.read_prefix(before),) if len(before) else ()
        return tiny.prefill(prompts, lengths, *shared)[1], tiny.new_own(3, 4)

    @jax.jit
    def extend(tiny, tokens, context, own):
        tiny = decoding.for_sampling(tiny)
        hidden, own = tiny.extend(tokens, context, own, seats)
        return tiny.logits(hidden), own

    (context, own), read = prefill(tiny), [[], [], []]
    for step in range(7):
        fresh = np.isin(np.arange(3), begins.get(step, []))
        own = own.restarted(jnp.array(fresh))
        logits, own = extend(tiny, drawn[step], context, own)
        for slot in range(3):
            read[slot] = [] if fresh[slot] else [*read[slot][-3:], drawn[step, slot]]
            if len(read[slot]) and own.length[slot] <= 4:
                prompt = [*before, *prompts[prompt_of[slot], : LENGTHS[prompt_of[slot]]]]
                close(logits[slot], one_logits(tiny, prompt, read[slot]))


@pytest.mark.parametrize('block', [2, 32])
@pytest.mark.parametrize('fields', [{}, SLIDING], ids=['full', 'sliding'])
def test_samples_that_come_and_go_read_what_is_theirs(fields, block, monkeypatch):
    monkeypatch.setattr(cache, 'BLOCK', block)
    prompt_of = np.array([1, 0, 1])
    last = lambda tiny, prompt, read: row_logits(tiny, np.array([*prompt, *read]))[-1]  # noqa: E731
    paths_that_come_and_go(model(**fields), draw_tokens(3, seed=1), last, prompt_of, seats_of(prompt_of, 2))


def test_seats_of_two_parts():
    seats = Seats(jnp.array([[2, 0], [1, 3]]), jnp.array([[1, 0, 0, 0], [0, 0, 0, 1]]))
    samples = jnp.arange(12.0).reshape(4, 3)
    seated = seats.seated(samples).reshape(2, 4, 3)
    np.testing.assert_array_equal(seated[0, jnp.array([2, 0])], samples[:2])
    np.testing.assert_array_equal(seated[1, jnp.array([1, 3])], samples[2:])
    np.testing.assert_array_equal(seats.risen(seated.reshape(8, 3)), samples)


def test_samples_of_an_encoder_decoder_that_come_and_go(monkeypatch):
    monkeypatch.setattr(cache, 'BLOCK', 3)
    prompt_of = np.array([1, 0, 1])
    last = lambda tiny, prompt, read: tiny_t5.pair_logits(tiny, [int(t) for t in prompt], [int(t) for t in read])[-1]  # noqa: E731
    paths_that_come_and_go(tiny_t5.model(), (), last, prompt_of, seats_of(prompt_of, 2))


def test_columns_are_as_old_as_the_steps_since_they_were_written():
    own = dataclasses.replace(cache.new_own(1, 2, 1, 4, 1, 'float32', True), length=jnp.array([3, 2]), step=6)
    assert own.ages().tolist() == [2, 1, 0, 3]
    assert own.visible()[:, 0].tolist() == [[True] * 4, [True, True, True, False]]
    assert own.restarted(jnp.array([True, False])).length.tolist() == [-1, 2]


def test_blocks_that_were_written(monkeypatch):
    monkeypatch.setattr(cache, 'BLOCK', 2)
    own = cache.new_own(3, 2, 1, 5, 4, 'float32', False)
    assert own.room == 6 and [[block.shape for block in layer] for layer in own.key] == [[(2, 1, 4, 2)] * 3] * 3
    blocks = [int(dataclasses.replace(own, step=jnp.int32(step)).blocks) for step in range(9)]
    assert blocks == [1, 1, 2, 2, 3, 3, 3, 3, 3]
    long = cache.new_own(1, 2, 1, 100, 4, 'float32', False)
    assert (long.width, long.room, len(long.key[0])) == (13, 104, cache.BLOCKS)


# The form that is sampled from.


def one_step(tiny):
    prompts, lengths = draw_tokens(2, max(LENGTHS), seed=2), jnp.array(LENGTHS, jnp.int32)
    hidden, context = tiny.prefill(prompts, lengths, tiny.read_prefix(draw_tokens(3, seed=1)))
    after, own = tiny.extend(draw_tokens(6, seed=3), context, tiny.new_own(6, 2))
    return tiny.logits(hidden), tiny.logits(after), own.length


MODELS = {
    'transformer': model(**SLIDING),
    'untied, bfloat16': model(tied=False, dtype='bfloat16'),
    't5': tiny_t5.model(),
    'adapters apart': model(low_rank=LowRank(2, merge=False)),
}


@pytest.mark.parametrize('name', MODELS)
def test_layers_apart_equal_stacked_layers(name):
    tiny = MODELS[name]
    apart = jax.jit(lambda tiny: one_step(decoding.for_sampling(tiny)))(tiny)
    stacked = jax.jit(one_step)(tiny)
    assert largest_difference(apart, stacked) < (0.05 if 'bfloat16' in name else 1e-5)
    assert 'output_matrix' not in str(jax.tree_util.tree_flatten_with_path(tiny)[0])  # the model itself is as it was


@pytest.mark.parametrize('name', ['transformer', 't5'])
def test_int8_weights_are_near_and_not_the_same(name):
    tiny = MODELS[name]
    plain, rounded = (
        jax.jit(lambda tiny, weights=weights: one_step(decoding.for_sampling(tiny, weights)))(tiny)
        for weights in decoding.WEIGHTS
    )
    scale = float(jnp.abs(plain[1]).max())
    assert 1e-4 * scale < largest_difference(plain, rounded) < 0.06 * scale
    with pytest.raises(ValueError, match="'as trained', 'int8'; it is 'int4'"):
        decoding.for_sampling(tiny, 'int4')


@pytest.mark.parametrize('form', ['stacked', 'apart', 'in blocks'])
@pytest.mark.parametrize('name', ['transformer', 't5', 'untied, bfloat16'])
def test_int8_keys_and_values_are_near_and_not_the_same(name, form, monkeypatch):
    """Of tokens that samples draw, in a ring that goes round."""
    tiny = MODELS[name]
    monkeypatch.setattr(cache, 'BLOCK', 2 if form == 'in blocks' else 32)
    prompts, lengths = draw_tokens(2, max(LENGTHS), seed=2), jnp.array(LENGTHS, jnp.int32)

    def seven_steps(tiny, kind):
        tiny = tiny if form == 'stacked' else decoding.for_sampling(tiny)
        context = tiny.prefill(prompts, lengths)[1]
        start = tiny.new_own(6, 4, kind)
        step = lambda own, tokens: tiny.extend(tokens, context, own)[::-1]  # noqa: E731
        own, hidden = jax.lax.scan(step, start, draw_tokens(7, 6, seed=3))
        return tiny.logits(hidden), own

    (plain, _), (rounded, own) = (jax.jit(seven_steps, static_argnums=1)(tiny, kind) for kind in cache.KINDS)
    assert {leaf.dtype for leaf in jax.tree.leaves(own.key)} == {jnp.dtype('int8'), jnp.dtype('float32')}
    scale = float(jnp.abs(plain).max())
    assert 1e-5 * scale < largest_difference(plain, rounded) < 0.03 * scale


def test_int8_is_the_nearest_of_255_steps_for_each_token_and_head():
    column = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 5, 1)), jnp.float32)  # samples, heads, sizes
    kept = cache.rounded(column.at[0, 0].set(0.0))
    step = np.abs(column).max(axis=2, keepdims=True) / 127
    np.testing.assert_allclose(kept.scale[1:], step[1:], rtol=1e-6)
    assert (np.abs(np.asarray(kept.numbers, np.float32) * kept.scale - column)[1:] <= step[1:] / 2 * 1.001).all()
    assert not kept.numbers[0, 0].any() and np.abs(np.asarray(kept.numbers)).max() == 127


def test_int8_is_the_nearest_of_255_steps_for_each_output():
    weight = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 2, 4)), jnp.float32)  # layers, inputs, outputs
    kept = decoding.Quantized(weight, 1, ('layers', 'model', 'heads', 'head'))
    step = np.abs(weight).max(axis=1, keepdims=True) / 127
    np.testing.assert_allclose(kept.scale[...], step[:, 0], rtol=1e-6)
    assert (np.abs(np.asarray(kept.values[...]) * step - weight) <= step / 2 * 1.001).all()
    assert np.abs(np.asarray(kept.values[...])).max() == 127
    assert kept.scale.get_metadata()['axes'] == ('layers', 'heads', 'head')
