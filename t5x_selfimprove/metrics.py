"""Metrics that are summed everywhere and divided once, and the files they are written to."""

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float32

from t5x_selfimprove.files import write_text
from t5x_selfimprove.records import record


@record
class Mean:
    """A weighted mean, kept as its two sums."""

    total: Float32[Array, '*parts']
    weight: Float32[Array, '*parts']

    @property
    def value(self) -> float | None:
        """The mean, or None where nothing was counted."""
        weight = float(np.sum(self.weight))
        return float(np.sum(self.total)) / weight if weight else None


@record
class Sum:
    """A count or another total."""

    total: Float32[Array, '*parts']

    @property
    def value(self) -> float | list[float]:
        """The total; of a histogram, the list of its bins."""
        return np.asarray(self.total, np.float64).tolist()


Metrics = dict[str, Mean | Sum]


def summed(metrics: Metrics) -> Metrics:
    """Sums over the leading axis, as a scan leaves it."""
    return jax.tree.map(lambda array: array.sum(axis=0), metrics)


def values(metrics: Metrics) -> dict[str, Any]:
    """Plain numbers, ready for JSON."""
    return {name: metric.value for name, metric in jax.device_get(metrics).items()}


class Writer:
    """Appends events to metrics.jsonl and their numbers to TensorBoard event files.

    A line is written and flushed at once, so that a killed run loses at most the line it was writing. A resumed run
    appends, after it cut off a half-written last line and took back (`forget`) what it is going to do again.

    Raises:
      OSError: the directory cannot be written.
    """

    def __init__(self, directory: Path, tensorboard: bool = True):
        self.path = directory / 'metrics.jsonl'
        directory.mkdir(parents=True, exist_ok=True)
        drop_half_line(self.path)
        self._file = self.path.open('a', encoding='utf-8')
        self._board = Board(directory / 'tensorboard') if tensorboard else None

    def write(self, kind: str, **event: Any) -> None:
        """Writes one event; numbers in it go to TensorBoard under `kind/name` at its step or round."""
        line = json.dumps({'kind': kind, 'time': time.time(), **event}, allow_nan=True)
        self._file.write(line + '\n')
        self._file.flush()
        step = _step(event)
        if self._board is not None and step is not None:
            self._board.write({f'{kind}/{name}': number for name, number in _numbers(event)}, step)

    def forget(self, last: int) -> None:
        """Takes back the events of steps or rounds after `last`. TensorBoard shows the later of two by itself.

        Raises:
          ValueError: metrics.jsonl has a broken line; names it.
        """
        kept = [_step(event) is None or _step(event) <= last for event in read(self.path)]
        if all(kept):
            return
        self._file.close()
        lines = self.path.read_text(encoding='utf-8').splitlines(keepends=True)
        write_text(self.path, ''.join(line for line, keep in zip(lines, kept, strict=True) if keep))
        self._file = self.path.open('a', encoding='utf-8')

    def close(self) -> None:
        """Closes the files. Raises OSError where what they still hold cannot be written."""
        try:
            self._file.close()
        finally:
            if self._board is not None:
                self._board.close()


class NoWriter:
    """Stands for a `Writer` in processes that leave the writing to another."""

    def write(self, kind: str, **event: Any) -> None:
        """Writes nothing."""

    def forget(self, last: int) -> None:
        """Takes nothing back."""

    def close(self) -> None:
        """Closes nothing."""


class Board:
    """A TensorBoard event file. It is written at once: the thread of tensorboardX's own writer dies on a full disk
    without a word, and whoever writes to it next waits for ever.

    Raises:
      OSError: the directory cannot be written.
    """

    def __init__(self, directory: Path):
        from tensorboardX.event_file_writer import EventsWriter

        directory.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(directory / 'events'))

    def write(self, numbers: dict[str, float], step: int) -> None:
        """Writes numbers of one step, by their tags."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        found = [Summary.Value(tag=tag, simple_value=number) for tag, number in numbers.items()]
        self._file.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=found)))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _step(event: dict[str, Any]) -> int | None:
    """The step or round of an event; None where it is of the whole run."""
    return event.get('step', event.get('round'))


def _numbers(event: dict[str, Any], prefix: str = '') -> Iterator[tuple[str, float]]:
    """The finite scalars of an event; of an interval its value, of a nested dict its members."""
    for name, entry in event.items():
        if isinstance(entry, bool):
            continue
        if isinstance(entry, int | float) and math.isfinite(entry):
            yield prefix + name, entry
        elif isinstance(entry, dict):
            if 'value' in entry:
                yield prefix + name, entry['value']
            else:
                yield from _numbers(entry, f'{prefix}{name}/')


def read(path: Path) -> list[dict[str, Any]]:
    """The events of a metrics.jsonl; a half-written last line is left out.

    Raises:
      ValueError: a line before the last is not JSON; names file and line.
    """
    events = []
    lines = path.read_text(encoding='utf-8').splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ValueError(f'{path}, line {number}: not JSON ({error})') from error
    return events


def drop_half_line(path: Path) -> None:
    """Cuts off a last line that has no end: what a killed process left."""
    if not path.exists():
        return
    content = path.read_bytes()
    if content and not content.endswith(b'\n'):
        os.truncate(path, content.rfind(b'\n') + 1)  # killed here, it has lost nothing else
