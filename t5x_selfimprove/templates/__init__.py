"""Prompts: text round a question, compiled to token segments, rendered by one ragged concatenation.

text.py    Template: text with {question} in it
chat.py    ChatTemplate: the same as a message in the chat format of a checkpoint
jinja.py   ... rendered as its makers do
tasks.py   prompts of the public data sets, with exemplars
variants.py  Variants: several prompts, dealt out to the samples of a question
"""

from t5x_selfimprove.templates.chat import ChatTemplate
from t5x_selfimprove.templates.tasks import of_task
from t5x_selfimprove.templates.text import SLOT, Template, concatenate
from t5x_selfimprove.templates.variants import Variants

__all__ = ['SLOT', 'ChatTemplate', 'Template', 'Variants', 'concatenate', 'of_task']
