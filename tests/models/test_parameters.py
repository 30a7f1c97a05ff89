"""Names, logical axes and shardings of every parameter."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec

from t5x_selfimprove import partitioning
from t5x_selfimprove.models import parameters
from t5x_selfimprove.partitioning import LEARNING, SAMPLING, Axes, MeshShape
from tests.models.tiny import CONFIG, VOCABULARY, model


def named(tiny):
    """Path to (shape, logical axes) of every parameter."""
    paths = jax.tree_util.tree_flatten_with_path(tiny)[0]
    axes = parameters.logical_axes(tiny)
    return {jax.tree_util.keystr(path): (leaf.shape, of) for (path, leaf), of in zip(paths, axes, strict=True)}


def test_names_shapes_and_axes():
    table = {name.replace('.', ''): entry for name, entry in named(model(tied=False)).items()}
    axes = {entry[0]: entry[1].names for entry in table.values()}
    assert len(table) == 12
    sizes = {'vocabulary': 40, 'model': 16, 'layers': 2, 'heads': 4, 'kv_heads': 2, 'head': 4, 'norm': 16}
    sizes['feed_forward'] = 24
    for shape, names in axes.items():
        assert shape == tuple(sizes[name] for name in names)
    assert sum('attention' in name for name in table) == 5


@pytest.mark.parametrize('rules', [LEARNING, SAMPLING], ids=['learning', 'sampling'])
def test_every_axis_of_every_parameter_has_a_rule(rules):
    for name, (shape, axes) in named(model(tied=False)).items():
        assert len(axes.names) == len(shape), name
        partitioning.spec_of(axes, rules)


def test_optimizer_statistics_carry_the_axes_of_their_parameters():
    tiny = model()
    moments = jax.eval_shape(optax.adam(1e-3).init, tiny)
    names = parameters.logical_axes(tiny)
    assert parameters.logical_axes(moments) == [None, *names, *names]  # the count, first and second moments


def test_parameters_are_counted():
    embedding, block = VOCABULARY * 16, 16 * (4 + 2 + 2) * 4 + 4 * 4 * 16 + 3 * 16 * 24 + 2 * 16
    assert parameters.count(model()) == embedding + 2 * block + 16


@pytest.mark.parametrize('sizes', [(1, 8, 1), (2, 1, 4)], ids=str)
def test_parameters_are_created_split_as_the_rules_say(sizes):
    mesh = MeshShape(*sizes).build()
    config = dataclasses.replace(CONFIG, kv_heads=4)
    create = lambda: config.create(VOCABULARY, jax.random.key(0))  # noqa: E731
    shardings = parameters.shardings(jax.eval_shape(create), mesh, LEARNING)
    tiny = jax.jit(create, out_shardings=shardings)()
    parts = mesh.shape['fsdp'] * mesh.shape['tensor']
    for weights in (tiny.embedding, tiny.blocks.attention.query, tiny.blocks.feed_forward.down):
        shard = weights[...].addressable_shards[0].data
        assert shard.size * parts == weights[...].size
    assert tiny.final_norm.scale[...].sharding.is_fully_replicated
    whole = 4 * parameters.count(tiny)
    assert whole / parts <= partitioning.bytes_per_device(tiny) < whole / parts + 4 * 16 * 6


def test_sampling_gathers_over_fsdp_and_stays_split_over_tensor():
    mesh = MeshShape(2, 2, 2).build()
    tiny = model()
    tiny = jax.device_put(tiny, parameters.shardings(tiny, mesh, LEARNING))
    with partitioning.use(mesh):
        gathered = jax.jit(lambda tiny: parameters.constrain(tiny, SAMPLING))(tiny)
        back = jax.jit(lambda tiny: parameters.constrain(tiny, LEARNING))(gathered)
    gate = lambda tiny: tiny.blocks.feed_forward.gate[...].addressable_shards[0].data.shape  # noqa: E731
    assert (gate(tiny), gate(gathered), gate(back)) == ((2, 8, 12), (2, 16, 12), (2, 8, 12))
    same = lambda left, right: left.sharding.is_equivalent_to(right.sharding, left.ndim)  # noqa: E731
    assert all(jax.tree.leaves(jax.tree.map(same, tiny, back)))


def test_without_a_mesh_nothing_is_constrained():
    tiny = model()
    assert jax.tree.leaves(parameters.constrain(tiny, SAMPLING))[0] is jax.tree.leaves(tiny)[0]


@pytest.mark.parametrize(
    ('sizes', 'fields', 'said'),
    [
        ((1, 1, 8), {}, r"blocks.*attention.*'heads' of size 4 cannot be split into 8 .*\('tensor',\)"),
        ((1, 8, 1), {'width': 20}, r"blocks.*'model' of size 20 cannot be split into 8 .*\('fsdp',\)"),
    ],
)
def test_impossible_shardings_are_refused(sizes, fields, said):
    mesh = MeshShape(*sizes).build()
    with pytest.raises(ValueError, match=said):
        parameters.shardings(model(**fields), mesh, LEARNING)


def test_key_value_heads_that_do_not_divide_are_on_every_device():
    mesh = MeshShape(1, 2, 4).build()
    spec = lambda mesh: {  # noqa: E731
        name: jax.tree.leaves(leaf)[0].spec
        for name, leaf in vars(parameters.shardings(model(), mesh, LEARNING).blocks.attention).items()
        if name in ('query', 'key', 'value')
    }
    whole = PartitionSpec(None, 'fsdp', None, None)
    assert spec(mesh) == {'query': PartitionSpec(None, 'fsdp', 'tensor', None), 'key': whole, 'value': whole}
    assert spec(MeshShape(2, 2, 2).build())['key'] == PartitionSpec(None, 'fsdp', 'tensor', None)


def test_a_vocabulary_that_does_not_divide_is_refused_by_name():
    said = r"embedding.*'vocabulary' of size 41 .* 2 equal parts.*whose tensor divides 41"
    with pytest.raises(ValueError, match=said):
        parameters.shardings(model(vocabulary=41), MeshShape(4, 1, 2).build(), LEARNING)


def test_stacking_names_the_layers():
    names = {of.names[0] for name, (_, of) in named(model()).items() if 'blocks' in name}
    assert names == {'layers'}
    final = next(of for name, (_, of) in named(model()).items() if 'final_norm' in name)
    assert final == Axes(('norm',))


def test_arrays_without_names_have_no_axes():
    assert parameters.logical_axes({'a': jnp.zeros(3)}) == [None]


def test_a_fingerprint_tells_models_apart():
    told = jax.jit(parameters.fingerprint)
    one = model(tied=False)
    prints = [told(one).tolist(), told(jax.tree.map(jnp.copy, one)).tolist()]
    assert prints[0] == prints[1] and parameters.fingerprint_text(prints[0]) == '{:08x}{:08x}'.format(*prints[0])
    leaves, treedef = jax.tree.flatten(one)
    for number in (0, len(leaves) - 1):  # one bit of one number, two numbers that change places, another order
        bits = jax.lax.bitcast_convert_type(leaves[number], jnp.uint32).ravel()
        others = [bits.at[-1].set(bits[-1] ^ 1), bits.at[jnp.array([0, 1])].set(bits[jnp.array([1, 0])] + 1)]
        for other in others:
            other = jax.lax.bitcast_convert_type(other, jnp.float32).reshape(leaves[number].shape)
            changed = [*leaves[:number], other, *leaves[number + 1 :]]
            prints.append(told(jax.tree.unflatten(treedef, changed)).tolist())
    halves = [jnp.ones(3, jnp.bfloat16), jnp.array([1, 1, 2], jnp.bfloat16), jnp.ones(3, jnp.int8), jnp.ones((3, 1))]
    prints += [told([half]).tolist() for half in halves]
    assert len({tuple(one) for one in prints}) == len(prints) - 1


def test_a_fingerprint_is_the_same_on_every_mesh():
    told, one = jax.jit(parameters.fingerprint), model(tied=False)
    mesh = MeshShape(data=2, fsdp=2, tensor=2).build(jax.devices())
    spread = jax.device_put(one, parameters.shardings(one, mesh, LEARNING))
    assert told(spread).tolist() == told(one).tolist()


def test_a_fingerprint_keeps_no_copy_of_what_it_reads():
    mesh = MeshShape(data=2, fsdp=2, tensor=2).build(jax.devices())
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, 'fsdp', 'tensor'))
    large = jax.ShapeDtypeStruct((4, 256, 1024), jnp.float32, sharding=spread)
    compiled = jax.jit(parameters.fingerprint).lower([large]).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4096
