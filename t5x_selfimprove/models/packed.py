"""Products of a few rows with weights that stay as they are, on a CPU: float32, by a kernel of our own (packed.cc).

In decoding every token's step multiplies some dozens of rows with all weights. XLA packs the weights for its kernels
anew in each product; here they are packed once a round, [inputs, outputs] as panels of neighbouring outputs, [panels,
inputs, width], which the kernel reads from front to back. It is compiled for the machine's own CPU at its first use, by
the C++ compiler that is there; without one, on several devices and in other dtypes products are XLA's.
"""

import ctypes
import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from t5x_selfimprove import partitioning

SOURCE = pathlib.Path(__file__).with_name('packed.cc')
TARGET = 't5x_selfimprove_packed_product'
COMPILERS = ('c++', 'g++', 'clang++')


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The kernel that was compiled and loaded, or what was in the way."""

    width: int = 0  # outputs of a panel
    trouble: str = ''


@functools.cache
def kernel() -> Kernel:
    """Compiles the kernel where that was not done before on such a CPU, loads it, and makes it known to XLA."""
    compiler = os.environ.get('CXX') or next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        return Kernel(trouble='there is no C++ compiler')
    try:
        library = ctypes.CDLL(str(_compiled(compiler)))
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if 'error' in line] or [f'status {error.returncode}']
        return Kernel(trouble=f'{compiler} does not compile it: {lines[0].strip()}')
    except OSError as error:
        return Kernel(trouble=str(error))
    jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(library.packed_product), platform='cpu')
    return Kernel(library.packed_width())


def _compiled(compiler: str) -> pathlib.Path:
    """The library in the user's cache, or in a temporary folder where that cannot be written."""
    native = '-mcpu=native' if platform.machine() in ('arm64', 'aarch64') else '-march=native'
    flags = ['-std=c++17', '-O3', native, '-ffp-contract=fast', '-fPIC', '-shared', '-w']
    made_of = [compiler, *flags, importlib.metadata.version('jaxlib'), _cpu(), SOURCE.read_text(encoding='utf-8')]
    name = f'packed-{hashlib.sha256(chr(0).join(made_of).encode()).hexdigest()[:16]}.so'
    cache = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache') / 't5x_selfimprove'
    if (cache / name).exists():
        return cache / name
    try:
        cache.mkdir(parents=True, exist_ok=True)
        folder = pathlib.Path(tempfile.mkdtemp(dir=cache))
    except OSError:
        cache = folder = pathlib.Path(tempfile.mkdtemp())
    try:
        command = [compiler, *flags, f'-I{jax.ffi.include_dir()}', str(SOURCE), '-o', str(folder / name)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return (folder / name).replace(cache / name)  # whole, whoever else compiles it at the same time
    finally:
        if folder != cache:
            shutil.rmtree(folder)


def _cpu() -> str:
    """What tells one kind of CPU from another: a home directory may be shared by machines of several kinds."""
    file = pathlib.Path('/proc/cpuinfo')
    lines = file.read_text(encoding='utf-8').splitlines() if file.exists() else []
    kept = [line for line in lines if line.partition(':')[0].strip() in ('model name', 'model', 'flags', 'Features')]
    return '\n'.join([platform.machine(), platform.processor(), *sorted(set(kept))])


def trouble(dtype: str) -> str:
    """Why products with weights of this dtype are XLA's, on the mesh in context; '': they are the kernel's."""
    mesh = jax.sharding.get_abstract_mesh()
    if partitioning.platform() != 'cpu':
        return 'this is no CPU'
    if dtype != 'float32':
        return f'weights are {dtype}'
    if not mesh.empty and mesh.size > 1:
        return f'the mesh has {mesh.size} devices'
    return kernel().trouble


def describe(dtype: str) -> str:
    """What makes the products of sampling, and why, in words for a person."""
    why = trouble(dtype)
    return f"XLA's: {why}" if why else 'weights, but of int8, packed once a round, by the kernel in models/packed.cc'


def pack(matrix: Float32[Array, '*layers inputs outputs']) -> Float32[Array, '*layers panels inputs width']:
    """The panels of a matrix; the last is filled up with zeros."""
    *layers, inputs, outputs = matrix.shape
    width = kernel().width
    fill = [(0, 0)] * (len(layers) + 1) + [(0, -outputs % width)]
    return jnp.moveaxis(jnp.pad(matrix, fill).reshape(*layers, inputs, -1, width), -2, -3)


def product(
    x: Float32[Array, 'rows inputs'], panels: Float32[Array, 'panels inputs width'], outputs: int
) -> Float32[Array, 'rows {outputs}']:
    """`x` times the matrix that was packed. The same to the bit for a row in whatever batch it is.

    Args:
      x: rows.
      panels: from `pack`.
      outputs: columns that the matrix had.
    """
    result = jax.ShapeDtypeStruct((x.shape[0], outputs), jnp.float32)
    return jax.ffi.ffi_call(TARGET, result, vmap_method='sequential')(x, panels)
