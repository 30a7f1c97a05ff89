"""Grading on the host: what a text answers, and whether two answers are the same mathematics."""

import collections
import dataclasses
import json
import pathlib
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np

from t5x_selfimprove.consolidation.answers import AnswerFormat, answer_bytes
from t5x_selfimprove.vocabulary import ByteVocabulary

WORKER = pathlib.Path(__file__).with_name('symbolic_worker.py')
START = 120.0  # seconds that a worker may take to import what it needs


def answer_of(answers: AnswerFormat, text: str, ended: bool = True) -> bytes:
    """The canonical answer in the text of a completion, as `AnswerFormat.extract` reads it from tokens; b'' is none."""
    on_bytes = dataclasses.replace(answers, vocabulary=ByteVocabulary())
    tokens = np.array([ByteVocabulary().encode(text) or [0]], np.int32)
    answer, _ = on_bytes.extract_host(tokens, np.full(tokens.shape, bool(text)), np.array([ended]))
    return answer_bytes(answer[0])


def is_right(answers: AnswerFormat, text: str, label: str) -> bool:
    """Whether a completion states the answer that a label does; the label is a bare answer, or text that states one."""
    wanted = answers.canonical(label)
    return wanted != b'' and answer_of(answers, text) == wanted


@dataclasses.dataclass(frozen=True)
class Grades:
    """What became of pairs of label and answer.

    Attributes:
      equal: whether they are the same, pair by pair; False also where that could not be found out.
      unreadable: pairs of which one is no mathematics.
      killed: pairs on which a worker took too long, or died.
    """

    equal: tuple[bool, ...]
    unreadable: int
    killed: int


@dataclasses.dataclass(frozen=True)
class SymbolicGrader:
    """Compares answers as mathematics: '1/2' and '0.5', '(x+1)^2' and 'x^2 + 2x + 1', with the package math-verify.

    An answer that a model wrote can make a computer algebra system work for ever, and its own time-outs do not always
    stop it. So it works in processes apart, which are killed when a pair takes too long; such pairs are counted, and
    are not equal. For labels that are numbers, letters or words, `is_right` is exact and needs none of this.

    Attributes:
      timeout: seconds that a pair may take.
      workers: processes at a time.

    Raises:
      ValueError: a field out of range.
    """

    timeout: float = 5.0
    workers: int = 2

    def __post_init__(self):
        if not self.timeout > 0 or self.workers < 1:
            raise ValueError(
                f'timeout must be positive and workers at least 1; they are {self.timeout}, {self.workers}'
            )

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> Grades:
        """Grades pairs of (label, answer), each different pair once.

        Raises:
          RuntimeError: no worker can be started; says why.
        """
        different = list(dict.fromkeys(pair for pair in pairs if pair[0] != pair[1]))
        found = self._work(different) if different else {}
        results = [True if label == answer else found[label, answer] for label, answer in pairs]
        return Grades(
            equal=tuple(result is True for result in results),
            unreadable=sum(result is None for result in results),
            killed=sum(result == 'killed' for result in results),
        )

    def _work(self, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], object]:
        left = collections.deque(pairs)
        found: dict[tuple[str, str], object] = {}
        pool = [_Worker() for _ in range(min(self.workers, len(pairs)))]
        try:
            while len(found) < len(pairs):
                for worker in pool:
                    if worker.ready and worker.pair is None and left:
                        worker.send(left.popleft(), self.timeout)
                for worker, reply in _replies(pool):
                    if reply == 'ready':
                        worker.ready = True
                    elif worker.pair is not None:
                        found[worker.pair], worker.pair = reply, None
                    if reply == 'killed':
                        pool[pool.index(worker)] = _Worker()
        finally:
            for worker in pool:
                worker.kill()
        return found


class _Worker:
    """A process that grades, the pair that it is at, and the time when it has had enough."""

    def __init__(self):
        command = [sys.executable, str(WORKER)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.ready = False
        self.pair: tuple[str, str] | None = None
        self.deadline = time.monotonic() + START

    def send(self, pair: tuple[str, str], timeout: float) -> None:
        self.pair, self.deadline = pair, time.monotonic() + timeout
        self.process.stdin.write(json.dumps(pair) + '\n')
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def _replies(pool: list[_Worker]) -> list[tuple[_Worker, object]]:
    """Waits until some workers say something or have had their time; these, and what they said ('killed': nothing).

    Raises:
      RuntimeError: a worker ended before it was ready.
    """
    busy = [worker for worker in pool if not worker.ready or worker.pair is not None]
    with selectors.DefaultSelector() as selector:
        for worker in busy:
            selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
        first = min(worker.deadline for worker in busy)
        said = [key.data for key, _ in selector.select(max(0.0, first - time.monotonic()))]
    replies: list[tuple[_Worker, object]] = []
    for worker in busy:
        line = worker.process.stdout.readline().strip() if worker in said else ''
        if line:
            replies.append((worker, line if line == 'ready' else json.loads(line)))
        elif worker in said or time.monotonic() >= worker.deadline:
            worker.kill()
            if not worker.ready:
                raise RuntimeError(_why(worker))
            replies.append((worker, 'killed'))
    return replies


def _why(worker: _Worker) -> str:
    code = worker.process.returncode
    return (
        f'the process that compares answers ended before it was ready (exit code {code}): it needs math-verify, '
        "which pip install 't5x_selfimprove[grading]' brings. Run it by hand to see what is wrong: "
        f'{sys.executable} {WORKER}'
    )
