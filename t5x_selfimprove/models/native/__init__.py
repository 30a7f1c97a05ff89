"""Kernels in C++ for XLA on a CPU, of float32: products with packed weights, attention to a segment, and the draw.

They are compiled for the machine's own CPU at their first use, by the C++ compiler that is there.
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
from typing import Any

import jax

from t5x_selfimprove import partitioning

SOURCE = pathlib.Path(__file__).with_name('kernels.cc')
HEADERS = sorted(SOURCE.parent.glob('*.h'))
PREFIX = 't5x_selfimprove_'  # of the names that XLA knows the kernels by
KERNELS = ('packed_product', 'attend_segment', 'draw_tokens', 'log_sum_exp')
COMPILERS = ('c++', 'g++', 'clang++')


@dataclasses.dataclass(frozen=True)
class Library:
    """The kernels that were compiled and loaded, or what was in the way."""

    width: int = 0  # columns of a panel, of weights and of keys
    trouble: str = ''


@functools.cache
def library() -> Library:
    """Compiles the kernels where that was not done before on such a CPU, loads them, and makes them known to XLA."""
    compiler = os.environ.get('CXX') or next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        return Library(trouble='there is no C++ compiler')
    try:
        loaded = ctypes.CDLL(str(_compiled(compiler)))
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if 'error' in line] or [f'status {error.returncode}']
        return Library(trouble=f'{compiler} does not compile them: {lines[0].strip()}')
    except OSError as error:
        return Library(trouble=str(error))
    for name in KERNELS:
        jax.ffi.register_ffi_target(PREFIX + name, jax.ffi.pycapsule(getattr(loaded, name)), platform='cpu')
    return Library(loaded.packed_width())


def _compiled(compiler: str) -> pathlib.Path:
    """The library in the user's cache, or in a temporary folder where that cannot be written."""
    native = '-mcpu=native' if platform.machine() in ('arm64', 'aarch64') else '-march=native'
    flags = ['-std=c++17', '-O3', native, '-ffp-contract=fast', '-fPIC', '-shared', '-w']
    texts = [file.read_text(encoding='utf-8') for file in (*HEADERS, SOURCE)]
    made_of = [compiler, *flags, importlib.metadata.version('jaxlib'), _cpu(), *texts]
    name = f'kernels-{hashlib.sha256(chr(0).join(made_of).encode()).hexdigest()[:16]}.so'
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
    """Why sampling in this dtype does without the kernels, on the mesh in context; '': it has them."""
    mesh = jax.sharding.get_abstract_mesh()
    if partitioning.platform() != 'cpu':
        return 'this is no CPU'
    if dtype != 'float32':
        return f'the model computes in {dtype}'
    if not mesh.empty and mesh.shape['tensor'] > 1:
        return 'the mesh splits weights over tensor'
    return library().trouble


def describe(dtype: str) -> str:
    """What makes the products and the attention of sampling, and why, in words for a person."""
    why = trouble(dtype)
    ours = 'our own (models/native), but for weights or keys in int8, and attention with a softcap or bias'
    return f"XLA's: {why}" if why else ours


def call(name: str, results: Any, *arrays: jax.Array) -> Any:
    """Calls a kernel; `results` are the shapes and dtypes of what it returns.

    Raises:
      RuntimeError: there are no kernels here.
    """
    if library().trouble:
        raise RuntimeError(f'no kernel {name}: {library().trouble}')
    return jax.ffi.ffi_call(PREFIX + name, results, vmap_method='sequential')(*arrays)
