"""The sample store: questions with all their sampled paths, one JSON object a line, for people and programs to read."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from t5x_selfimprove.data.items import Item
from t5x_selfimprove.records import Samples, Verdict
from t5x_selfimprove.vocabulary import Vocabulary


def lines(
    items: Sequence[Item], samples: Samples, verdict: Verdict, vocabulary: Vocabulary, labels: bool, limit: int
) -> list[dict[str, Any]]:
    """The first `limit` questions as dictionaries.

    Args:
      items: the questions, in the order of the samples; padding after them is left out.
      samples: S = Q * N samples as NumPy arrays.
      verdict: their verdict.
      vocabulary: spells the tokens.
      labels: whether the labels of the items are written ('gold'); never for unlabelled questions.
      limit: number of questions written.
    """
    count = samples.ended.shape[0] // verdict.share.shape[0]
    found = []
    for number, item in enumerate(items[:limit]):
        own = range(number * count, (number + 1) * count)
        found.append(
            {
                'id': item.id,
                'question': item.question,
                'gold': item.answer if labels else None,
                'chosen': spelled(verdict.chosen[number]),
                'share': round(float(verdict.share[number]), 4),
                'votes': round(float(verdict.votes[number]), 4),
                'kept_paths': int((verdict.keep[own.start : own.stop] > 0).sum()),
                'paths': [path(row, samples, verdict, vocabulary) for row in own],
            }
        )
    return found


def path(row: int, samples: Samples, verdict: Verdict, vocabulary: Vocabulary) -> dict[str, Any]:
    """One sampled path as a dictionary."""
    tokens = samples.tokens[row][samples.mask[row]]
    return {
        'text': vocabulary.decode(tokens),
        'answer': spelled(verdict.answer[row]),
        'found': bool(verdict.found[row]),
        'ended': bool(samples.ended[row]),
        'tokens': len(tokens),
        'log_prob': round(float(samples.log_probs[row].sum()), 4),
        'reward': round(float(verdict.reward[row]), 4),
        'kept': round(float(verdict.keep[row]), 4),
    }


def spelled(answer: np.ndarray) -> str:
    """Canonical bytes as text."""
    return bytes(answer[answer > 0]).decode('utf-8', errors='replace')
