"""From gin files and command-line bindings to one frozen value, or to all that is wrong with them."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from t5x_selfimprove.config import checking, engine
from t5x_selfimprove.config.checking import Parts
from t5x_selfimprove.config.linking import Link, Links, Trace, unread
from t5x_selfimprove.config.reading import Reader
from t5x_selfimprove.config.statements import (
    BROKEN,
    COMMAND_LINE,
    REQUIRED,
    ConfigError,
    Problem,
    did_you_mean,
    nodes,
    statement,
    title,
)
from t5x_selfimprove.config.table import ROOTS, TABLE
from t5x_selfimprove.config.writing import effective

_broken = object()  # what is built in place of BROKEN, and of every part that holds it


@dataclasses.dataclass(frozen=True)
class Built:
    """A configuration, built."""

    value: Any  # the root part
    text: str  # every field of every part, defaults too, as gin text that builds an equal value
    said: str  # only what was bound and read, with its places, as gin text that builds an equal value
    set_aside: tuple[str, ...]  # bindings of parts that were replaced later or that another command builds


def build(root: str, files: Sequence[str], bindings: Sequence[str] = (), table: Parts = TABLE) -> Built:
    """Builds a root part.

    Args:
      root: its name in the table, as 'train.Improve'.
      files: gin files, read in order; found from the working directory, the repository or the installed package.
      bindings: 'NAME=value' and 'part.Class.field=value', read after the files; plain words need no quotes.
      table: name -> frozen dataclass (or a function that makes one), all parts there are.

    Raises:
      ConfigError: with everything that is wrong.
    """
    if root not in table:
        raise ConfigError([Problem(f'there is no part {root} to build', help=did_you_mean(root, table))])
    reader = Reader()
    for file in files:
        reader.file(file)
    for binding in bindings:
        reader.flag(binding)
    fields = {name: tuple(checking.annotations(part)) for name, part in table.items()}
    links = Links(reader.bindings, fields, reader.incomplete)
    trace = links.trace([('', root)])
    mistakes, aside = unread(links, trace, [name for name in ROOTS.values() if name != root])
    problems = [*reader.problems, *links.problems, *_required(links, trace)]
    problems += [] if reader.incomplete else mistakes
    value = _broken
    if trace.circle:
        problems.append(trace.circle)
    else:
        parts = _Parts(table, links, trace, reader.incomplete)
        value = engine.evaluate(root, _text(links, trace), [*table, BROKEN.name], parts)
        problems += parts.problems
    if problems:
        read = [COMMAND_LINE, *reader.files]
        raise ConfigError(sorted(problems, key=lambda problem: _order(problem, read)))
    said = [links.links[key].binding for key in sorted(trace.read, key=lambda key: bool(key[2]))]
    return Built(
        value=value,
        text=effective(root, value, table),
        said=f'# {root}\n' + ''.join(f'{statement(each.title, each.value)}  # {each.place}\n' for each in said),
        set_aside=tuple(f'{each.place}: {each.place.text}' for each in aside),
    )


def _order(problem: Problem, files: Sequence[str]) -> tuple[int, int]:
    """The command line first, then by file and line; what has no place last."""
    place = problem.place
    if place is None or place.file not in files:
        return len(files), place.line if place else 0
    return files.index(place.file), place.line


def _text(links: Links, trace: Trace) -> str:
    """The bindings that are read, with macros put in place: what gin gets to see."""
    read = [links.links[key] for key in trace.read if key[2]]
    return '\n'.join(statement(link.binding.title, link.value) for link in read)


def _required(links: Links, trace: Trace) -> list[Problem]:
    """Every `%gin.REQUIRED` that is read and that nobody replaced."""
    problems = []
    for key in trace.read:
        said = links.links[key].binding
        if any(node == REQUIRED for node in nodes(said.value)):
            what = f'{said.title} must be bound' + (f': {said.place.comment}' if said.place.comment else '')
            problems.append(Problem(what, said.place, f'in a file {said.title} = ..., or --gin.{said.title}=...'))
    return problems


class _Parts:
    """Makes each part for gin, checks it, and gathers what is wrong instead of stopping at the first error."""

    def __init__(self, table: Parts, links: Links, trace: Trace, incomplete: bool):
        self.problems: list[Problem] = []
        self._table, self._links, self._trace, self._incomplete = table, links, trace, incomplete

    def __call__(self, scope: str, name: str, values: dict[str, Any]) -> Any:
        if name == BROKEN.name:
            return _broken
        part = self._table[name]
        before = len(self.problems)
        whole = not any(_holds_broken(value) for value in values.values())
        fitted = {}
        for field, value in values.items():
            if not _holds_broken(value):
                try:
                    fitted[field] = checking.fit(value, checking.annotations(part)[field], self._table)
                except checking.Mismatch as mismatch:
                    self._mismatch(scope, name, field, value, mismatch)
        for field in checking.required(part):
            if field not in values:
                whole = False
                self._missing(scope, name, field)
        if not whole or len(self.problems) > before:
            return _broken
        try:
            return part(**fitted)
        except Exception as error:  # a part may refuse its values in any way it likes
            self._refused(scope, name, values, error)
            return _broken

    def _mismatch(self, scope: str, name: str, field: str, value: Any, mismatch: checking.Mismatch) -> None:
        link = self._links.find(scope, name, field)
        what = f'{link.binding.title} wants {mismatch.wanted}, not {checking.show(value, self._table)}'
        self.problems.append(Problem(what, link.source.place, _lines(mismatch.hint, _through(link))))

    def _missing(self, scope: str, name: str, field: str) -> None:
        full = title(scope, name, field)
        if self._incomplete or {full, title('', name, field)} & self._links.suspects:
            return
        words = checking.explanation(self._table[name], field)
        kind = checking.describe(checking.annotations(self._table[name])[field], self._table)
        by = self._trace.reached.get((scope, name))
        help = f'bind it: {full} = ...' if by else f'bind it: {full} = ..., or --gin.{full}=...'
        what = f'{full} ({kind}) must be bound' + (f': {words}' if words else '')
        self.problems.append(Problem(what, by.place if by else None, help))

    def _refused(self, scope: str, name: str, values: Mapping[str, Any], error: Exception) -> None:
        """Points at the bindings that the message speaks of; else at all of a few, or at who asks for the part."""
        said = set(re.findall(r'\w+', str(error)))
        own = [self._links.find(scope, name, field) for field in values]
        links = [link for link in own if link.binding.field in said]
        inner = [self._links.links[key] for key in self._trace.read if '_' in key[2] and key[2] in said]
        links += [link for link in inner if link not in links]
        links = links or (own if len(own) <= 3 else [])
        by = self._trace.reached.get((scope, name))
        kind = '' if isinstance(error, ValueError | TypeError) else f' ({type(error).__name__})'
        what = f'{name} refuses its values: {error}{kind}'
        place = links[0].source.place if links else by.place if by else None
        rest = [f'see also {link.source.place}: {link.source.place.text}' for link in links[1:]]
        self.problems.append(Problem(what, place, _lines(_through(links[0]) if links else '', *rest)))


def _through(link: Link) -> str:
    """Who read a macro, where the value stands in one."""
    return '' if link.source is link.binding else f'read at {link.binding.place}: {link.binding.place.text}'


def _lines(*lines: str) -> str:
    return '\n'.join(filter(None, lines))


def _holds_broken(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_broken, [*value, *value.values()]))
    return value is _broken or (isinstance(value, tuple | list) and any(map(_holds_broken, value)))
