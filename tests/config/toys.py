"""Toy parts and files to build configurations from, so that these tests depend on no real part."""

import dataclasses
import textwrap
from typing import Any, Literal, Protocol

import pytest

from t5x_selfimprove import config


class Optimizer(Protocol):
    """A toy Protocol."""

    def update(self) -> float: ...


@dataclasses.dataclass(frozen=True)
class AdamW:
    """A toy part.

    Attributes:
      decay: weight decay per update.
    """

    peak: float  # highest learning rate
    decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        if self.peak <= 0:
            raise ValueError(f'peak must be above 0; it is {self.peak}')

    def update(self) -> float:
        return self.peak


@dataclasses.dataclass(frozen=True)
class Adafactor:
    """A second part that satisfies the Protocol."""

    peak: float = 1e-2
    clip: float = float('inf')

    def update(self) -> float:
        return self.peak


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A part of plain settings."""

    temperature: float = 1.0
    top_k: int | None = None
    kind: Literal['ancestral', 'greedy'] = 'ancestral'
    stops: tuple[str, ...] = ()
    check: bool = False


def greedy(top_k: int, check: bool = True) -> Sampler:
    """A function that makes a part.

    Args:
      top_k: how many tokens stay in play.
    """
    return Sampler(0.0, top_k, 'greedy', check=check)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part that holds parts."""

    steps: int
    """Updates in one round."""
    optimizer: Optimizer
    sampler: Sampler = Sampler()


@dataclasses.dataclass(frozen=True)
class Improve:
    """A root."""

    run_dir: str  # where everything is written
    stages: tuple[Stage, ...]
    seed: int = 0
    note: str | None = None


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Another root."""

    run_dir: str
    sampler: Sampler = Sampler()


@dataclasses.dataclass(frozen=True)
class Nest:
    """A part that can hold itself."""

    inner: Any = None


TABLE = {
    'learning.AdamW': AdamW,
    'learning.Adafactor': Adafactor,
    'sampling.Sampler': Sampler,
    'sampling.greedy': greedy,
    'improve.Stage': Stage,
    'train.Improve': Improve,
    'ask.Evaluate': Evaluate,
    'nest.Nest': Nest,
}

GOOD = """
    # A run with all that is needed.
    PEAK = 1e-3
    OPTIMIZER = @learning.AdamW()
    train.Improve.run_dir = 'runs/x'
    train.Improve.stages = (@improve.Stage(),)
    improve.Stage.steps = 100
    improve.Stage.optimizer = %OPTIMIZER
    improve.Stage.sampler = @sampling.Sampler()
    learning.AdamW.peak = %PEAK
"""


def write(**files: str) -> None:
    for name, text in files.items():
        with open(f'{name}.gin', 'w', encoding='utf-8') as file:
            file.write(textwrap.dedent(text).lstrip('\n'))


def build(*bindings: str, root: str = 'train.Improve', files: tuple[str, ...] = ('good.gin',)) -> config.Built:
    return config.build(root, files, bindings, TABLE)


def wrong(*bindings: str, root: str = 'train.Improve', files: tuple[str, ...] = ('good.gin',)) -> list[str]:
    """The problems of a build, as they are printed."""
    with pytest.raises(config.ConfigError) as caught:
        build(*bindings, root=root, files=files)
    return [str(problem) for problem in caught.value.problems]
