"""Prompts for the public data sets: few-shot and zero-shot, by chain of thought and direct.

Exemplars are in exemplars/*.jsonl, one object with question, rationale and answer a line; they are the project's own.
A direct prompt has the same exemplars without their rationales (Huang et al. 2022, arXiv:2210.11610).
"""

import dataclasses
import functools
import json
import pathlib

from t5x_selfimprove.templates.text import SLOT, Template
from t5x_selfimprove.vocabulary import Vocabulary

FOLDER = pathlib.Path(__file__).parent / 'exemplars'
STYLES = ('few_shot_cot', 'few_shot_direct', 'zero_shot_cot', 'zero_shot_direct')
STEP_BY_STEP = " Let's think step by step."  # Kojima et al. 2022, arXiv:2205.11916

# Files of the exemplars of each task, whose questions look as the data set's do.
TASKS: dict[str, tuple[str, ...]] = {
    'gsm8k': ('arithmetic',),
    'svamp': ('arithmetic',),
    'multiarith': ('arithmetic',),
    'aqua': ('aqua',),
    'strategyqa': ('strategyqa',),
    'commonsenseqa': ('commonsenseqa',),
    'drop': ('drop_football', 'drop_non_football'),
    'drop_football': ('drop_football',),
    'drop_non_football': ('drop_non_football',),
    'openbookqa': ('openbookqa',),
    'arc_challenge': ('arc_challenge',),
    'anli_r1': ('nli',),
    'anli_r2': ('nli',),
    'anli_r3': ('nli',),
    'mnli': ('nli',),
    'rte': ('rte',),
}


@dataclasses.dataclass(frozen=True)
class Exemplar:
    """A question that is answered in the prompt."""

    question: str
    rationale: str
    answer: str


@functools.cache
def exemplars(name: str) -> tuple[Exemplar, ...]:
    """The exemplars in exemplars/NAME.jsonl."""
    lines = (FOLDER / f'{name}.jsonl').read_text(encoding='utf-8').splitlines()
    return tuple(Exemplar(**json.loads(line)) for line in lines)


def prompt_text(task: str, style: str, shots: int | None = None) -> str:
    """The text of a prompt, with {question} in it.

        few_shot_cot       Question: .. Answer: steps The answer is 7.  ...  Question: {question} Answer:
        few_shot_direct    Question: .. Answer: The answer is 7.  ...  Question: {question} Answer:
        zero_shot_cot      Question: {question} Answer: Let's think step by step.
        zero_shot_direct   Question: {question} Answer:

    Args:
      task: a name in `TASKS`.
      style: one of `STYLES`.
      shots: exemplars, the first ones; None = all there are.

    Raises:
      ValueError: no such task or style, or fewer exemplars than that.
    """
    if task not in TASKS:
        raise ValueError(f'there are no prompts for {task!r}; there are for {", ".join(TASKS)}')
    if style not in STYLES:
        raise ValueError(f'style must be one of {", ".join(map(repr, STYLES))}; it is {style!r}')
    asked = f'Question: {SLOT}\nAnswer:'
    if style.startswith('zero'):
        return asked + STEP_BY_STEP if style == 'zero_shot_cot' else asked
    shown = [one for name in TASKS[task] for one in exemplars(name)]
    if shots is not None and not 1 <= shots <= len(shown):
        raise ValueError(f'shots must be in 1..{len(shown)} for {task}; it is {shots}')
    texts = [
        f'Question: {one.question}\nAnswer: '
        + (f'{one.rationale} ' if style == 'few_shot_cot' else '')
        + f'The answer is {one.answer}.\n\n'
        for one in shown[:shots]
    ]
    return ''.join(texts) + asked


def of_task(vocabulary: Vocabulary, task: str, style: str = 'few_shot_cot', shots: int | None = None) -> Template:
    """The prompt of a public data set. Raises ValueError as `prompt_text` does."""
    return Template(vocabulary, prompt_text(task, style, shots))
