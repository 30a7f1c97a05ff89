"""The encoder-decoder: its entry points agree with each other, and every option of it does something."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove.models.adapters import LowRank
from t5x_selfimprove.models.config import EXECUTION_FIELDS
from t5x_selfimprove.models.encoder_decoder import Prefix
from t5x_selfimprove.models.encoder_decoder_config import EncoderDecoderConfig
from t5x_selfimprove.records import Sources
from tests.models.tiny import VOCABULARY, close, draw_tokens, extended, largest_difference, whole
from tests.models.tiny_t5 import CONFIG, forward_logits, model, pair_logits, sources

PREFIX, LENGTHS, SHARED, STEPS = 3, (6, 2, 1), 2, 5  # of the decoding tests


def prompts() -> tuple[jax.Array, jax.Array]:
    return draw_tokens(len(LENGTHS), max(LENGTHS), seed=1), jnp.array(LENGTHS, jnp.int32)


@pytest.mark.parametrize(
    ('fields', 'prefix'), [({}, PREFIX), ({'bias_per_layer': True, 'tied': True, 'unroll': 2, 'gated': False}, 0)]
)
def test_extending_step_by_step_equals_forward(fields, prefix):
    tiny, (tokens, length), samples = model(**fields), prompts(), len(LENGTHS) * SHARED
    drawn, before = draw_tokens(samples, STEPS, seed=3), draw_tokens(PREFIX, seed=2)[:prefix]

    @jax.jit
    def roll(tiny):
        shared = (tiny.read_prefix(before),) if prefix else ()
        assert all(isinstance(each, Prefix) for each in shared)
        hidden, context = tiny.prefill(tokens, length, *shared)
        own = tiny.new_own(samples, STEPS + 2)  # more room than is used
        own, logits = jax.lax.scan(lambda own, tokens: extended(tiny, own, tokens, context), own, drawn.T)
        return tiny.logits(hidden), jnp.moveaxis(logits, 0, 1), context, own.length

    first, logits, context, read = roll(tiny)
    assert read.tolist() == [STEPS] * samples and context.cross.rows == context.start.rows == len(LENGTHS)
    for sample in range(samples):
        question = sample // SHARED
        prompt = [*before.tolist(), *tokens[question, : LENGTHS[question]].tolist()]
        wanted = pair_logits(tiny, prompt, drawn[sample].tolist())
        close(first[question], wanted[0])
        close(logits[sample], wanted[1:])


def test_prompts_together_are_prompts_alone():
    tiny, (tokens, length) = model(), prompts()
    prefill = jax.jit(type(tiny).prefill)
    hidden, context = prefill(tiny, tokens, length)
    for row in range(len(LENGTHS)):
        junk = jnp.where(jnp.arange(max(LENGTHS)) < length[row], tokens[row], 7)[None]
        alone, mine = prefill(tiny, junk, length[row : row + 1])
        close(hidden[row], alone[0])
        close(context.cross.key[:, row, ..., : LENGTHS[row]], mine.cross.key[:, 0, ..., : LENGTHS[row]])
        close(context.start.value[:, row], mine.start.value[:, 0])


def test_the_encoder_sees_both_ways_and_the_decoder_only_back():
    tiny, prompt, completion = model(), draw_tokens(1, 6), draw_tokens(1, 6, seed=1)
    encode = jax.jit(lambda tokens: tiny.encode(tokens, jnp.ones((1, 6), jnp.int32)))

    def other(tokens, place):
        return tokens.at[0, place].set(3 + (tokens[0, place] - 2) % (VOCABULARY - 3))

    def read(prompt, completion):
        return np.asarray(forward_logits(tiny, *whole(completion), sources(prompt)))

    moved = np.abs(encode(prompt) - encode(other(prompt, 5))).max(axis=-1)
    assert (moved > 1e-3).all()
    one, two = read(prompt, completion), read(prompt, other(completion, 3))
    np.testing.assert_array_equal(one[:, :3], two[:, :3])
    assert (np.abs(one - two).max(axis=-1)[:, 3:] > 1e-3).all()
    assert (np.abs(one - read(other(prompt, 0), completion)).max(axis=-1) > 1e-3).all()
    np.testing.assert_array_equal(one, read(prompt, completion.at[0, 0].set(9)))  # the start token is read there


def test_padding_changes_nothing():
    tiny, prompt, completion = model(), draw_tokens(2, 5), draw_tokens(2, 4, seed=1)
    plain = forward_logits(tiny, *whole(completion), sources(prompt))
    junk, read = draw_tokens(3, 7, seed=5).at[:2, :4].set(completion), draw_tokens(3, 9, seed=6).at[:2, :5].set(prompt)
    segment = jnp.zeros((3, 7), jnp.int32).at[:2, :4].set(1)
    source = Sources(read, jnp.zeros((3, 9), jnp.int32).at[:2, :5].set(1))
    place = jnp.broadcast_to(jnp.arange(7), junk.shape)
    close(forward_logits(tiny, junk, place, segment, source)[:2, :4], plain, 5e-6)


@pytest.mark.parametrize('fields', [{}, {'bias_per_layer': True}])
def test_two_examples_in_a_row_equal_two_rows(fields):
    tiny = model(**fields)
    one, two = ([5, 6, 7, 8], [9, 10]), ([11, 12, 13], [14, 15, 16, 17])
    tokens = jnp.array([[0, *one[1], 0, *two[1], 0]])
    segment = jnp.array([[1] * 3 + [2] * 5 + [0]])
    position = jnp.array([[*range(3), *range(5), 0]])
    source = Sources(jnp.array([[*one[0], *two[0], 0, 0]]), jnp.array([[1] * 4 + [2] * 3 + [0] * 2]))
    packed = forward_logits(tiny, tokens, position, segment, source)[0]
    close(packed[:3], pair_logits(tiny, *one))
    close(packed[3:8], pair_logits(tiny, *two))


# A value of every field that is not the one in the base, and what the base needs for the field to mean something.
OTHER = {
    'width': ({}, 24),
    'encoder_layers': ({}, 3),
    'decoder_layers': ({}, 2),
    'heads': ({}, 4),
    'head_size': ({}, 6),
    'feed_forward': ({}, 32),
    'activation': ({}, 'silu'),
    'gated': ({}, False),
    'norm_epsilon': ({}, 0.1),
    'buckets': ({}, 12),
    'furthest': ({}, 5),
    'bias_per_layer': ({}, True),
    'tied': ({}, True),
    'logit_scale': ({}, 0.5),
    'embedding_rows': ({}, 48),
    'start_token': ({}, 3),
    'low_rank': ({}, LowRank()),
    'dropout': ({}, 0.5),
    'dtype': ({}, 'bfloat16'),
    'parameter_dtype': ({}, 'bfloat16'),
    'remat': ({}, 'full'),
    'unroll': ({}, 2),
    'vocabulary_chunk': ({}, 7),
}


def test_the_table_of_fields_is_complete():
    assert set(OTHER) == {field.name for field in dataclasses.fields(EncoderDecoderConfig)}
    assert set(EXECUTION_FIELDS) - set(OTHER) == {'attention'}  # relative biases: the plain path alone


@jax.jit
def score(tiny, key):
    inputs, source = whole(draw_tokens(2, 8)), sources(draw_tokens(2, 9, seed=1))
    hidden, own = tiny.forward_with_loss(*inputs, dropout_key=key, source=source)
    return tiny.logits(hidden), tiny.log_probs(hidden, inputs[0]), tiny.entropies(hidden), own


@pytest.mark.parametrize('field', OTHER)
def test_every_field_changes_the_model_and_execution_fields_do_not(field):
    base, value = OTHER[field]
    plain, other = model(**base), model(**{**base, field: value})
    kinds = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(each)] for each in (plain, other)]
    key = jax.random.key(3)
    if field in EXECUTION_FIELDS:
        assert kinds[0] == kinds[1]
        assert largest_difference(score(plain, key), score(other, key)) < 1e-5
        assert str(jax.make_jaxpr(gradient)(plain)) != str(jax.make_jaxpr(gradient)(other))
    elif kinds[0] == kinds[1]:
        assert largest_difference(score(plain, key), score(other, key)) > 1e-3


def gradient(tiny):
    """Gradients of the mean log-probability of completions."""
    tokens, source = draw_tokens(2, 8), sources(draw_tokens(2, 9, seed=1))

    def loss(tiny):
        hidden = tiny.forward(*whole(tokens), source=source)
        return tiny.log_probs(hidden[:, :-1], tokens[:, 1:]).mean()

    return jax.grad(loss)(tiny)


def test_gradients_reach_every_parameter_and_are_the_same_however_computed():
    wanted = jax.jit(gradient)(model())
    for path, leaf in jax.tree_util.tree_leaves_with_path(wanted):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-6, path
    assert largest_difference(jax.jit(gradient)(model(remat='dots', unroll=3)), wanted) < 1e-6


def test_bfloat16_follows_float32():
    wide, narrow = model(), model(dtype='bfloat16')
    inputs, source = whole(draw_tokens(2, 8)), sources(draw_tokens(2, 9, seed=1))
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow)} == {jnp.dtype('float32')}
    hidden = jax.eval_shape(lambda: narrow.forward(*inputs, source=source))
    assert hidden.dtype == narrow.new_own(1, 1).key.dtype == jnp.bfloat16
    assert jax.eval_shape(narrow.logits, hidden).dtype == jnp.float32
    gap = np.abs(forward_logits(wide, *inputs, source) - forward_logits(narrow, *inputs, source))
    assert 1e-4 < gap.max() < 0.15 and gap.mean() < 0.03  # 8 bits of mantissa; logits are of order one


def test_dropout_is_seeded_and_off_without_a_key():
    tiny, source = model(dropout=0.5), sources(draw_tokens(2, 5, seed=1))
    forward = jax.jit(lambda key: tiny.forward(*whole(draw_tokens(2, 6)), dropout_key=key, source=source))
    one, again, two = (np.asarray(forward(jax.random.key(seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - two).max() > 1e-2
    plain = jax.jit(lambda: model().forward(*whole(draw_tokens(2, 6)), source=source))
    close(forward(None), plain(), 1e-6)


def test_a_fresh_model_scores_in_order_of_one():
    fresh = jax.jit(dataclasses.replace(CONFIG, width=32).create, static_argnums=0)(VOCABULARY, jax.random.key(0))
    logits = forward_logits(fresh, *whole(draw_tokens(2, 8)), sources(draw_tokens(2, 9, seed=1)))
    assert 0.3 < float(jnp.std(logits)) < 3
    query = np.asarray(fresh.decoder.blocks.cross_attention.query[...])
    assert np.abs(query[0] - query[1]).max() > 0.01


@pytest.mark.parametrize(
    ('fields', 'said'),
    [
        ({'decoder_layers': 0}, 'decoder_layers must be at least 1; it is 0'),
        ({'buckets': 6}, 'buckets = 6, furthest = 12'),
        ({'furthest': 4}, 'buckets = 8, furthest = 4'),
        ({'dropout': 1.0}, 'dropout must be in.*1.0'),
        ({'activation': 'tanh'}, "activation must be 'silu', 'gelu', 'gelu_tanh' or 'relu'; it is 'tanh'"),
        ({'start_token': -1}, 'start_token = -1'),
    ],
)
def test_impossible_sizes_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(CONFIG, **fields)


@pytest.mark.parametrize('fields', [{'embedding_rows': 30}, {'start_token': VOCABULARY}])
def test_an_embedding_without_a_row_for_each_token_is_refused(fields):
    with pytest.raises(ValueError, match=f'too few for the {VOCABULARY} tokens'):
        dataclasses.replace(CONFIG, **fields).create(VOCABULARY, jax.random.key(0))


def test_rows_without_a_source_are_refused():
    with pytest.raises(ValueError, match=r'set learning\.Packing\.source_length'):
        model().forward(*whole(draw_tokens(1, 3)))
