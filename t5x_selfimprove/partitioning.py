"""Mesh, logical-axis rules and sharding constraints.

Parameters and activations carry logical axis names; one table for learning and one for sampling says over which mesh
axes each name is split. In learning, weights are split over `fsdp` to save memory; in sampling they are gathered over
`fsdp` once a round, because a decoding step reads every weight and would otherwise gather them once a token.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

MESH_AXES = ('data', 'fsdp', 'expert', 'sequence', 'tensor')  # neighbouring devices last

Rules = Mapping[str, str | tuple[str, ...] | None]

LEARNING: Rules = MappingProxyType(
    {
        'batch': ('data', 'fsdp', 'expert'),
        'time': 'sequence',
        'tokens': ('data', 'fsdp', 'expert', 'sequence'),  # of rows and times made one axis; in sampling of paths
        'rows': ('data', 'fsdp', 'expert', 'sequence', 'tensor'),
        'vocabulary': 'tensor',
        'model': 'fsdp',
        'heads': 'tensor',
        'kv_heads': 'tensor',
        'feed_forward': 'tensor',
        'head': None,
        'layers': None,
        'norm': None,
        'experts': 'expert',
        'expert_feed_forward': 'tensor',
        'router': None,
        'buckets': None,
        'low_rank': None,
    }
)
SAMPLING: Rules = MappingProxyType({**LEARNING, 'model': None})
# GiB of a device that a program may use, by kind of device. Of TPUs what libtpu 0.0.52 says where one does not fit; of
# GPUs the 75 % that jax takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
TPU_MEMORY = MappingProxyType(
    {'TPU v4': 30.75, 'TPU v5 lite': 15.75, 'TPU v5': 95.73, 'TPU v6 lite': 31.24, 'TPU7x': 94.74}
)
GPU_MEMORY = MappingProxyType(
    {'NVIDIA H100 80GB HBM3': 0.75 * 84942979072 / 2**30, 'NVIDIA H200': 0.75 * 151397597184 / 2**30}
)
# Floating point operations a second of a device, bfloat16, by kind; sources in `precompile/chips.py`.
PEAK_FLOPS = MappingProxyType(
    {
        'TPU v4': 275e12,
        'TPU v5 lite': 197e12,
        'TPU v5': 459e12,
        'TPU v6 lite': 918e12,
        'TPU7x': 2307e12 / 2,
        'NVIDIA H100 80GB HBM3': 989e12,
        'NVIDIA H200': 989e12,
    }
)
COPIED = ('kv_heads',)  # logical axes that are whole on every device where they do not divide


@dataclasses.dataclass(frozen=True)
class Axes:
    """The logical axis names of one array; a leaf, so that a tree of them looks like the tree they describe."""

    names: tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Sizes of the mesh axes; one of them may be -1 and takes the devices that are left.

    `data` copies the parameters, `fsdp` splits all of them and gathers a layer at a time, `tensor` splits heads,
    feed-forwards and vocabulary, `expert` splits the experts of a mixture and copies the rest, `sequence` splits long
    rows between their tokens in learning (every device then gathers the keys and values of its rows' other parts). All
    but `tensor` split the paths in sampling, all but `sequence` and `tensor` the rows in learning.

    Raises:
      ValueError: a size is neither positive nor -1, or more than one is -1; an unknown axis.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    expert: int = 1
    sequence: int = 1
    between_slices: str = 'data'  # the axis along which several slices of TPUs lie: the one that exchanges least

    def __post_init__(self):
        if self.between_slices not in MESH_AXES:
            raise ValueError(f'between_slices must be one of {MESH_AXES}; it is {self.between_slices!r}')
        sizes = self.sizes
        bad = {axis: size for axis, size in sizes.items() if size != -1 and size < 1}
        if bad or sum(size == -1 for size in sizes.values()) > 1:
            raise ValueError(f'mesh sizes must be positive, at most one of them -1 (= the devices left); got {sizes}')

    @property
    def sizes(self) -> dict[str, int]:
        """Axis name to size as it was given."""
        return {axis: getattr(self, axis) for axis in MESH_AXES}

    def build(self, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
        """Lays the devices out as a mesh of automatic axes.

        Raises:
          ValueError: the sizes do not multiply to the number of devices.
        """
        devices = jax.devices() if devices is None else list(devices)
        fixed = math.prod(size for size in self.sizes.values() if size != -1)
        free = len(devices) // fixed
        shape = [free if size == -1 else size for size in self.sizes.values()]
        if math.prod(shape) != len(devices):
            raise ValueError(
                f'mesh {self.sizes} does not fit {len(devices)} devices: '
                f'{" x ".join(map(str, shape))} = {math.prod(shape)}. Change the sizes, or set one of them to -1.'
            )
        laid_out = arranged(devices, shape, self.between_slices)
        return jax.sharding.Mesh(laid_out, MESH_AXES, axis_types=(AxisType.Auto,) * len(shape))


def arranged(devices: Sequence[jax.Device], shape: Sequence[int], between_slices: str) -> np.ndarray:
    """Devices in the shape of a mesh: those of TPUs so that neighbours in the mesh are neighbours in the torus, slices
    along one axis.

    Raises:
      ValueError: the axis does not divide by the number of slices.
    """
    if devices[0].platform != 'tpu':
        return np.array(devices).reshape(shape)
    slices = len({slice_of(device) for device in devices})
    axis = MESH_AXES.index(between_slices)
    if shape[axis] % slices:
        raise ValueError(
            f'{slices} slices lie along {between_slices} and {between_slices} = {shape[axis]} does not divide by '
            f'{slices}; change it, or between_slices'
        )
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    outer = [slices if number == axis else 1 for number in range(len(shape))]
    inner = [size // count for size, count in zip(shape, outer, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)


def slice_of(device: Any) -> int:
    """The slice that a device is in; slices are connected by the network of the data centre."""
    return device.slice_index if hasattr(device, 'slice_index') else 0


def spec_of(axes: Axes, rules: Rules) -> PartitionSpec:
    """The partition spec that a rule table gives to logical axes.

    Raises:
      ValueError: an axis has no rule, or two axes of one array would be split over the same mesh axis.
    """
    used: set[str] = set()
    entries: list[str | tuple[str, ...] | None] = []
    for name in axes.names:
        if name is not None and name not in rules:
            raise ValueError(f'no sharding rule for logical axis {name!r} of {axes.names}; rules: {sorted(rules)}')
        mesh_axes = rules[name] if name is not None else None
        flat = (mesh_axes,) if isinstance(mesh_axes, str) else (mesh_axes or ())
        if used & set(flat):
            raise ValueError(f'logical axes {axes.names} split mesh axis {sorted(used & set(flat))} twice')
        used |= set(flat)
        entries.append(mesh_axes)
    return PartitionSpec(*entries)


def spec_for(axes: Axes, shape: Sequence[int], mesh: Any, rules: Rules) -> PartitionSpec:
    """As `spec_of`, for an array of this shape: key/value heads that do not divide by the parts are on every device.

    Query heads are many; of the key/value heads there may be fewer than devices that share them (one in PaLM), and
    each of these needs the ones of its queries.
    """
    spec = spec_of(axes, rules)
    parts = [parts_of(mesh_axes, mesh) for mesh_axes in spec]
    entries = [
        None if name in COPIED and size % count else mesh_axes
        for name, size, mesh_axes, count in zip(axes.names, shape, spec, parts, strict=True)
    ]
    return PartitionSpec(*entries)


def parts_of(mesh_axes: str | tuple[str, ...] | None, mesh: Any) -> int:
    """Number of parts that an entry of a partition spec splits an axis into."""
    return math.prod(mesh.shape[axis] for axis in ((mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes or ()))


def sharding(
    name: str, shape: Sequence[int], axes: Axes | None, mesh: jax.sharding.Mesh, rules: Rules
) -> NamedSharding:
    """The sharding of one array; arrays without names, or of other rank than their names (factored optimizer
    statistics), are replicated.

    Raises:
      ValueError: a dimension does not divide by the mesh axes it is split over; names the array, axis and numbers.
    """
    if axes is None or len(axes.names) != len(shape):
        return NamedSharding(mesh, PartitionSpec())
    spec = spec_for(axes, shape, mesh, rules)
    for logical, size, mesh_axes in zip(axes.names, shape, spec, strict=True):
        flat = (mesh_axes,) if isinstance(mesh_axes, str) else (mesh_axes or ())
        parts = parts_of(mesh_axes, mesh)
        if size % parts:
            raise ValueError(
                f'{name}: axis {logical!r} of size {size} cannot be split into {parts} equal parts '
                f'over mesh axes {flat}; choose a mesh whose {" x ".join(flat)} divides {size}'
            )
    return NamedSharding(mesh, spec)


def tree_shardings(tree: Any, axes: Any, mesh: jax.sharding.Mesh, rules: Rules) -> Any:
    """Shardings for a tree of arrays (or shapes) from a tree of `Axes` or None of the same structure."""
    paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
    names = jax.tree.leaves(axes, is_leaf=lambda leaf: leaf is None or isinstance(leaf, Axes))
    shardings = [
        sharding(jax.tree_util.keystr(path), leaf.shape, of, mesh, rules)
        for (path, leaf), of in zip(paths, names, strict=True)
    ]
    return jax.tree.unflatten(treedef, shardings)


def constrain(value: Any, *names: str | None, rules: Rules = LEARNING) -> Any:
    """Constrains every array of `value` to the mesh in context; a no-op where there is no mesh.

    Args:
      value: an array or a pytree of arrays that share their leading axes.
      *names: logical names of the leading axes; the rest are not split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return value

    def split(array: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(array, spec_for(Axes(names), array.shape[: len(names)], mesh, rules))

    return jax.tree.map(split, value)


def put(tree: Any, sharding: NamedSharding) -> Any:
    """Puts host arrays, of which every process has the same, on the devices: each process its own devices' parts."""
    return jax.tree.map(
        lambda array: jax.make_array_from_callback(array.shape, sharding, lambda index: array[index]),
        jax.tree.map(np.asarray, tree),
    )


def fetch(tree: Any) -> Any:
    """Host copies of arrays in every process, gathered where they are split over processes."""
    if jax.process_count() > 1:
        leaves = jax.tree.leaves(tree)
        meshes = {leaf.sharding.mesh for leaf in leaves if isinstance(leaf.sharding, NamedSharding)}
        if meshes:
            tree = jax.jit(_same, out_shardings=NamedSharding(meshes.pop(), PartitionSpec()))(tree)
    return jax.device_get(tree)


def _same(tree: Any) -> Any:  # one function, so that what is fetched again is not compiled again
    return tree


def constrain_tokens(array: jax.Array) -> jax.Array:
    """Splits activations [B, T, ...]: rows over the batch axes and, where they divide, times over `sequence`; a single
    time, as in decoding, leaves that axis to the rows."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape['sequence'] == 1:
        return constrain(array, 'batch')
    if array.shape[1] % mesh.shape['sequence'] == 0:
        return constrain(array, 'batch', 'time')
    return constrain(array, 'tokens' if array.shape[1] == 1 else 'batch')


def flattened(array: jax.Array) -> jax.Array:
    """[B, T, ...] as [B * T, ...], in an order that leaves every device the tokens that it has; `unflattened` undoes
    it. Row by row, where times are not split."""
    grid = _grid(*array.shape[:2])
    if grid is None:
        return array.reshape(-1, *array.shape[2:])
    turned = jnp.swapaxes(array.reshape(*grid, *array.shape[2:]), 1, 2)
    return constrain(turned.reshape(-1, *array.shape[2:]), 'tokens')


def unflattened(array: jax.Array, rows: int, time: int) -> jax.Array:
    """The inverse of `flattened`, [rows, time, ...]; other axes may have changed."""
    grid = _grid(rows, time)
    if grid is None:
        return array.reshape(rows, time, *array.shape[1:])
    turned = array.reshape(grid[0], grid[2], grid[1], grid[3], *array.shape[1:])
    return constrain(jnp.swapaxes(turned, 1, 2).reshape(rows, time, *array.shape[1:]), 'batch', 'time')


def _grid(rows: int, time: int) -> tuple[int, int, int, int] | None:
    """Rows and times as parts of the mesh and what a device has of each; None where times are not split."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape['sequence'] == 1:
        return None
    parts, shares = batch_parts(mesh), mesh.shape['sequence']
    return None if rows % parts or time % shares else (parts, rows // parts, shares, time // shares)


def spread(array: jax.Array) -> jax.Array:
    """Splits rows over all devices, for work on whole rows that devices along `tensor` would else do alike; over the
    axes that paths are split over where they do not divide."""
    mesh = jax.sharding.get_abstract_mesh()
    return constrain(array, 'tokens' if mesh.empty or array.shape[0] % mesh.size else 'rows')


def by_rows(function: Callable[..., Any], split: tuple[jax.Array, ...], whole: tuple[jax.Array, ...] = ()) -> Any:
    """`function(*split, *whole)`, which XLA cannot split itself: every device is given its rows of the paths.

    Args:
      function: of arrays that a device has, to arrays that lead with the rows of the first.
      split: arrays that lead with rows: S, or S / n that n neighbours share, or 1. Where some do not divide by the
        devices, every device does all of it.
      whole: arrays that every device has.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function(*split, *whole)
    everywhere, rows = PartitionSpec(), spec_of(Axes(('tokens',)), SAMPLING)
    divide = all(array.shape[0] % path_parts(mesh) == 0 for array in split if array.shape[0] > 1)
    specs = tuple(rows if divide and array.shape[0] > 1 else everywhere for array in split)
    inside = (*specs, *(everywhere for _ in whole))
    return jax.shard_map(function, in_specs=inside, out_specs=specs[0], check_vma=False)(*split, *whole)


def use(mesh: jax.sharding.Mesh) -> contextlib.AbstractContextManager:
    """Context in which `constrain` and jit see the mesh."""
    return jax.set_mesh(mesh)


def batch_parts(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> int:
    """Number of parts that the rows of learning are split into."""
    return parts_of(LEARNING['batch'], mesh)


def path_parts(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> int:
    """Number of parts that the paths of sampling are split into."""
    return parts_of(LEARNING['tokens'], mesh)


def platform() -> str:
    """'cpu', 'gpu' or 'tpu': of the mesh in context, which may be one that is only compiled for, else of jax."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def memory_bytes() -> int:
    """Memory of a device of the mesh in context, or of this machine: for TPUs what a program may use of it, the same
    where it is compiled beforehand; else what the device itself says, or its share of the host's.

    A mesh of other devices than this machine has is only compiled for: what is known of GPUs, of others 16 GiB.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None and device.device_kind in TPU_MEMORY:
        return int(TPU_MEMORY[device.device_kind] * (1 << 30))
    if device is not None and device.platform != jax.default_backend():
        return int(GPU_MEMORY.get(device.device_kind, 16) * (1 << 30))
    stated = jax.local_devices()[0].memory_stats()
    if stated and 'bytes_limit' in stated:
        return stated['bytes_limit']
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // jax.local_device_count()


def bytes_per_device(tree: Any) -> int:
    """Bytes that the arrays of a tree take on the device that holds most of them."""
    held: dict[jax.Device, int] = {}
    for array in jax.tree.leaves(tree):
        for shard in array.addressable_shards:
            held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    return max(held.values(), default=0)
