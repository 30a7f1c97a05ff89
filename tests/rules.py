"""The rules of the house: floors, exclusive rights, sizes, names, docstrings.

A rule is a function from one file's path and text to what it finds there. `test_house.py` holds the files of the
project against them, and shows each of them red.
"""

import ast
import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterator

PACKAGE = 't5x_selfimprove'

# A part is a file or a folder of the package; it imports parts of lower floors, itself, and, but for floor 2, its own
# floor. Parts on floor 2 meet in `records` only.
FLOORS = {
    0: ('records', 'vocabulary', 'files', 'ragged', 'stopping'),
    1: ('partitioning', 'metrics', 'models', 'processes', 'estimators'),
    2: ('templates', 'sampling', 'consolidation', 'learning', 'tally'),
    3: ('formats', 'improve', 'evaluate', 'harness'),
    4: ('data', 'checkpoints'),
    5: (
        'train',
        'pretrain',
        'precompile',
        'placement',
        'profiling',
        'make_vocabulary',
        'ask',
        'export',
        'session',
        'shares',
        'feed',
        'guards',
        'suite',
        'summary',
        'samples',
        'generate',
        'display',
        'report',
    ),
    6: ('config', 'main', '__main__', 'sweep'),
}
SEPARATE_FLOOR = 2
CORE_FLOORS = (0, 1, 2, 3)

# What only shows a person something is no business of the compute core.
NOT_IN_CORE = ('matplotlib', 'rich')

# Packages that one part alone may import, and whether only inside functions (so that the part imports without them).
RIGHTS = {
    'flax': ('models', False),
    'optax': ('learning', False),
    'orbax': ('checkpoints', False),
    'gin': ('config', False),
    'seqio': ('data', True),
    'tensorflow': ('data', True),
    'tensorflow_datasets': ('data', True),
    'safetensors': ('models', True),
    'sentencepiece': ('vocabulary', True),
    'tokenizers': ('vocabulary', True),
    'jinja2': ('templates', True),
    'math_verify': ('consolidation', True),
    'tensorboardX': ('metrics', True),
}

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
LONGEST_FUNCTION = 60
LONGEST_FILE = 400

FORBIDDEN_TRANSFORMS = frozenset(
    'jit scan grad value_and_grad vjp jvp custom_vjp remat checkpoint while_loop fori_loop cond switch pmap'.split()
)


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something a rule forbids."""

    place: str  # path:name, stable when lines move
    line: int
    what: str

    def __str__(self) -> str:
        return f'{self.place} (line {self.line}): {self.what}'


@dataclasses.dataclass(frozen=True)
class Import:
    """One imported module, and where it was imported."""

    module: str
    line: int
    in_function: bool
    alias: str | None


def imports(path: str, source: str) -> Iterator[Import]:
    """Every import of a file, `from a import b` as a.b, wherever in the file it stands."""

    def walk(node: ast.AST, in_function: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inside = in_function or isinstance(child, (*FUNCTIONS, ast.Lambda))
            if isinstance(child, ast.Import):
                for name in child.names:
                    yield Import(name.name, child.lineno, in_function, name.asname)
            elif isinstance(child, ast.ImportFrom):
                for name in child.names:
                    start = '.' * child.level + (child.module or '')
                    yield Import(f'{start}.{name.name}', child.lineno, in_function, name.asname)
            yield from walk(child, inside)

    return walk(ast.parse(source, path), False)


def part_of(path: str) -> str:
    """The part a file of the package belongs to: records.py -> records, models/layers.py -> models."""
    return pathlib.PurePath(path).parts[1].removesuffix('.py')


def floor_of(part: str) -> int | None:
    return next((floor for floor, parts in FLOORS.items() if part in parts), None)


def floors(path: str, source: str) -> Iterator[Finding]:
    """Imports go down, or stay in the part; parts on the separate floor do not import each other."""
    here = part_of(path)
    floor = floor_of(here)
    if floor is None and here != '__init__':
        yield Finding(path, 1, f'{here} stands on no floor; give it one in FLOORS')
        return
    for one in imports(path, source):
        names = one.module.split('.')
        if floor in CORE_FLOORS and names[0] in NOT_IN_CORE:
            yield Finding(path, one.line, f'imports {names[0]}, which the compute core does without')
        if one.module.startswith('.'):
            yield Finding(path, one.line, f'relative import {one.module}; write the whole name')
        if names[0] != PACKAGE or len(names) < 2 or names[1] in (here, '__version__'):
            continue
        there = floor_of(names[1])
        if there is None:
            yield Finding(path, one.line, f'imports {one.module}, which stands on no floor; give it one in FLOORS')
        elif floor is None or there > floor:
            yield Finding(path, one.line, f'floor {floor} imports {one.module} of floor {there}')
        elif there == floor == SEPARATE_FLOOR:
            yield Finding(path, one.line, f'{here} imports {one.module}; parts on floor {floor} meet in records only')


def rights(path: str, source: str) -> Iterator[Finding]:
    """Packages with an owner are imported by their owner alone, some of them only inside functions."""
    for one in imports(path, source):
        owner, only_inside = RIGHTS.get(one.module.split('.')[0], (None, False))
        if owner is None:
            continue
        if part_of(path) != owner:
            yield Finding(path, one.line, f'imports {one.module}, which only {owner} may')
        elif only_inside and not one.in_function:
            yield Finding(path, one.line, f'imports {one.module} outside a function; {owner} must import without it')


def sizes(path: str, source: str) -> Iterator[Finding]:
    """A function fits a screen, a file a few."""
    lines = len(source.splitlines())
    if lines > LONGEST_FILE:
        yield Finding(path, LONGEST_FILE, f'{lines} lines; the ceiling is {LONGEST_FILE}')
    for node in ast.walk(ast.parse(source, path)):
        if isinstance(node, FUNCTIONS):
            lines = node.end_lineno - node.lineno + 1
            if lines > LONGEST_FUNCTION:
                yield Finding(f'{path}:{node.name}', node.lineno, f'{lines} lines; the ceiling is {LONGEST_FUNCTION}')


def names(path: str, source: str) -> Iterator[Finding]:
    """No drawers for odds and ends, no aliases that only dodge a clash of names."""
    for name in pathlib.PurePath(path).with_suffix('').parts:
        if re.fullmatch(r'(utils?|helpers?|misc|common)(_\w+)?|\w+_(utils?|helpers?|lib)', name):
            yield Finding(path, 1, f'the name {name!r} does not say what is in it')
    for one in imports(path, source):
        if one.alias and one.alias.endswith('_lib'):
            yield Finding(path, one.line, f'alias {one.alias}; choose a name that says what it is')


def no_defaulted_getattr(path: str, source: str) -> Iterator[Finding]:
    """getattr(thing, name, default) hides a missing field; a missing field is an error."""
    for name, node in pieces(ast.parse(source, path)):
        for call in ast.walk(node):
            named = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == 'getattr'
            if named and len(call.args) == 3:
                yield Finding(f'{path}:{name}', call.lineno, f'{ast.unparse(call)}: getattr with a default')


def pieces(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """The functions, methods and other statements of a file, each with its name ('' where it has none)."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield from ((f'{node.name}.{name}' if name else node.name, piece) for name, piece in pieces(node))
        else:
            yield (node.name if isinstance(node, FUNCTIONS) else ''), node


def only_jax_transforms(path: str, source: str) -> Iterator[Finding]:
    """Modules are pytrees; jax.jit, jax.grad, jax.lax.scan serve them. Of nnx's own only vmap, to create layers."""
    for node in ast.walk(ast.parse(source, path)):
        if isinstance(node, ast.Attribute) and node.attr in FORBIDDEN_TRANSFORMS:
            if ast.unparse(node.value) in ('nnx', 'flax.nnx'):
                yield Finding(path, node.lineno, f'nnx.{node.attr}; use the one of jax')
        elif isinstance(node, ast.ImportFrom) and node.module == 'flax.nnx':
            for name in node.names:
                if name.name in FORBIDDEN_TRANSFORMS:
                    yield Finding(path, node.lineno, f'from flax.nnx import {name.name}; use the one of jax')


def docstrings(path: str, source: str) -> Iterator[Finding]:
    """Every module, public class, function and method says what it is, `__call__` too.

    A method of one statement may leave that to its name and its class.
    """
    tree = ast.parse(source, path)
    yield from module_docstring(path, source)

    def walk(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[Finding]:
        for child in node.body:
            if not isinstance(child, (*FUNCTIONS, ast.ClassDef)) or (child.name[0] == '_' and child.name != '__call__'):
                continue
            short = isinstance(node, ast.ClassDef) and isinstance(child, FUNCTIONS) and len(child.body) == 1
            if not short and not ast.get_docstring(child):
                yield Finding(f'{path}:{prefix}{child.name}', child.lineno, 'no docstring')
            if isinstance(child, ast.ClassDef):
                yield from walk(child, f'{child.name}.')

    yield from walk(tree, '')


def module_docstring(path: str, source: str) -> Iterator[Finding]:
    """Tests say at the top what they are about; their names say the rest."""
    if not ast.get_docstring(ast.parse(source, path)):
        yield Finding(path, 1, 'the module has no docstring')


# Spelled with brackets so that this file does not break its own rules.
UNFINISHED = re.compile(r'\b(TO[D]O|FIX[M]E|XX[X]|HAC[K])\b|\b[Ff]or no[w]\b')
MACHINE = re.compile(
    r'(?<![\w.~}])/(roo[t]|hom[e]|User[s]|wor[k])/\w'  # somebody's folders
    r'|\b(?!127\.0\.0\.1\b|0\.0\.0\.0\b)\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}\b(?!\.)'  # an address
    r'|\.(internal|corp|intranet)\b'  # a private host
    r'|--(extra-)?index-ur[l]\b'  # somebody's package index
)


def finished(path: str, source: str) -> Iterator[Finding]:
    """What is in the tree is done; what is not is an issue."""
    for number, line in enumerate(source.splitlines(), 1):
        found = UNFINISHED.search(line)
        if found:
            yield Finding(path, number, f'{found.group()!r}: {line.strip()[:80]}')


def machine_independent(path: str, source: str) -> Iterator[Finding]:
    """No folder or host of the machine it was written on."""
    for number, line in enumerate(source.splitlines(), 1):
        found = MACHINE.search(line)
        if found:
            yield Finding(path, number, f'{found.group()!r}: {line.strip()[:80]}')


Rule = Callable[[str, str], Iterator[Finding]]
PACKAGE_RULES: tuple[Rule, ...] = (floors, rights, names, no_defaulted_getattr, only_jax_transforms, docstrings)
PYTHON_RULES: tuple[Rule, ...] = (sizes, module_docstring)
TEXT_RULES: tuple[Rule, ...] = (finished, machine_independent)
