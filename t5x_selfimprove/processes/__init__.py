"""Several processes, on one host or many, as one run: every process runs the same program, reads the questions of its
own devices' shards and holds these; process 0 alone writes what people read.

A process alone, as on a laptop, is process 0 of 1: all functions here then do nothing, at once.
"""

import dataclasses
import hashlib
import os
import socket
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from t5x_selfimprove.processes.control import Channel, Coordinator, Patience, lost
from t5x_selfimprove.processes.identity import Identity, identify

__all__ = [
    'LOST',
    'Identity',
    'Patience',
    'agreed',
    'compare',
    'count',
    'first',
    'gather',
    'identify',
    'leave',
    'number',
    'phase',
    'same',
    'start',
]

Found = TypeVar('Found')

LOST = 76  # exit code of a process that ends because of another one: EX_PROTOCOL, the same command goes on


@dataclasses.dataclass
class _Joined:
    """This process's place in the run."""

    identity: Identity
    channel: Channel
    coordinator: Coordinator | None  # of process 0


_joined: _Joined | None = None


def start(patience: Patience) -> None:
    """Joins the other processes, if there are any, before jax touches its devices; once.

    Raises:
      ValueError: the environment says only half of who this is.
      TimeoutError: a process did not come in time; names it. Or process 0 cannot be reached.
      OSError: the port of process 0 is taken.
    """
    global _joined
    identity = identify()
    if _joined is not None or identity is None:
        return
    host, port = identity.address
    coordinator = None
    if identity.number == 0:
        try:
            coordinator = Coordinator(port, identity.count, patience, identity.hosts)
        except OSError as error:
            raise OSError(f'cannot listen on port {port} for other processes: {error}. Choose another one') from error
    channel = Channel((host, port), identity.number, identity.count, patience, _lost)
    _joined = _Joined(identity, channel, coordinator)
    jax_port = compare('starting jax', _free_port() if coordinator else None)[0]
    # Signals are ours, and so is the finding of the missing: jax's own patience is the longer one.
    jax.config.update('jax_enable_preemption_service', False)
    jax.distributed.initialize(
        f'{identity.coordinator.rpartition(":")[0]}:{jax_port}',
        identity.count,
        identity.number,
        identity.local_devices,
        cluster_detection_method='deactivate',
        initialization_timeout=int(2 * patience.start) + 60,
        heartbeat_timeout_seconds=int(2 * patience.silence) + 60,
        shutdown_timeout_seconds=int(patience.wait) + 60,
        coordinator_bind_address=f'{"[::]" if socket.has_dualstack_ipv6() else "0.0.0.0"}:{jax_port}',
    )


def number() -> int:
    """Which process this is, from 0."""
    return _joined.identity.number if _joined else 0


def count() -> int:
    """How many processes the run has."""
    return _joined.identity.count if _joined else 1


def first() -> bool:
    """Whether this process is the one that writes."""
    return number() == 0


def name() -> str:
    """Process and host, for messages; empty where it is alone."""
    return f'process {number()} ({socket.gethostname()})' if _joined else ''


def phase(text: str) -> None:
    """Waits until all processes are here, to do something together. Whoever comes late, or stays in it too long, ends
    the run. (Collectives have time limits of their own, those of Gloo 30 s: nobody should begin them alone.)"""
    compare(text, None)


def after(text: str) -> None:
    """Says that a phase is over, and that this process is on its way to the next."""
    if _joined:
        _joined.channel.phase(f'what follows {text}')


def compare(what: str, value: Any) -> list[Any]:
    """The values that all processes have for something, in their order. All must call it; they wait for each other.

    Args:
      what: named in the message, where one is late.
      value: anything JSON has words for.
    """
    return _joined.channel.compare(what, value) if _joined else [value]


def gather(what: str, value: Any) -> list[Any]:
    """As `compare`, but process 0 alone gets the values, of the others each none at once: for what is not small."""
    return _joined.channel.gather(what, value) if _joined else [value]


def agreed(what: str, read: Callable[[], Found]) -> Found:
    """What `read` gives in this process, when it has worked in all. Where it fails in one, as of bad input that the
    others do not see, it fails in all, and the run ends as it would in one process.

    Args:
      what: named in the message, where one is late.
      read: its processes do not wait for each other.

    Raises:
      Exception: that of this process.
      RuntimeError: it failed in another; says how.
    """
    found = failure = None
    try:
        found = read()
    except Exception as error:
        failure = error
    said = compare(what, failure and f'{type(failure).__name__}: {failure}')
    if failure is not None:
        raise failure
    failed = [one for one, told in enumerate(said) if told]
    if failed:
        raise RuntimeError(f'process {failed[0]} ({_joined.channel.hosts[failed[0]]}): {said[failed[0]]}')
    return found


def same(what: str, value: Any, help: str) -> None:
    """Makes sure that all processes have one value.

    Args:
      what: named in the error.
      value: anything JSON has words for; long texts are compared by their hash.
      help: the way out.

    Raises:
      ValueError: some have another than process 0; names them.
    """
    if isinstance(value, str) and len(value) > 100:
        value = hashlib.sha256(value.encode()).hexdigest()[:16]
    values = compare(f'comparing {what}', value)
    others = [one for one, found in enumerate(values) if found != values[0]]
    if others:
        there = ', '.join(f'process {one} ({_joined.channel.hosts[one]}): {values[one]}' for one in others)
        raise ValueError(f'{what} of the processes differ: process 0: {values[0]}, {there}. {help}')


def finish() -> None:
    """Ends the run in all processes together, when each has done its work."""
    global _joined
    if not _joined:
        return
    compare('the end', None)
    jax.distributed.shutdown()
    _joined.channel.close()
    if _joined.coordinator:
        _joined.coordinator.close(5.0)
    _joined = None


def leave(code: int, what: str) -> int:
    """Ends this process because of a failure, and tells the others, where there are any; else returns the code.

    A failure that is the consequence of a lost process ends with LOST. This process ends without Python's usual
    farewell: jax would wait there for the others.
    """
    if _joined:
        verdict = _joined.channel.fail(what)
        if verdict is not None and verdict != f'{name()}: {what}':
            print(f'{name()}: the run ends: {verdict}', file=sys.stderr)
        _end(LOST if lost(verdict or '') else code)
    return code


def _lost(what: str) -> None:
    print(f'{name()}: the run ends: {what}. The same command goes on from the last checkpoint', file=sys.stderr)
    _end(LOST)


def _end(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    if _joined and _joined.coordinator:
        _joined.coordinator.close(5.0)
    os._exit(code)


def _free_port() -> int:
    with socket.create_server(('', 0)) as server:
        return server.getsockname()[1]
