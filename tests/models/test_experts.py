"""Mixtures of experts against a loop over tokens; one device equals eight; no expert's weights travel."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove import partitioning
from t5x_selfimprove.models import experts, layers, parameters
from t5x_selfimprove.models.config import Experts
from t5x_selfimprove.models.experts import MixtureOfExperts, one_by_one, sorted_by_expert
from t5x_selfimprove.partitioning import LEARNING, Axes, MeshShape
from tests.models.tiny import close, draw_tokens, extended, largest_difference, model, whole

WIDTH, HIDDEN = 6, 10
WAYS = {'cpu': one_by_one, 'tpu': sorted_by_expert}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """The platform whose way of answering is taken."""
    monkeypatch.setattr(partitioning, 'platform', lambda: request.param)
    return request.param


@functools.cache
def mixture(count: int = 8, chosen: int = 3, normalize: bool = True, activation: str = 'silu') -> MixtureOfExperts:
    of = Experts(count, chosen, HIDDEN, normalize)
    return MixtureOfExperts(WIDTH, of, activation, jax.random.key(0))


def tokens(*shape: int, seed: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(*shape, WIDTH)), jnp.float32)


def by_token(mixed: MixtureOfExperts, x: jax.Array) -> np.ndarray:
    """The definition: each token's own k experts, one after the other."""
    router, gate, up, down = (np.asarray(weights[...]) for weights in (mixed.router, mixed.gate, mixed.up, mixed.down))
    answers = np.zeros(x.shape, np.float32)
    for place in np.ndindex(*x.shape[:-1]):
        token = np.asarray(x[place])
        odds = np.exp(token @ router)
        probability = odds / odds.sum()
        best = np.argsort(-probability, kind='stable')[: mixed.experts.chosen]
        total = probability[best].sum() if mixed.experts.normalize else 1.0
        for number in best:
            inner = np.asarray(layers.ACTIVATIONS[mixed.activation](token @ gate[number])) * (token @ up[number])
            answers[place] += probability[number] / total * (inner @ down[number])
    return answers


@pytest.mark.parametrize(
    'fields', [{}, {'normalize': False, 'activation': 'gelu'}, {'count': 4, 'chosen': 4}, {'count': 5, 'chosen': 1}]
)
def test_answers_equal_a_loop_over_tokens(way, fields):
    mixed, x = mixture(**fields), tokens(2, 5)
    close(jax.jit(lambda x: mixed(x)[0])(x), by_token(mixed, x), 1e-6)


def test_gradients_equal_those_of_the_loop(way):
    mixed, x, cotangent = mixture(4, 2), tokens(1, 6), tokens(1, 6, seed=2)
    got = jax.jit(jax.grad(lambda mixed, x: (mixed(x)[0] * cotangent).sum(), (0, 1)))(mixed, x)
    chosen = np.asarray(jax.lax.top_k(x[0] @ mixed.router[...], 2)[1])

    def plain(mixed, x):
        probability = jax.nn.softmax(x[0] @ mixed.router[...])
        total = 0.0
        for place, best in enumerate(chosen):
            for number in best:
                gate, up, down = (weights[...][number] for weights in (mixed.gate, mixed.up, mixed.down))
                answer = (jax.nn.silu(x[0, place] @ gate) * (x[0, place] @ up)) @ down
                share = probability[place, number] / sum(probability[place, other] for other in best)
                total += (share * answer * cotangent[0, place]).sum()
        return total

    wanted = jax.jit(jax.grad(plain, (0, 1)))(mixed, x)
    assert min(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(wanted)) > 1e-3
    assert largest_difference(got, wanted) < 1e-5


def test_no_token_is_dropped_where_all_choose_one_expert(way):
    mixed = mixture(8, 1)
    one_sided = jax.tree.map(jnp.copy, mixed)
    one_sided.router[...] = jnp.zeros((WIDTH, 8)).at[:, 5].set(1.0)
    x = jnp.abs(tokens(4, 16))
    answers = jax.jit(lambda mixed, x: mixed(x)[0])(one_sided, x)
    expert = [weights[...][5] for weights in (mixed.gate, mixed.up, mixed.down)]
    close(answers, (jax.nn.silu(x @ expert[0]) * (x @ expert[1])) @ expert[2], 1e-5)


def test_a_token_is_answered_the_same_in_any_batch(way):
    mixed, answer = mixture(), jax.jit(lambda mixed, x: mixed(x)[0])
    token = tokens(1, 1)
    alone = answer(mixed, token)[0, 0]
    for seed in range(3):
        batch = tokens(3, 7, seed=seed).at[1, 4].set(token[0, 0])
        close(answer(mixed, batch)[1, 4], alone, 1e-6)


def test_the_load_balancing_loss_by_its_formula():
    mixed, x = mixture(8, 2), tokens(2, 5)
    weight = jnp.array([[1.0, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    got = mixed(x, weight)[1]
    counted = np.asarray(x)[np.asarray(weight) > 0]
    probability = np.asarray(jax.nn.softmax(counted @ mixed.router[...]))
    share = np.zeros(8)
    for row in probability:
        share[np.argsort(-row)[:2]] += 1 / len(counted)
    close(got, 8 * (share * probability.mean(0)).sum(), 1e-6)
    # Padding counts for nothing; even use of the experts gives k, the least there is.
    close(mixed(x.at[0, 3:].set(7.0), weight)[1], got, 1e-6)
    even = jax.tree.map(jnp.copy, mixture(4, 1))
    even.router[...] = 30 * jnp.eye(WIDTH, 4)
    close(even(jnp.eye(4, WIDTH)[None])[1], 1.0, 1e-5)


MESHES = [(2, 1, 1, 4), (1, 2, 2, 2), (4, 1, 2, 1), (1, 1, 2, 2, 2)]  # data, fsdp, tensor, expert, sequence


def on_mesh(tree, sizes, function):
    """The results of a function of parameters that are split over a mesh."""
    mesh = MeshShape(*sizes).build(jax.devices()[: int(np.prod(sizes))])
    split = jax.device_put(tree, parameters.shardings(tree, mesh, LEARNING))
    with partitioning.use(mesh):
        return jax.jit(function)(split)


@pytest.mark.parametrize('sizes', MESHES, ids=str)
def test_the_mixture_is_the_same_on_every_mesh(way, sizes):
    x, weight = tokens(3, 7), jnp.ones((3, 7)).at[1, 4:].set(0)  # 21 tokens do not divide by any mesh

    def both(mixed):
        def loss(mixed, x):
            answers, balance = mixed(x, weight)
            return jnp.sum(answers**2) + balance, (answers, balance)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(mixed, x)

    assert largest_difference(on_mesh(mixture(8, 3), sizes, both), jax.jit(both)(mixture(8, 3))) < 1e-5


def scores_and_gradients(tiny):
    inputs = whole(draw_tokens(8, 6))

    def loss(tiny):
        hidden, own = tiny.forward_with_loss(*inputs)
        scores = tiny.log_probs(hidden, inputs[0])
        return scores.mean() + own, (scores, own)

    return jax.value_and_grad(loss, has_aux=True)(tiny)


def one_more_token(tiny):
    prompts, lengths = draw_tokens(3, 4), jnp.array([4, 2, 3], jnp.int32)
    context = tiny.prefill(prompts, lengths)[1]
    return extended(tiny, tiny.new_own(6, 2), draw_tokens(6, seed=2), context)


@pytest.mark.parametrize(
    ('sizes', 'function'),
    [
        ((2, 2, 1, 2), scores_and_gradients),
        ((1, 2, 1, 2, 2), scores_and_gradients),
        ((1, 1, 2, 4), one_more_token),
    ],
    ids=['backward', 'backward, sequence', 'one more token'],
)
def test_a_model_with_experts_is_the_same_on_eight_devices(sizes, function):
    tiny = model(experts=Experts(8, 3, 8))
    assert largest_difference(on_mesh(tiny, sizes, function), jax.jit(function)(tiny)) < 1e-5


def test_the_weights_of_experts_stay_where_they_are(way):
    mixed, mesh = mixture(), MeshShape(1, 1, 2, 4).build()
    split = jax.device_put(mixed, parameters.shardings(mixed, mesh, LEARNING))
    rows = jax.NamedSharding(mesh, partitioning.spec_of(Axes(('batch',)), LEARNING))
    x = jax.device_put(tokens(8, 4), rows)

    def texts(function):
        with partitioning.use(mesh):
            return jax.jit(function).lower(split, x).compile().as_text()

    def gathered(text):
        """Shapes that are gathered or summed over devices."""
        shapes = re.findall(r'= \w+\[([\d,]+)\]\S* (?:all-gather|all-reduce)\(', text)
        return [tuple(map(int, shape.split(','))) for shape in shapes]

    assert {len(shape) for shape in gathered(texts(lambda mixed, x: mixed(x)[0]))} == {2}  # tokens, none of weights
    # What would be seen otherwise.
    everywhere = lambda mixed, x: jax.lax.with_sharding_constraint(mixed.gate[...], jax.P())  # noqa: E731
    assert (8, WIDTH, HIDDEN) in gathered(texts(everywhere))


def test_experts_that_do_not_divide_are_refused_by_name():
    said = r"feed_forward.*'experts' of size 6 cannot be split into 4 equal parts.*\('expert',\)"
    with pytest.raises(ValueError, match=said):
        parameters.shardings(model(experts=Experts(6, 2, 8)), MeshShape(2, 1, 1, 4).build(), LEARNING)


@pytest.mark.parametrize('fields', [{'chosen': 9}, {'chosen': 0}, {'feed_forward': 0}, {'balance': -1.0}], ids=str)
def test_impossible_experts_are_refused(fields):
    with pytest.raises(ValueError, match='1 <= chosen <= count, feed_forward >= 1 and balance >= 0'):
        dataclasses.replace(Experts(8, 2, 8), **fields)


def test_the_way_follows_the_platform(monkeypatch):
    mixed, x = mixture(), tokens(1, 3)
    seen = {}
    for platform in WAYS:
        monkeypatch.setattr(experts.partitioning, 'platform', lambda platform=platform: platform)
        seen[platform] = 'ragged_dot' in str(jax.make_jaxpr(lambda x: mixed(x)[0])(x))
    assert seen == {'cpu': False, 'tpu': True}
