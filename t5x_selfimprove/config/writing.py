"""The complete configuration as gin text, written from the built values; and how two such texts differ."""

import dataclasses
from typing import Any

from t5x_selfimprove.config.checking import Parts
from t5x_selfimprove.config.reading import read_text
from t5x_selfimprove.config.statements import Binding, ConfigError, Problem, Reference, literal, statement, title

Path = tuple[str, ...]  # the fields from the root to a part, numbered inside tuples


def effective(root: str, value: Any, table: Parts) -> str:
    """Gin text with every field of every part, that builds a value equal to `value`.

    A class with one value in the whole tree needs no scope. Where there are several, each has a scope named after
    the place where it is first used.

    Raises:
      ConfigError: a value that gin cannot say, with the way to it.
    """
    names = {part: name for name, part in reversed(table.items())}
    found: dict[str, list[tuple[Path, Any]]] = {}  # the distinct values of each class, at their first place
    order: list[tuple[str, Any]] = []

    def walk(path: Path, held: Any) -> None:
        if isinstance(held, tuple | list):
            for number, item in enumerate(held, start=1):
                walk((*path[:-1], f'{path[-1]}_{number}'), item)
        elif isinstance(held, dict):
            for item in held.values():
                walk(path, item)
        elif dataclasses.is_dataclass(held) and not isinstance(held, type):
            if type(held) not in names:
                what = f'{".".join((root, *path))} holds a {type(held).__name__}, which gin cannot name'
                raise ConfigError([Problem(what, help='add the class to TABLE in config/table.py')])
            same = found.setdefault(names[type(held)], [])
            if not any(held == known for _, known in same):
                same.append((path, held))
                order.append((names[type(held)], held))
                for field in dataclasses.fields(held):
                    if field.init:
                        walk((*path, field.name), getattr(held, field.name))

    walk((), value)
    scopes = {name: _scopes([path for path, _ in same]) for name, same in found.items()}

    def reference(held: Any) -> Reference:
        name = names[type(held)]
        at = next(at for at, (_, known) in enumerate(found[name]) if known == held)
        return Reference(scopes[name][at], name)

    blocks = [f'# Every setting of {root}, written by the run; it can be passed to --gin_file.']
    for name, held in order:
        here = reference(held)
        lines = []
        for field in dataclasses.fields(held):
            if field.init:
                left = title(here.scope, name, field.name)
                try:
                    lines.append(statement(left, _replaced(getattr(held, field.name), reference)))
                except ValueError as error:
                    raise ConfigError(
                        [Problem(f'{left}: {error}', help='a part holds numbers, text and parts')]
                    ) from None
        blocks.append('\n'.join(lines))
    return '\n\n'.join(filter(None, blocks)) + '\n'


def _replaced(held: Any, reference: Any) -> Any:
    """The value with parts replaced by references to them."""
    if type(held) in (tuple, list):
        return type(held)(_replaced(item, reference) for item in held)
    if type(held) is dict:
        return {key: _replaced(item, reference) for key, item in held.items()}
    return reference(held) if dataclasses.is_dataclass(held) and not isinstance(held, type) else held


def _scopes(paths: list[Path]) -> list[str]:
    """A name for each of several values of one class: the shortest end of its path that is its own."""
    if len(paths) == 1:
        return ['']
    names = []
    for path in paths:
        ends = ['_'.join(path[-length:]) for length in range(1, len(path) + 1)]
        taken = [
            '_'.join(other[-length:]) for other in paths if other is not path for length in range(1, len(other) + 1)
        ]
        name = next((end for end in ends if end not in taken), '_'.join(path))
        names.append(name + '_' * names.count(name))
    return names


def differences(before: str, after: str) -> list[str]:
    """How two configurations differ, a line each, to show where a run is resumed under another recipe.

    Args:
      before, after: two effective texts.

    Returns:
      Lines such as 'learning.AdamW.peak: 0.001 before, 0.002 now'; empty where they say the same.

    Raises:
      ConfigError: one of them does not parse.
    """
    old, new = _bound('before', before), _bound('after', after)
    lines = []
    for key in dict.fromkeys([*new, *old]):
        if key not in old:
            lines.append(f'{key}: {_short(new[key])}, not there before')
        elif key not in new:
            lines.append(f'{key}: {_short(old[key])} before, not there now')
        elif old[key] != new[key]:
            lines.append(f'{key}: ' + '{} before, {} now'.format(*_short_pair(old[key], new[key])))
    return lines


def _bound(name: str, text: str) -> dict[str, str]:
    statements, errors = read_text(name, text)
    if errors:
        raise ConfigError(errors)
    return {said.title: literal(said.value) for said in statements if isinstance(said, Binding)}


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + '...'


def _short_pair(old: str, new: str) -> tuple[str, str]:
    """Both cut to where they differ."""
    if max(len(old), len(new)) <= 80:
        return old, new
    same = next((at for at, (one, other) in enumerate(zip(old, new, strict=False)) if one != other), 0)
    same = max(0, same - 20)
    return tuple(('...' if same else '') + _short(text[same:]) for text in (old, new))
