"""Our model becomes a directory that transformers loads: config.json, *.safetensors with an index, tokenizer files."""

import dataclasses
import functools
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from t5x_selfimprove.models import adapters
from t5x_selfimprove.models.config import DTYPES
from t5x_selfimprove.models.hugging_face import names
from t5x_selfimprove.models.hugging_face.comparing import Config, differences
from t5x_selfimprove.models.hugging_face.families import FAMILIES, Family
from t5x_selfimprove.models.hugging_face.fields import FILE, KEPT, Fields, read_json
from t5x_selfimprove.models.hugging_face.importing import named_leaves, needed, read_source
from t5x_selfimprove.models.hugging_face.stored import INDEX, bytes_of, shards

TOKENIZER_FILES = (
    'tokenizer.json tokenizer.model spiece.model tokenizer_config.json special_tokens_map.json added_tokens.json '
    'vocab.json merges.txt chat_template.jinja chat_template.json generation_config.json'.split()
)


def family_of(config: Config, preferred: str | None = None) -> Family:
    """The family of transformers whose config.json can say all of our configuration.

    Args:
      config: with `embedding_rows` given.
      preferred: the architecture to try first.

    Raises:
      ValueError: there is none; says what the nearest cannot say.
    """
    same_kind = [family for family in FAMILIES if family.made is type(config)]
    order = sorted(same_kind, key=lambda family: family.architecture != preferred)
    unsaid: dict[str, list[str]] = {}
    for family in order:
        unsaid[family.architecture] = _unsaid(config, family)
        if not unsaid[family.architecture]:
            return family
    nearest = min(unsaid, key=lambda name: len(unsaid[name]))
    raise ValueError(
        f'no architecture of transformers that is known here computes this model: {nearest} comes nearest, and differs '
        f'in {", ".join(unsaid[nearest])}. Choose a configuration of one of {", ".join(unsaid)}.'
    )


def _unsaid(config: Config, family: Family) -> list[str]:
    """The fields of a configuration that are lost in the config.json of a family."""
    if config.width % config.heads and family.architecture.startswith(('Llama', 'Gemma')):
        return ['width (it must be a multiple of heads)']
    try:
        again = family.config(Fields(family.values(config), Path(FILE), family.defaults))
    except ValueError as error:
        return [str(error)]
    return differences(config, again)


def write_model(
    model: Any,
    directory: str | Path,
    dtype: str | None = None,
    shard: str | int = '5GB',
    source: str | Path | None = None,
) -> dict[str, Any]:
    """Writes a model as a Hugging Face directory, whole or not at all. Adapters are merged into their weights.

    The host holds one file of tensors at a time.

    Args:
      model: a `Transformer` or an `EncoderDecoder`.
      directory: to be made; must not be there yet, or be empty.
      dtype: of the tensors, 'float32' or 'bfloat16'; None: as the parameters are.
      shard: most bytes of a file, as '5GB'.
      source: the directory that the model came from, or another with its tokenizer: its architecture and special
        tokens are kept, its tokenizer's files copied.

    Returns:
      The architecture, the number of tensors, their bytes and the files written.

    Raises:
      ValueError: no architecture computes this model, or an argument is wrong.
      FileExistsError: the directory holds something.
    """
    folder, most = Path(directory).expanduser(), bytes_of(shard)
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f'dtype must be one of {", ".join(DTYPES)}; it is {dtype!r}')
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f'{folder} is there and not empty; name another directory')
    model = adapters.merged(model)
    config = dataclasses.replace(model.config, embedding_rows=model.embedding.shape[0], low_rank=None)
    kept = _kept(source)
    family = family_of(config, kept.pop('architecture', None))
    kind = np.dtype(dtype or config.parameter_dtype)
    groups, total = _write_plan(model, family.table(config), kind, most)
    partial = folder.with_name(f'{folder.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    leaves = dict(named_leaves(model))
    for file, group in groups.items():
        write_shard(partial / file, {part.name: _tensor(leaves[name], part, kind) for name, part in group})
    if len(groups) > 1:
        places = {part.name: file for file, group in groups.items() for _, part in group}
        write_json(partial / INDEX, {'metadata': {'total_size': total}, 'weight_map': dict(sorted(places.items()))})
    write_json(partial / FILE, {**family.values(config), 'torch_dtype': kind.name, **kept})
    copied = copy_tokenizer(source, partial) if source else []
    if folder.exists():
        folder.rmdir()
    os.replace(partial, folder)
    count = sum(map(len, groups.values()))
    files = [*groups, *([INDEX] if len(groups) > 1 else []), FILE, *copied]
    return {'architecture': family.architecture, 'tensors': count, 'bytes': total, 'files': files}


def _kept(source: str | Path | None) -> dict[str, Any]:
    """What the new config.json takes over from another: its special tokens, and the architecture to prefer."""
    if source is None or not Path(source, FILE).is_file():
        return {}
    values = read_json(Path(source, FILE))
    values = {**values, **(values.get('text_config') or {})}
    found = {name: values[name] for name in KEPT if name in values}
    return {**found, 'architecture': read_source(source).family.architecture}


def _write_plan(
    model: Any, table: Mapping[str, names.Name], kind: np.dtype, most: int
) -> tuple[dict[str, list[tuple[str, names.Part]]], int]:
    """The parameter and the part of each tensor, by file; and the bytes of all."""
    wanted = needed(model, table)
    every = {part.name: (name, part) for name, group in wanted.items() for part in group}
    ordered = sorted(every, key=lambda name: (every[name][1].place[:1], name))  # layer by layer
    sizes = {name: math.prod(every[name][1].layout.shape) * kind.itemsize for name in ordered}
    return {file: [every[name] for name in group] for file, group in shards(sizes, most).items()}, sum(sizes.values())


def _tensor(leaf: jax.Array, part: names.Part, kind: np.dtype) -> np.ndarray:
    """One tensor, on the host."""
    whole = NamedSharding(leaf.sharding.mesh, PartitionSpec()) if isinstance(leaf.sharding, NamedSharding) else None
    return np.asarray(_take(leaf, np.array(part.place, np.int32), part.layout, kind, whole))


@functools.partial(jax.jit, static_argnames=('layout', 'kind', 'sharding'))
def _take(
    leaf: jax.Array, place: jax.Array, layout: names.Layout, kind: np.dtype, sharding: NamedSharding | None
) -> jax.Array:
    """One tensor of a parameter, laid out as in the file."""
    for axis in range(place.shape[0]):
        leaf = jax.lax.dynamic_index_in_dim(leaf, place[axis], 0, keepdims=False)
    tensor = layout.write(leaf).astype(kind)
    return tensor if sharding is None else jax.lax.with_sharding_constraint(tensor, sharding)


def write_shard(file: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes one file of tensors."""
    from safetensors.numpy import save_file

    # transformers reads files with this word alone.
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, file, {'format': 'pt'})


def write_json(file: Path, values: dict[str, Any]) -> None:
    """Writes a file of fields."""
    file.write_text(json.dumps(values, indent=2) + '\n', encoding='utf-8')


def copy_tokenizer(source: str | Path, directory: Path) -> list[str]:
    """Copies the files of a tokenizer; returns their names."""
    found = [name for name in TOKENIZER_FILES if Path(source, name).is_file()]
    for name in found:
        shutil.copyfile(Path(source, name), directory / name)
    return found
