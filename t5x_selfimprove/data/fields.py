"""What in a record of a file is the question, the answer, the steps: a mapping of names, or of paths to nested ones."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from t5x_selfimprove.data.items import Item, make_item

LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'
_SLOT = re.compile(r'\{([^{}]+)\}')
_OWN_LETTER = re.compile(r'^\(?([A-Za-z])\s*[).:]\s*')


@dataclasses.dataclass(frozen=True)
class Fields:
    """How an item is read from a record (see `MappedFile`, which has the same attributes)."""

    question: str
    answer: str | None
    rationale: str | None
    choices: str | None
    answer_after: str | None
    drop_pattern: str | None

    @property
    def filters(self) -> bool:
        """Every record is a question."""
        return False

    def columns(self) -> frozenset[str]:
        """The top-level names that may be read."""
        named = [self.answer, self.rationale, self.choices, *(_SLOT.findall(self.question) or [self.question])]
        return frozenset(part for name in named if name is not None for part in (name, name.split('.')[0]))

    def parse(self, record: Any) -> Item:
        """The item in a record. Raises ValueError that says what is wrong with it."""
        if not isinstance(record, Mapping):
            raise ValueError(
                f'a line must hold a JSON object; this one holds a {type(record).__name__}. '
                'Where the file is one JSON array, read it with data.Json'
            )
        names = _SLOT.findall(self.question)
        if names:
            question = _SLOT.sub(lambda slot: text_at(record, slot[1]), self.question).strip()
        else:
            question = text_at(record, self.question)
        if not question:
            raise ValueError(f'the field {self.question!r} is empty')
        answer = None if self.answer is None else text_at(record, self.answer)
        rationale = None if self.rationale is None else text_at(record, self.rationale)
        if self.answer_after is not None:
            rationale, mark, answer = answer.rpartition(self.answer_after)
            if not mark:
                raise ValueError(f'the field {self.answer!r} has no {self.answer_after!r} in it: {answer[-60:]!r}')
        answer, rationale = self._clean(answer), self._clean(rationale)
        if answer == '':
            raise ValueError(f'the field {self.answer!r} holds no answer')
        if self.choices is not None:
            labels, texts = labelled_choices(value_at(record, self.choices))
            question = with_options(question, texts)
            answer = answer and option_letter(answer, labels)
        return make_item(question, rationale or None, answer)

    def _clean(self, text: str | None) -> str | None:
        if text is None or self.drop_pattern is None:
            return text and text.strip()
        return re.sub(self.drop_pattern, '', text).strip()


def value_at(record: Any, path: str) -> Any:
    """What stands at a name, or at a path of names and numbers parted by dots ('question.stem', 'answers.0').

    Raises:
      ValueError: there is nothing; says what is there.
    """
    if isinstance(record, Mapping) and path in record:
        return record[path]
    here, walked = record, []
    for part in path.split('.'):
        if isinstance(here, Mapping) and part in here:
            here = here[part]
        elif isinstance(here, Sequence) and not isinstance(here, str) and part.isdigit() and int(part) < len(here):
            here = here[int(part)]
        else:
            fields = ', '.join(map(repr, here)) if isinstance(here, Mapping) else f'a {type(here).__name__}'
            inside = f' of {".".join(walked)!r}' if walked else ''
            raise ValueError(f'there is no field {path!r}; the fields{inside} there are: {fields or "none"}')
        walked.append(part)
    return here


def text_at(record: Any, path: str) -> str:
    """The text there, without space round it. 3 -> '3', 2.0 -> '2', 0.5 -> '0.5'. Raises ValueError."""
    value = value_at(record, path)
    if isinstance(value, float) and math.isfinite(value):
        value = int(value) if value.is_integer() else value
    elif isinstance(value, bool) or not isinstance(value, (str, int)):
        shown = json.dumps(value, default=repr)[:60]
        raise ValueError(f'the field {path!r} must be text or a number; it is {shown}')
    return str(value).strip()


def labelled_choices(value: Any) -> tuple[list[str], list[str]]:
    """The choices of a question as (labels, texts), in order.

    Args:
      value: a list of texts, which may begin with their own letter ('A)5', '(b) six'); a list of objects with `label`
        and `text`; or an object of two lists `label` and `text`.

    Raises:
      ValueError: it is none of these, or has no or more than 26 choices.
    """
    if isinstance(value, Mapping) and {'label', 'text'} <= set(value):
        labels, texts = [str(label) for label in value['label']], list(value['text'])
    elif isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(one, Mapping) for one in value):
        labels, texts = [text_at(one, 'label') for one in value], [text_at(one, 'text') for one in value]
    elif isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(one, str) for one in value):
        owned = [_OWN_LETTER.match(one) for one in value]
        if all(owned) and [own[1].upper() for own in owned] == list(LETTERS[: len(owned)]):
            texts = [one[own.end() :] for one, own in zip(value, owned, strict=True)]
        else:
            texts = list(value)
        labels = list(LETTERS[: len(texts)])
    else:
        raise ValueError(f'choices must be a list of texts or of objects with label and text; they are {value!r:.60}')
    if not texts or len(texts) > len(LETTERS) or len(texts) != len(labels):
        raise ValueError(f'there must be 1..{len(LETTERS)} choices, each with a label; there are {value!r:.60}')
    return labels, [str(text).strip() for text in texts]


def with_options(question: str, texts: Sequence[str]) -> str:
    """A question with lettered options behind it, on a line of their own: 'Who?\\nOptions: (A) he (B) she'."""
    options = ' '.join(f'({letter}) {text}' for letter, text in zip(LETTERS, texts, strict=False))
    return f'{question}\nOptions: {options}'


def option_letter(answer: str, labels: Sequence[str]) -> str:
    """The letter under which `with_options` shows the choice with this label ('3' of '1 2 3 4' -> 'C').

    Raises:
      ValueError: no choice has it.
    """
    if answer not in labels:
        raise ValueError(f'the answer {answer!r} is none of the choices {", ".join(labels)}')
    return LETTERS[labels.index(answer)]
