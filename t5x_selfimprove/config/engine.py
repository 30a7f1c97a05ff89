"""gin itself: its grammar and its building of values. No other file imports gin."""

import threading
import tokenize
from collections.abc import Callable, Iterable
from typing import Any

import gin
from gin import config_parser

from t5x_selfimprove.config.statements import Binding, Include, Macro, Place, Reference

VALUES = 'text needs quotes, a part is @name(), a macro is %NAME'

_lock = threading.RLock()  # gin's configuration is one for the whole process
_registered: set[str] = set()
_construct: Callable[[str, str, dict[str, Any]], Any] | None = None  # set while a build runs


class GinSyntaxError(Exception):
    """Text that is not gin: `line` counted from 1, and what is wrong there."""

    def __init__(self, line: int, what: str):
        super().__init__(what)
        self.line = line


class _Nodes(config_parser.ParserDelegate):
    """Keeps references and macros as they were written; resolving them is for later."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Reference:
        scope, _, name = scoped_configurable_name.rpartition('/')
        return Reference(scope, name, evaluate)

    def macro(self, macro_name: str) -> Macro:
        return Macro(macro_name)


def parse(text: str, place: Callable[[int], Place]) -> tuple[list[Binding | Include], GinSyntaxError | None]:
    """The statements of gin text up to the first error, and that error.

    Args:
      text: a whole file.
      place: gives the place of a line number.
    """
    found: list[Binding | Include] = []
    try:
        parser = config_parser.ConfigParser(text, _Nodes())
        while raw := parser.parse_statement():
            if isinstance(raw, config_parser.IncludeStatement):
                found.append(Include(raw.filename, place(raw.location.line_num)))
            elif isinstance(raw, config_parser.BindingStatement):
                at = place(raw.location.line_num)
                found.append(Binding(raw.scope, raw.selector, raw.arg_name, raw.value, at))
            elif isinstance(raw, config_parser.ImportStatement):
                raise GinSyntaxError(raw.location.line_num, 'a gin file imports nothing here: every part has its name')
    except GinSyntaxError as error:
        return found, error
    except SyntaxError as error:
        return found, GinSyntaxError(error.lineno or 1, _plain(error.msg))
    except (tokenize.TokenError, StopIteration, ValueError) as error:
        at = error.args[1][0] if isinstance(error, tokenize.TokenError) else max(1, text.count('\n'))
        return found, GinSyntaxError(at, 'the text ends in the middle of a statement')
    return found, None


def parse_value(text: str) -> Any:
    """One value.

    Raises:
      GinSyntaxError: `text` is not one whole gin value.
    """
    found, error = parse(f'A = {text}', lambda line: Place('', line, text))
    if error or len(found) != 1:
        raise error or GinSyntaxError(1, 'not one value')
    return found[0].value


def _plain(message: str) -> str:
    """gin's own message in words that say the way out."""
    if 'Failed to parse token' in message:
        token = message.rsplit("token '", 1)[-1].rstrip("'")
        return f'{token} is not a value: {VALUES}'
    known = {
        'Unable to parse value.': f'there is no value that gin can read: {VALUES}',
        'Expected newline.': 'more than one value: a tuple needs brackets, and there is no arithmetic',
        "Couldn't parse statement, expected ':' or '='.": 'not a statement: expected name = value',
    }
    return known.get(message, message[:1].lower() + message[1:].rstrip('.'))


def _register(name: str) -> None:
    """Makes `name` known to gin, once in a process; what it builds is for the running build to say."""
    if name in _registered:
        return

    def part(**fields: Any) -> Any:
        return _construct('/'.join(gin.current_scope()), name, fields)

    module, _, last = name.rpartition('.')
    gin.external_configurable(part, name=last, module=module)
    _registered.add(name)


def evaluate(root: str, text: str, names: Iterable[str], construct: Callable[[str, str, dict[str, Any]], Any]) -> Any:
    """Lets gin build `root` from `text`, with gin's global state empty before and after.

    Args:
      root: the part to build.
      text: bindings, with no include and no macro.
      names: every part that `text` may speak of.
      construct: (scope, name, bound fields) -> value; makes one part, innermost parts first.
    """
    global _construct
    with _lock, gin.config_scope(None):
        before, _construct = _construct, construct
        gin.clear_config()
        try:
            for name in names:
                _register(name)
            gin.parse_config(text)
            gin.finalize()
            return gin.get_configurable(root)()
        finally:
            _construct = before
            gin.clear_config()
