"""Low-rank adapters: they alone train, and merged or not they are the same model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove import metrics
from t5x_selfimprove.checkpoints import Checkpoints, Described, names_of, read_model
from t5x_selfimprove.improve import new_state
from t5x_selfimprove.models import adapters, parameters
from t5x_selfimprove.models.adapters import LowRank
from t5x_selfimprove.models.config import Experts
from t5x_selfimprove.sampling.sampler import Sampler
from tests.learning.test_supervised import EXAMPLES, LEARNER, one_round
from tests.models.tiny import CONFIG, VOCABULARY, close, draw_tokens, forward_logits, largest_difference, model, whole
from tests.sampling.tables import LETTERS, prompts_of

LOW_RANK = LowRank(rank=3, alpha=6.0)


def adapted(low_rank: LowRank = LOW_RANK, **fields):
    """An adapted tiny model whose adapters are not at their start."""
    tiny = adapters.adapt(model(**fields), low_rank, jax.random.key(0))
    for number, adapter in enumerate(adapters.adapters_of(tiny)):
        adapter.second[...] = 0.3 * jax.random.normal(jax.random.key(number), adapter.second.shape)
    return tiny


def test_an_adapted_model_begins_as_the_model_it_was():
    plain, inputs = model(), whole(draw_tokens(2, 6))
    fresh = adapters.adapt(plain, LOW_RANK, jax.random.key(0))
    close(forward_logits(fresh, *inputs), forward_logits(plain, *inputs), 1e-6)
    assert largest_difference(adapters.unadapted(fresh), plain) == 0
    assert jax.tree.structure(adapters.merged(fresh)) == jax.tree.structure(plain)
    assert len(adapters.adapters_of(fresh)) == 7 and not adapters.adapters_of(plain)


@pytest.mark.parametrize('fields', [{}, {'qkv_bias': True, 'qk_norm': True}, {'experts': Experts(4, 2, 8)}], ids=str)
def test_merged_and_unmerged_are_the_same_model(fields):
    tiny, inputs = adapted(**fields), whole(draw_tokens(2, 6))
    merged = adapters.merged(tiny)
    got, wanted = forward_logits(tiny, *inputs), forward_logits(merged, *inputs)
    close(got, wanted, 1e-5)
    assert np.abs(got - forward_logits(model(**fields), *inputs)).max() > 0.1
    # The definition, of one weight in one layer.
    query, plain = tiny.blocks.attention.query, model(**fields).blocks.attention.query
    wanted = plain[...][1] + 2.0 * jnp.einsum('dr,rnh->dnh', query.first[...][1], query.second[...][1])
    close(merged.blocks.attention.query[...][1], wanted, 1e-6)


def test_samples_are_the_same_merged_or_not():
    prompts, key = prompts_of([[2, 3, 4], [4, 3]], prefix=[2, 2]), jax.random.key(5)
    sampler = Sampler(LETTERS, samples=4, max_tokens=6)
    draw = jax.jit(lambda tiny: sampler(adapters.for_sampling(tiny), prompts, key))
    apart = adapted(dataclasses.replace(LOW_RANK, merge=False), vocabulary=LETTERS.size)
    together = adapted(vocabulary=LETTERS.size)
    assert adapters.adapters_of(adapters.for_sampling(apart)) and not adapters.adapters_of(
        adapters.for_sampling(together)
    )
    one, other = draw(apart), draw(together)
    np.testing.assert_array_equal(one.tokens, other.tokens)
    close(one.log_probs, other.log_probs, 1e-5)


def test_adapters_alone_are_trained_and_have_optimizer_state():
    tiny = adapted(vocabulary_chunk=64)
    learner = dataclasses.replace(LEARNER, steps=20)
    state = new_state(tiny, learner, 0, keep_base=False)
    rank_numbers = parameters.count(parameters.split(tiny)[0])
    assert parameters.count(state.optimizer) == 2 * rank_numbers + 2  # two moments and two counts
    assert not any('weight' in name or 'embedding' in name for name in names_of({'optimizer': state.optimizer}))
    after, counted = one_round(learner, state, EXAMPLES, None, 0)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert largest_difference(adapters.unadapted(after.model), model(vocabulary_chunk=64)) == 0
    moved = [largest_difference(*pair) for pair in zip(*map(adapters.adapters_of, (after.model, tiny)), strict=True)]
    assert min(moved) > 1e-3
    _, again = one_round(learner, after, EXAMPLES, None, 0)
    assert metrics.values(again)['loss'] < metrics.values(counted)['loss'] - 0.1


def test_each_round_may_start_from_the_first_adapters():
    learner = dataclasses.replace(LEARNER, start_from='base', steps=2)
    state = new_state(adapted(), learner, 0, keep_base=True)
    assert parameters.count(state.base) == parameters.count(parameters.split(state.model)[0])
    once, _ = one_round(learner, state, EXAMPLES, None, 0)
    twice, _ = one_round(learner, once, EXAMPLES, None, 0)
    assert largest_difference(once.model, twice.model) == 0 < largest_difference(once.model, state.model)


def test_split_parts_join_to_the_model():
    for tiny in (model(), adapted()):
        trained, rest = parameters.split(tiny)
        joined = parameters.join(trained, rest)
        assert jax.tree.structure(joined) == jax.tree.structure(tiny)
        assert largest_difference(joined, tiny) == 0
    assert not jax.tree.leaves(parameters.split(model())[1])


def test_adapters_are_put_on_a_checkpoint_without_them(tmp_path):
    store = Checkpoints(tmp_path)
    store.save(1, {'model': model()}, Described(1, 'pretrain', 0, '', '', {}))
    store.close()
    like = adapters.adapt(model(seed=1), LOW_RANK, jax.random.key(0))
    read = read_model(str(tmp_path), like)
    assert largest_difference(adapters.unadapted(read), model()) == 0
    pairs = zip(adapters.adapters_of(read), adapters.adapters_of(like), strict=True)
    assert all((one.first[...] == other.first[...]).all() for one, other in pairs)


def test_a_checkpoint_with_adapters_is_read_whole(tmp_path):
    tiny, store = adapted(), Checkpoints(tmp_path)
    store.save(1, {'model': tiny}, Described(1, 'improve', 0, '', '', {}))
    store.close()
    assert (
        largest_difference(read_model(str(tmp_path), adapters.adapt(model(), LOW_RANK, jax.random.key(7))), tiny) == 0
    )


def test_the_configuration_makes_adapted_models():
    config = dataclasses.replace(
        CONFIG, low_rank=LowRank(rank=2, targets=('query', 'value')), parameter_dtype='bfloat16'
    )
    tiny = config.create(VOCABULARY, jax.random.key(0))
    found = adapters.adapters_of(tiny)
    assert [adapter.first.dtype for adapter in found] == [jnp.float32] * 2
    assert {adapter.weight.dtype for adapter in found} == {jnp.dtype('bfloat16')}
    axes = parameters.logical_axes(tiny)
    leaves = zip(jax.tree.leaves(tiny), axes, strict=True)
    assert all(leaf.ndim == len(of.names) for leaf, of in leaves)


@pytest.mark.parametrize(
    ('fields', 'said'),
    [
        ({'rank': 0}, 'rank >= 1 and alpha > 0; they are 0'),
        ({'targets': ('query', 'router')}, 'LowRank.targets must be some of .*router'),
        ({'targets': ()}, 'LowRank.targets must be some of'),
    ],
)
def test_impossible_adapters_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        LowRank(**fields)


def test_a_model_without_the_targets_is_refused():
    with pytest.raises(ValueError, match='no weight named gate to adapt'):
        adapters.adapt(model(experts=Experts(4, 2, 8)), LowRank(targets=('gate',)), jax.random.key(0))
