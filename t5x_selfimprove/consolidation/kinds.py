"""The kinds of answers: the one table of how each is read from a window of text."""

from collections.abc import Callable

from t5x_selfimprove.consolidation import canonical, spans
from t5x_selfimprove.consolidation.canonical import Reading, Window

KINDS: dict[str, Callable[[Window], Reading]] = {
    'number': canonical.number,
    'option': canonical.option,
    'yes_no': canonical.yes_no,
    'nli': canonical.nli,
    'text': canonical.text,
    'span': spans.span,
}

# Kinds that are all of the sentence, and where it ends; of a label nothing may be left behind it.
WHOLE = {'text': lambda window: window.sentence, 'span': spans.span_end}
