"""A bank that is dealt out among processes, so that each reads what it needs and no more."""

import dataclasses

import jax

from t5x_selfimprove.data.items import Bank, Item, check_integer, remarks


@dataclasses.dataclass(frozen=True)
class Part:
    """The items of one process out of several, which take turns of `block` items.

        bank            0 1 2 3 4 5 6 7 8 9 ...
        part 0 of 2     0 1     4 5     8 9         block = 2
        part 1 of 2         2 3     6 7

    Together the parts take the bank's own items in its own order, position for position, whatever their number: a run
    that goes on with more or fewer processes goes on at the same place. With `block` = the rows of a batch that a
    process holds, every process reads the rows of its own devices.

    Attributes:
      bank: what is dealt out.
      block: items of a turn.
      index: of this part, 0 .. count - 1; None = that of this process, `jax.process_index()`.
      count: number of parts; None = `jax.process_count()`.

    Raises:
      TypeError, ValueError: a field of the wrong type or out of range.
    """

    bank: Bank
    block: int = 1
    index: int | None = None
    count: int | None = None

    def __post_init__(self):
        if not isinstance(self.bank, Bank):
            raise TypeError(f'Part.bank must be a bank (size, take, check); it is a {type(self.bank).__name__}')
        check_integer('Part.block', self.block, 1)
        if (self.index is None) != (self.count is None):
            raise ValueError(f'give Part.index and Part.count both or neither; they are {self.index}, {self.count}')
        if self.count is not None:
            check_integer('Part.count', self.count, 1)
            check_integer('Part.index', self.index, 0, self.count - 1)

    @property
    def turn(self) -> tuple[int, int]:
        """(index, count) as they hold in this process."""
        return (jax.process_index(), jax.process_count()) if self.count is None else (self.index, self.count)

    @property
    def size(self) -> int | None:
        """Items of this part; None where the bank is endless, or its end falls within a turn, so that the next time
        round the parts have other items."""
        size, (_, count) = self.bank.size, self.turn
        return None if size is None or size % (count * self.block) else size // count

    def take(self, position: int, count: int) -> list[Item]:
        """Items position .. position + count - 1 of this part."""
        check_integer('position', position, 0)
        check_integer('count', count, 0)
        index, parts = self.turn
        items: list[Item] = []
        while len(items) < count:
            turn, within = divmod(position + len(items), self.block)
            run = min(self.block - within, count - len(items))
            items += self.bank.take((turn * parts + index) * self.block + within, run)
        return items

    def check(self) -> list[str]:
        """Looks through the whole bank, since every item is some process's turn in one epoch or another."""
        return remarks(self.bank)
