"""Checkpoints in S3, whose server here is moto's: the same as in a folder, a step whole or not there."""

import importlib.util
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove.checkpoints import Checkpoints, Damaged, Described, Retention, kind_of, s3

moto_server = pytest.importorskip('moto.server', reason='moto, flask and flask-cors are not installed')
pytest.importorskip('s3fs')
import boto3  # noqa: E402  # comes with moto

DESCRIBED = Described(1, 'improve', 160, 'vocabulary', 'rounds = 3', {'round': 2})
LIKE = {'weights': jax.ShapeDtypeStruct((3, 4), jnp.float32), 'scale': jax.ShapeDtypeStruct((5,), jnp.bfloat16)}


def state(seed: int) -> dict[str, jax.Array]:
    draw = np.random.default_rng(seed)
    return {name: jnp.asarray(draw.standard_normal(leaf.shape), leaf.dtype) for name, leaf in LIKE.items()}


def same(one: dict[str, jax.Array], other: dict[str, jax.Array]) -> bool:
    return all(one[name].tobytes() == other[name].tobytes() for name in LIKE)


@pytest.fixture(scope='module')
def storage() -> Iterator[Any]:
    """A client of the server."""
    server = moto_server.ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
    server.start()
    endpoint = 'http://{}:{}'.format(*server.get_host_and_port())
    said = {'AWS_ENDPOINT_URL': endpoint, 'AWS_REGION': 'us-east-1', 'AWS_DEFAULT_REGION': 'us-east-1'}
    said |= {'AWS_ACCESS_KEY_ID': 'one', 'AWS_SECRET_ACCESS_KEY': 'two'}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in said.items():
            patch.setenv(name, value)
        client = boto3.client('s3')
        client.create_bucket(Bucket='bucket')
        yield client
    server.stop()


def keys(storage: Any, prefix: str) -> list[str]:
    return [item['Key'] for item in storage.list_objects_v2(Bucket='bucket', Prefix=prefix).get('Contents', [])]


def saved(url: str, steps: int) -> None:
    checkpoints = Checkpoints(url, Retention(last=2))
    for step in range(steps):
        checkpoints.save(step, state(step), DESCRIBED)
    checkpoints.close()


def test_a_bucket_is_as_a_folder(storage):
    saved('s3://bucket/runs/one', 4)
    assert kind_of('s3://bucket/runs/one') == 'run'
    found = Checkpoints('s3://bucket/runs/one')
    assert (found.latest, found.count, found.describe()) == (3, 2, DESCRIBED)
    assert same(found.restore(LIKE), state(3)) and same(found.restore(LIKE, 2), state(2))
    assert {key.split('/')[3] for key in keys(storage, 'runs/one/checkpoints/')} == {'2', '3'}
    found.close()


def test_a_step_without_its_last_object_is_not_there(storage):
    """As after a kill in the middle of saving."""
    saved('s3://bucket/cut', 3)
    storage.delete_object(Bucket='bucket', Key='cut/checkpoints/2/commit_success.txt')
    found = Checkpoints('s3://bucket/cut')
    assert found.latest == 1 and same(found.restore(LIKE), state(1))
    found.save(2, state(7), DESCRIBED)
    assert found.latest == 2 and same(found.restore(LIKE), state(7))
    found.close()


def test_a_damaged_step_is_told_of_and_set_aside(storage):
    saved('s3://bucket/bad', 2)
    for key in keys(storage, 'bad/checkpoints/1/arrays/'):
        if '/d/' in key:
            data = bytearray(storage.get_object(Bucket='bucket', Key=key)['Body'].read())
            data[len(data) // 2] ^= 0x10
            storage.put_object(Bucket='bucket', Key=key, Body=bytes(data))
    found = Checkpoints('s3://bucket/bad')
    with pytest.raises(Damaged, match=r'^the checkpoint s3://bucket/bad/checkpoints/1 is damaged: '):
        found.restore(LIKE)
    assert found.set_aside(1) == 's3://bucket/bad/damaged/1'
    found.look_again()
    assert found.latest == 0 and same(found.restore(LIKE), state(0))
    assert keys(storage, 'bad/damaged/1/arrays/') and not keys(storage, 'bad/checkpoints/1/')
    found.close()


def test_without_its_package_s3_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match=r"^s3://bucket/one: .*pip install 't5x_selfimprove\[s3\]'\). Or mount"):
        Checkpoints('s3://bucket/one')


@pytest.mark.parametrize('use', [Checkpoints, kind_of])
def test_a_bucket_that_cannot_be_used(storage, use):
    with pytest.raises(OSError, match=r"^s3://nobodys/.*: the bucket 'nobodys' cannot be used \(.*AWS_ENDPOINT_URL"):
        use('s3://nobodys/one')


def test_other_words_for_a_bucket_are_not_guessed_at():
    """Another version of Orbax may put the bucket elsewhere in what it tells tensorstore."""
    with pytest.raises(NotImplementedError, match="'kvstack'"):
        s3._spec(lambda directory: {'driver': 'ocdbt', 'base': {'driver': 'kvstack', 'layers': []}}, 's3://bucket/one')
    assert s3._spec(lambda directory: directory, '/one') == '/one'
