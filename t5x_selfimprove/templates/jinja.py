"""Jinja templates of checkpoints, rendered as `transformers` does. They are others' code, and run in a sandbox."""

import datetime
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t5x_selfimprove.vocabulary import special_tokens

FILE = 'chat_template.jinja'
CONFIG = 'tokenizer_config.json'
# Marks of what an assistant said, which some templates have for training; they print nothing.
GENERATION = re.compile(r'(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})')


def find_template(folder: Path) -> tuple[str, Path]:
    """The chat template of a checkpoint, and the file it stands in.

    Raises:
      FileNotFoundError: there is none; says what was looked for.
      ValueError: there are several, none of them the default one; names them.
    """
    path = folder / FILE
    if path.is_file():
        return path.read_text(encoding='utf-8'), path
    path = folder / CONFIG
    held = special_tokens.read_json(path).get('chat_template')
    if isinstance(held, list):
        several = {one['name']: one['template'] for one in held}
        if 'default' not in several:
            raise ValueError(f'{path} has the chat templates {sorted(several)} and no default one; write one to {FILE}')
        held = several['default']
    if held is None:
        raise FileNotFoundError(
            f'{folder} has no chat template: looked for {FILE} and for chat_template in {CONFIG}. Put one there, or '
            'use templates.Template for a model that was not tuned to talk'
        )
    return held, path


def render(template: str, variables: Mapping[str, Any], day: str) -> str:
    """The text that a template makes.

    Args:
      template: Jinja.
      variables: what it may use.
      day: 'YYYY-MM-DD', which it is told when it asks; '' = it is not to ask.

    Raises:
      ValueError: it asks for the day and there is none, is no Jinja, or refuses or fails.
    """
    import jinja2.sandbox

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def strftime_now(form: str) -> str:
        if not day:
            raise jinja2.TemplateError(
                "it asks for the day, and prompts of another day would differ: set date, such as date = '2025-01-31'"
            )
        return datetime.datetime.fromisoformat(day).strftime(form)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=['jinja2.ext.loopcontrols']
    )
    environment.filters['tojson'] = tojson  # the built-in one escapes for HTML
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    plain = GENERATION.sub(lambda tag: f'{tag[1]}{"endif" if tag[2] else "if true"}{tag[3]}', template)
    try:
        return environment.from_string(plain).render(variables)
    except Exception as error:  # a template may fail in any way that Python can
        raise ValueError(f'{error} ({type(error).__name__})') from error
