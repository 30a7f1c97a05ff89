"""A Hugging Face directory becomes our model: all of it is checked first, then it streams in tensor by tensor."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from t5x_selfimprove.models import parameters
from t5x_selfimprove.models.adapters import LowRank
from t5x_selfimprove.models.config import TransformerConfig
from t5x_selfimprove.models.encoder_decoder_config import EncoderDecoderConfig
from t5x_selfimprove.models.hugging_face import names
from t5x_selfimprove.models.hugging_face.comparing import Config, differences
from t5x_selfimprove.models.hugging_face.families import FAMILIES, Family
from t5x_selfimprove.models.hugging_face.fields import FILE, Fields, read_json
from t5x_selfimprove.models.hugging_face.stored import DTYPES, Stored, read_slice, stored_tensors

# A text model with more round it: where its own tensors are, and which others are left out, by how names begin.
WITH_IMAGES = 'Gemma3ForConditionalGeneration'
INSIDE = {'language_model.model.': 'model.', 'model.language_model.': 'model.', 'language_model.lm_head.': 'lm_head.'}
OUTSIDE = ('vision_tower.', 'multi_modal_projector.', 'model.vision_tower.', 'model.multi_modal_projector.')
OUTER = frozenset(
    'text_config vision_config boi_token_index eoi_token_index image_token_index mm_tokens_per_image'.split()
)
SHOWN = 5  # tensors named in an error


@dataclasses.dataclass(frozen=True)
class Source:
    """What a directory is, from its config.json."""

    directory: Path
    family: Family
    architecture: str  # as the file names it
    config: Config


def read_source(directory: str | Path) -> Source:
    """The family and the configuration of a Hugging Face directory.

    Raises:
      FileNotFoundError: it has no config.json.
      ValueError: an architecture or option that is not supported; names the file, the field, its value, the way out.
    """
    folder = Path(directory).expanduser()
    file = folder / FILE
    values = read_json(file)
    named = values.get('architectures')
    architecture = named[0] if isinstance(named, list) and len(named) == 1 else None
    architecture = architecture or {one.model_type: one.architecture for one in FAMILIES}.get(values.get('model_type'))
    part = ''
    if architecture == WITH_IMAGES:
        outer = Fields(values, file, {})
        outer.used |= OUTER | {'tie_word_embeddings'}
        outer.off('quantization_config', 'means quantised weights, which are not supported')
        outer.finish()
        values, part = {'tie_word_embeddings': True, **outer.get('text_config')}, 'text_config.'
    looked_for = 'Gemma3ForCausalLM' if architecture == WITH_IMAGES else architecture
    family = next((family for family in FAMILIES if family.architecture == looked_for), None)
    if family is None:
        known = ', '.join(family.architecture for family in FAMILIES)
        raise ValueError(
            f'{file}: architectures = {named!r}, model_type = {values.get("model_type")!r} is not supported. Use a '
            f'model of {known} or {WITH_IMAGES} (its text part).'
        )
    return Source(folder, family, str(architecture), family.config(Fields(values, file, family.defaults, part)))


def of_directory(
    directory: str,
    dtype: str = TransformerConfig.dtype,
    parameter_dtype: str = TransformerConfig.parameter_dtype,
    dropout: float = TransformerConfig.dropout,
    attention: str = TransformerConfig.attention,
    remat: str = TransformerConfig.remat,
    unroll: int = TransformerConfig.unroll,
    vocabulary_chunk: int = TransformerConfig.vocabulary_chunk,
    low_rank: LowRank | None = None,
) -> TransformerConfig | EncoderDecoderConfig:
    """The configuration of the model in a Hugging Face directory; what a config.json does not speak of is given here.

    Args:
      directory: with config.json.
      dtype: of the computation, 'float32' or 'bfloat16'.
      parameter_dtype: of the parameters, 'float32' or 'bfloat16'.
      dropout: in learning.
      attention: the kernel for whole rows, 'auto', 'plain', 'fused' or 'splash'; of decoder-only models alone.
      remat: 'none', 'dots' or 'full'.
      unroll: layers per iteration of the scan over layers.
      vocabulary_chunk: rows of the output embedding per visit in log_probs.
      low_rank: adapters that train in place of the model's own weights.

    Raises:
      FileNotFoundError, ValueError: as `read_source`; or a kernel was named for an encoder-decoder.
    """
    config = read_source(directory).config
    if isinstance(config, TransformerConfig):
        config = dataclasses.replace(config, attention=attention)
    elif attention != TransformerConfig.attention:
        raise ValueError(
            f'attention = {attention!r} is for decoder-only models, which {directory} is not; leave it out'
        )
    return dataclasses.replace(
        config,
        dtype=dtype,
        parameter_dtype=parameter_dtype,
        dropout=dropout,
        remat=remat,
        unroll=unroll,
        vocabulary_chunk=vocabulary_chunk,
        low_rank=low_rank,
    )


def named_leaves(model: Any) -> list[tuple[str, Any]]:
    """Every parameter with its name, such as `blocks.attention.query`, in the order of `jax.tree.leaves`."""
    paths = jax.tree_util.tree_flatten_with_path(model)[0]
    return [
        (jax.tree_util.keystr(path, simple=True, separator='.').removesuffix('.value'), leaf) for path, leaf in paths
    ]


def needed(model: Any, table: Mapping[str, names.Name]) -> dict[str, list[names.Part]]:
    """The tensors that each parameter of a model is made of. Raises ValueError where the table lacks a parameter."""
    found = {}
    for (name, leaf), axes in zip(named_leaves(model), parameters.logical_axes(model), strict=True):
        if name not in table or axes is None:
            raise ValueError(f'the parameter {name} has no tensor in Hugging Face checkpoints of this family')
        found[name] = list(names.parts(table[name], axes.names, leaf.shape))
    return found


def check(source: Source, model: Any) -> tuple[dict[str, list[tuple[names.Part, Stored]]], tuple[str, ...]]:
    """Looks at every tensor of a directory before any is read.

    Args:
      source: of the directory.
      model: arrays or shapes that it must fill.

    Returns:
      The tensors of each parameter, and the names of those left out on purpose (the image part of a model).

    Raises:
      FileNotFoundError, ValueError: the model computes something else than the directory's; or a file or tensor is
        missing, left over, cut off, or of another shape or dtype.
    """
    ours = dataclasses.replace(model.config, embedding_rows=model.embedding.shape[0])
    if other := differences(ours, source.config):
        raise ValueError(
            f'the model of this run is not the one in {source.directory}: here {", ".join(other)}. Take the '
            'configuration from the directory: MODEL = @models.of_directory()'
        )
    stored, left_out = stored_tensors(source.directory), []
    if source.architecture == WITH_IMAGES:
        left_out = [name for name in stored if name.startswith(OUTSIDE)]
        stored = {_inside(name): tensor for name, tensor in stored.items() if not name.startswith(OUTSIDE)}
    wanted = needed(model, source.family.table(source.config, list(stored)))
    parts = {part.name: part for group in wanted.values() for part in group}
    known = {'lm_head.weight'} if source.config.tied else set()  # some write the tied embedding twice
    over = [name for name in stored if name not in parts and name not in known and not names.CONSTANT.search(name)]
    problems = [f'{name} is missing' for name in parts if name not in stored]
    problems += [f'{name} is left over ({stored[name].file.name})' for name in over]
    for name, part in parts.items():
        if name in stored and stored[name].shape != part.layout.whole_shape:
            problems.append(f'{name} is {list(stored[name].shape)}, not {list(part.layout.whole_shape)}')
        elif name in stored and stored[name].dtype not in DTYPES:
            problems.append(f'{name} is of dtype {stored[name].dtype}, not one of {", ".join(DTYPES)}')
    if problems:
        more = f'; and {len(problems) - SHOWN} more' if len(problems) > SHOWN else ''
        raise ValueError(
            f'the tensors in {source.directory} are not those that its {FILE} ({source.architecture}) describes: '
            f'{"; ".join(problems[:SHOWN])}{more}. Fetch the checkpoint again, or correct its {FILE}.'
        )
    return {name: [(part, stored[part.name]) for part in group] for name, group in wanted.items()}, tuple(left_out)


def _inside(name: str) -> str:
    return next((INSIDE[start] + name.removeprefix(start) for start in INSIDE if name.startswith(start)), name)


def read_model(directory: str | Path, like: Any) -> Any:
    """The model of a directory, in the shapes, dtypes and shardings of `like`, whose arrays are given up.

    One tensor at a time is held on the host, and of it what this host's devices need: it is put on the devices as it
    is in the file, laid out, cast and written into its place there.

    Args:
      directory: of Hugging Face.
      like: a model; its arrays are written over (donated). Or shapes with shardings, for which arrays are made.

    Raises:
      FileNotFoundError, ValueError: as `read_source` and `check`, before anything is read.
    """
    wanted, _ = check(read_source(directory), like)
    leaves = [_fill(leaf, wanted[name]) for name, leaf in named_leaves(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _fill(leaf: Any, tensors: list[tuple[names.Part, Stored]]) -> jax.Array:
    """One parameter."""
    buffer = leaf
    if not isinstance(leaf, jax.Array):
        buffer = jax.jit(lambda: jnp.zeros(leaf.shape, leaf.dtype), out_shardings=leaf.sharding)()
    for part, tensor in tensors:
        piece = _place(part, tensor, part.layout.sharding(buffer.sharding, len(part.place)))
        sharding = buffer.sharding if isinstance(buffer.sharding, NamedSharding) else None
        buffer = _insert(buffer, piece, np.array(part.place, np.int32), part.layout, sharding)
        # The next tensor is read when this one has left the host.
        buffer.block_until_ready()
        del piece
    return buffer


def _place(part: names.Part, tensor: Stored, sharding: jax.sharding.Sharding) -> jax.Array:
    """A tensor's share on the devices; a slice that several devices need is read once."""
    shape = part.layout.shape
    offset = part.layout.share[0] * shape[1] if part.layout.share[1] > 1 else 0
    read: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def slice_of(index: tuple[slice, ...]) -> np.ndarray:
        ends = tuple(one.indices(size)[:2] for one, size in zip(index, shape, strict=True))
        if ends not in read:
            moved = [
                (start + offset, stop + offset) if axis == 1 else (start, stop)
                for axis, (start, stop) in enumerate(ends)
            ]
            read[ends] = read_slice(tensor, tuple(slice(*pair) for pair in moved))
        return read[ends]

    return jax.make_array_from_callback(shape, sharding, slice_of)


@functools.partial(jax.jit, static_argnames=('layout', 'sharding'), donate_argnums=0)
def _insert(
    buffer: jax.Array, piece: jax.Array, place: jax.Array, layout: names.Layout, sharding: NamedSharding | None
) -> jax.Array:
    """Writes a tensor into its place in a parameter."""
    value = layout.read(piece).astype(buffer.dtype)
    counted = buffer.ndim - value.ndim
    start = [place[axis] for axis in range(counted)] + [0] * value.ndim
    whole = jax.lax.dynamic_update_slice(buffer, value.reshape((1,) * counted + value.shape), start)
    return whole if sharding is None else jax.lax.with_sharding_constraint(whole, sharding)
