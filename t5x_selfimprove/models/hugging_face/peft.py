"""The adapters of a model as a directory that `peft` loads on the checkpoint they were trained on."""

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from t5x_selfimprove.models import adapters, parameters
from t5x_selfimprove.models.encoder_decoder_config import EncoderDecoderConfig
from t5x_selfimprove.models.hugging_face import names
from t5x_selfimprove.models.hugging_face.exporting import family_of, write_json, write_shard
from t5x_selfimprove.models.hugging_face.importing import named_leaves, read_source

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'


def write_adapters(model: Any, directory: str | Path, base: str | Path) -> dict[str, Any]:
    """Writes the adapters of a model as `peft` has them, whole or not at all.

    Args:
      model: a model with adapters.
      directory: to be made; must not be there yet, or be empty.
      base: the Hugging Face directory with the weights that the adapters belong to.

    Returns:
      The number of tensors and the files written.

    Raises:
      ValueError: the model has no adapters.
      FileExistsError: the directory holds something.
    """
    folder = Path(directory).expanduser()
    if not adapters.adapters_of(model):
        raise ValueError('the model has no adapters (low_rank of its configuration); export the model itself')
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f'{folder} is there and not empty; name another directory')
    config = dataclasses.replace(model.config, embedding_rows=model.embedding.shape[0], low_rank=None)
    family = family_of(config, read_source(base).family.architecture)
    tensors, modules = _tensors(model, family.table(config))
    partial = folder.with_name(f'{folder.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_shard(partial / WEIGHTS, tensors)
    low_rank = model.config.low_rank
    said = {
        'peft_type': 'LORA',
        'task_type': 'SEQ_2_SEQ_LM' if isinstance(model.config, EncoderDecoderConfig) else 'CAUSAL_LM',
        'base_model_name_or_path': str(Path(base).absolute()),
        'r': low_rank.rank,
        'lora_alpha': low_rank.alpha,
        'lora_dropout': 0.0,
        'target_modules': modules,
        'bias': 'none',
        'fan_in_fan_out': False,
        'inference_mode': True,
    }
    write_json(partial / CONFIG, said)
    if folder.exists():
        folder.rmdir()
    os.replace(partial, folder)
    return {'tensors': len(tensors), 'files': [WEIGHTS, CONFIG]}


def _tensors(model: Any, table: dict[str, names.Name]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Every tensor of the file, and the last words of the modules that have adapters."""
    tensors, modules = {}, set()
    leaves = zip(named_leaves(model), parameters.logical_axes(model), strict=True)
    for (name, leaf), axes in leaves:
        owner, _, which = name.rpartition('.')
        if which not in ('first', 'second') or owner not in table:
            continue
        weight = table[owner]
        # A weight is stored as [outputs, inputs]: A is [rank, inputs], B [outputs, rank].
        outputs, inputs = weight.stored.split()
        stored = f'low_rank {inputs}' if which == 'first' else f'{outputs} low_rank'
        suffix = f'.lora_{"A" if which == "first" else "B"}.weight'
        entry = names.Name(
            'base_model.model.' + weight.name.removesuffix('.weight') + suffix,
            stored,
            weight.paired and which == 'second',
        )
        for part in names.parts(entry, axes.names, leaf.shape):
            tensors[part.name] = np.asarray(jax.device_get(part.layout.write(leaf[part.place])), np.float32)
        modules.add(weight.name.removesuffix('.weight').rpartition('.')[2])
    return tensors, sorted(modules)
