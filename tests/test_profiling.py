"""Profiles of chosen rounds, and the share of the devices' arithmetic that is used."""

import dataclasses
import subprocess
import sys
import types

import jax
import pytest

from t5x_selfimprove import profiling
from t5x_selfimprove.models import parameters
from t5x_selfimprove.models.config import Experts, TransformerConfig
from tests.tiny_run import ROOT, environment

PROFILED = """
import pathlib, sys
import jax.numpy as jnp
from t5x_selfimprove import profiling
folder = pathlib.Path(sys.argv[1])
with profiling.traced(folder, (3,), range(1, 3)):
    jnp.ones(3).sum().block_until_ready()
assert not list(folder.iterdir())
with profiling.traced(folder, (3,), range(3, 5)):
    jnp.ones(3).sum().block_until_ready()
"""


def test_only_chosen_rounds_are_profiled(tmp_path):
    # In a process of its own: after all that other tests load, jax's profiler was seen to crash the process.
    command = [sys.executable, '-c', PROFILED, str(tmp_path)]
    done = subprocess.run(
        command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / 'profile').rglob('*.xplane.pb'))


def test_utilization():
    devices = [types.SimpleNamespace(device_kind='TPU v4')] * 4
    # Llama 3.1 8B: 1,000 sampled and 500 trained tokens a second and device.
    assert profiling.utilization(8e9, 4 * 1000, 4 * 500, 1.0, devices) == pytest.approx(8e9 * 5000 / 275e12)
    assert profiling.utilization(8e9, 1, 1, 1.0, jax.devices('cpu')) is None


def test_of_a_mixture_a_token_meets_the_experts_that_it_is_sent_to():
    config = TransformerConfig(experts=Experts(count=4, chosen=1, feed_forward=32))
    model = jax.eval_shape(lambda: config.create(64, jax.random.key(0)))
    inside = 3 * 4 * config.layers * config.width * 32
    assert profiling.met(model, config) == parameters.count(model) - inside * 3 / 4
    dense = dataclasses.replace(config, experts=None)
    model = jax.eval_shape(lambda: dense.create(64, jax.random.key(0)))
    assert profiling.met(model, dense) == parameters.count(model)
