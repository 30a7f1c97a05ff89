"""Questions as messages of a chat, in the format that a checkpoint was tuned on."""

import dataclasses
import datetime
import functools
from typing import Any

from t5x_selfimprove.templates.jinja import find_template, render
from t5x_selfimprove.templates.text import SLOT, Template
from t5x_selfimprove.vocabulary import HuggingFaceVocabulary, special_tokens

# Stand in for a question while the template is rendered: what it does to them, it would do to questions.
STANDING_IN = ('Qù1 <2> & \'three\' "four"\n  {5} 100%?', 'ẞo\u00a0What\\ # 7.')


@dataclasses.dataclass(frozen=True)
class ChatTemplate(Template):
    """A question as a user's message, in the chat template that is shipped with the tokenizer.

    The template (chat_template.jinja, else chat_template in tokenizer_config.json) is rendered once, with what stands
    in for a question; the text before and behind it is compiled, special tokens as such. The prompt ends where the
    assistant's message begins. Names of special tokens in a question are text. A question is encoded by itself, with
    the space that some vocabularies put before a text (Llama 2), also where it follows a line end.

    Only one system and one user message are rendered: no tools, no earlier turns.

    Attributes:
      vocabulary: of the checkpoint with the template.
      text: the user's message, with the question in it.
      system: the system message; '' = none (the template may have its own).
      variables: other variables of the template, such as (('enable_thinking', False),).
      date: 'YYYY-MM-DD', for templates that tell the model the day; a run that goes on tomorrow keeps its prompts.

    Raises:
      FileNotFoundError: the checkpoint has no tokenizer.json or no chat template.
      ValueError: the template changes, repeats or drops the question, or refuses; a field that cannot be.
    """

    vocabulary: HuggingFaceVocabulary
    system: str = ''
    variables: tuple[tuple[str, bool | int | float | str | None], ...] = ()
    date: str = ''

    def __post_init__(self):
        if SLOT in self.system:
            raise ValueError(f'system holds {SLOT}, which belongs in text: {self.system!r:.200}')
        if self.date:
            try:
                datetime.date.fromisoformat(self.date)
            except ValueError:
                raise ValueError(f"date must be a day such as '2025-01-31'; it is {self.date!r}") from None
        super().__post_init__()

    @functools.cached_property
    def before(self) -> tuple[int, ...]:
        """Tokens before the question; begin-of-text only where the template has it."""
        text = self.round_question[0]
        return tuple(self.vocabulary.encode_marked(text.removesuffix(' ') if self.vocabulary.adds_space else text))

    @functools.cached_property
    def after(self) -> tuple[int, ...]:
        """Tokens after the question, up to where the assistant's message begins."""
        return tuple(self.vocabulary.encode_marked(self.round_question[1], following=True))

    @functools.cached_property
    def round_question(self) -> tuple[str, str]:
        """The rendered text before the question, and behind it.

        Raises:
          ValueError: they are not the same for all questions, or the question itself comes out changed.
        """
        template, file = find_template(self.vocabulary.file.parent)
        found = set()
        for question in STANDING_IN:
            message = self.text.replace(SLOT, question)
            try:
                rendered = render(template, self._variables(message), self.date)
            except ValueError as error:
                raise ValueError(f'the chat template in {file} cannot be rendered: {error}') from error
            parts = rendered.split(question)
            if len(parts) != 2:
                what = 'changes or drops' if len(parts) == 1 else 'repeats'
                raise ValueError(f'the chat template in {file} {what} the question {question!r}: {rendered[:1000]!r}')
            found.add(tuple(parts))
        if len(found) > 1:
            raise ValueError(f'the chat template in {file} puts other text round other questions: {sorted(found)}')
        return found.pop()

    def _variables(self, message: str) -> dict[str, Any]:
        system = [{'role': 'system', 'content': self.system}] if self.system else []
        tokens = {
            field: token for field, (token, _) in special_tokens.named_tokens(self.vocabulary.file.parent).items()
        }
        return {
            'messages': [*system, {'role': 'user', 'content': message}],
            'tools': None,
            'documents': None,
            'add_generation_prompt': True,
            **tokens,
            **dict(self.variables),
        }
