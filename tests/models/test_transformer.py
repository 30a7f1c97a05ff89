"""The transformer: its entry points agree with each other, and every option of it does something."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove.models.adapters import LowRank
from t5x_selfimprove.models.config import EXECUTION_FIELDS, Experts, Rope, TransformerConfig
from tests.models.tiny import (
    CONFIG,
    VOCABULARY,
    close,
    draw_tokens,
    extended,
    forward_logits,
    largest_difference,
    model,
    row_logits,
    whole,
)

PREFIX, QUESTIONS, LENGTHS, SHARED, STEPS = 3, 2, (4, 2), 3, 5  # of the decoding tests
WITHOUT = ('no context', 'prefix', 'question', 'prefix and question')


def contexts(tiny, parts):
    """(segments, the prompt tokens of each question) of a context made of some `parts`."""
    prefix = draw_tokens(PREFIX, seed=1)
    questions = draw_tokens(QUESTIONS, max(LENGTHS), seed=2)
    segments, before = (), [[] for _ in LENGTHS]
    if 'prefix' in parts:
        segments = tiny.read_prefix(prefix)
        before = [list(prefix) for _ in LENGTHS]
    if 'question' in parts:
        segments = tiny.prefill(questions, jnp.array(LENGTHS, jnp.int32), segments)[1]
        before = [row + list(mine[:length]) for row, mine, length in zip(before, questions, LENGTHS, strict=True)]
    return segments, before


@pytest.mark.parametrize('parts', WITHOUT)
@pytest.mark.parametrize(
    'fields',
    [
        {},
        {'kv_heads': 1, 'tied': False, 'unroll': 2},
        {'sliding_window': 3, 'attention_pattern': ('sliding', 'full'), 'local_rope': Rope(theta=7.0)},
        {'sliding_window': 2, 'attention_pattern': ('sliding',), 'attention_softcap': 0.5, 'logit_softcap': 2.0},
        {'parallel': True, 'norm': 'layer', 'qkv_bias': True},
        {'post_norms': True, 'qk_norm': True, 'embedding_scale': True, 'norm_offset': 1.0},
        {'experts': Experts(4, 2, 8)},
    ],
    ids=lambda fields: '-'.join(fields),
)
def test_extending_step_by_step_equals_forward(parts, fields):
    tiny = model(**fields)
    samples = QUESTIONS * SHARED
    drawn = draw_tokens(samples, STEPS, seed=3)
    context, before = contexts(tiny, parts)

    @jax.jit
    def roll(tiny, context):
        own = tiny.new_own(samples, STEPS + 2)  # more room than is used
        own, logits = jax.lax.scan(lambda own, tokens: extended(tiny, own, tokens, context), own, drawn.T)
        return jnp.moveaxis(logits, 0, 1), own.length

    logits, length = roll(tiny, context)
    assert length.tolist() == [STEPS] * samples
    for sample in range(samples):
        row = np.concatenate([before[sample // SHARED], drawn[sample]])
        close(logits[sample], row_logits(tiny, row)[-STEPS:])


@pytest.mark.parametrize('parts', ['question', 'prefix and question'])
def test_prefill_in_a_context_equals_forward_on_the_whole_prompt(parts):
    tiny = model()
    context, before = contexts(tiny, parts)
    # Two prompts share the context of each question; the second of each pair is shorter.
    prompts, lengths = draw_tokens(2 * QUESTIONS, 4, seed=4), jnp.array([4, 2, 3, 1], jnp.int32)
    hidden, longer = jax.jit(type(tiny).prefill)(tiny, prompts, lengths, context)
    assert len(longer) == len(context) + 1 and longer[-1].rows == len(lengths)
    for row, length in enumerate(lengths.tolist()):
        whole_prompt = np.concatenate([before[row // 2], prompts[row, :length]])
        close(tiny.logits(hidden[row]), row_logits(tiny, whole_prompt)[-1])


def test_a_token_sees_nothing_that_comes_after_it():
    tokens = draw_tokens(1, 8)
    other = tokens.at[0, 5].set(3 + (tokens[0, 5] - 2) % (VOCABULARY - 3))
    one, two = (forward_logits(model(), *whole(rows)) for rows in (tokens, other))
    np.testing.assert_array_equal(one[:, :5], two[:, :5])
    assert (np.abs(one[:, 5:] - two[:, 5:]).max(axis=-1) > 1e-3).all()


def test_padding_changes_nothing():
    tiny, tokens = model(), draw_tokens(2, 6)
    plain = forward_logits(tiny, *whole(tokens))
    junk = draw_tokens(4, 9, seed=5).at[:2, :6].set(tokens)
    segment = jnp.zeros((4, 9), jnp.int32).at[:2, :6].set(1)
    position = jnp.broadcast_to(jnp.arange(9), junk.shape)
    close(forward_logits(tiny, junk, position, segment)[:2, :6], plain, 1e-6)


def test_two_examples_in_a_row_equal_two_rows():
    tiny = model()
    first, second = draw_tokens(5, seed=6), draw_tokens(4, seed=7)
    row = jnp.concatenate([first, second, jnp.zeros(2, jnp.int32)])[None]
    segment = jnp.array([[1] * 5 + [2] * 4 + [0] * 2])
    position = jnp.array([[*range(5), *range(4), 0, 0]])
    packed = forward_logits(tiny, row, position, segment)[0]
    close(packed[:5], row_logits(tiny, first))
    close(packed[5:9], row_logits(tiny, second))


# A value of every field that is not the one in the base, and what the base needs for the field to mean something.
SLIDES = {'sliding_window': 3, 'attention_pattern': ('full', 'sliding')}
LLAMA3 = {'rope': Rope(100.0, 'llama3', 4.0, 0.5, 2.0, 6)}
EXPERTS = {'experts': Experts(4, 2, 8)}
OTHER = {
    'width': ({}, 24),
    'layers': ({}, 3),
    'heads': ({}, 2),
    'kv_heads': ({}, 4),
    'head_size': ({}, 6),
    'feed_forward': ({}, 32),
    'experts': ({}, Experts(4, 2, 8)),
    'activation': ({}, 'gelu_tanh'),
    'norm': ({}, 'layer'),
    'norm_epsilon': ({}, 0.1),
    'norm_offset': ({}, 1.0),
    'post_norms': ({}, True),
    'parallel': ({}, True),
    'rope': ({}, None),
    'local_rope': (SLIDES, Rope(theta=7.0)),
    'sliding_window': (SLIDES, 2),
    'attention_pattern': (SLIDES, ('sliding', 'full')),
    'qkv_bias': ({}, True),
    'qk_norm': ({}, True),
    'query_scale': ({}, 0.1),
    'attention_softcap': ({}, 0.5),
    'embedding_scale': ({}, True),
    'tied': ({}, False),
    'embedding_rows': ({}, 48),
    'logit_scale': ({}, 0.5),
    'logit_softcap': ({}, 1.0),
    'low_rank': ({}, LowRank()),
    'dropout': ({}, 0.5),
    'dtype': ({}, 'bfloat16'),
    'parameter_dtype': ({}, 'bfloat16'),
    'attention': ({}, 'fused'),
    'remat': ({}, 'full'),
    'unroll': ({}, 2),
    'vocabulary_chunk': ({}, 7),
    'Rope.theta': (LLAMA3, 50.0),
    'Rope.scaling': (LLAMA3, 'linear'),
    'Rope.factor': (LLAMA3, 2.0),
    'Rope.low_frequency_factor': (LLAMA3, 1.0),
    'Rope.high_frequency_factor': (LLAMA3, 3.0),
    'Rope.original_length': (LLAMA3, 20),
    'Experts.count': (EXPERTS, 5),
    'Experts.chosen': (EXPERTS, 1),
    'Experts.feed_forward': (EXPERTS, 4),
    'Experts.normalize': (EXPERTS, False),
    'Experts.balance': (EXPERTS, 0.5),
}


def base_and_other(field):
    """The base's fields, and the same with the other value of one field."""
    base, value = OTHER[field]
    part, _, inner = field.rpartition('.')
    if not part:
        return base, {**base, field: value}
    return base, {part.lower(): dataclasses.replace(base[part.lower()], **{inner: value})}


def test_the_table_of_fields_is_complete():
    inner = {f'{part.__name__}.{field.name}' for part in (Rope, Experts) for field in dataclasses.fields(part)}
    assert set(OTHER) == {field.name for field in dataclasses.fields(TransformerConfig)} | inner
    assert set(EXECUTION_FIELDS) <= set(OTHER)


@pytest.mark.parametrize('field', OTHER)
def test_every_field_changes_the_model_and_execution_fields_do_not(field):
    plain, other = (model(**fields) for fields in base_and_other(field))
    assert plain.config != other.config
    kinds = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(each)] for each in (plain, other)]
    inputs = whole(draw_tokens(2, 6))

    @jax.jit
    def score(tiny, key):
        hidden, own = tiny.forward_with_loss(*inputs, dropout_key=key)
        return tiny.logits(hidden), tiny.log_probs(hidden, inputs[0]), tiny.entropies(hidden), own

    key = jax.random.key(3)
    if field in EXECUTION_FIELDS:
        assert kinds[0] == kinds[1]
        assert largest_difference(score(plain, key), score(other, key)) < 1e-5
        assert str(jax.make_jaxpr(gradient)(plain, inputs)) != str(jax.make_jaxpr(gradient)(other, inputs))
    elif kinds[0] == kinds[1]:
        assert largest_difference(score(plain, key), score(other, key)) > 1e-3


def gradient(tiny, inputs):
    """Gradients of the mean log-probability of the next tokens."""

    def loss(tiny):
        return tiny.log_probs(tiny.forward(*inputs)[:, :-1], inputs[0][:, 1:]).mean()

    return jax.grad(loss)(tiny)


def test_gradients_are_the_same_however_computed_and_remat_saves_memory():
    inputs = whole(draw_tokens(8, 64))

    def compiled(**fields):
        program = jax.jit(gradient).lower(model(layers=6, **fields), inputs).compile()
        return program(model(layers=6, **fields), inputs), program.memory_analysis().temp_size_in_bytes

    wanted, memory = compiled()
    assert min(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(wanted)) > 1e-4
    results = {field: compiled(**{field: OTHER[field][1]}) for field in EXECUTION_FIELDS}
    assert {field: largest_difference(got, wanted) < 1e-6 for field, (got, _) in results.items()} == dict.fromkeys(
        EXECUTION_FIELDS, True
    )
    assert results['remat'][1] < 0.7 * memory


def test_bfloat16_follows_float32():
    tokens = draw_tokens(2, 8)
    wide, narrow = model(), model(dtype='bfloat16')
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow)} == {jnp.dtype('float32')}
    hidden = narrow.forward(*whole(tokens))
    assert hidden.dtype == narrow.new_own(1, 1).key.dtype == narrow.new_own(1, 1).value.dtype == jnp.bfloat16
    assert narrow.logits(hidden).dtype == narrow.log_probs(hidden, tokens).dtype == jnp.float32
    # 8 bits of mantissa; logits are of order one.
    gap = np.abs(forward_logits(wide, *whole(tokens)) - forward_logits(narrow, *whole(tokens)))
    assert 1e-4 < gap.max() < 0.1 and gap.mean() < 0.02


def test_bfloat16_extends_as_it_reads():
    tiny, tokens = model(dtype='bfloat16'), draw_tokens(2, 5)
    own, seen = tiny.new_own(2, 5), []
    extend = jax.jit(extended)
    for step in range(5):
        own, logits = extend(tiny, own, tokens[:, step])
        seen.append(logits)
    close(jnp.stack(seen, 1), forward_logits(tiny, *whole(tokens)), 0.1)


def test_the_input_embedding_is_the_output_embedding_when_tied():
    tied, untied = model(), model(tied=False)
    assert (tied.output_embedding == tied.embedding[...]).all()
    assert np.abs(untied.output_embedding - untied.embedding[...]).max() > 0.1
    assert len(jax.tree.leaves(untied)) == len(jax.tree.leaves(tied)) + 1


def test_dropout_is_seeded_and_off_without_a_key():
    tiny, inputs = model(dropout=0.5), whole(draw_tokens(2, 6))
    forward = jax.jit(lambda key: tiny.forward(*inputs, dropout_key=key))
    one, again, two = (np.asarray(forward(jax.random.key(seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - two).max() > 1e-2
    close(forward(None), model().forward(*inputs), 1e-6)


def test_layers_start_different_and_seeds_differ():
    gate = model().blocks.feed_forward.gate[...]
    assert gate.shape == (2, 16, 24)
    assert np.abs(gate[0] - gate[1]).max() > 0.1
    assert np.abs(gate - model(seed=1).blocks.feed_forward.gate[...]).max() > 0.1


@pytest.mark.parametrize(
    ('fields', 'said'),
    [
        ({'layers': 0}, 'layers must be at least 1; it is 0'),
        ({'heads': 3}, 'heads = 3 must be a multiple of kv_heads = 2'),
        ({'head_size': 5}, 'head_size must be even.*5'),
        ({'dropout': 1.0}, 'dropout must be in.*1.0'),
        ({'dtype': 'float16'}, "dtype must be 'float32' or 'bfloat16'; it is 'float16'"),
        ({'remat': 'some'}, "remat must be 'none', 'dots' or 'full'; it is 'some'"),
    ],
)
def test_impossible_sizes_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(CONFIG, **fields)


def test_an_embedding_without_a_row_for_each_token_is_refused():
    with pytest.raises(ValueError, match=f'embedding_rows = 30 are fewer than the {VOCABULARY} tokens'):
        model(embedding_rows=30)
