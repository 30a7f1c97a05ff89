"""Our arm of `sampling`, the model that all arms load, and our sampler as the other measurements call it.

Path lengths are forced by a change of the logits (`Lengths`): nothing in the sampler or the model knows of them. The
sampler's draws are counted, so the first token of a path is the same in whatever slot it is drawn; it tells the change
which path it has before it.
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_selfimprove import records
from t5x_selfimprove.models.config import Rope, TransformerConfig
from t5x_selfimprove.sampling.sampler import Sampler
from tests.benchmarks.sampling_workloads import END, SHOWN, TEMPERATURE, Sizes, Workload, model_directory


@dataclasses.dataclass(frozen=True)
class BareVocabulary:
    """Tokens that spell nothing: what the sampler asks of a vocabulary."""

    size: int
    pad_id: int = 0
    eos_id: int = END
    bos_id: int | None = None
    name: str = 'bare'

    def token_bytes(self) -> tuple[bytes, ...]:
        """No token spells anything."""
        return (b'',) * self.size


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Forbids the end of every path before its length is reached, and everything else then."""

    first: tuple[int, ...] = ()  # first tokens, all different; of a path that begins with none of them: no end at all
    length: tuple[int, ...] = ()  # of the paths that begin with them

    def __call__(self, logits: jax.Array, drawn: Any = None) -> jax.Array:
        """The changed logits [S, V], given what was drawn."""
        is_end = jnp.arange(logits.shape[-1]) == END
        if not self.first:
            return jnp.where(is_end, -jnp.inf, logits)
        began = (drawn.age == drawn.count[:, None] - 1)[:, :, None] & (
            drawn.tokens[:, :, None] == jnp.array(self.first)
        )
        wanted = jnp.where(began.any(axis=1), jnp.array(self.length), 0).max(axis=-1)
        due = (drawn.count + 1 == wanted)[:, None]
        return jnp.where(is_end == due, logits, -jnp.inf)


def config_of(sizes: Sizes, **fields: Any) -> TransformerConfig:
    """Our configuration of these sizes; more fields by name."""
    own = dataclasses.asdict(sizes)
    del own['vocabulary']
    return TransformerConfig(**own, qk_norm=True, tied=True, rope=Rope(theta=1_000_000.0), **fields)


def save_model(sizes: Sizes, directory: str) -> None:
    """Writes a random model as the Hugging Face directory that all arms load."""
    from t5x_selfimprove.models import hugging_face

    model = config_of(sizes).create(sizes.vocabulary, jax.random.key(0))
    hugging_face.write_model(model, model_directory(directory))


def read_model(directory: str) -> Any:
    """The model of that directory."""
    from t5x_selfimprove.models import hugging_face

    config = hugging_face.of_directory(directory)
    rows = hugging_face.read_source(directory).config.embedding_rows
    shapes = jax.eval_shape(lambda: config.create(rows, jax.random.key(0)))
    like = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return hugging_face.read_model(directory, like)


def prompts_of(workload: Workload, vocabulary: int) -> records.Prompts:
    """The prompts as our sampler takes them."""
    prefix, questions = workload.prompts(vocabulary)
    count, length = questions.shape
    ids = np.stack([np.zeros(count), np.arange(count)], axis=1).astype(np.uint32)
    lengths = np.full(count, length, np.int32)
    return jax.tree.map(
        jnp.asarray, records.Prompts(prefix.astype(np.int32), questions.astype(np.int32), lengths, ids)
    )


@dataclasses.dataclass
class Drawing:
    """A compiled call of our sampler."""

    model: Any
    prompts: records.Prompts
    compiled: Any
    compile_seconds: float

    def __call__(self, key: jax.Array) -> records.Samples:
        """Draws all paths."""
        return jax.block_until_ready(self.compiled(self.model, self.prompts, key))


def compiled(sampler: Sampler, model: Any, workload: Workload, vocabulary: int) -> Drawing:
    """Compiles a sampler for a model (or its shapes) and the prompts of a workload."""
    prompts = prompts_of(workload, vocabulary)
    start = time.perf_counter()
    program = jax.jit(lambda model, prompts, key: sampler(model, prompts, key))
    done = program.lower(model, prompts, jax.random.key(0)).compile()
    return Drawing(model, prompts, done, time.perf_counter() - start)


def sampler_of(workload: Workload, vocabulary: int, lengths: Lengths, **fields: Any) -> Sampler:
    """Our sampler for a workload; more fields by name."""
    room, temperature = workload.room, TEMPERATURE
    return Sampler(BareVocabulary(vocabulary), workload.samples, room, temperature, transforms=(lengths,), **fields)


def forced(workload: Workload, model: Any, vocabulary: int) -> tuple[jax.Array, Lengths]:
    """A key, and what forces the lengths of the paths that are drawn with it.

    Spread lengths: draws the first tokens alone, with one key after another until they all differ.
    """
    if not workload.least:
        return jax.random.key(0), Lengths()
    short = dataclasses.replace(workload, room=1, least=0)
    drawing = compiled(sampler_of(short, vocabulary, Lengths()), model, short, vocabulary)
    for key in map(jax.random.key, range(1000)):
        first = np.asarray(drawing(key).tokens)[:, 0].tolist()
        if len(set(first)) == workload.rows:
            return key, Lengths(tuple(first), tuple(workload.lengths.tolist()))
    raise RuntimeError(f'{workload.rows} paths never began with as many different tokens')


class Ours:
    """Our arm: a turn draws all paths of the workload in one compiled call."""

    def __init__(self, directory: str, workload: Workload, **fields: Any):
        """Reads the model and compiles the sampler, with more of its fields by name."""
        model, vocabulary = read_model(model_directory(directory)), Sizes().vocabulary
        self.workload = workload
        self.key, lengths = forced(workload, model, vocabulary)
        self.drawing = compiled(sampler_of(workload, vocabulary, lengths, **fields), model, workload, vocabulary)
        self.facts = {
            'compile_seconds': self.drawing.compile_seconds,
            'temporary_bytes': self.drawing.compiled.memory_analysis().temp_size_in_bytes,
            'packages': {'jax': jax.__version__},
        }
        row = jnp.asarray(workload.rows_of(vocabulary)[:1])
        hidden = model.forward(row, jnp.arange(row.shape[1])[None], jnp.ones_like(row))
        self.facts['logits'] = model.logits(hidden[0, -1])[:SHOWN].tolist()
        self()

    def __call__(self) -> dict[str, Any]:
        """Draws; raises RuntimeError where a path has another length than it should have."""
        samples = self.drawing(self.key)
        lengths = np.asarray(samples.mask.sum(axis=1))
        if (lengths != self.workload.lengths).any():
            raise RuntimeError(f'paths of {lengths.tolist()} tokens were drawn, not {self.workload.lengths.tolist()}')
        return {'tokens': int(lengths.sum())}
