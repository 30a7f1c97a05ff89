"""Tensors in *.safetensors files: what is there, checked before anything is read; slices of them; and writing them."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from t5x_selfimprove.models.hugging_face.fields import read_json

SINGLE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
DTYPES = {'F32': np.dtype('float32'), 'F16': np.dtype('float16'), 'BF16': np.dtype(jnp.bfloat16)}
BLOCK = 8 << 20  # bytes read at a time; the pages of a mapped file are given back after each
ALIGNMENT = 64  # bytes; a CPU device takes such an array as it is, without a copy


@dataclasses.dataclass(frozen=True)
class Stored:
    """One tensor of a file."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * DTYPES[self.dtype].itemsize


def stored_tensors(directory: Path) -> dict[str, Stored]:
    """All tensors of a directory, by name; reads the files' headers alone.

    Raises:
      FileNotFoundError: there is no checkpoint, or the index names a file that is not there.
      ValueError: a file is cut off or damaged, or is not what the index says.
    """
    if (directory / SINGLE).is_file():
        return {tensor.name: tensor for tensor in _headers(directory / SINGLE)}
    if not (directory / INDEX).is_file():
        raise FileNotFoundError(_no_tensors(directory))
    index = directory / INDEX
    wanted = read_json(index).get('weight_map')
    if not isinstance(wanted, dict) or not all(isinstance(file, str) for file in wanted.values()):
        raise ValueError(f'{index} has no weight_map from tensor to file. Fetch it again.')
    files = sorted(set(wanted.values()))
    if lost := [file for file in files if not (directory / file).is_file()]:
        raise FileNotFoundError(
            f'{index} names {len(lost)} of {len(files)} files that are not there: {", ".join(lost)}. Fetch them, or '
            'all of the checkpoint again.'
        )
    found = {tensor.name: tensor for file in files for tensor in _headers(directory / file)}
    for name, file in wanted.items():
        if name not in found or found[name].file != directory / file:
            raise ValueError(f'{index} says that {name} is in {file}, and it is not. Fetch the checkpoint again.')
    return found


def _no_tensors(directory: Path) -> str:
    others = sorted(path.name for path in directory.glob('*') if path.suffix in ('.bin', '.pt', '.pth', '.gguf', '.h5'))
    others += sorted(path.name for path in directory.glob('*.safetensors'))
    if not others:
        return f'{directory} has neither {SINGLE} nor {INDEX}; fetch the checkpoint again'
    return (
        f'{directory} has neither {SINGLE} nor {INDEX}, but {", ".join(others[:4])}. Load it with transformers '
        '(AutoModelForCausalLM.from_pretrained) and save it with save_pretrained, which writes safetensors.'
    )


def _headers(file: Path) -> Iterator[Stored]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, 'np') as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                tensor = opened.get_slice(name)
                yield Stored(name, file, tuple(tensor.get_shape()), tensor.get_dtype())
    except SafetensorError as error:
        raise ValueError(
            f'{file} is cut off or damaged ({file.stat().st_size:,} bytes: {error}). Fetch it again.'
        ) from error


def read_slice(tensor: Stored, index: tuple[slice, ...]) -> np.ndarray:
    """A slice of a tensor; nothing else of it is held in memory.

    Args:
      tensor: of a file.
      index: start and stop on every axis.
    """
    from safetensors import safe_open

    shape = tuple(one.stop - one.start for one in index)
    result = _aligned(shape, DTYPES[tensor.dtype])
    rows = max(1, BLOCK // max(1, result[:1].nbytes))
    for first in range(0, shape[0], rows):
        last = min(first + rows, shape[0])
        with safe_open(tensor.file, 'np') as opened:
            block = (slice(index[0].start + first, index[0].start + last), *index[1:])
            result[first:last] = opened.get_slice(tensor.name)[block]
    return result


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    room = np.empty(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size].view(dtype).reshape(shape)


def shards(sizes: dict[str, int], most: int) -> dict[str, list[str]]:
    """File name -> the tensors it holds, in order, at most `most` bytes a file where no single tensor is larger.

    Args:
      sizes: bytes of each tensor, by name.
      most: bytes.
    """
    groups: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if groups[-1] and held + size > most:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f'model-{number:05d}-of-{len(groups):05d}.safetensors': group for number, group in enumerate(groups, 1)}


def bytes_of(text: str | int) -> int:
    """A number of bytes, written as 5GB, 500MB (powers of ten) or plainly. Raises ValueError on anything else."""
    found = re.fullmatch(r'(\d+(?:\.\d+)?)\s*([KMGT]?)B?', str(text).strip(), re.IGNORECASE)
    size = int(float(found[1]) * 1000 ** ' KMGT'.index(found[2].upper() or ' ')) if found else 0
    if size < 1:
        raise ValueError(f'a size in bytes is written as 5GB, 500MB or 1000000; it is {text!r}')
    return size
