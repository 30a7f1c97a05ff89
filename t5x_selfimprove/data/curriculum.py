"""A bank that changes as a run goes on: easy questions first, harder ones later."""

import dataclasses

from t5x_selfimprove.data.items import Bank, Item, check_are_banks, check_integer, remarks


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """One bank after another.

    Easy-to-hard self-improvement (Lee et al. 2025, arXiv:2502.01612) trains on questions a little harder than those
    that are mastered, round after round; with `per_stage` questions a round each round has a bank of its own.

    Attributes:
      stages: the banks, in order; the last one stays.
      per_stage: questions taken from each before the next.

    Raises:
      TypeError, ValueError: no stage, or a field of the wrong type or out of range.
    """

    stages: tuple[Bank, ...]
    per_stage: int

    def __post_init__(self):
        if not self.stages:
            raise ValueError('a curriculum needs at least one stage')
        check_are_banks('Curriculum.stages', self.stages)
        check_integer('Curriculum.per_stage', self.per_stage, 1)

    @property
    def size(self) -> None:
        """Endless: finite banks go round."""
        return None

    def take(self, position: int, count: int) -> list[Item]:
        """Items position .. position + count - 1; each stage starts at its own position 0."""
        items: list[Item] = []
        while len(items) < count:
            here = position + len(items)
            stage = min(here // self.per_stage, len(self.stages) - 1)
            within = here - stage * self.per_stage
            left = count - len(items)
            if stage < len(self.stages) - 1:
                left = min(left, self.per_stage - within)
            items += self.stages[stage].take(within, left)
        return items

    def check(self) -> list[str]:
        """What the stages leave out. Raises ValueError or OSError if one of them has something wrong."""
        return remarks(*self.stages)
