"""Which tokens are padding, end and begin of text, as the files beside a tokenizer.json say."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# The tokenizer's files name tokens, the model's files give ids. What the tokenizer's say comes first: in checkpoints
# that were tuned to talk, the model's files still have the end of text of the one they were tuned from.
NAMING = ('tokenizer_config.json', 'special_tokens_map.json')
NUMBERING = ('generation_config.json', 'config.json')


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is no file.

    Raises:
      ValueError: it holds no JSON object.
    """
    if not path.is_file():
        return {}
    try:
        held = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{path} is no JSON: {error}; fetch the file again') from error
    if not isinstance(held, dict):
        raise ValueError(f'{path} must hold a JSON object; it holds a {type(held).__name__}')
    return held


def named_tokens(folder: Path) -> dict[str, tuple[str, Path]]:
    """'eos_token' -> ('</s>', the file that says so) and the like, as the tokenizer's files name them."""
    found: dict[str, tuple[str, Path]] = {}
    for file in NAMING:
        for field, value in read_json(folder / file).items():
            token = value.get('content') if isinstance(value, dict) else value
            if field.endswith('_token') and isinstance(token, str):
                found.setdefault(field, (token, folder / file))
    return found


def find(folder: Path, field: str, tokens: Mapping[str, int]) -> int | None:
    """The id of a special token, or None where no file names one.

    Args:
      folder: with the files.
      field: 'pad_token', 'eos_token' or 'bos_token'.
      tokens: token -> id.

    Raises:
      ValueError: what a file names is not in the vocabulary.
    """
    named = named_tokens(folder).get(field)
    if named:
        return number(tokens, field, *named)
    return next(iter(numbered(folder, field, tokens)), None)


def numbered(folder: Path, field: str, tokens: Mapping[str, int]) -> tuple[int, ...]:
    """The ids of a special token in the first of the model's files that gives any; chat models end in several ways.

    Args:
      folder: with the files.
      field: 'pad_token', 'eos_token' or 'bos_token'.
      tokens: token -> id.

    Raises:
      ValueError: an id that no token has; names the file and the field.
    """
    for file in NUMBERING:
        held = read_json(folder / file).get(f'{field}_id')
        found = [token for token in (held if isinstance(held, list) else [held]) if token not in (None, -1)]
        for token in found:  # -1: as some checkpoints without padding have it
            if type(token) is not int or token not in tokens.values():
                raise ValueError(
                    f'{field}_id in {folder / file} is {held!r}, and no token of the vocabulary has {token!r}; mend '
                    'the file, or fetch it again together with the tokenizer it belongs to'
                )
        if found:
            return tuple(found)
    return ()


def number(tokens: Mapping[str, int], field: str, token: str, where: Path | None = None) -> int:
    """The id of a token.

    Raises:
      ValueError: it is not in the vocabulary; names the field and the file where it was read.
    """
    if token not in tokens:
        said = f'{field} in {where}' if where else field
        raise ValueError(f'{said} is {token!r}, which is no token of the vocabulary; choose one with {field}')
    return tokens[token]
