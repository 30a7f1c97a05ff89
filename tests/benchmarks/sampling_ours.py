"""Our arm of `sampling`, the model that all arms load, and our sampler as the other measurements call it."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_selfimprove import records
from t5x_selfimprove.models import decoding
from t5x_selfimprove.models.config import Rope, TransformerConfig
from t5x_selfimprove.sampling.sampler import Sampler
from tests.benchmarks.sampling_workloads import END, SHOWN, TEMPERATURE, Sizes, Workload, model_directory


@dataclasses.dataclass(frozen=True)
class BareVocabulary:
    """Tokens that spell nothing: what the sampler asks of a vocabulary."""

    size: int
    pad_id: int = 0
    eos_id: int = END

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The one end."""
        return (self.eos_id,)


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

    path = model_directory(directory)
    config, rows = hugging_face.of_directory(path), hugging_face.read_source(path).config.embedding_rows
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(lambda: config.create(rows, jax.random.key(0)))
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes)
    return hugging_face.read_model(path, like)


def prompts_of(workload: Workload, vocabulary: int) -> records.Prompts:
    """The prompts as our sampler takes them."""
    prefix, questions = workload.prompts(vocabulary)
    count, length = questions.shape
    ids = np.stack([np.zeros(count), np.arange(count)], axis=1).astype(np.uint32)
    arrays = (prefix.astype(np.int32), questions.astype(np.int32), np.full(count, length, np.int32), ids)
    return records.Prompts(*map(jnp.asarray, arrays))


def sampler_of(workload: Workload, vocabulary: int, **fields: Any) -> Sampler:
    """Our sampler for a workload, by which no path ends by itself; more fields by name."""
    room = workload.room
    own = {'samples': workload.samples, 'max_tokens': room, 'min_tokens': room, 'temperature': TEMPERATURE}
    return Sampler(BareVocabulary(vocabulary), **{**own, **fields})


@dataclasses.dataclass
class Drawing:
    """A call of our sampler, compiled: the model is brought into the form for sampling, the prompts are read, all paths
    drawn."""

    workload: Workload
    arguments: tuple
    compiled: Any
    compile_seconds: float

    @property
    def temporary_bytes(self) -> int:
        """What the program takes beside its arguments and results."""
        return self.compiled.memory_analysis().temp_size_in_bytes

    def __call__(self) -> records.Samples:
        """Draws.

        Raises:
          RuntimeError: a path has another length than it should have.
        """
        samples = jax.block_until_ready(self.compiled(*self.arguments))
        lengths, wanted = np.asarray(samples.mask.sum(axis=1)), self.workload.lengths
        if (lengths != wanted).any():
            raise RuntimeError(f'paths of {lengths.tolist()} tokens were drawn, not of {wanted.tolist()}')
        return samples


def compiled(model: Any, workload: Workload, vocabulary: int, **fields: Any) -> Drawing:
    """Compiles our sampler for a workload.

    Args:
      model: or its shapes, where nothing is to be run.
      workload: what is drawn.
      vocabulary: tokens in it.
      fields: more fields of the sampler.
    """
    sampler = sampler_of(workload, vocabulary, **fields)

    def draw(model: Any, prompts: records.Prompts, limit: jax.Array, key: jax.Array) -> records.Samples:
        return sampler(decoding.for_sampling(model, sampler.weights), prompts, key, limit=limit)

    limit = jnp.asarray(workload.lengths, jnp.int32)
    arguments = (model, prompts_of(workload, vocabulary), limit, jax.random.key(0))
    start = time.perf_counter()
    done = jax.jit(draw).lower(*arguments).compile()
    return Drawing(workload, arguments, done, time.perf_counter() - start)


class Ours:
    """Our arm: a turn draws all paths of the workload in one compiled call."""

    def __init__(self, directory: str, workload: Workload, **fields: Any):
        """Reads the model, compiles the sampler, with more of its fields by name, and draws once."""
        model, vocabulary = read_model(directory), Sizes().vocabulary
        row = jnp.asarray(workload.rows_of(vocabulary)[:1])
        hidden = model.forward(row, jnp.arange(row.shape[1])[None], jnp.ones_like(row))
        logits = model.logits(hidden[0, -1])[:SHOWN].tolist()
        self.drawing = compiled(model, workload, vocabulary, **fields)
        samples = self.drawing()
        self.facts = {
            'packages': {'jax': jax.__version__},
            'compile_seconds': self.drawing.compile_seconds,
            'temporary_bytes': self.drawing.temporary_bytes,
            'slot_steps': float(samples.slot_steps),
            'logits': logits,
        }

    def __call__(self) -> dict[str, Any]:
        """Draws."""
        return {'tokens': int(self.drawing().mask.sum())}
