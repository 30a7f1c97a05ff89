"""The fields of a config.json, read one by one; what nobody reads must be known to change nothing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE = 'config.json'
WAY_OUT = 'Use a checkpoint without it'
REMOVE = 'If it changes nothing in what the model computes, remove it from a copy of the directory'

# Of tokens, files, training and other programs: they change nothing in what the model computes.
HARMLESS = frozenset(
    'architectures model_type transformers_version torch_dtype dtype use_cache bos_token_id eos_token_id pad_token_id '
    'initializer_range max_position_embeddings pretraining_tp output_router_logits cache_implementation '
    'attn_implementation _attn_implementation _attn_implementation_autoset _name_or_path id2label label2id '
    'max_window_layers unsloth_version unsloth_fixed return_dict'.split()
)
# What an exported directory takes over from the directory that the model came from.
KEPT = ('bos_token_id', 'eos_token_id', 'pad_token_id', 'max_position_embeddings', 'initializer_range')


class Fields:
    """The fields of one config.json, or of a part of it, and the values that transformers gives to those left out.

    Every method raises ValueError naming the file, the field, its value and the way out.
    """

    def __init__(self, values: Mapping[str, Any], file: Path, defaults: Mapping[str, Any], part: str = ''):
        self.values, self.file, self.defaults, self.part = values, file, defaults, part
        self.used: set[str] = set()

    def refuse(self, name: str, why: str, way_out: str = WAY_OUT) -> ValueError:
        """The error that says why a field's value cannot be had."""
        value = self.values.get(name, self.defaults.get(name))
        return ValueError(f'{self.file}: {self.part}{name} = {json.dumps(value)} {why}. {way_out}.')

    def get(self, name: str) -> Any:
        """The value of a field, its default where it is left out, None where it has none."""
        self.used.add(name)
        return self.values[name] if name in self.values else self.defaults.get(name)

    def integer(self, name: str, otherwise: int | None = None) -> int:
        """A positive whole number; `otherwise` where the field is null or left out and has no default."""
        value = self.get(name)
        value = otherwise if value is None else value
        if value is None:
            raise ValueError(f'{self.file} has no {self.part}{name}; the directory is not complete, fetch it again')
        if type(value) is not int or value < 1:
            raise self.refuse(name, 'is not a positive whole number', 'Correct it')
        return value

    def number(self, name: str) -> float:
        """A number."""
        value = self.get(name)
        if type(value) not in (int, float):
            raise self.refuse(name, 'is not a number', 'Correct it')
        return float(value)

    def flag(self, name: str) -> bool:
        """True or False; null and left out are False."""
        value = self.get(name)
        if value is not None and type(value) is not bool:
            raise self.refuse(name, 'is neither true nor false', 'Correct it')
        return bool(value)

    def one_of(self, name: str, known: Mapping[str, str]) -> str:
        """What our word for the field's value is."""
        value = self.get(name)
        if not isinstance(value, str) or value not in known:
            raise self.refuse(name, f'is not supported, only {", ".join(known)}')
        return known[value]

    def off(self, name: str, why: str, *allowed: Any) -> None:
        """Refuses the field unless it is left out, null, false, zero, empty, or one of the `allowed` values."""
        value = self.get(name)
        if value and value not in allowed:
            raise self.refuse(name, why)

    def finish(self) -> None:
        """Refuses every field that was not read, unless it is known to be harmless or turns something off."""
        for name, value in self.values.items():
            nothing = value is None or value is False or value == [] or value == {}
            if name not in self.used and name not in HARMLESS and not nothing:
                raise self.refuse(name, 'is not known here', f'{WAY_OUT}. {REMOVE}')


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no JSON object; says where it breaks off.
    """
    if not file.is_file():
        raise FileNotFoundError(f'{file} is not there; {file.parent} is no complete Hugging Face directory')
    try:
        found = json.loads(file.read_text(encoding='utf-8'))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f'{file} is damaged: {error}. Fetch it again.') from error
    if not isinstance(found, dict):
        raise ValueError(f'{file} holds a {type(found).__name__}, not an object. Fetch it again.')
    return found
