"""The chips there are to compile for, and how their pods are named.

Numbers of a TPU are from the pages of Cloud TPU (docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tpu7x), links of
v4 from Jouppi et al. 2023 (arXiv:2304.01433); of a GPU from the data sheets of H100 SXM and H200 SXM (989 TFLOP/s
without sparsity, NVLink 900 GB/s in both directions) and of DGX H100 and H200 (a network of 400 Gb/s a GPU). What a
program may use of the memory is in `partitioning`.
"""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from t5x_selfimprove.partitioning import GPU_MEMORY, PEAK_FLOPS, TPU_MEMORY
from t5x_selfimprove.precompile import targets


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a roofline needs to know of a chip; all of it of a whole chip, as jax numbers them `devices` to a chip."""

    name: str
    kind: str  # what jax calls its devices
    hbm_bandwidth: float  # bytes a second
    links: float  # bytes a second that a chip sends to its neighbours: over all axes of the torus, or over NVLink
    network: float | None  # bytes a second a chip that leave the slice, or the host of a GPU; None: not published
    axes: int  # of the torus; of a GPU's cluster: hosts, and GPUs of a host
    devices: int = 1
    shape: str = ''  # the name that libtpu knows it by, where it is another
    config: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)  # for the plug-in that compiles
    platform: str = 'tpu'

    @property
    def flops(self) -> float:
        """Floating point operations a second of the chip, bfloat16."""
        return PEAK_FLOPS[self.kind] * self.devices

    @property
    def hbm(self) -> float:
        """Bytes of a device that a program may use."""
        return {**TPU_MEMORY, **GPU_MEMORY}[self.kind] * (1 << 30)


def _gpu(name: str, kind: str, memory: int, bandwidth: float) -> Chip:
    target = targets.hopper(kind, memory, bandwidth)
    return Chip(name, kind, bandwidth, 450e9, 50e9, 2, config={'target_config': target}, platform='gpu')


CHIPS = {
    chip.name: chip
    for chip in (
        Chip('v4', 'TPU v4', 1228e9, 300e9, None, 3, config={'chip_config_name': 'megacore'}),
        Chip('v5e', 'TPU v5 lite', 819e9, 200e9, 25e9 / 8, 2),
        Chip('v5p', 'TPU v5', 2765e9, 600e9, 50e9 / 8, 3),
        Chip('v6e', 'TPU v6 lite', 1640e9, 400e9, 100e9 / 8, 2),
        Chip('v7x', 'TPU7x', 7380e9, 600e9, 100e9 / 8, 3, devices=2, shape='tpu7x'),
        _gpu('h100', 'NVIDIA H100 80GB HBM3', 84942979072, 3352.32e9),
        _gpu('h200', 'NVIDIA H200', 151397597184, 4800e9),
    )
}
HOST = 8  # GPUs of a host
CUDA_PLUGINS = ('jax_plugins.xla_cuda12', 'jax_plugins.xla_cuda13')


@dataclasses.dataclass(frozen=True)
class Topology:
    """Slices of chips.

    `name` is a generation and the shape of a slice, as 'v5p:8x8x16', or a generation and a number of chips, as
    'v5e-64', which takes the shape nearest to a cube. (Cloud's own names count cores for v4 and v5p: its v5p-128 is
    64 chips, v5p:4x4x4 here.) Of GPUs the shape is hosts x GPUs of a host, 'h100:4x8', and 'h100-32' is the same.

    Raises:
      ValueError: no chip or shape of that name.
    """

    name: str
    slices: int = 1

    def __post_init__(self):
        if self.slices < 1:
            raise ValueError(f'slices must be at least 1; it is {self.slices}')
        _ = self.chip, self.sizes

    @property
    def chip(self) -> Chip:
        """The generation."""
        generation = re.split('[:-]', self.name)[0].lower()
        if generation not in CHIPS:
            raise ValueError(f'topology {self.name!r}: there is no chip {generation!r}; known are {", ".join(CHIPS)}')
        return CHIPS[generation]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Chips along each axis of a slice."""
        _, _, shape = self.name.replace(':', '-').partition('-')
        axes = self.chip.axes
        if re.fullmatch(r'\d+', shape) and int(shape):
            return cubic(int(shape), axes) if self.chip.platform == 'tpu' else hosts(int(shape))
        if re.fullmatch(rf'\d+(x\d+){{{axes - 1}}}', shape):
            return tuple(map(int, shape.split('x')))
        example = 'x'.join('4' * axes)
        raise ValueError(
            f'topology {self.name!r}: a slice of {self.chip.name} is written {self.chip.name}:{example} or by its '
            f'number of chips, {self.chip.name}-{4**axes}'
        )

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return math.prod(self.sizes) * self.slices

    def __str__(self) -> str:
        slices = f'{self.slices} x ' if self.slices > 1 else ''
        return f'{slices}{self.chip.name}:{"x".join(map(str, self.sizes))}'

    def devices(self) -> list[jax.Device]:
        """Devices to compile for; none of them is there.

        Raises:
          RuntimeError: what compiles for them is missing, or does not know the topology.
        """
        return self._gpus() if self.chip.platform == 'gpu' else self._tpus()

    def _tpus(self) -> list[jax.Device]:
        if importlib.util.find_spec('libtpu') is None:
            raise RuntimeError('libtpu, the compiler for TPUs, is not installed: pip install libtpu (Linux on x86-64)')
        os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # it would wait for a cloud machine's metadata
        os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')  # nothing is run, so that others may compile, too
        name = f'{self.chip.shape or self.chip.name}:{"x".join(map(str, self.sizes))}'
        config = {'chips_per_host_bounds': self._host(), **self.chip.config}
        if self.slices > 1:
            config['num_slices'] = self.slices
        return self._described(name, 'tpu', config)

    def _gpus(self) -> list[jax.Device]:
        if not any(importlib.util.find_spec(name) for name in CUDA_PLUGINS if importlib.util.find_spec('jax_plugins')):
            raise RuntimeError(
                "jax's plug-in for CUDA, whose compiler compiles for GPUs, is not installed: pip install "
                'jax-cuda12-plugin jax-cuda12-pjrt of the version of jax (no GPU, no driver and no CUDA is needed)'
            )
        # The plug-in would look for the driver of the GPUs that it runs on; here it runs on none.
        jax.config.update('jax_platforms', 'cpu')
        shape = f'{self.slices}x{"x".join(map(str, self.sizes))}'
        return self._described(self.chip.name, 'cuda', {**self.chip.config, 'topology': shape})

    def _described(self, name: str, platform: str, config: dict[str, Any]) -> list[jax.Device]:
        try:
            return list(topologies.get_topology_desc(name, platform=platform, **config).devices)
        except Exception as error:  # whatever the plug-in raises
            raise RuntimeError(f'jax cannot compile for {self}: {str(error)[:300]}') from error

    def _host(self) -> tuple[int, ...]:
        """Chips of a host along each axis: 2 x 2, or fewer where the slice is smaller."""
        two = [min(2, size) for size in self.sizes[:2]]
        return (*two, 1)


def cubic(chips: int, axes: int) -> tuple[int, ...]:
    """The shape nearest to a cube, shortest axis first: 128 chips on 3 axes are 4 x 4 x 8."""
    if axes == 1:
        return (chips,)
    first = max(size for size in range(1, chips + 1) if chips % size == 0 and size**axes <= chips)
    return (first, *cubic(chips // first, axes - 1))


def hosts(gpus: int) -> tuple[int, int]:
    """Hosts, and GPUs of each: 32 GPUs are 4 x 8.

    Raises:
      ValueError: more than a host has, and not of whole hosts.
    """
    if gpus > HOST and gpus % HOST:
        raise ValueError(f'{gpus} GPUs are not whole hosts of {HOST}; name them as hosts x GPUs, as h100:3x4')
    return (max(1, gpus // HOST), min(gpus, HOST))
