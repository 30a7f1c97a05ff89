"""Does a value fit the annotation of the field it is bound to?"""

import ast
import collections.abc
import dataclasses
import functools
import inspect
import re
import textwrap
import tokenize
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from t5x_selfimprove.config.statements import nearest


class Mismatch(Exception):
    """A value that does not fit. `wanted` says what would, `hint` how to write it."""

    def __init__(self, wanted: str, hint: str = ''):
        super().__init__(wanted)
        self.wanted, self.hint = wanted, hint


Part = Callable[..., Any]  # a frozen dataclass, or a function with annotations that returns one
Parts = Mapping[str, Part]


@functools.cache
def annotations(part: Part) -> dict[str, Any]:
    """The resolved annotations of the fields that a part takes, in order."""
    hints = typing.get_type_hints(part)
    if inspect.isfunction(part):
        return {name: hints[name] for name in inspect.signature(part).parameters}
    return {field.name: hints[field.name] for field in dataclasses.fields(part) if field.init}


@functools.cache
def required(part: Part) -> tuple[str, ...]:
    """The fields that have no default."""
    nothing = inspect.Parameter.empty
    return tuple(name for name, one in inspect.signature(part).parameters.items() if one.default is nothing)


def made_by(part: Part) -> type:
    """The class of what a part builds: itself, or what a function returns (of several the first)."""
    made = typing.get_type_hints(part)['return'] if inspect.isfunction(part) else part
    return typing.get_args(made)[0] if isinstance(made, types.UnionType) else made


def fit(value: Any, kind: Any, parts: Parts) -> Any:
    """The value as the annotation wants it: an int becomes a float, a list a tuple, where that is asked for.

    Args:
      value: as gin built it.
      kind: a resolved annotation. Forms not known here are let through.
      parts: name -> class, to speak of classes by their names.

    Raises:
      Mismatch: it does not fit.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _fit_union(value, kind, parts)
    if origin is typing.Literal:
        if any(value == option and type(value) is type(option) for option in arguments):
            return value
        near = nearest(str(value), [str(option) for option in arguments])
        raise Mismatch(describe(kind, parts), f'did you mean {near!r}?' if near else '')
    if kind in (tuple, list, collections.abc.Sequence) or origin in (tuple, list, collections.abc.Sequence):
        return _fit_sequence(value, kind, parts)
    if kind is collections.abc.Callable or origin is collections.abc.Callable:
        kind = collections.abc.Callable
    elif origin is not None:
        kind = origin
    if kind is None or kind is types.NoneType:
        if value is None:
            return value
        raise Mismatch('None')
    if kind in (Any, object) or not isinstance(kind, type):
        return value
    if kind is float and type(value) is int:
        return float(value)
    if kind in (bool, int, float, str, bytes):
        if type(value) is kind:
            return value
        raise Mismatch(kind.__name__, _hint(value, kind))
    return _fit_part(value, kind, parts)


def _fit_union(value: Any, kind: Any, parts: Parts) -> Any:
    options = typing.get_args(kind)
    hints = []
    for option in sorted(options, key=lambda option: option is not type(value)):  # 1 for `float | int` stays 1
        try:
            return fit(value, option, parts)
        except Mismatch as mismatch:
            hints.append(mismatch.hint)
    raise Mismatch(describe(kind, parts), next(filter(None, hints), ''))


def _fit_sequence(value: Any, kind: Any, parts: Parts) -> Any:
    arguments = typing.get_args(kind)
    wanted = describe(kind, parts)
    made = list if list in (kind, typing.get_origin(kind)) else tuple
    one = arguments and (len(arguments) == 1 or arguments[-1] is ...)
    if type(value) not in (tuple, list):
        raise Mismatch(wanted, _sequence_hint(value, arguments[0] if one else Any, parts))
    if not arguments:
        return made(value)
    kinds = [arguments[0]] * len(value) if one else list(arguments)
    if len(kinds) != len(value):
        raise Mismatch(wanted, f'that is {len(kinds)} values, here are {len(value)}')
    fitted = []
    for number, (item, item_kind) in enumerate(zip(value, kinds, strict=True), start=1):
        try:
            fitted.append(fit(item, item_kind, parts))
        except Mismatch as mismatch:
            hint = f'value {number} is {show(item, parts)}' + (f'; {mismatch.hint}' if mismatch.hint else '')
            raise Mismatch(wanted, hint) from None
    return made(fitted)


def _fit_part(value: Any, kind: type, parts: Parts) -> Any:
    """Classes, Protocols and Callable. A Protocol is satisfied by any part that has its members."""
    if not _is(type(value), kind):
        able = [name for name, part in parts.items() if _is(made_by(part), kind)]
        if isinstance(value, str) and nearest(value.lstrip('@').rstrip('()'), able):
            hint = f'write @{nearest(value.lstrip("@").rstrip("()"), able)}() without quotes'
        else:
            hint = 'one of ' + ', '.join(f'@{name}()' for name in able[:6]) if able else ''
        raise Mismatch(describe(kind, parts), hint)
    return value


def _is(held: type, kind: type) -> bool:
    if Protocol in kind.__bases__:
        members = {name for base in kind.__mro__ for name in {**vars(base), **vars(base).get('__annotations__', {})}}
        members = {name for name in members if not name.startswith('_') or name == '__call__'}
        fields = {field.name for field in dataclasses.fields(held)} if dataclasses.is_dataclass(held) else set()
        return dataclasses.is_dataclass(held) and all(hasattr(held, name) or name in fields for name in members)
    return issubclass(held, kind)


def _hint(value: Any, kind: type) -> str:
    """How the value should have been written."""
    if kind is str and isinstance(value, bool | int | float):
        return f"for text write '{value}' in quotes"
    if kind is int and type(value) is float and value.is_integer():
        return f'write {int(value)}'
    if kind is bool and str(value).casefold() in ('true', 'yes', 'on', '1'):
        return 'write True'
    if kind is bool and str(value).casefold() in ('false', 'no', 'off', '0'):
        return 'write False'
    if kind in (int, float) and isinstance(value, str):
        try:
            kind(value)
        except ValueError:
            return ''
        return f'write {value} without quotes'
    return ''


def _sequence_hint(value: Any, kind: Any, parts: Parts) -> str:
    if isinstance(value, str) and ',' in value:
        pieces = [piece.strip() for piece in value.strip('()[]').split(',')]
        return f'write ({", ".join(map(repr, pieces) if kind is str else pieces)})'
    try:
        fit(value, kind, parts)
    except Mismatch:
        return ''
    return 'for just one, write (value,) with brackets and a comma'


def name_of(part: Part, parts: Parts) -> str:
    """The name of a class in the table, or its own."""
    return next((name for name, known in parts.items() if known is part), part.__name__)


def show(value: Any, parts: Parts) -> str:
    """A value for an error message: short, with its type where that could be in doubt."""
    if dataclasses.is_dataclass(value):
        return f'@{name_of(type(value), parts)}()'
    if value is None:
        return 'None'
    return f'{textwrap.shorten(repr(value), 80)} ({type(value).__name__})'


def describe(kind: Any, parts: Parts) -> str:
    """An annotation in words for an error message."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return ' | '.join(describe(option, parts) for option in arguments)
    if origin is typing.Literal:
        return ' or '.join(map(repr, arguments))
    if kind is types.NoneType:
        return 'None'
    if kind is ...:
        return '...'
    if origin is not None and arguments and origin is not collections.abc.Callable:
        return f'{origin.__name__}[{", ".join(describe(argument, parts) for argument in arguments)}]'
    return name_of(kind, parts) if isinstance(kind, type) else str(kind).replace('typing.', '')


def explanation(part: Part, field: str) -> str:
    """The first line that the source says about a field: a comment on it, a text under it, or its line in the
    docstring of the class. Empty where there is none."""
    if inspect.isfunction(part):
        return _in_docstring(part.__doc__ or '', field)
    for base in part.__mro__:
        if field in vars(base).get('__annotations__', {}):
            try:
                source = textwrap.dedent(inspect.getsource(base))
            except (OSError, TypeError):
                return ''
            return _beside(source, field) or _in_docstring(base.__doc__ or '', field)
    return ''


def _beside(source: str, field: str) -> str:
    body = ast.parse(source).body[0].body
    comments = {}
    for token in tokenize.generate_tokens(iter(source.splitlines(True)).__next__):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip('# ').strip()
    for at, node in enumerate(body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == field:
            after = body[at + 1] if at + 1 < len(body) else None
            if found := comments.get(node.end_lineno):
                return found
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                return str(after.value.value).strip().splitlines()[0]
    return ''


def _in_docstring(text: str, field: str) -> str:
    found = re.search(rf'^\s*(?:\w+, )*`?{field}`?(?:, \w+)*(?: \([^)]*\))?: (.+)$', text, re.MULTILINE)
    return found.group(1).strip() if found else ''
