"""The line between the processes of a run: who is there, what each is doing, who keeps the others waiting.

Process 0 listens; every process, itself too, holds one connection to it and sends a line of JSON when it comes to
another phase, when it has something to compare, when it fails, and every few seconds as a sign of life. Process 0
judges: a process that did not come, is gone, is silent, is late or failed ends the run in every process, with one
sentence that names it. jax has such a service of its own, which ends processes with a stack trace and does not know
what they were doing; its patience is set to be longer than ours.
"""

import contextlib
import dataclasses
import json
import queue
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

BEAT = 1.0  # seconds between signs of life
GRACE = 2.0  # seconds in which a failure may still turn out to be the consequence of another
SUSPECT = 10.0  # seconds without a sign of life after which the failure of another process may be a consequence
RETRY = 0.2  # seconds between attempts to reach process 0
ANSWER = 5.0  # seconds that process 0 may take, beside GRACE, to say what it makes of a failure


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long processes wait for each other, in seconds.

    Raises:
      ValueError: one is not positive.
    """

    start: float = 300.0  # for all processes to come
    wait: float = 600.0  # that one process may keep the others waiting at the entry of a phase
    phase: float = 6 * 3600.0  # that one phase may take
    silence: float = 120.0  # without a sign of life

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f'{field.name} must be positive seconds; it is {getattr(self, field.name)}')


@dataclasses.dataclass
class _Seat:
    """What process 0 knows of a process."""

    connection: socket.socket
    host: str
    heard: float
    phase: int = 0
    text: str = 'starting'
    since: float = 0.0
    left: bool = False  # it said goodbye


class Coordinator:
    """The part of process 0: listens, compares, judges.

    Raises:
      OSError: the port is taken.
    """

    def __init__(self, port: int, count: int, patience: Patience, hosts: tuple[str, ...] = ()):
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        self._listener = socket.create_server(('', port), family=family, dualstack_ipv6=both, backlog=count)
        self._count, self._patience, self._hosts = count, patience, hosts
        self._lock = threading.RLock()
        self._seats: dict[int, _Seat] = {}
        self._entered: dict[int, float] = {0: time.monotonic()}  # when the first process came to each phase
        self._values: dict[str, dict[int, Any]] = {}
        self._blamed: list[tuple[float, str]] = []  # (when, what), of the failure that is being looked into
        self._over = threading.Event()
        for loop in (self._accept, self._judge):
            threading.Thread(target=loop, daemon=True, name=loop.__name__).start()

    def close(self, seconds: float = 0.0) -> None:
        """Stops listening, once the others have left or after so many seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not all(seat.left for number, seat in self._seats.items() if number):
            time.sleep(0.05)
        self._over.set()
        self._listener.close()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        """Hears one process until it is gone; what does not speak as one is turned away."""
        said = _lines(connection)
        number = None
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError), connection:
            number = self._seat(connection, next(said, None))
            for message in said if number is not None else ():
                self._hear(number, message)
        with self._lock:
            if number is not None and not self._seats[number].left:
                self._seats[number].left = True
                self._blame(f'{self._name(number)} is gone: its connection was closed while in {self._doing(number)}')

    def _seat(self, connection: socket.socket, hello: Any) -> int | None:
        """Gives a new process its seat; when the last one is there, all are told."""
        number, count, host = hello['number'], hello['count'], str(hello['host'])
        with self._lock:
            if count != self._count:
                refused = f'it was told of {count} processes, process 0 of {self._count}'
            elif number in self._seats:
                refused = f'there is one already, on {self._seats[number].host}'
            else:
                now = time.monotonic()
                self._seats[number] = _Seat(connection, host, now, since=now)
                if len(self._seats) == self._count:
                    self._tell({'go': [self._seats[one].host for one in range(self._count)]})
                return number
        _send(connection, {'failure': f'process {number} on {host} is not wanted: {refused}'})
        return None

    def _hear(self, number: int, message: dict[str, Any]) -> None:
        with self._lock:
            seat, now = self._seats[number], time.monotonic()
            seat.heard = now
            if 'phase' in message:
                seat.phase, seat.text, seat.since = seat.phase + 1, message['phase'], now
                self._entered.setdefault(seat.phase, now)
            elif 'compare' in message:
                values = self._values.setdefault(message['compare'], {})
                values[number] = message['value']
                if len(values) == self._count:
                    ordered = [values[one] for one in range(self._count)]
                    self._tell({'values': ordered}, range(1 if message['gather'] else self._count))
                    del self._values[message['compare']]
            elif 'failure' in message:
                seat.left = True  # it is going to be gone
                self._blame(f'{self._name(number)}: {message["failure"]}')
            elif 'goodbye' in message:
                seat.left = True

    def _judge(self) -> None:
        """Looks round until the run is over or somebody is to blame."""
        began = time.monotonic()
        while not self._over.wait(min(BEAT, 0.2)):
            with self._lock:
                now = time.monotonic()
                if not self._blamed:
                    found = self._absent(now - began) if len(self._seats) < self._count else self._wanting(now)
                    if found:
                        self._blame(found)
                if self._blamed and now > self._blamed[0][0] + GRACE:
                    # Who is gone comes before what failed: a failure may be of a call that the other never answered.
                    blamed = [what for _, what in self._blamed]
                    causes = sorted([*blamed, *self._silent(now, SUSPECT)], key=lambda what: not lost(what))
                    self._tell({'failure': '; '.join(causes)})
                    return
                self._tell({})

    def _absent(self, waited: float) -> str | None:
        missing = [self._name(number) for number in range(self._count) if number not in self._seats]
        if waited < self._patience.start:
            return None
        return (
            f'{", ".join(missing)} of {self._count} did not come in {waited:.0f} s. Look at the output there; if it is '
            'only slow to start, give more time (processes.Patience.start)'
        )

    def _wanting(self, now: float) -> str | None:
        """Who is silent, late, or in a phase for too long."""
        here = {number: seat for number, seat in self._seats.items() if not seat.left}
        for silent in self._silent(now, self._patience.silence):
            return silent
        for number, seat in here.items():
            waited = now - self._entered.get(seat.phase + 1, now)
            if waited > self._patience.wait:
                first = max(here, key=lambda one: here[one].phase)
                return (
                    f'{self._name(number)} is late: it is in {self._doing(number)}, and {self._name(first)} in '
                    f'{self._doing(first)} waits for it since {waited:.0f} s (processes.Patience.wait)'
                )
        for number, seat in here.items():
            if now - seat.since > self._patience.phase:
                return f'{self._name(number)} is in {self._doing(number)} for too long (processes.Patience.phase)'
        return None

    def _silent(self, now: float, seconds: float) -> list[str]:
        """Who gave no sign of life for longer than that."""
        return [
            f'{self._name(number)} is silent: no sign of life for {now - seat.heard:.0f} s, last in '
            f'{self._doing(number)}'
            for number, seat in self._seats.items()
            if not seat.left and now - seat.heard > seconds
        ]

    def _blame(self, what: str) -> None:
        if not self._over.is_set():
            self._blamed.append((time.monotonic(), what))

    def _tell(self, message: dict[str, Any], whom: Sequence[int] | None = None) -> None:
        for number, seat in sorted(self._seats.items(), reverse=True):  # process 0 ends when it has told the others
            with contextlib.suppress(OSError):
                if whom is None or number in whom:
                    _send(seat.connection, message)

    def _doing(self, number: int) -> str:
        seat = self._seats[number]
        return f"'{seat.text}' for {time.monotonic() - seat.since:.0f} s"

    def _name(self, number: int) -> str:
        host = self._seats[number].host if number in self._seats else ''.join(self._hosts[number : number + 1])
        return f'process {number}' + (f' ({host})' if host else '')


class Channel:
    """A process's end of the line.

    Args:
      address: host and port of process 0.
      number, count: which process of how many this is.
      patience: how long to wait.
      lost: called with a sentence, from a thread, when another process ends the run.

    Raises:
      TimeoutError: process 0 cannot be reached, or others do not come; says which.
    """

    def __init__(
        self, address: tuple[str, int], number: int, count: int, patience: Patience, lost: Callable[[str], None]
    ):
        self.number, self.count, self._lost = number, count, lost
        self._lock, self._answers = threading.Lock(), queue.Queue()
        self._over, self._calls, self._verdict = threading.Event(), 0, None
        self._socket = _reach(address, patience.start)
        # Signs of life of process 0 come every BEAT; it needs a moment longer than others to find who is missing.
        self._socket.settimeout(max(patience.start, patience.silence) + 10)
        self._said = _lines(self._socket)
        _send(self._socket, {'number': number, 'count': count, 'host': socket.gethostname()})
        self.hosts = self._start(address)
        self._socket.settimeout(patience.silence)
        for loop in (self._listen, self._beat):
            threading.Thread(target=loop, daemon=True, name=loop.__name__).start()

    def _start(self, address: tuple[str, int]) -> list[str]:
        message: dict[str, Any] = {}
        with contextlib.suppress(OSError):
            for message in self._said:
                if 'go' in message:
                    return message['go']
                if 'failure' in message:
                    break
        self._socket.close()
        hung_up = f'process 0 at {address[0]}:{address[1]} hung up before all processes were there'
        raise TimeoutError(message.get('failure', hung_up))

    def phase(self, text: str) -> None:
        """Says what this process does from here on. All processes go through the same phases."""
        self._send({'phase': text})

    def compare(self, what: str, value: Any) -> list[Any]:
        """The values of all processes, in their order; waits for them. A value is anything JSON has words for."""
        self._say(what, value, gather=False)
        return self._answers.get()  # whoever is late ends the run

    def gather(self, what: str, value: Any) -> list[Any]:
        """As `compare` in process 0; the others only say their value, wait for nobody and get none."""
        self._say(what, value, gather=True)
        return self._answers.get() if self.number == 0 else []

    def _say(self, what: str, value: Any, gather: bool) -> None:
        self._calls += 1
        self._send({'phase': what})
        self._send({'compare': f'{self._calls} {what}', 'value': value, 'gather': gather})

    def fail(self, what: str) -> str | None:
        """Tells the others that this process failed, so that they end too; what process 0 makes of it."""
        self._verdict = queue.Queue()
        self._send({'failure': what})
        with contextlib.suppress(queue.Empty):
            return self._verdict.get(timeout=GRACE + ANSWER)
        return None

    def close(self) -> None:
        """Says goodbye."""
        self._over.set()
        self._send({'goodbye': True})

    def _send(self, message: dict[str, Any]) -> None:
        with self._lock, contextlib.suppress(OSError):  # whoever does not hear will be missed by the listening thread
            _send(self._socket, message)

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            self._send({})

    def _listen(self) -> None:
        try:
            for message in self._said:
                if 'failure' in message and self._verdict is not None:
                    self._verdict.put(message['failure'])
                elif 'failure' in message and not self._over.is_set():
                    self._lost(message['failure'])
                elif 'values' in message:
                    self._answers.put(message['values'])
            ended = 'is gone'
        except OSError as error:
            ended = 'is silent' if isinstance(error, TimeoutError) else 'is gone'
        if not self._over.is_set() and self._verdict is None:
            self._lost(f'process 0, which all others depend on, {ended}')


def lost(verdict: str) -> bool:
    """Whether the cause that a verdict names first is a process that was lost, and not one that failed by itself."""
    return re.match(r'process \d+( \([^)]*\))? is (gone|silent): ', verdict) is not None


def _reach(address: tuple[str, int], seconds: float) -> socket.socket:
    """A connection to process 0, tried until the time is over: it may start later than the others."""
    end = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection(address, timeout=max(1.0, end - time.monotonic()))
        except OSError as error:
            if time.monotonic() > end:
                raise TimeoutError(
                    f'{socket.gethostname()} cannot reach process 0 at {address[0]}:{address[1]} for {seconds:.0f} s '
                    f'({error}). Look whether it runs there, and whether hosts may connect to each other'
                ) from error
            time.sleep(RETRY)


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b'\n')


def _lines(connection: socket.socket) -> Iterator[dict[str, Any]]:
    """The messages that come, until the other end is closed. Raises OSError where the line breaks or is silent."""
    held: list[bytes] = []  # of a line, which may be long
    while True:
        received = connection.recv(65536)
        if not received:
            return
        first, *others = received.split(b'\n')
        held.append(first)
        for other in others:
            yield json.loads(b''.join(held))
            held = [other]
