"""Meshes, rule tables and shardings; what is impossible is refused with the numbers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from t5x_selfimprove import partitioning
from t5x_selfimprove.partitioning import LEARNING, MESH_AXES, SAMPLING, Axes, MeshShape


def test_the_devices_of_a_mesh():
    mesh = MeshShape(2, 1, 4).build()
    assert dict(mesh.shape) == {'data': 2, 'fsdp': 1, 'expert': 1, 'sequence': 1, 'tensor': 4}
    assert mesh.axis_types == (AxisType.Auto,) * len(MESH_AXES)
    assert [device.id for device in mesh.devices.ravel()] == list(range(8))
    one = {'data': 1, 'fsdp': 1, 'expert': 1, 'sequence': 1, 'tensor': 1}
    assert dict(MeshShape(1, 1, 1).build(jax.devices()[:1]).shape) == one
    assert MeshShape(1, 2, 2, expert=2).build().devices[0, 1].ravel().tolist() == jax.devices()[4:]


@pytest.mark.parametrize(
    ('sizes', 'shape'),
    [
        ((-1, 1, 1), (8, 1, 1, 1, 1)),
        ((-1, 2, 2), (2, 2, 1, 1, 2)),
        ((2, -1, 1), (2, 4, 1, 1, 1)),
        ((4, 2, -1), (4, 2, 1, 1, 1)),
        ((1, 2, 1, -1), (1, 2, 4, 1, 1)),
        ((1, 2, 1, 1, -1), (1, 2, 1, 4, 1)),
    ],
)
def test_one_size_takes_what_is_left(sizes, shape):
    assert tuple(MeshShape(*sizes).build().shape.values()) == shape


@pytest.mark.parametrize('sizes', [(0, 1, 1), (-2, 1, 1), (-1, -1, 1)])
def test_sizes_out_of_range_are_refused(sizes):
    with pytest.raises(ValueError, match=r'mesh sizes must be positive, at most one of them -1.*got'):
        MeshShape(*sizes)


@pytest.mark.parametrize(
    ('sizes', 'said'),
    [((3, 1, 1), '3 x 1 x 1 x 1 x 1 = 3'), ((-1, 3, 1), '2 x 3 x 1 x 1 x 1 = 6'), ((16, 1, 1), '= 16')],
)
def test_a_mesh_that_does_not_fit_is_refused(sizes, said):
    with pytest.raises(ValueError, match=rf'does not fit 8 devices: .*{said}'):
        MeshShape(*sizes).build()


def test_both_tables_know_the_same_names_and_only_mesh_axes():
    assert set(LEARNING) == set(SAMPLING)
    for table in (LEARNING, SAMPLING):
        used = {axis for rule in table.values() for axis in ((rule,) if isinstance(rule, str) else rule or ())}
        assert used <= set(MESH_AXES)
    assert {name for name in LEARNING if LEARNING[name] != SAMPLING[name]} == {'model'}
    assert SAMPLING['model'] is None


def test_rules_give_specs():
    assert partitioning.spec_of(Axes(('vocabulary', 'model')), LEARNING) == PartitionSpec('tensor', 'fsdp')
    assert partitioning.spec_of(Axes(('vocabulary', 'model')), SAMPLING) == PartitionSpec('tensor', None)
    assert partitioning.spec_of(Axes((None, 'batch')), LEARNING) == PartitionSpec(None, ('data', 'fsdp', 'expert'))


def test_unknown_and_doubled_axes_are_refused():
    with pytest.raises(ValueError, match=r"no sharding rule for logical axis 'colour' of .*; rules: .*batch"):
        partitioning.spec_of(Axes(('colour',)), LEARNING)
    with pytest.raises(ValueError, match=r"\('heads', 'feed_forward'\) split mesh axis \['tensor'\] twice"):
        partitioning.spec_of(Axes(('heads', 'feed_forward')), LEARNING)
    with pytest.raises(ValueError, match=r"split mesh axis \['fsdp'\] twice"):
        partitioning.spec_of(Axes(('batch', 'model')), LEARNING)


def test_a_dimension_that_does_not_divide_is_refused():
    mesh = MeshShape(2, 2, 2).build()
    said = r"embedding: axis 'batch' of size 6 cannot be split into 4 equal .*whose data x fsdp x expert divides 6"
    with pytest.raises(ValueError, match=said):
        partitioning.sharding('embedding', (6,), Axes(('batch',)), mesh, LEARNING)


def test_trees_of_shardings():
    mesh = MeshShape(2, 2, 2).build()
    tree = {'a': np.zeros((4, 6)), 'b': np.zeros(3), 'c': np.zeros(5)}
    axes = {'a': Axes(('vocabulary', 'model')), 'b': None, 'c': Axes(('vocabulary', 'model'))}  # c: factored statistics
    shardings = partitioning.tree_shardings(tree, axes, mesh, LEARNING)
    specs = {name: sharding.spec for name, sharding in shardings.items()}
    assert specs == {'a': PartitionSpec('tensor', 'fsdp'), 'b': PartitionSpec(), 'c': PartitionSpec()}


def test_constrain_splits_the_leading_axes_under_a_mesh_alone():
    tree = {'rows': jnp.zeros((8, 3)), 'flags': jnp.zeros(8, bool)}
    assert partitioning.constrain(tree, 'batch') is tree
    with partitioning.use(MeshShape(2, 2, 2).build()):
        split = jax.jit(lambda tree: partitioning.constrain(tree, 'batch'))(tree)
    assert split['rows'].sharding.spec == PartitionSpec(('data', 'fsdp'))  # axes of size one are left out
    assert split['rows'].addressable_shards[0].data.shape == (2, 3)
    assert split['flags'].addressable_shards[0].data.shape == (2,)


def test_the_batch_is_split_over_all_axes_but_tensor():
    assert partitioning.batch_parts(MeshShape(1, 2, 2, 2).build()) == 4


def test_the_platform_is_that_of_the_mesh():
    assert partitioning.platform() == 'cpu'
    device = jax.sharding.AbstractDevice('TPU v5 lite', 1, 'tpu')
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ('data',), abstract_device=device)):
        assert partitioning.platform() == 'tpu'


def test_bytes_of_the_fullest_device():
    mesh = MeshShape(2, 1, 4).build()
    place = lambda array, *spec: jax.device_put(array, jax.NamedSharding(mesh, PartitionSpec(*spec)))  # noqa: E731
    tree = [place(np.zeros((4, 8), np.float32), None, 'tensor'), place(np.zeros(3, np.float32))]
    assert partitioning.bytes_per_device(tree) == 4 * 4 * 8 / 4 + 4 * 3
    tree.append(jax.device_put(np.zeros(10, np.float32), jax.devices()[5]))
    assert partitioning.bytes_per_device(tree) == 4 * 4 * 8 / 4 + 4 * 3 + 40
    assert partitioning.bytes_per_device([]) == 0


def test_rows_are_spread_over_all_devices_where_they_divide():
    with partitioning.use(MeshShape(2, 1, 4).build()):
        spread = jax.jit(lambda: [partitioning.spread(jnp.zeros((rows, 3))) for rows in (16, 4)])()
    assert [array.addressable_shards[0].data.shape for array in spread] == [(2, 3), (2, 3)]
    assert partitioning.spread(jnp.zeros((3, 3))).shape == (3, 3)


def test_heads_of_keys_that_do_not_divide_are_whole():
    mesh = MeshShape(1, 2, 4).build()
    spec = lambda *shape: partitioning.spec_for(Axes(('model', 'kv_heads')), shape, mesh, LEARNING)  # noqa: E731
    assert (spec(6, 8), spec(6, 2)) == (PartitionSpec('fsdp', 'tensor'), PartitionSpec('fsdp', None))


def test_memory_of_devices_that_are_compiled_for_and_of_this_machine():
    def memory(kind: str, platform: str) -> int:
        device = jax.sharding.AbstractDevice(kind, 1, platform)
        mesh = jax.sharding.AbstractMesh((1,), ('data',), abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            return partitioning.memory_bytes()

    assert memory('TPU v5 lite', 'tpu') == int(15.75 * 2**30)
    assert memory('NVIDIA H100 80GB HBM3', 'gpu') == 0.75 * 84942979072
    assert memory('another', 'gpu') == 16 * 2**30
    assert memory('cpu', 'cpu') == partitioning.memory_bytes() > 2**20


def test_an_axis_between_slices_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match=r"between_slices must be one of .*; it is 'slices'"):
        MeshShape(between_slices='slices')


@pytest.mark.parametrize(
    ('shape', 'split'), [((4, 6, 3), (2, 3, 3)), ((4, 1, 3), (1, 1, 3)), ((4, 5, 3), (2, 5, 3))], ids=str
)
def test_times_are_split_over_sequence_and_a_single_time_leaves_it_to_the_rows(shape, split):
    with partitioning.use(MeshShape(1, 2, 2, sequence=2).build()):
        array = jax.jit(lambda: partitioning.constrain_tokens(jnp.zeros(shape)))()
    assert array.addressable_shards[0].data.shape == split


def test_flattened_tokens_stay_where_they_are():
    array = jnp.arange(4 * 6 * 3.0).reshape(4, 6, 3)

    def there_and_back(array: jax.Array) -> tuple[jax.Array, jax.Array]:
        flat = partitioning.flattened(partitioning.constrain_tokens(array))
        return flat, partitioning.unflattened(flat[:, :2], 4, 6)

    assert np.array_equal(partitioning.flattened(array), array.reshape(24, 3))
    with partitioning.use(MeshShape(1, 2, 2, sequence=2).build()):
        compiled = jax.jit(there_and_back).lower(array).compile()
        flat, back = compiled(array)
    assert flat.addressable_shards[0].data.shape == (6, 3) and np.array_equal(back, array[:, :, :2])
    assert sorted(np.asarray(flat).tolist()) == sorted(array.reshape(24, 3).tolist())
    assert not re.search('all-gather|all-to-all|collective-permute', compiled.as_text())
