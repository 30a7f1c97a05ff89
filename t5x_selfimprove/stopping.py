"""Stopping on request: SIGTERM or SIGUSR1 asks a run to save and end at its next boundary."""

import contextlib
import signal
import threading
from collections.abc import Iterator

SAVED = 75  # exit code of a run that stopped as asked: EX_TEMPFAIL, the same command goes on
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # what schedulers send before they take a machine away

_asked: list[str] = []  # names of the signals that came


class Stopped(Exception):
    """A run ended at a boundary because it was asked to; what it did is saved."""


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """While this is open the signals end nothing: they are remembered until somebody looks.

    Outside the main thread, where Python has no signals, they do what they did before.
    """
    _asked.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _remember) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def asked() -> str | None:
    """The name of the first signal that came, or None."""
    return _asked[0] if _asked else None


def _remember(number: int, frame: object) -> None:
    del frame
    _asked.append(signal.Signals(number).name)
