"""The table of parameters: how each is split in learning and in sampling, its bytes, and what is whole by necessity."""

import dataclasses
import io

import jax.numpy as jnp
from rich.console import Console

from t5x_selfimprove import partitioning, placement
from t5x_selfimprove.display import Display
from t5x_selfimprove.partitioning import MeshShape
from t5x_selfimprove.records import Prompts
from t5x_selfimprove.sampling.sampler import Sampler
from t5x_selfimprove.vocabulary import ByteVocabulary
from tests.models.tiny import CONFIG, model

WIDTH, LAYERS, HIDDEN = CONFIG.width, CONFIG.layers, CONFIG.feed_forward


def test_every_parameter_is_in_the_table_with_its_bytes():
    found = placement.kinds(model(), MeshShape(1, 2, 4).build())
    of = {name: kind for kind in found for name in kind.names}
    down = of['blocks.feed_forward.down']
    assert (down.learning, down.sampling) == ((None, 'tensor', 'fsdp'), (None, 'tensor', None))
    assert down.learning_bytes == LAYERS * HIDDEN * WIDTH // 8 * 4
    assert down.sampling_bytes == LAYERS * HIDDEN * WIDTH // 4 * 4
    gate = of['blocks.feed_forward.gate']
    assert gate is of['blocks.feed_forward.up'] and gate.learning_bytes == 2 * down.learning_bytes
    key = of['blocks.attention.key']
    assert key.copied == ('kv_heads',) and key.learning == (None, 'fsdp', None, None)
    assert of['blocks.attention.query'].copied == () and len(of) == 11


def test_weights_are_sampled_from_in_the_dtype_of_the_computation():
    config = dataclasses.replace(CONFIG, dtype='bfloat16')
    half = {kind.names: kind.sampling_bytes for kind in placement.kinds(model(dtype='bfloat16'), MeshShape().build())}
    whole = {kind.names: kind.sampling_bytes for kind in placement.kinds(model(), MeshShape().build())}
    assert config.dtype == 'bfloat16' and half.keys() == whole.keys()
    assert half['embedding',] * 2 == whole['embedding',]


def test_what_a_run_prints():
    out = io.StringIO()
    placement.show(Display(Console(file=out, width=140)), model(), MeshShape(1, 2, 4).build())
    said = out.getvalue()
    assert 'layers model heads head' in said and 'fsdp x tensor' in said and 'on all' in said
    assert '2 kv_heads do not divide by tensor = 4, so that every device has all of them' in said


def test_the_cache_of_a_batch():
    sampler = Sampler(ByteVocabulary(), samples=3, max_tokens=5)
    mesh = MeshShape(2, 2, 2).build()
    zeros = lambda *shape: jnp.zeros(shape, jnp.int32)  # noqa: E731
    prompts = Prompts(zeros(0), zeros(8, 6), zeros(8), jnp.zeros((8, 2), jnp.uint32))
    with partitioning.use(mesh):
        found = placement.cache_bytes(model(), prompts, sampler, mesh)
    token = 2 * LAYERS * CONFIG.kv_heads * CONFIG.head_size * 4
    lengths = 4 * 8 // 4 + 4 * 24 // 4 + 4 // 4  # of the prompts, of the samples, and the column
    assert found == token // 2 * (8 * 6 + 24 * 5) // 4 + lengths
