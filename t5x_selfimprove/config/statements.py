"""What gin text says, before anything is built: bindings, references, macros, and the places where they stand."""

import dataclasses
import difflib
from collections.abc import Iterable, Iterator
from typing import Any

WIDTH = 110  # longer statements are laid out over several lines
COMMAND_LINE = 'command line'


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a statement stands."""

    file: str  # as it was named, or COMMAND_LINE
    line: int  # counted from 1; 0 on the command line
    text: str  # the line itself
    comment: str = ''  # the comment on that line

    def __str__(self) -> str:
        return f'{self.file}:{self.line}' if self.line else self.file


@dataclasses.dataclass(frozen=True)
class Reference:
    """`@scope/name()`, a part to be built; without the brackets (`called` False) it is refused later."""

    scope: str
    name: str
    called: bool = True


@dataclasses.dataclass(frozen=True)
class Macro:
    """`%NAME`."""

    name: str


REQUIRED = Macro('gin.REQUIRED')  # `NAME = %gin.REQUIRED`: someone must bind NAME again
BROKEN = Reference('', 'config.Broken')  # stands for a value that was already complained about


@dataclasses.dataclass(frozen=True)
class Include:
    """`include 'file'`."""

    file: str
    place: Place


@dataclasses.dataclass(frozen=True)
class Binding:
    """`scope/name.field = value`, or `NAME = value` for a macro (then `field` is empty)."""

    scope: str
    name: str
    field: str
    value: Any
    place: Place

    @property
    def key(self) -> tuple[str, str, str]:
        return self.scope, self.name, self.field

    @property
    def title(self) -> str:
        return title(*self.key)


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing wrong: where, what, and the way out."""

    what: str
    place: Place | None = None
    help: str = ''

    def __str__(self) -> str:
        lines = [f'{self.place}: {self.what}' if self.place else self.what]
        if self.place and self.place.text:
            lines.append(f'        {self.place.text}')
        lines.extend(f'    {line}' for line in self.help.splitlines())
        return '\n'.join(lines)


class ConfigError(ValueError):
    """Everything that is wrong with a configuration, at once."""

    def __init__(self, problems: Iterable[Problem]):
        self.problems = tuple(dict.fromkeys(problems))
        count = len(self.problems)
        head = 'One problem' if count == 1 else f'{count} problems'
        super().__init__('\n\n'.join([f'{head} in the configuration.', *map(str, self.problems)]))


def title(scope: str, name: str, field: str) -> str:
    """The left side of a binding."""
    return (scope + '/' if scope else '') + name + ('.' + field if field else '')


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The known word that `word` was probably meant to be; `AdamW` finds `learning.AdamW`. None if none is near."""
    words = list(dict.fromkeys(words))
    last = word.rsplit('.', 1)[-1].casefold()
    same_class = [known for known in words if known.rsplit('.', 1)[-1].casefold() == last]
    folded = {known.casefold(): known for known in same_class or words}
    close = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=0.0 if same_class else 0.6)
    return folded[close[0]] if close else None


def did_you_mean(word: str, words: Iterable[str], otherwise: str = '') -> str:
    """'did you mean X?', or `otherwise` where nothing is near."""
    near = nearest(word, words)
    return f'did you mean {near}?' if near else otherwise


def nodes(value: Any) -> Iterator[Reference | Macro]:
    """The references and macros inside a value, in order."""
    if isinstance(value, Reference | Macro):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from nodes(key)
            yield from nodes(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from nodes(item)


def literal(value: Any) -> str:
    """The gin text of a value, on one line.

    Raises:
      ValueError: gin has no way to say it.
    """
    kind = type(value)
    if kind is Reference:
        return f'@{title(value.scope, value.name, "")}' + ('()' if value.called else '')
    if kind is Macro:
        return f'%{value.name}'
    if kind is tuple:
        return '(' + ', '.join(map(literal, value)) + (',)' if len(value) == 1 else ')')
    if kind is list:
        return '[' + ', '.join(map(literal, value)) + ']'
    if kind is dict:
        return '{' + ', '.join(f'{literal(key)}: {literal(item)}' for key, item in value.items()) + '}'
    if kind is float and value in (float('inf'), -float('inf')):
        return '1e999' if value > 0 else '-1e999'  # gin reads no `inf`, but this overflows to it
    if value is None or kind in (bool, int, str, bytes) or (kind is float and value == value):
        return repr(value)
    raise ValueError(f'gin cannot say {value!r} ({kind.__name__})')


def statement(left: str, value: Any) -> str:
    """`left = value` as gin text, laid out over several lines where it is long."""
    line = f'{left} = {literal(value)}'
    if len(line) <= WIDTH:
        return line
    if type(value) in (tuple, list):
        opening, closing = '()' if type(value) is tuple else '[]'
        lines = ['']
        for item in map(literal, value):
            if lines[-1] and len(lines[-1]) + len(item) > WIDTH:
                lines.append('')
            lines[-1] += ('' if lines[-1] else '   ') + f' {item},'
        return '\n'.join([f'{left} = {opening}', *lines, closing])
    if type(value) is str:
        pieces = [row[at : at + 100] for row in value.splitlines(True) for at in range(0, len(row), 100)]
        return f'{left} = (\n' + '\n'.join(f'    {piece!r}' for piece in pieces) + '\n)'
    return line
