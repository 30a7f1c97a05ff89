"""The line between processes, each a thread here: who is missing, gone, silent, late, and what is said of it."""

import contextlib
import queue
import re
import socket
import threading
import time
from unittest import mock

import pytest

from t5x_selfimprove import processes
from t5x_selfimprove.processes import control
from t5x_selfimprove.processes.control import Channel, Coordinator, Patience

QUICK = Patience(start=10, wait=10, phase=10, silence=10)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(control, 'BEAT', 0.05)
    monkeypatch.setattr(control, 'GRACE', 0.1)


class Run:
    """Processes on this host, each with what ended it."""

    def __init__(self, count: int, patience: Patience = QUICK, hosts: tuple[str, ...] = (), come: int | None = None):
        with socket.create_server(('127.0.0.1', 0)) as server:
            self.address = server.getsockname()
        self.count, self.patience = count, patience
        self.coordinator = Coordinator(self.address[1], count, patience, hosts)
        self.ends = [queue.Queue() for _ in range(count)]
        self.channels: dict[int, Channel] = {}
        self.errors: dict[int, BaseException] = {}
        coming = [threading.Thread(target=self.join, args=(number,)) for number in range(come or count)]
        for thread in coming:
            thread.start()
        for thread in coming:
            thread.join()

    def join(self, number: int) -> None:
        try:
            self.channels[number] = Channel(self.address, number, self.count, self.patience, self.ends[number].put)
        except TimeoutError as error:
            self.errors[number] = error

    def cut(self, number: int) -> None:
        """What the system does for a process that is killed."""
        self.channels[number]._over.set()
        self.channels[number]._socket.shutdown(socket.SHUT_RDWR)

    def check_end(self, message: str, *numbers: int) -> None:
        for number in numbers:
            said = self.ends[number].get(timeout=10)
            assert re.search(message, said), said

    def close(self) -> None:
        for channel in self.channels.values():
            channel.close()
        self.coordinator.close(5)


def asked(run: Run, question: str, how: str = 'compare') -> dict[int, list]:
    """What each process gets to hear, where they ask at once."""
    found: dict[int, list] = {}

    def ask(number: int) -> None:
        found[number] = getattr(run.channels[number], how)(question, [question, number])

    asking = [threading.Thread(target=ask, args=(number,)) for number in (2, 0, 1)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    return found


def test_values_are_compared_in_the_order_of_the_processes():
    run = Run(3)
    assert all(channel.hosts == [socket.gethostname()] * 3 for channel in run.channels.values())
    for question in ('one', 'two'):
        assert asked(run, question) == {number: [[question, 0], [question, 1], [question, 2]] for number in range(3)}
    run.close()
    assert all(end.empty() for end in run.ends)  # whoever says goodbye is not missed


def test_what_is_gathered_goes_to_process_0_alone():
    run = Run(3)
    long = 'ä\n' * 200_000  # longer than what comes at once
    for question in ('one', long):
        found = asked(run, question, 'gather')
        assert found == {0: [[question, 0], [question, 1], [question, 2]], 1: [], 2: []}
    assert asked(run, 'two')[2] == [['two', 0], ['two', 1], ['two', 2]]  # nothing is left over for the next
    run.close()
    assert all(end.empty() for end in run.ends)


def test_what_fails_in_one_process_fails_in_all(monkeypatch: pytest.MonkeyPatch):
    def read() -> None:
        raise OSError('bank.jsonl is gone')

    monkeypatch.setattr(processes, '_joined', mock.Mock())
    processes._joined.channel.hosts = ['a', 'b']
    others: list = [None, None]
    processes._joined.channel.compare = lambda what, value: [others[0], value or others[1]]
    assert processes.agreed('reading', lambda: 3) == 3
    with pytest.raises(OSError, match=r'bank\.jsonl is gone'):
        processes.agreed('reading', read)
    others[1] = 'ValueError: item 7 is too long'
    with pytest.raises(RuntimeError, match=r'^process 1 \(b\): ValueError: item 7 is too long$'):
        processes.agreed('reading', lambda: 3)


def test_who_does_not_come_is_named():
    run = Run(4, Patience(start=0.5), ('a', 'b', 'c', 'd'), come=2)
    for number in (0, 1):
        assert re.match(r'process 2 \(c\), process 3 \(d\) of 4 did not come in 1 s\. Look', str(run.errors[number]))
    run.coordinator.close()


def test_process_0_that_is_not_there():
    with socket.create_server(('127.0.0.1', 0)) as server:
        address = server.getsockname()
    with pytest.raises(TimeoutError, match=rf'cannot reach process 0 at 127\.0\.0\.1:{address[1]} for 0 s .*refused'):
        Channel(address, 1, 2, Patience(start=0.3), print)


def test_a_port_that_is_taken():
    with socket.create_server(('', 0)) as server, pytest.raises(OSError, match='in use'):
        Coordinator(server.getsockname()[1], 2, QUICK)


@pytest.mark.parametrize(
    ('number', 'count', 'message'),
    [(1, 2, 'is not wanted: there is one already, on '), (1, 3, 'it was told of 3 processes, process 0 of 2')],
)
def test_a_process_too_many(number: int, count: int, message: str):
    run = Run(2)
    with pytest.raises(TimeoutError, match=message):
        Channel(run.address, number, count, QUICK, print)
    run.close()
    assert all(end.empty() for end in run.ends)


def test_other_callers_are_turned_away():
    run = Run(2)
    for text in (b'GET / HTTP/1.0\r\n\r\n', b'[1]\n', b'{"number": 1}\n', b'\xff\n', b''):
        with socket.create_connection(run.address) as caller:
            caller.sendall(text)
            caller.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                assert caller.recv(10) == b''
    run.close()
    assert all(end.empty() for end in run.ends)


def test_who_is_gone():
    run = Run(3)
    run.channels[2].phase('sampling')
    time.sleep(0.2)
    run.cut(2)
    run.check_end(rf"^process 2 \({socket.gethostname()}\) is gone: .* while in 'sampling' for \d s$", 0, 1)


def test_a_failure_after_somebody_is_gone_is_not_the_cause():
    run = Run(3)
    run.cut(2)
    run.channels[1].phase('training')
    verdict = run.channels[1].fail('RuntimeError: connection closed by peer')
    assert re.search(r'^process 2 .* is gone: .*; process 1 .*: RuntimeError: connection closed by peer$', verdict)
    run.check_end('^process 2', 0)


def test_a_failure_while_somebody_is_silent_is_not_the_cause(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(control, 'SUSPECT', 0.3)
    run = Run(3)
    run.channels[2]._over.set()  # stopped: its connection stands
    time.sleep(0.5)
    verdict = run.channels[1].fail('RuntimeError: timed out')
    assert re.search(r'^process 2 .* is silent: no sign of life for \d s.*; process 1 .*: RuntimeError: timed', verdict)
    run.check_end('^process 2', 0)


@pytest.mark.parametrize(
    ('verdict', 'code'),
    [
        ('process 1 (b) is gone: its connection was closed; process 0 (a): RuntimeError: reset', processes.LOST),
        ('process 1 (b) is silent: no sign of life for 12 s; process 0 (a): RuntimeError: timed out', processes.LOST),
        ('process 0 (a): ValueError: the bank is gone: look for it; process 1 (b): ValueError', 2),
        (None, 2),
    ],
)
def test_exit_code_of_a_failure(monkeypatch: pytest.MonkeyPatch, verdict: str | None, code: int):
    joined = mock.Mock(channel=mock.Mock(fail=lambda what: verdict), coordinator=None, identity=mock.Mock(number=0))
    monkeypatch.setattr(processes, '_joined', joined)
    monkeypatch.setattr(processes, '_end', lambda code: ends.append(code))
    ends: list[int] = []
    processes.leave(2, 'ValueError')
    assert ends == [code]


def test_process_0_gone():
    run = Run(2)
    run.channels[0]._over.set()
    run.coordinator.close()
    for seat in run.coordinator._seats.values():
        seat.connection.shutdown(socket.SHUT_RDWR)
    run.check_end('^process 0, which all others depend on, is gone', 1)


def test_failures_are_told():
    run = Run(2)
    assert (
        run.channels[1].fail('ValueError: a bad bank') == f'process 1 ({socket.gethostname()}): ValueError: a bad bank'
    )
    run.check_end(r'^process 1 .*: ValueError: a bad bank$', 0)


def test_who_is_silent(monkeypatch: pytest.MonkeyPatch):
    run = Run(2, Patience(silence=0.5))
    run.channels[1]._over.set()  # its thread gives no more signs of life
    run.check_end(r"^process 1 .* is silent: no sign of life for \d s, last in 'starting'", 0)


def test_who_is_late():
    run = Run(3, Patience(wait=0.4))
    for number in (0, 1, 2):
        run.channels[number].phase('reading')
    for number in (0, 2):
        run.channels[number].phase('sampling')
    late = r"^process 1 .* is late: it is in 'reading' for \d s, and process . .* in 'sampling' for \d s waits for it"
    run.check_end(late, 0, 1, 2)


def test_a_phase_without_end():
    run = Run(2, Patience(phase=0.4))
    for number in (0, 1):
        run.channels[number].phase('training')
    run.check_end(r"^process . .* is in 'training' for \d s for too long \(processes\.Patience\.phase\)", 0, 1)


def test_patience_must_be_positive():
    with pytest.raises(ValueError, match='wait must be positive seconds; it is 0'):
        Patience(wait=0)
