"""Checkpoints: arrays by name, to the bit; steps whole or not there; errors that name everything that does not fit."""

import dataclasses
import json
import pathlib
import re
import shutil
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from t5x_selfimprove.checkpoints import (
    Checkpoints,
    Damaged,
    Described,
    Retention,
    describe_model,
    fingerprints,
    located,
    names_of,
    read_model,
)
from t5x_selfimprove.vocabulary import ByteVocabulary

VOCABULARY = ByteVocabulary()
DESCRIBED = Described(40, 'improve', 160, VOCABULARY.fingerprint(), 'rounds = 3\n# Größe', {'round': 2, 'seed': 0})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Box:
    """As the model's library keeps a parameter."""

    value: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Every kind of leaf that a training state has."""

    step: Any
    model: Any
    moments: Any
    key: Any


def state(seed: int = 0) -> State:
    draw = np.random.default_rng(seed)
    weights = draw.standard_normal((4, 6), np.float32)
    return State(
        step=jnp.int32(seed),
        model={'embedding': Box(jnp.asarray(weights)), 'blocks': {'scale': Box(jnp.asarray(weights[0], jnp.bfloat16))}},
        moments=[jnp.asarray(weights * 1e-30), (jnp.float32(np.nan), jnp.array([True, False]))],
        key=jax.random.key_data(jax.random.key(seed)),
    )


def equal(one: Any, other: Any) -> bool:
    leaves = [jax.tree.leaves(tree) for tree in (one, other)]
    return all(
        (a.dtype, a.shape) == (b.dtype, b.shape) and np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(*leaves, strict=True)
    )


@pytest.fixture
def saved(tmp_path) -> Checkpoints:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), dataclasses.replace(DESCRIBED, step=10 * step))
    checkpoints.finish()
    return checkpoints


def test_names():
    assert names_of(state()) == [
        'step', 'model.blocks.scale', 'model.embedding', 'moments.0', 'moments.1.0', 'moments.1.1', 'key'
    ]  # fmt: skip


def test_what_was_saved_comes_back_to_the_bit(saved, tmp_path):
    assert saved.latest == 3 and saved.count == 2
    assert equal(saved.restore(state()), state(3))
    assert equal(saved.restore(state(), step=2), state(2))
    assert saved.describe() == dataclasses.replace(DESCRIBED, step=30)
    assert saved.describe(2).step == 20
    again = Checkpoints(tmp_path)  # as another process finds it
    assert again.latest == 3 and equal(again.restore(state()), state(3))
    again.close()


def test_a_part_may_be_read_alone_and_is_put_where_it_is_wanted(saved):
    mesh = jax.make_mesh((2,), ('fsdp',), devices=jax.devices()[:2])
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('fsdp'))
    wanted = {'embedding': Box(jax.ShapeDtypeStruct((4, 6), jnp.float32, sharding=split))}
    found = saved.restore({'model': wanted})['model']['embedding'].value
    assert found.sharding == split and equal(found, state(3).model['embedding'])
    assert 'moments.1.0' in saved.names() and len(saved.names()) == 7


def test_steps_beyond_those_kept_are_gone(saved, tmp_path):
    assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['2', '3']
    with pytest.raises(Exception, match='1'):
        saved.describe(1)


def test_a_step_that_is_there_stays_as_it_is(saved):
    saved.save(3, state(9), DESCRIBED)
    assert equal(saved.restore(state()), state(3)) and saved.describe().step == 30


def test_only_whole_steps_count(tmp_path):
    """What a process leaves that was killed while it saved is no step, and the step can be saved."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1), DESCRIBED)
    checkpoints.close()
    (tmp_path / 'checkpoints' / '2.orbax-checkpoint-tmp' / 'arrays.orbax-checkpoint-tmp').mkdir(parents=True)
    again = Checkpoints(tmp_path)
    assert again.latest == 1 and again.count == 1
    again.save(2, state(2), DESCRIBED)
    assert again.latest == 2 and equal(again.restore(state()), state(2))
    assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['1', '2']


def test_the_run_goes_on_while_a_step_is_written(tmp_path, monkeypatch):
    checkpoints, go_on = Checkpoints(tmp_path), threading.Event()
    kind = type(epath.Path(tmp_path))
    rename = kind.rename

    def when_told(self, target):
        assert go_on.wait(60)
        return rename(self, target)

    monkeypatch.setattr(kind, 'rename', when_told)
    kept = np.random.default_rng(0).standard_normal((500, 800), np.float32)
    given_away = jnp.array(kept)
    checkpoints.save(1, {'large': given_away}, DESCRIBED)
    assert not (tmp_path / 'checkpoints' / '1').exists()  # it is being written
    changed = jax.jit(lambda array: array * 0, donate_argnums=0)(given_away)
    assert not changed.any()  # in place, or elsewhere where Orbax's thread holds the array this very moment
    go_on.set()
    assert checkpoints.latest == 1
    assert np.array_equal(checkpoints.restore({'large': changed})['large'], kept)


@pytest.mark.parametrize('told_by', ['save', 'close', 'finish'])
def test_what_kept_a_step_from_the_disk_is_told(tmp_path, monkeypatch, told_by: str):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1), DESCRIBED)
    checkpoints.finish()

    def full(self, target):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(type(epath.Path(tmp_path)), 'rename', full)
    checkpoints.save(2, state(2), DESCRIBED)
    assert checkpoints.latest == 1  # who asks is not the one who is told
    tell = {'save': lambda: checkpoints.save(3, state(3), DESCRIBED)}.get(told_by) or getattr(checkpoints, told_by)
    with pytest.raises(OSError, match='No space left'):
        tell()
    assert Checkpoints(tmp_path).latest == 1


def test_everything_that_does_not_fit_is_named(saved, tmp_path):
    wanted = {
        'model': {'embedding': Box(jnp.ones((4, 7))), 'blocks': {'scale': Box(jnp.ones(6)), 'bias': Box(jnp.ones(6))}},
        'moments': [jnp.ones(3)],
        'head': jnp.ones(2),
    }
    message = (
        f'the checkpoint {tmp_path}/checkpoints/3 does not fit this configuration: head is missing; '
        'model.blocks.bias is missing; model.embedding is (4, 6) there and (4, 7) here; '
        'moments.0 is (4, 6) there and (3,) here. Use the configuration it was made with (saved beside it)'
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        saved.restore(wanted)


def test_another_format(saved, tmp_path):
    file = tmp_path / 'checkpoints' / '3' / 'described' / 'metadata'
    file.write_text(json.dumps({**json.loads(file.read_text()), 'format': 7}))
    with pytest.raises(ValueError, match=r'checkpoints/3 is in another format than 1, the one this version reads'):
        saved.describe()
    assert saved.describe(2).step == 20


def test_no_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest is None and checkpoints.count == 0
    for ask in (checkpoints.describe, checkpoints.names, lambda: checkpoints.restore(state())):
        with pytest.raises(FileNotFoundError, match=re.escape(f'there is no checkpoint in {tmp_path}/checkpoints')):
            ask()


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(OSError):
        Checkpoints(tmp_path / 'file' / 'run')


def test_the_model_of_a_run(saved, tmp_path):
    assert describe_model(str(tmp_path), VOCABULARY).step == 30
    like = jax.tree.map(jnp.zeros_like, state().model)
    assert equal(read_model(str(tmp_path), like), state(3).model)


@dataclasses.dataclass(frozen=True)
class Other(ByteVocabulary):
    """Another vocabulary."""

    def fingerprint(self) -> str:
        return 'another'


def test_what_is_no_model_of_this_run(saved, tmp_path: pathlib.Path):
    with pytest.raises(FileNotFoundError, match='nowhere has no checkpoints; pre-train a model there first'):
        describe_model(str(tmp_path / 'nowhere'), VOCABULARY)
    assert not (tmp_path / 'nowhere').exists()  # looking makes nothing
    with pytest.raises(ValueError, match=r'was made with vocabulary \w+, this run uses another \(.*use the vocab'):
        describe_model(str(tmp_path), Other())
    with pytest.raises(ValueError, match=r'model\.blocks\.scale is \(6,\) there and \(5,\) here'):
        read_model(str(tmp_path), {'blocks': {'scale': Box(jnp.ones(5))}})


# Files of a checkpoint whose every kind of damage must be found, and what is done to them.
WHERE = {
    'shard': lambda place: max(place.glob('arrays/ocdbt.process_0/d/*'), key=lambda path: path.stat().st_size),
    'index': lambda place: place / 'arrays' / 'manifest.ocdbt',
    'list of arrays': lambda place: place / 'arrays' / '_METADATA',
    'description': lambda place: place / 'described' / 'metadata',
}
DAMAGES = {
    'flipped': lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 0x10]) + data[len(data) // 2 + 1 :],
    'half': lambda data: data[: len(data) // 2],
    'zeros': lambda data: bytes(len(data)),
    'gone': None,
}


def damage(file: pathlib.Path, how: str) -> None:
    if DAMAGES[how] is None:
        file.unlink()
    else:
        file.write_bytes(DAMAGES[how](file.read_bytes()))


@pytest.fixture(scope='module')
def large(tmp_path_factory) -> pathlib.Path:
    """Two steps with an array that has a file of its own."""
    checkpoints = Checkpoints(tmp_path_factory.mktemp('large'))
    for step in (1, 2):
        checkpoints.save(step, large_state(step), DESCRIBED)
    checkpoints.close()
    return checkpoints.directory.parent


def large_state(step: int) -> dict[str, Any]:
    return {'small': jnp.int32(step), 'large': jnp.asarray(np.random.default_rng(step).standard_normal((200, 300)))}


@pytest.mark.parametrize('how', DAMAGES)
@pytest.mark.parametrize('where', WHERE)
def test_damage_is_found(large, tmp_path, where: str, how: str):
    shutil.copytree(large, tmp_path, dirs_exist_ok=True)
    damage(WHERE[where](tmp_path / 'checkpoints' / '2'), how)
    found = Checkpoints(tmp_path)
    # A bit within compressed numbers changes a number, and nothing but the fingerprint tells.
    said = 'large changed since it was saved$' if (where, how) == ('shard', 'flipped') else r'\S+'
    with pytest.raises(Damaged, match=rf'^the checkpoint {tmp_path}/checkpoints/2 is damaged: {said}'):
        found.describe()
        found.restore(large_state(0))
    found.set_aside(2)
    found.look_again()
    assert found.latest == 1 and equal(found.restore(large_state(0)), large_state(1))
    assert (tmp_path / 'damaged' / '2' / 'arrays').is_dir()
    found.close()


def test_fingerprints_do_not_depend_on_the_mesh():
    mesh = jax.make_mesh((2, 2), ('fsdp', 'tensor'), devices=jax.devices()[:4])
    arrays = {'a': jnp.asarray(np.random.default_rng(0).standard_normal((4, 6), np.float32)), 'b': jnp.arange(8)}
    spec = {'a': ('fsdp', 'tensor'), 'b': ('tensor',)}
    split = {
        name: jax.device_put(array, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec[name])))
        for name, array in arrays.items()
    }
    one = fingerprints(arrays)
    assert fingerprints(split) == one and len(set(one.values())) == 2
    assert fingerprints({'a': arrays['a'].at[1, 2].multiply(1 + 1e-6)})['a'] != one['a']


def test_retention(tmp_path):
    checkpoints = Checkpoints(tmp_path, Retention(last=2, best=2, every=4))
    for step, figure in enumerate([0.1, 0.9, None, 0.3, 0.2, 0.8, 0.4, None, 0.0, 0.5]):
        checkpoints.save(step, {'a': jnp.arange(3)}, DESCRIBED, figure)
    checkpoints.finish()
    # The best are 1 and 5, every fourth 0, 4 and 8, the last 8 and 9.
    assert sorted(int(path.name) for path in (tmp_path / 'checkpoints').iterdir()) == [0, 1, 4, 5, 8, 9]
    again = Checkpoints(tmp_path, Retention(last=1, best=1))
    again.save(10, {'a': jnp.arange(3)}, DESCRIBED, 0.1)
    again.finish()
    assert sorted(int(path.name) for path in (tmp_path / 'checkpoints').iterdir()) == [1, 10]
    for wrong in ({'last': 0}, {'best': -1}, {'every': 0}):
        with pytest.raises(ValueError, match='keep_checkpoints and keep_every must be at least 1, keep_best at least'):
            Retention(**wrong)


@pytest.mark.parametrize(
    ('directory', 'there'),
    [
        ('gs://bucket/runs/one', 'gs://bucket/runs/one'),
        ('runs/one', f'{pathlib.Path.cwd()}/runs/one'),
        ('~/one', str(pathlib.Path.home() / 'one')),
        (pathlib.Path('/one'), '/one'),
    ],
)
def test_a_directory_may_be_a_url(directory: str | pathlib.Path, there: str):
    assert str(located(directory)) == there


def test_a_url_that_cannot_be_written_to():
    """As a path it would be a folder `az:` of the current one."""
    with pytest.raises(ValueError, match=r'^az://bucket/one: checkpoints go to a folder, to gs:// or to s3://;.*Mount'):
        Checkpoints('az://bucket/one')
