"""Questions behind worked exemplars, so that a model learns to read few-shot prompts."""

import dataclasses

from t5x_selfimprove.data.items import Bank, Item, check_integer, make_item, remarks

SLOTS = ('{question}', '{rationale}', '{answer}')


@dataclasses.dataclass(frozen=True)
class FewShot:
    """Bank of another bank's items, each with exemplars of its own before its question.

        Hugo has 2 pens. He finds 1. ... A: 2 + 1 = 3. The answer is 3.Anna has 5 cups. ...     one exemplar

    The exemplars are part of the question: where the items are trained on, they are read and not learnt.

    Attributes:
      bank: of the items.
      exemplars: of labelled examples with rationales; item i has number i * shots and those that follow.
      shots: exemplars of an item.
      layout: of an exemplar.

    Raises:
      TypeError, ValueError: a field of the wrong type or out of range, a layout without its slots.
    """

    bank: Bank
    exemplars: Bank
    shots: int = 2
    layout: str = '{question} A: {rationale} The answer is {answer}.'

    def __post_init__(self):
        for name in ('bank', 'exemplars'):
            if not isinstance(vars(self)[name], Bank):
                raise TypeError(f'FewShot.{name} must be a bank; it is a {type(vars(self)[name]).__name__}')
        check_integer('FewShot.shots', self.shots, 1)
        if any(self.layout.count(slot) != 1 for slot in SLOTS):
            raise ValueError(f'FewShot.layout needs each of {", ".join(SLOTS)} once; it is {self.layout!r}')

    @property
    def size(self) -> int | None:
        return self.bank.size

    def take(self, position: int, count: int) -> list[Item]:
        """Items position .. position + count - 1. Raises ValueError where an exemplar has no rationale or answer."""
        shown = [self.text(item) for item in self.exemplars.take(position * self.shots, count * self.shots)]
        before = [''.join(shown[start : start + self.shots]) for start in range(0, len(shown), self.shots)]
        items = self.bank.take(position, count)
        return [
            make_item(text + item.question, item.rationale, item.answer)
            for text, item in zip(before, items, strict=True)
        ]

    def text(self, exemplar: Item) -> str:
        """An exemplar in the layout. Raises ValueError where it has no rationale or no answer."""
        told = {'question': exemplar.question, 'rationale': exemplar.rationale, 'answer': exemplar.answer}
        missing = [name for name, said in told.items() if not said]
        if missing:
            raise ValueError(f'exemplar {exemplar.id} has no {" and no ".join(missing)} ({exemplar.question[:60]!r})')
        text = self.layout
        for name, said in told.items():
            text = text.replace(f'{{{name}}}', said)
        return text

    def check(self) -> list[str]:
        """What the banks leave out. Raises ValueError or OSError if one of them has something wrong."""
        left_out = remarks(self.bank, self.exemplars)
        self.take(0, 1)
        return left_out
