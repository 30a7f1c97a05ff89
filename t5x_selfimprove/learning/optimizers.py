"""Optimizers and schedules as frozen values; optax does the work."""

import dataclasses
from typing import Protocol

import optax


class Optimizer(Protocol):
    """Builds an optax transformation for a known number of steps."""

    def build(self, steps: int) -> optax.GradientTransformation:
        """The transformation; its schedule ends after `steps` updates."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning rate: linear warm-up to `peak`, then one of three ways down to `peak * final` at the last step.

    `shape`: 'constant' stays at the peak; 'cosine' falls as half a cosine (Loshchilov and Hutter 2017); 'linear' is
    flat until the last `decay` share of the steps and then falls in a line (warm-up, stable, decay).

    Raises:
      ValueError: a field out of range.
    """

    peak: float = 2e-3
    warmup: int = 20  # steps
    shape: str = 'cosine'
    final: float = 0.0
    decay: float = 1.0  # share of the steps, for 'linear'

    def __post_init__(self):
        if self.shape not in ('constant', 'cosine', 'linear'):
            raise ValueError(f"schedule shape must be 'constant', 'cosine' or 'linear'; it is {self.shape!r}")
        if self.peak <= 0 or self.warmup < 0 or not 0 <= self.final <= 1 or not 0 < self.decay <= 1:
            raise ValueError(f'a schedule needs peak > 0, warmup >= 0, 0 <= final <= 1, 0 < decay <= 1; it is {self}')

    def build(self, steps: int) -> optax.Schedule:
        """Update number to learning rate."""
        warmup = min(self.warmup, steps - 1)
        rest = steps - warmup
        if self.shape == 'cosine':
            after = optax.cosine_decay_schedule(self.peak, rest, alpha=self.final)
        elif self.shape == 'linear':
            falling = max(1, round(rest * self.decay))
            after = optax.linear_schedule(self.peak, self.peak * self.final, falling, transition_begin=rest - falling)
        else:
            after = optax.constant_schedule(self.peak)
        if warmup == 0:
            return after
        # The first update already moves: it is number 1 of the warm-up, not number 0.
        rising = optax.linear_schedule(self.peak / warmup, self.peak, max(1, warmup - 1))
        return optax.join_schedules([rising, after], [warmup])


def clipped(clip: float | None, transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """Clips gradients by their global norm first, where asked to."""
    return transformation if clip is None else optax.chain(optax.clip_by_global_norm(clip), transformation)


@dataclasses.dataclass(frozen=True)
class AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), all parameters decayed alike."""

    schedule: Schedule = Schedule()
    b1: float = 0.9
    b2: float = 0.98
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip: float | None = 1.0  # global gradient norm

    def build(self, steps: int) -> optax.GradientTransformation:
        """The optax transformation."""
        return clipped(
            self.clip,
            optax.adamw(self.schedule.build(steps), self.b1, self.b2, self.epsilon, weight_decay=self.weight_decay),
        )


@dataclasses.dataclass(frozen=True)
class Adafactor:
    """Adafactor (Shazeer and Stern 2018, arXiv:1804.04235): second moments of matrices kept as rows and columns."""

    schedule: Schedule = Schedule(peak=1e-2)
    factored_from: int = 128  # smallest side of a matrix that is factored
    momentum: float | None = None
    weight_decay: float | None = None
    clip: float | None = 1.0  # global gradient norm; Adafactor's own clipping by update size is at its default

    def build(self, steps: int) -> optax.GradientTransformation:
        """The optax transformation."""
        return clipped(
            self.clip,
            optax.adafactor(
                self.schedule.build(steps),
                min_dim_size_to_factor=self.factored_from,
                momentum=self.momentum,
                weight_decay_rate=self.weight_decay,
                multiply_by_parameter_scale=False,
            ),
        )
