"""From files and command-line bindings to one list of statements, each with its place."""

import dataclasses
import io
import itertools
import pathlib
import re
import tokenize
from collections.abc import Iterator

from t5x_selfimprove.config import engine
from t5x_selfimprove.config.statements import (
    BROKEN,
    COMMAND_LINE,
    Binding,
    Include,
    Macro,
    Place,
    Problem,
    Reference,
    nearest,
)

PACKAGE = pathlib.Path(__file__).resolve().parents[1]
_START = re.compile(r'^(include\b|[A-Za-z_][\w/.]*\s*[=:])')  # a line on which a statement begins
_KEY = re.compile(r'^[A-Za-z_]\w*([/.][A-Za-z_]\w*)*$')
_NODE = re.compile(r'([@%])((?:\w+/)*)(\w[\w.]*)')  # a reference or macro in text that does not parse


class Reader:
    """Reads files and bindings in order; what they say and what is wrong gather in `bindings` and `problems`.

    A file that is included twice is read once, the first time: a second reading would undo what was said in between.
    """

    def __init__(self) -> None:
        self.bindings: list[Binding] = []
        self.problems: list[Problem] = []
        self.files: list[str] = []  # as named, in the order of reading
        self.incomplete = False  # something could not be read, so "unknown" or "unread" may not be true
        self._read: set[pathlib.Path] = set()
        self._open: list[pathlib.Path] = []  # the file being read now and those that included it

    def file(self, name: str, chain: tuple[Include, ...] = ()) -> None:
        """Reads one file and what it includes. `chain` holds the includes that led here, outermost first."""
        path = find(name)
        place = chain[-1].place if chain else Place(COMMAND_LINE, 0, f'--gin_file={name}')
        if path is None:
            self._complain(_missing(name, chain, place))
        elif path in self._open:
            way = ' -> '.join(str(include.place) for include in chain)
            self._complain(Problem(f'{name} includes itself', place, f'by way of {way}'))
        elif path not in self._read:
            self.files.append(name)
            self._read.add(path)
            self._open.append(path)
            try:
                text = path.read_text(encoding='utf-8')
            except (OSError, UnicodeDecodeError) as error:
                self._complain(Problem(f'cannot read {name}: {error}', place))
            else:
                self._text(name, text, chain)
            self._open.pop()

    def flag(self, text: str) -> None:
        """Reads one binding `NAME=value` as it comes from a command line, where plain words need no quotes."""
        place = Place(COMMAND_LINE, 0, f'--gin.{text}')
        left, equals, right = (piece.strip() for piece in text.partition('='))
        if not equals or not _KEY.match(left):
            self._complain(Problem('not a binding', place, 'write --gin.NAME=value or --gin.part.Class.field=value'))
            return
        try:
            value = unquoted(right)
        except engine.GinSyntaxError as error:
            help = '' if right else f'for empty text write "--gin.{left}=\'\'"'
            self.problems.append(Problem(str(error) if right else f'{left} has no value', place, help))
            value = _salvaged(right)
        self.bindings.append(_binding(left, value, place))

    def _complain(self, problem: Problem) -> None:
        self.problems.append(problem)
        self.incomplete = True

    def _text(self, name: str, text: str, chain: tuple[Include, ...]) -> None:
        statements, errors = read_text(name, text)
        self.problems.extend(errors)
        self.incomplete |= any(isinstance(said, Broken) for said in statements)
        seen: dict[tuple[str, str, str], Place] = {}
        for said in statements:
            if isinstance(said, Broken):
                continue
            if isinstance(said, Include):
                if seen:
                    what = 'an include stands after a binding, and would undo it without a word'
                    self.problems.append(Problem(what, said.place, 'move every include above the first binding'))
                self.file(said.file, (*chain, said))
                continue
            if said.key in seen:
                what = f'{said.title} is bound twice in this file'
                self.problems.append(Problem(what, said.place, f'first at {seen[said.key]}: keep one of them'))
            seen.setdefault(said.key, said.place)
            self.bindings.append(said)


@dataclasses.dataclass(frozen=True)
class Broken:
    """A statement of which not even the left side could be read."""


def read_text(name: str, text: str) -> tuple[list[Binding | Include | Broken], list[Problem]]:
    """The statements of one text and its syntax errors; after an error, reading goes on at the next statement."""
    lines = text.splitlines()
    comments = _comments(text)

    def place(line: int) -> Place:
        return Place(name, line, lines[line - 1].strip() if line <= len(lines) else '', comments.get(line, ''))

    statements: list[Binding | Include | Broken] = []
    errors: list[Problem] = []
    begin = 0  # lines before this one are done with
    while True:
        found, error = engine.parse('\n' * begin + '\n'.join(lines[begin:]) + '\n', place)
        statements.extend(found)
        if error is None:
            return statements, errors
        begin = max([begin, *(said.place.line for said in found)])
        starts = [at for at, line in enumerate(lines) if at >= begin and _START.match(line)]
        line, what = _unclosed(lines, starts, error) or (error.line, str(error))
        errors.append(Problem(what, place(line)))
        begin = min((at for at in starts if at >= line), default=len(lines))
        start = max((at for at in starts if at < line), default=line - 1)
        left, equals, right = (piece.strip() for piece in '\n'.join(lines[start:begin]).partition('='))
        readable = equals and _KEY.match(left)
        statements.append(_binding(left, _salvaged(right), place(start + 1)) if readable else Broken())
        if begin == len(lines):
            return statements, errors


def _binding(left: str, value: object, place: Place) -> Binding:
    scope, _, rest = left.rpartition('/')
    name, _, field = rest.rpartition('.')
    return Binding(scope, name or field, field if name else '', value, place)


def _salvaged(text: str) -> tuple[Reference | Macro, ...]:
    """What a value that does not parse speaks of, so that nothing it names looks forgotten."""
    said = [Macro(name) if sign == '%' else Reference(scope[:-1], name) for sign, scope, name in _NODE.findall(text)]
    return (BROKEN, *said)


def _unclosed(lines: list[str], starts: list[int], error: engine.GinSyntaxError) -> tuple[int, str] | None:
    """The bracket that is still open where the next statement begins, if that is why parsing failed."""
    for start, stop in itertools.pairwise([*starts, len(lines)]):
        if start >= error.line:
            return None
        still_open: list[tuple[int, str]] = []
        try:
            for token in tokenize.generate_tokens(io.StringIO('\n'.join(lines[start:stop]) + '\n').readline):
                if token.type == tokenize.OP and token.string in '([{':
                    still_open.append((start + token.start[0], token.string))
                elif token.type == tokenize.OP and token.string in ')]}' and still_open:
                    still_open.pop()
        except (tokenize.TokenError, SyntaxError):
            pass  # it is because of the open bracket that this text ends too early
        if still_open:
            line, bracket = still_open[-1]
            return line, f'the bracket {bracket} is never closed'
    return None


def _comments(text: str) -> dict[int, str]:
    """The comment on each line that has one."""
    found = {}
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                found[token.start[0]] = token.string.lstrip('# ').strip()
    except (tokenize.TokenError, SyntaxError):
        pass  # the parser reports it
    return found


def unquoted(text: str) -> object:
    """A value from the command line: a gin value as it is, anything else a plain word or path.

    Raises:
      GinSyntaxError: it opens like a reference, macro, bracket or quote but does not parse.
    """
    opens = text[:1] in ('', *'@%([{"\'')
    if '#' in text and not opens:
        return text  # a # in a name is no comment
    try:
        return engine.parse_value(text)
    except engine.GinSyntaxError:
        if opens:
            raise engine.GinSyntaxError(1, f'{text} is not a whole value: a bracket or a quote is missing') from None
        return text


def find(name: str) -> pathlib.Path | None:
    """The file of that name: absolute, or under the working directory, the repository or the installed package."""
    for folder in (pathlib.Path.cwd(), PACKAGE.parent, PACKAGE):
        if (folder / name).is_file():
            return (folder / name).resolve()
    return None


def known_files() -> Iterator[str]:
    """Every gin file of the project, as one would name it."""
    for folder in (PACKAGE.parent, PACKAGE):
        if (folder / 'gin').is_dir():
            yield from (str(path.relative_to(folder)) for path in sorted((folder / 'gin').rglob('*.gin')))


def _missing(name: str, chain: tuple[Include, ...], place: Place) -> Problem:
    wanted = pathlib.Path(name)
    known = {pathlib.Path(file).stem: file for file in known_files()}
    known |= {file.stem: str(wanted.parent / file.name) for file in (pathlib.Path.cwd() / wanted).parent.glob('*.gin')}
    near = nearest(wanted.stem, known)
    folders = wanted.parent if wanted.is_absolute() else f'{pathlib.Path.cwd()} and {PACKAGE.parent}'
    help = [f'did you mean {known[near]}?' if near else f'looked in {folders}']
    if len(chain) > 1:
        help.append('included by way of ' + ' -> '.join(str(include.place) for include in chain))
    return Problem(f'there is no file {name}', place, '\n'.join(help))
