"""Records are pytrees, and `check` holds them against their annotations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove import records
from t5x_selfimprove.records import Examples, Lessons, Prompts, Questions, Samples, Sources, TrainState, Verdict, check


def questions(outer=(), count=3, room=5, answer=4):
    return Questions(
        tokens=np.zeros((*outer, count, room), np.int32),
        length=np.zeros((*outer, count), np.int32),
        answer=np.zeros((*outer, count, answer), np.uint8),
        known=np.zeros((*outer, count), bool),
        weight=np.zeros((*outer, count), np.float32),
        id=np.zeros((*outer, count, 2), np.uint32),
    )


@pytest.mark.parametrize('outer', [(), (2,), (4, 2)])
def test_well_formed_records_pass(outer):
    check(questions(outer))
    check(jax.tree.map(jnp.asarray, questions(outer)))
    tokens, mask, log_probs = (np.zeros((*outer, 6, 4), dtype) for dtype in (np.int32, bool, np.float32))
    check(Samples(tokens, mask, log_probs, np.zeros((*outer, 6), bool)))


@pytest.mark.parametrize(
    ('field', 'value', 'said'),
    [
        ('tokens', np.zeros((3, 5), np.int64), r'Questions\.tokens must be .*Q P.*int64\[3, 5\]'),
        ('length', np.zeros(3, np.float32), r'Questions\.length .*float32\[3\]'),
        ('length', np.zeros(4, np.int32), r'Questions\.length .*int32\[4\]'),  # Q is bound by the tokens before it
        ('id', np.zeros((3, 3), np.uint32), r'Questions\.id .*uint32\[3, 3\]'),
        ('known', None, r'Questions\.known .*NoneType'),
        ('weight', np.zeros((2, 3), np.float32), r'Questions\.weight .*float32\[2, 3\]'),
    ],
)
def test_what_is_wrong_is_named(field, value, said):
    with pytest.raises(TypeError, match=said):
        check(dataclasses.replace(questions(), **{field: value}))


def test_a_letter_is_bound_anew_for_each_record():
    check(questions(count=3))
    check(questions(count=4))


def test_a_scalar_and_fields_of_any_kind():
    number = np.zeros((), np.int32)
    state = TrainState(number, number, np.zeros((), np.uint32), {'anything': 1}, (), None)
    check(state)
    with pytest.raises(TypeError, match=r'TrainState\.round .*int32\[1\]'):
        check(dataclasses.replace(state, round=np.zeros(1, np.int32)))


@pytest.mark.parametrize('record', [Questions, Prompts, Samples, Verdict, Examples, Sources, Lessons, TrainState])
def test_every_record_is_a_frozen_pytree_with_all_its_fields(record):
    names = [field.name for field in dataclasses.fields(record) if not field.metadata.get('static')]
    value = record(*range(len(names)))
    assert jax.tree.leaves(value) == list(range(len(names)))
    assert jax.tree.map(lambda leaf: leaf + 1, value) == record(*range(1, len(names) + 1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, names[0], 7)


def test_every_letter_of_a_shape_is_in_the_legend():
    legend = records.__doc__.split('Every record is')[0]
    for record in (Questions, Prompts, Samples, Verdict, Examples, Sources, Lessons, TrainState):
        for field in dataclasses.fields(record):
            for axis in getattr(field.type, 'dim_str', '').replace('*outer', '').split():
                assert axis.isdigit() or f' {axis}  ' in legend, (record.__name__, field.name, axis)
