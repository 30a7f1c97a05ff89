"""Schedules exact at their ends; optimizers that move what they should and clip what they must."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5x_selfimprove.learning.optimizers import Adafactor, AdamW, Schedule, clipped


def rates(schedule, steps):
    return np.array([float(schedule.build(steps)(step)) for step in range(steps + 1)])


@pytest.mark.parametrize('shape', ['constant', 'cosine', 'linear'])
def test_warm_up_rises_in_a_line_to_the_peak(shape):
    got = rates(Schedule(peak=0.8, warmup=4, shape=shape, final=0.5), 20)
    np.testing.assert_allclose(got[:5], [0.2, 0.4, 0.6, 0.8, 0.8], rtol=1e-6)


@pytest.mark.parametrize('warmup', [0, 1, 5])
@pytest.mark.parametrize('final', [0.0, 0.1])
def test_the_ways_down_end_at_the_final_rate(warmup, final):
    for shape in ('cosine', 'linear'):
        got = rates(Schedule(peak=2.0, warmup=warmup, shape=shape, final=final), 25)
        assert got[warmup] == pytest.approx(2.0)
        assert got[-1] == pytest.approx(2.0 * final, abs=1e-7)
        assert (np.diff(got[warmup:]) < 0).all()
    assert rates(Schedule(peak=2.0, warmup=warmup, shape='constant'), 25)[-1] == 2.0


def test_cosine_and_linear_by_their_formulas():
    cosine = rates(Schedule(peak=1.0, warmup=0, shape='cosine', final=0.2), 10)
    np.testing.assert_allclose(cosine, 0.2 + 0.8 * (1 + np.cos(np.pi * np.arange(11) / 10)) / 2, rtol=1e-5)
    stable = rates(Schedule(peak=1.0, warmup=0, shape='linear', final=0.0, decay=0.4), 10)
    np.testing.assert_allclose(stable, [1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0], atol=1e-6)


def test_a_run_shorter_than_its_warm_up_still_trains():
    for steps in (1, 2, 5):
        got = rates(Schedule(peak=1.0, warmup=20), steps)[:steps]
        assert np.isfinite(got).all() and (got > 0).all() and got.max() == pytest.approx(1.0)


@pytest.mark.parametrize(
    'fields', [{'shape': 'square'}, {'peak': 0.0}, {'warmup': -1}, {'final': 1.5}, {'decay': 0.0}], ids=str
)
def test_schedules_out_of_range_are_refused(fields):
    with pytest.raises(ValueError, match='schedule'):
        Schedule(**fields)


STEADY = Schedule(peak=0.1, warmup=0, shape='constant')
PARAMETERS = {'matrix': jnp.full((4, 6), 2.0), 'vector': jnp.full(3, -2.0)}
GRADIENT = {'matrix': jnp.linspace(-3, 4, 24).reshape(4, 6), 'vector': jnp.array([1.0, -2.0, 0.5])}


def first_update(optimizer):
    transformation = optimizer.build(10)
    return transformation.update(GRADIENT, transformation.init(PARAMETERS), PARAMETERS)[0]


def test_the_first_step_of_adamw_by_hand():
    updates = first_update(AdamW(STEADY, weight_decay=0.25, clip=None))
    for name in PARAMETERS:  # the moments cancel: the sign of the gradient, and the decay
        np.testing.assert_allclose(updates[name], -0.1 * (np.sign(GRADIENT[name]) + 0.25 * PARAMETERS[name]), rtol=1e-5)


def test_adafactor_factors_matrices_and_differs_from_adamw():
    optimizer = Adafactor(STEADY, factored_from=4, clip=None)
    state = optimizer.build(10).init({'matrix': jnp.zeros((4, 6)), 'small': jnp.zeros((2, 6))})
    shapes = [leaf.shape for leaf in jax.tree.leaves(state)]
    assert (4,) in shapes and (6,) in shapes and (2, 6) in shapes and (4, 6) not in shapes
    updates = first_update(optimizer)
    assert (np.sign(updates['vector']) == -np.sign(GRADIENT['vector'])).all()
    assert np.abs(updates['matrix'] - first_update(AdamW(STEADY, weight_decay=0.0))['matrix']).max() > 1e-3
    with_momentum = Adafactor(STEADY, momentum=0.9, clip=None).build(10).init(PARAMETERS)
    assert len(jax.tree.leaves(with_momentum)) > len(jax.tree.leaves(optimizer.build(10).init(PARAMETERS)))


def test_gradients_are_clipped_by_their_norm_together():
    norm = float(optax.tree.norm(GRADIENT))
    steps = {clip: clipped(clip, optax.sgd(1.0)) for clip in (None, 0.5, 2 * norm)}
    moved = {clip: step.update(GRADIENT, step.init(PARAMETERS))[0] for clip, step in steps.items()}
    assert float(optax.tree.norm(moved[None])) == float(optax.tree.norm(moved[2 * norm])) == pytest.approx(norm)
    assert float(optax.tree.norm(moved[0.5])) == pytest.approx(0.5, rel=1e-5)
    np.testing.assert_allclose(moved[0.5]['matrix'], -0.5 / norm * GRADIENT['matrix'], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('optimizer', [AdamW, Adafactor])
def test_clipping_is_on_by_default_and_reaches_the_moments(optimizer):
    def moments(clip):
        transformation = optimizer(STEADY, clip=clip).build(10)
        _, state = transformation.update(GRADIENT, transformation.init(PARAMETERS), PARAMETERS)
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state) if leaf.ndim])

    assert optimizer().clip == 1.0
    assert np.abs(moments(1.0)).max() < np.abs(moments(None)).max()
