"""Lists of a bank's questions as plain text, so that a model learns to go on with one."""

import dataclasses

from t5x_selfimprove.data.items import Bank, Item, Unlabelled, check_integer, make_item, remarks


@dataclasses.dataclass(frozen=True)
class QuestionLists:
    """Bank of plain texts, each of `length` questions that follow one another in another bank; no label is read.

    What was pre-trained on them can write questions (`generate.GenerateQuestions`), which a model that has only ever
    answered cannot.

    Attributes:
      bank: of the questions.
      length: questions of a list.
      before: text before every question.
      after: text after every question.

    Raises:
      TypeError, ValueError: a field of the wrong type or out of range.
    """

    bank: Bank
    length: int = 2
    before: str = ''
    after: str = ''

    def __post_init__(self):
        if not isinstance(self.bank, Bank):
            raise TypeError(f'QuestionLists.bank must be a bank; it is a {type(self.bank).__name__}')
        check_integer('QuestionLists.length', self.length, 1)
        if self.bank.size is not None and self.bank.size < self.length:
            raise ValueError(f'{self.bank.size} questions are too few for lists of {self.length}')

    @property
    def size(self) -> int | None:
        """Lists of one epoch; a rest of fewer questions than a list has begins the first list of the next."""
        return None if self.bank.size is None else self.bank.size // self.length

    def take(self, position: int, count: int) -> list[Item]:
        """Items position .. position + count - 1."""
        items = Unlabelled(self.bank).take(position * self.length, count * self.length)
        texts = [f'{self.before}{item.question}{self.after}' for item in items]
        lists = [texts[start : start + self.length] for start in range(0, len(texts), self.length)]
        return [make_item('', ''.join(one)) for one in lists]

    def check(self) -> list[str]:
        """What the bank leaves out. Raises ValueError or OSError if it has something wrong."""
        return remarks(self.bank)
