"""The model of a run as a Hugging Face directory, which transformers and what is built on it load."""

import dataclasses
import time
import types
import typing
from pathlib import Path
from typing import Any

import jax

from t5x_selfimprove.checkpoints import Checkpoints, Described, kind_of, read_model
from t5x_selfimprove.display import Display, number_of_bytes
from t5x_selfimprove.models import hugging_face
from t5x_selfimprove.models.config import ModelConfig, TransformerConfig
from t5x_selfimprove.models.encoder_decoder_config import EncoderDecoderConfig
from t5x_selfimprove.session import check_writable


@dataclasses.dataclass(frozen=True)
class Export:
    """Writes the model of the last checkpoint of a run directory for Hugging Face; adapters are merged in, or alone.

    Architecture, special tokens and the tokenizer's files are those of the directory that the run started from, however
    many runs ago.
    """

    initial: str  # run directory of the model, or a Hugging Face directory to write otherwise
    output: str  # directory to make
    dtype: str | None = None  # of the tensors, 'float32' or 'bfloat16'; None: as the parameters are
    shard: str = '5GB'  # most bytes of a file; the host holds one file at a time
    tokenizer: str | None = (
        None  # Hugging Face directory to take tokenizer and special tokens from; None: the first one
    )
    model: ModelConfig | None = None  # None: as the checkpoint says
    adapters: bool = False  # the adapters alone, as the library peft has them, instead of the merged model

    def run(self, config: str) -> dict[str, Any]:
        """Exports. Returns what was written.

        Raises:
          FileNotFoundError: there is no checkpoint, or no such directory for the tokenizer.
          FileExistsError: the output holds something.
          ValueError: no architecture of transformers computes the model; says what is in the way.
        """
        del config
        display, start = Display(), time.perf_counter()
        if self.tokenizer is not None and not Path(self.tokenizer).is_dir():
            raise FileNotFoundError(f'tokenizer = {self.tokenizer!r} is no directory')
        check_writable(Path(self.output).absolute().parent)
        settings, rows, step = self.described()
        hugging_face.family_of(dataclasses.replace(settings, embedding_rows=rows, low_rank=None))  # before it is read
        source = self.tokenizer or first_directory(self.initial)
        model = read_model(self.initial, settings.create(rows, jax.random.key(0)))
        with display.phase('export', f'writing {self.output}'):
            if self.adapters:
                return self.write_adapters(model, source, display)
            written = hugging_face.write_model(model, self.output, self.dtype, self.shard, source)
        display.say(
            f'{self.initial}, step {step:,}, as {written["architecture"]}: {written["tensors"]} tensors, '
            f'{number_of_bytes(written["bytes"])}, in {time.perf_counter() - start:.1f} s'
        )
        display.say(
            f'tokenizer and special tokens: {source or "none, no directory of Hugging Face is behind this run"}'
        )
        display.say(f'written: {self.output} ({", ".join(written["files"])})')
        return written

    def write_adapters(self, model: Any, base: str | None, display: Display) -> dict[str, Any]:
        """Writes the adapters alone; raises ValueError where no directory of Hugging Face is behind them."""
        if base is None:
            raise ValueError(
                f'the adapters of {self.initial} belong to no Hugging Face directory that is there; name theirs as '
                'export.Export.tokenizer, or export the merged model (export.Export.adapters = False)'
            )
        written = hugging_face.write_adapters(model, self.output, base)
        display.say(f'adapters for {base}: {written["tensors"]} tensors')
        display.say(f'written: {self.output} ({", ".join(written["files"])})')
        return written

    def described(self) -> tuple[ModelConfig, int, int]:
        """The model's configuration, the rows of its embedding, and its step."""
        if kind_of(self.initial) == 'hugging_face':
            settings = self.model or hugging_face.of_directory(self.initial)
            return settings, hugging_face.read_source(self.initial).config.embedding_rows, 0
        checkpoints = Checkpoints(self.initial)
        found, shapes = checkpoints.describe(), checkpoints.shapes()
        checkpoints.close()
        settings = self.model or model_of(found)
        if settings is None:
            raise ValueError(
                f'the checkpoint in {self.initial} does not say what its model is (it is of an earlier version); give '
                'the configuration it was made with as export.Export.model'
            )
        return settings, shapes['model.embedding'][0], found.step


def model_of(described: Described) -> TransformerConfig | EncoderDecoderConfig | None:
    """The configuration that a run wrote beside its model; None where it wrote none."""
    said = described.manifest.get('model')
    kinds = {kind.__name__: kind for kind in (TransformerConfig, EncoderDecoderConfig)}
    return _made(kinds[said['kind']], said['fields']) if said and said['kind'] in kinds else None


def _made(kind: Any, value: Any) -> Any:
    """A value of JSON as its annotation wants it: objects become parts, lists tuples."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = next((one for one in typing.get_args(kind) if dataclasses.is_dataclass(one)), kind)
    if isinstance(value, dict):
        kinds = typing.get_type_hints(kind)
        return kind(**{name: _made(kinds[name], held) for name, held in value.items()})
    return tuple(value) if isinstance(value, list) else value


def first_directory(initial: str) -> str | None:
    """The Hugging Face directory that a chain of runs started from; None where there is none any more."""
    seen: set[str] = set()
    while initial and initial not in seen:
        seen.add(initial)
        try:
            if kind_of(initial) == 'hugging_face':
                return initial
            checkpoints = Checkpoints(initial)
            initial = checkpoints.describe().manifest.get('initial')
            checkpoints.close()
        except (FileNotFoundError, ValueError):
            return None
    return None
