"""What the bindings mean together: names checked, macros put in place, and who reads what.

Scopes are gin's: `scope/part.field` holds for a part built by `@scope/part()` and, where they name no scope of their
own, for the parts inside it. A macro stands for its value, wherever it is read, and changes no scope.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from t5x_selfimprove.config.statements import (
    BROKEN,
    REQUIRED,
    Binding,
    Macro,
    Problem,
    Reference,
    did_you_mean,
    nearest,
    nodes,
    title,
)

Key = tuple[str, str, str]  # scope, part, field
Node = tuple[str, str]  # scope, part


@dataclasses.dataclass(frozen=True)
class Link:
    """A binding with its macros put in place."""

    binding: Binding
    value: Any  # only literals and references to known parts
    macros: tuple[Binding, ...]  # those read on the way

    @property
    def source(self) -> Binding:
        """The binding where the value itself is written: a macro's, where the field is nothing but a macro."""
        said = self.binding
        named = {macro.name: macro for macro in self.macros}
        while isinstance(said.value, Macro) and said.value.name in named:
            said = named[said.value.name]
        return said


class Links:
    """The bindings in force, checked and linked. `problems` gathers what is wrong with them.

    Args:
      bindings: in the order of reading; later ones win.
      fields: the field names of every part.
      incomplete: something could not be read, so an unknown macro is no news.
    """

    def __init__(self, bindings: Iterable[Binding], fields: Mapping[str, tuple[str, ...]], incomplete: bool):
        self.fields = fields
        self.problems: list[Problem] = []
        self.suspects: set[str] = set()  # names probably meant by names that are unknown; not to complain about again
        self.macros: dict[str, Binding] = {}
        self.overridden: list[Binding] = []
        self._incomplete = incomplete
        live: dict[Key, Binding] = {}
        for said in filter(self._well_named, bindings):
            if said.key in live:
                self.overridden.append(live.pop(said.key))
            live[said.key] = said
        self.macros = {said.name: said for said in live.values() if not said.field}
        self.links = {key: self.link(said) for key, said in live.items()}

    def _well_named(self, said: Binding) -> bool:
        """Checks the left side of a binding."""
        name, field = said.name, said.field
        what, help = '', ''
        if '/' in said.scope:
            what, help = f'scopes are not nested: {said.scope}/', 'give the part one scope of its own'
        elif not field and said.scope:
            what, help = f'a macro has no scope: {said.title}', 'give it a name of its own'
        elif not field and not re.fullmatch(r'[A-Z][A-Z0-9_]*', name):
            what = f'{name} is neither a macro (UPPER_CASE) nor a field of a part (part.Class.field)'
            help = did_you_mean(name, self.fields, f'for a macro write {name.upper()}')
        elif f'{name}.{field}' in self.fields:
            what = f'{name}.{field} is a part, and only fields can be bound'
            help = 'its fields: ' + ', '.join(self.fields[f'{name}.{field}'])
        elif field and name not in self.fields:
            self._suspect(nearest(name, self.fields))
            what, help = f'there is no part {name}', did_you_mean(name, self.fields)
        elif field and field not in self.fields[name]:
            near = nearest(field, self.fields[name])
            self._suspect(title(said.scope, name, near) if near else None)
            what = f'{name} has no field {field}'
            help = f'did you mean {name}.{near}?' if near else 'its fields: ' + ', '.join(self.fields[name])
        if what:
            self.problems.append(Problem(what, said.place, help))
        return not what

    def link(self, said: Binding) -> Link:
        """Puts macros in place and checks every name on the right side."""
        read: list[Binding] = []

        def put(value: Any, at: Binding, inside: tuple[str, ...]) -> Any:
            if isinstance(value, Reference):
                return self._reference(value, at)
            if isinstance(value, Macro):
                macro = self.macros.get(value.name)
                if macro is None or value.name in inside:
                    self._bad_macro(value, at, inside)
                    return BROKEN
                read.append(macro)
                return put(macro.value, macro, (*inside, value.name))
            if isinstance(value, dict):
                return {put(key, at, inside): put(item, at, inside) for key, item in value.items()}
            if isinstance(value, tuple | list):
                return type(value)(put(item, at, inside) for item in value)
            return value

        value = put(said.value, said, (said.name,) if not said.field else ())
        return Link(said, value, tuple(read))

    def _reference(self, value: Reference, at: Binding) -> Reference:
        """The reference itself; after a complaint, the one that was probably meant."""
        if value == BROKEN:
            return BROKEN
        what, help, meant = '', '', Reference(value.scope.rpartition('/')[2], value.name)
        if value.name not in self.fields:
            self._suspect(nearest(value.name, self.fields))
            help = did_you_mean(value.name, self.fields, 'the parts are listed in config/table.py')
            what, meant = f'there is no part {value.name}', BROKEN
        elif '/' in value.scope:
            what, help = f'scopes are not nested: {value.scope}/', 'give the part one scope of its own'
        elif not value.called:
            what = f'@{value.name} names a part and does not build it'
            help = f'write @{title(value.scope, value.name, "")}()'
        if what:
            self.problems.append(Problem(what, at.place, help))
        return meant

    def _bad_macro(self, value: Macro, at: Binding, inside: tuple[str, ...]) -> None:
        if value == REQUIRED:
            return  # a matter for whoever reads it
        if value.name in inside:
            ring = inside[inside.index(value.name) :]
            first = ring.index(min(ring))  # the same circle is met from each of its macros: say it once
            ring = (*ring[first:], *ring[: first + 1])
            what = 'a macro stands for itself: ' + ' -> '.join(f'%{name}' for name in ring)
            self.problems.append(Problem(what, self.macros[ring[0]].place, 'bind one of them to a value'))
        elif not self._incomplete:
            self._suspect(nearest(value.name, self.macros))
            help = did_you_mean('%' + value.name, ['%' + name for name in self.macros])
            help = help or f'bind it: {value.name} = ..., or --gin.{value.name}=...'
            self.problems.append(Problem(f'nothing binds the macro %{value.name}', at.place, help))

    def _suspect(self, name: str | None) -> None:
        if name:
            self.suspects.add(name)

    def find(self, scope: str, name: str, field: str) -> Link | None:
        """The binding that a part built in that scope takes its field from."""
        return self.links.get((scope, name, field)) or self.links.get(('', name, field))

    def trace(self, starts: Iterable[Node]) -> 'Trace':
        """Follows references from the start nodes through all that they read."""
        trace = Trace({}, {})

        def visit(node: Node, by: Binding | None, path: tuple[Node, ...]) -> None:
            scope, name = node
            if node in path:
                ring = ' -> '.join(title(*each, '') for each in (*path[path.index(node) :], node))
                trace.circle = trace.circle or Problem(f'a part contains itself: {ring}', by.place, 'give one a scope')
                return
            if node in trace.reached or name not in self.fields:
                return
            trace.reached[node] = by
            for field in self.fields[name]:
                if link := self.find(scope, name, field):
                    trace.read[link.binding.key] = None
                    trace.read.update(dict.fromkeys(macro.key for macro in link.macros))
                    for child in nodes(link.value):
                        visit((child.scope or scope, child.name), link.binding, (*path, node))

        for start in starts:
            visit(start, None, ())
        return trace


@dataclasses.dataclass
class Trace:
    """What is built and read from some start."""

    reached: dict[Node, Binding | None]  # each part, with the binding that asks for it
    read: dict[Key, None]  # bindings and macros, in order of reading
    circle: Problem | None = None  # a part that contains itself


def unread(links: Links, trace: Trace, other_roots: Iterable[str]) -> tuple[list[Problem], list[Binding]]:
    """Sorts what nobody read into mistakes and into what was set aside.

    Set aside are bindings of parts that another command builds, and of parts that were chosen first and replaced later
    (`--gin.OPTIMIZER=@learning.Adafactor()` over a file that chose and set up AdamW).
    """
    scopes = {'', *(node.scope for link in links.links.values() for node in nodes(link.value))}
    starts = [('', root) for root in other_roots]
    aside: set[Key] = set()
    for said in links.overridden:
        link = links.link(said)
        aside.update(macro.key for macro in link.macros)
        for scope in [said.scope] if said.field else sorted(scopes):
            starts.extend((node.scope or scope, node.name) for node in nodes(link.value))
    aside.update(links.trace(starts).read)
    doubtful = [(scope, name) for scope in scopes for name in links.suspects]
    silent = set(links.trace(doubtful).read)
    mistakes, replaced = [], []
    for key, link in links.links.items():
        if key in trace.read or key in silent or key[1] in links.suspects or link.binding.title in links.suspects:
            continue
        if key in aside:
            replaced.append(link.binding)
        else:
            mistakes.append(_nobody_reads(link.binding, links, trace))
    return mistakes, replaced


def _nobody_reads(said: Binding, links: Links, trace: Trace) -> Problem:
    """Why a binding is read by nobody, and what was probably meant."""
    if not said.field:
        wanted = {
            node.name for link in links.links.values() for node in nodes(link.binding.value) if type(node) is Macro
        }
        help = did_you_mean(said.name, wanted - {said.name, REQUIRED.name}, 'take it out, or read it somewhere')
        return Problem(f'nothing reads the macro {said.name}', said.place, help)
    built = sorted({scope for scope, name in trace.reached if name == said.name})
    if not built:
        kind = said.name.split('.')[0]
        others = sorted({name for _, name in trace.reached if name.split('.')[0] == kind})
        help = f'this run builds {", ".join(others)}' if others else f'bind a field to @{said.name}() to use one'
        return Problem(f'{said.title} is read by nobody: no {said.name} is built', said.place, help)
    if said.scope not in built and said.scope:
        places = ' and '.join(f'under {scope}/' if scope else 'without a scope' for scope in built)
        what = f'{said.title} is read by nobody: no {said.name} is built under {said.scope}/'
        near = nearest(said.scope, filter(None, built))
        help = f'did you mean {title(near, said.name, said.field)}?' if near else f'it is built {places}'
        return Problem(what, said.place, help)
    own = ', '.join(title(scope, said.name, said.field) for scope in built)
    return Problem(f'{said.title} is read by nobody', said.place, f'every {said.name} has a value of its own: {own}')
