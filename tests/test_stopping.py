"""Runs asked to stop by a signal: they save at the next boundary, say so by their exit code, and go on to the bits of a
run that nobody asked."""

import os
import signal
import threading

import pytest

from t5x_selfimprove import stopping
from t5x_selfimprove.metrics import Writer
from tests import tiny_run
from tests.tiny_run import arrays, finished, improve_arguments, pretrain_arguments, pretrained, same_bits, steps


@pytest.fixture
def signal_at(monkeypatch: pytest.MonkeyPatch):
    """Sends this process a signal when a run writes its n-th event of a kind."""
    write = Writer.write

    def set_up(number: signal.Signals, kind: str, count: int) -> None:
        left = [count]

        def told(self, of: str, **event) -> None:
            write(self, of, **event)
            if of == kind:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), number)

        monkeypatch.setattr(Writer, 'write', told)

    return set_up


@pytest.mark.parametrize(
    ('number', 'kind', 'said', 'saved'),
    [
        (signal.SIGTERM, 'round', 'stopped as SIGTERM asked, after round 1 of 2; all of it is saved', [0, 1]),
        (signal.SIGUSR1, 'compile', 'stopped as SIGUSR1 asked, after round 0 of 2', [0]),
    ],
)
def test_self_improvement(tmp_path, signal_at, monkeypatch, number, kind: str, said: str, saved: list[int]):
    arguments = improve_arguments(tmp_path, pretrained().directory)
    signal_at(number, kind, 1)
    before = signal.getsignal(number)
    outcome = tiny_run.run(arguments)
    assert outcome.code == stopping.SAVED == 75
    assert said in outcome.err and 'The same command goes on from there' in outcome.err
    assert steps(tmp_path) == saved
    assert signal.getsignal(number) is before  # ours again, once no run listens
    monkeypatch.undo()
    tiny_run.done(arguments)  # what came before is forgotten
    for step in steps(finished().directory):
        assert same_bits(arrays(tmp_path, step), arrays(finished().directory, step))


def test_asked_in_the_last_round_it_is_done(tmp_path, signal_at):
    signal_at(signal.SIGTERM, 'round', tiny_run.ROUNDS)
    tiny_run.done(improve_arguments(tmp_path, pretrained().directory))
    assert (tmp_path / 'report.html').is_file()


def test_pretraining(tmp_path, signal_at, monkeypatch):
    arguments = pretrain_arguments(tmp_path)
    signal_at(signal.SIGTERM, 'pretrain', 2)
    outcome = tiny_run.run(arguments)
    assert outcome.code == 75 and 'after chunk 2 of 3; all' in outcome.err
    monkeypatch.undo()
    tiny_run.done(arguments)
    assert same_bits(arrays(tmp_path), arrays(pretrained().directory))


def test_signals_outside_the_main_thread():
    found = []

    def listen() -> None:
        with stopping.listening():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]
