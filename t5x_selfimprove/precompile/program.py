"""A run's round as an abstract program: shapes and shardings in place of arrays, compiled for devices that are not
there."""

import dataclasses
import importlib.metadata
import math
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from t5x_selfimprove import improve, partitioning
from t5x_selfimprove.data.items import encode_examples, encode_questions
from t5x_selfimprove.models import decoding, parameters
from t5x_selfimprove.models.config import TransformerConfig
from t5x_selfimprove.partitioning import LEARNING, SAMPLING, Axes
from t5x_selfimprove.precompile.chips import Topology
from t5x_selfimprove.precompile.walking import Steps
from t5x_selfimprove.train import Improve

UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
NEEDED = re.compile(r'(?:required[^(]*\(|[Uu]sed )([\d.]+)([KMGT]?)\)?[^\n]*?(?:HBM \(|of )([\d.]+)([KMGT]?)')


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the program of a dispatch is given, as `jax.ShapeDtypeStruct` with shardings."""

    state: Any
    questions: Any
    replay: Any


class DoesNotFit(Exception):
    """The compiler found no way to do it in the chip's memory.

    Attributes:
      needed: bytes of HBM that a device would need, None where the compiler does not say.
    """

    def __init__(self, said: str, needed: float | None):
        super().__init__(said)
        self.needed = needed


def inputs(run: Improve, mesh: jax.sharding.Mesh) -> Inputs:
    """The inputs of a run's first dispatch, as `train` makes them.

    Raises:
      ValueError: a parameter or the batch cannot be divided over the mesh; says which, and the numbers.
    """
    learner, feed = run.recipe.learner, run.questions

    def create() -> Any:
        model = run.model.create(run.vocabulary.size, jax.random.key(0))
        return improve.new_state(model, learner, run.place.seed, learner.start_from == 'base')

    state = jax.eval_shape(create)
    encoded, _ = encode_questions([], run.vocabulary, feed.room, run.answers, count=feed.batches * feed.per_batch)
    parts = partitioning.batch_parts(mesh)
    if feed.per_batch % parts:
        raise ValueError(
            f'{feed.per_batch} questions at a time cannot be split over data x fsdp x expert = {parts} devices; make '
            f'feed.Feed.per_batch a multiple of {parts}, or choose another mesh'
        )
    lead = (run.rounds_per_dispatch, feed.batches, feed.per_batch)
    split = jax.NamedSharding(mesh, partitioning.spec_of(Axes((None, None, 'batch')), LEARNING))
    whole = jax.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return Inputs(
        state=jax.tree.map(_placed, state, parameters.shardings(state, mesh, LEARNING)),
        questions=jax.tree.map(
            lambda array: jax.ShapeDtypeStruct((*lead, *array.shape[1:]), array.dtype, sharding=split), encoded
        ),
        replay=jax.tree.map(lambda leaf: _placed(leaf, whole), _replay(run)),
    )


def _placed(leaf: Any, sharding: jax.NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _replay(run: Improve) -> Any:
    """Shapes of the packed replay; of its bank only the size is asked."""
    if run.replay is None:
        return None
    if run.replay.size is None:
        raise ValueError(f'all of replay is packed at the start and this bank is endless; set a count: {run.replay}')
    pack = run.recipe.learner.packing
    examples, _ = encode_examples([], run.vocabulary, (), (), run.replay_room, count=run.replay.size, rooms=pack.rooms)
    return jax.eval_shape(lambda examples, key: pack(examples, key)[0], examples, jax.random.key(0))


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program that the compiler found room for."""

    program: Any  # jax.stages.Compiled
    text: str  # of the program, in HLO
    seconds: float
    memory: dict[str, float]  # bytes of a device by kind
    steps: Steps  # of decoding


def compile_round(run: Improve, mesh: jax.sharding.Mesh) -> Compiled:
    """Compiles the whole round of a run for the devices of a mesh.

    Raises:
      DoesNotFit: into their memory.
      ValueError: a division that is not possible.
    """
    start = time.perf_counter()
    given = inputs(run, mesh)
    with partitioning.use(mesh), tempfile.TemporaryDirectory() as directory:
        steps = decoding_steps(run)
        lowered = improve.program(run.recipe).lower(given.state, given.questions, given.replay)
        try:
            compiled = lowered.compile(compiler_options=_dump(directory, mesh))
        except jax.errors.JaxRuntimeError as error:
            if 'RESOURCE_EXHAUSTED' not in str(error):
                raise
            raise DoesNotFit(str(error).splitlines()[0], needed_bytes(str(error))) from error
        seconds = time.perf_counter() - start
        dumped = [path.read_text(encoding='utf-8') for path in Path(directory).glob('*.after_codegen.txt')]
        text = dumped[0] if dumped else compiled.as_text()
        return Compiled(compiled, text, seconds, memory(run, compiled, given, mesh), steps)


def _dump(directory: str, mesh: jax.sharding.Mesh) -> dict[str, Any] | None:
    """Has the compiler for TPUs write the text of the program: jaxlib 0.10.2 cannot read back all that libtpu 0.0.52
    compiles (INTERNAL: 'async-update instruction should have 1 operands', the 540B model on v5p)."""
    if mesh.devices.flat[0].platform != 'tpu':
        return None
    return {'xla_dump_to': directory, 'xla_dump_hlo_as_text': True}


def decoding_steps(run: Improve) -> Steps:
    """The most steps that decoding a batch takes, every path as long as it may be; under the run's mesh."""
    sampler = run.recipe.sampler
    model = jax.eval_shape(lambda: run.model.create(run.vocabulary.size, jax.random.key(0)))
    plan = sampler.plan(model, run.prompt_shapes())
    waves = -(-plan.paths // plan.sizes[0])
    return Steps(waves * sampler.max_tokens, plan.period, plan.sizes[0] * plan.parts)


def needed_bytes(said: str) -> float | None:
    """What the compiler says that it would need, of 'total memory required ... (23.37G) exceeds ... HBM (15.75G)'."""
    found = NEEDED.search(said)
    return float(found[1]) * UNITS[found[2]] if found else None


def memory(run: Improve, compiled: Any, given: Inputs, mesh: jax.sharding.Mesh) -> dict[str, float]:
    """Bytes of HBM of one device, by kind.

    The kinds before 'total' add up to it; the weights that are sampled from, and the keys and values, are a part of
    'temporaries', and as many bytes only where the compiler lays them out without padding.
    """
    stats = compiled.memory_analysis()
    state = given.state
    model = jax.eval_shape(lambda model: decoding.for_sampling(model, run.recipe.sampler.weights), state.model)
    parts = {
        'parameters': bytes_of(state.model),
        'optimizer': bytes_of(state.optimizer),
        'base': bytes_of(state.base),
    }
    new_outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return parts | {
        'other arguments': stats.argument_size_in_bytes - sum(parts.values()),
        'new outputs': new_outputs,
        'temporaries': stats.temp_size_in_bytes,
        'program': stats.generated_code_size_in_bytes,
        'total': stats.argument_size_in_bytes
        + new_outputs
        + stats.temp_size_in_bytes
        + stats.generated_code_size_in_bytes,
        'updated in place': stats.alias_size_in_bytes,
        'sampling weights': bytes_of(jax.tree.map(_placed, model, parameters.shardings(model, mesh, SAMPLING))),
        'keys and values': run.cache_bytes(state.model, mesh),
    }


def bytes_of(tree: Any) -> float:
    """Bytes of abstract arrays on one device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def mesh_of(run: Improve, topology: Topology) -> jax.sharding.Mesh:
    """The run's mesh over the devices of a topology."""
    return run.place.mesh.build(topology.devices())


def compiler_version(topology: Topology) -> dict[str, str]:
    """Name and version of the package that compiled."""
    names = ('libtpu',) if topology.chip.platform == 'tpu' else ('jax-cuda12-pjrt', 'jax-cuda13-pjrt')
    there = {one.name.lower().replace('_', '-'): one.version for one in importlib.metadata.distributions() if one.name}
    return {name: there[name] for name in names if name in there}


def without_cudnn(run: Improve, topology: Topology) -> tuple[Improve, dict[str, str]]:
    """The run as it can be compiled here, and what is said of that: jax looks for cuDNN and a GPU where a model with
    its attention is traced, so that for GPUs attention is made of plain products, whose scores take more memory."""
    model = run.model
    if topology.chip.platform != 'gpu' or not isinstance(model, TransformerConfig) or model.attention == 'plain':
        return run, {}
    said = 'plain here, with all scores in memory; on the GPUs cuDNN, without them, where it applies'
    return dataclasses.replace(run, model=dataclasses.replace(model, attention='plain')), {'attention': said}
