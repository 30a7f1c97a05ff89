"""Runs of the quickstart's own gin files, shrunk until one takes seconds: by the command line, as a user runs them.

`pretrained` and `finished` are made once a test session and shared: read them, and write elsewhere.
"""

import contextlib
import dataclasses
import functools
import io
import json
import os
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from t5x_selfimprove import config
from t5x_selfimprove.main import main
from tests import quickly

ROOT = pathlib.Path(__file__).resolve().parents[1]
ROUNDS, SAMPLES, QUESTIONS, BATCH = 2, 4, 16, 8
CHUNKS, STEPS = 3, 40  # of pre-training

MODEL = {
    'models.TransformerConfig.width': 16,
    'models.TransformerConfig.layers': 1,
    'models.TransformerConfig.unroll': 1,
    'models.TransformerConfig.heads': 2,
    'models.TransformerConfig.kv_heads': 2,
    'models.TransformerConfig.head_size': 8,
    'models.TransformerConfig.feed_forward': 32,
}
BOTH = {
    **MODEL,
    'data.Possessions.min_steps': 2,
    'data.Possessions.max_steps': 2,
    'data.Possessions.max_amount': 6,
    'data.Possessions.max_total': 12,
    'LABELLED': 64,
    'learning.Supervised.batch_rows': 8,
    'session.Place.cpu_devices': None,  # those that the tests have
}
PRETRAIN = {
    **BOTH,
    'learning.Supervised.total_rounds': CHUNKS,
    'learning.Supervised.steps': STEPS,
    'learning.Schedule.peak': 1e-2,
    'learning.Schedule.warmup': 5,
}
IMPROVE = {
    **BOTH,
    'train.Improve.rounds': ROUNDS,
    'sampling.Sampler.samples': SAMPLES,
    'learning.Supervised.steps': 4,
    'unlabelled/feed.Feed.per_round': QUESTIONS,
    'unlabelled/feed.Feed.per_batch': BATCH,
    'held_out/feed.Feed.per_round': QUESTIONS,
    'held_out/feed.Feed.per_batch': BATCH,
}


def pretrain_arguments(directory: pathlib.Path | str, **bindings: Any) -> list[str]:
    """The tiny pre-training into a directory; the bindings come last, '__' in their names standing for '.'."""
    return _arguments('pretrain', 'gin/runs/quickstart_pretrain.gin', {**PRETRAIN, 'RUN_DIR': directory}, bindings)


def improve_arguments(
    directory: pathlib.Path | str, initial: pathlib.Path | str, command: str = 'improve', **bindings: Any
) -> list[str]:
    """The tiny run of self-improvement into a directory, or another command on the same gin file."""
    places = {'RUN_DIR': directory, 'INITIAL': initial}
    return _arguments(command, 'gin/runs/quickstart.gin', {**IMPROVE, **places}, bindings)


def _arguments(command: str, file: str, settings: dict[str, Any], bindings: dict[str, Any]) -> list[str]:
    settings = settings | {name.replace('__', '.'): value for name, value in bindings.items()}
    return [command, f'--gin_file={file}', *(f'--gin.{name}={value}' for name, value in settings.items())]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


def run(arguments: list[str]) -> Outcome:
    """Runs the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return Outcome(code, out.getvalue(), err.getvalue())


def done(arguments: list[str]) -> Outcome:
    """Runs a command that must end well."""
    outcome = run(arguments)
    assert outcome.code == 0, outcome.out + outcome.err
    return outcome


def built(arguments: list[str]) -> config.Built:
    """The value that a command would run."""
    asked = config.parse_arguments(arguments)
    return config.build(config.ROOTS[asked.command], asked.files, asked.bindings)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix='tiny_run_')


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run that is over."""

    directory: pathlib.Path
    arguments: list[str]
    outcome: Outcome


@functools.cache
def pretrained() -> Finished:
    """The tiny pre-trained model."""
    directory = pathlib.Path(_folder().name) / 'pretrain'
    arguments = pretrain_arguments(directory)
    return Finished(directory, arguments, done(arguments))


@functools.cache
def finished() -> Finished:
    """The tiny run of self-improvement."""
    directory = pathlib.Path(_folder().name) / 'improve'
    arguments = improve_arguments(directory, pretrained().directory)
    return Finished(directory, arguments, done(arguments))


def events(directory: pathlib.Path, *kinds: str) -> list[dict[str, Any]]:
    """The events of a run, of these kinds."""
    file = directory / 'metrics.jsonl'
    lines = file.read_text().splitlines() if file.exists() else []
    return [event for event in map(json.loads, lines) if event['kind'] in kinds]


def contents(directory: pathlib.Path) -> dict[str, bytes]:
    """What must not change when a finished run is run again."""
    kept = [path for name in ('checkpoints', 'samples') for path in (directory / name).rglob('*') if path.is_file()]
    return {str(path): path.read_bytes() for path in kept}


def steps(directory: pathlib.Path) -> list[int]:
    """The checkpoints of a run directory."""
    folder = directory / 'checkpoints'
    return sorted(int(path.name) for path in folder.iterdir()) if folder.is_dir() else []


def arrays(directory: pathlib.Path, step: int | None = None) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint, the last one by default, read without the code under test."""
    folder = directory / 'checkpoints' / str(steps(directory)[-1] if step is None else step) / 'arrays'
    with ocp.PyTreeCheckpointer() as reader:
        there = reader.metadata(folder.absolute()).item_metadata.tree
        return reader.restore(folder.absolute(), restore_args={name: ocp.RestoreArgs(np.ndarray) for name in there})


def same_bits(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Whether two checkpoints are equal to the last bit; says which arrays are not."""
    assert set(one) == set(other)
    differing = [
        name
        for name in one
        if (one[name].dtype, one[name].shape) != (other[name].dtype, other[name].shape)
        or one[name].tobytes() != other[name].tobytes()
    ]
    print('differing:', differing)
    return not differing


def nothing_ran(directory: pathlib.Path) -> bool:
    """Whether a run directory shows no sign of work."""
    return not events(directory, 'round', 'pretrain', 'evaluation', 'compile') and not steps(directory)


def environment() -> dict[str, str]:
    """For a command in a process of its own: a plain CPU, and the compiled programs of earlier ones."""
    cache = jax.config.jax_compilation_cache_dir or str(pathlib.Path(_folder().name) / 'compiled')
    return {
        **os.environ,
        'PYTHONPATH': str(ROOT),
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': quickly.FLAGS,
        'JAX_COMPILATION_CACHE_DIR': cache,
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.5',
    }
