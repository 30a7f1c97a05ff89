"""What the arms of `sampling` draw: the model's sizes, the prompts, the lengths, and the arithmetic that takes.

Needs nothing but numpy: every arm reads it, in whatever interpreter.
"""

import dataclasses
import pathlib

import numpy as np

TEMPERATURE = 0.7
END = 1  # the token that ends a path; 0 pads
SHOWN = (
    8  # logits after the first prompt that every arm tells: they compute the same model, or the run is worth nothing
)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of a Qwen3-style model with tied embeddings."""

    width: int = 512
    layers: int = 8
    heads: int = 8
    kv_heads: int = 4
    head_size: int = 64
    feed_forward: int = 1536
    vocabulary: int = 32_000

    @property
    def layer_parameters(self) -> int:
        """Of the matrices of one layer."""
        attention = self.width * self.head_size * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.width * self.feed_forward

    @property
    def matrix_parameters(self) -> int:
        """What a token that is drawn is multiplied with: the layers and the output embedding."""
        return self.layers * self.layer_parameters + self.width * self.vocabulary

    @property
    def kv_numbers(self) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_size

    def flops(self, tokens: float, drawn: float, seen: float) -> float:
        """Floating-point operations of the least work there is.

        Args:
          tokens: that go through the layers.
          drawn: that logits are made for.
          seen: sum over the tokens of the tokens each attends to, itself included.
        """
        through = 2 * tokens * self.layers * self.layer_parameters + 2 * drawn * self.width * self.vocabulary
        return through + 4 * seen * self.layers * self.heads * self.head_size


@dataclasses.dataclass(frozen=True)
class Workload:
    """`questions` prompts of `question` tokens behind a common prefix, `samples` paths of each."""

    name: str
    prefix: int = 768
    questions: int = 4
    question: int = 64
    samples: int = 16
    room: int = 128  # most tokens a path may have
    least: int = 0  # of the spread lengths; 0: every path has `room` tokens
    seed: int = 1234

    @property
    def rows(self) -> int:
        """Paths in all."""
        return self.questions * self.samples

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of every path [S], the last one included."""
        if not self.least:
            return np.full(self.rows, self.room)
        return np.random.RandomState(self.seed).randint(self.least, self.room + 1, self.rows)

    @property
    def generated(self) -> int:
        """Tokens drawn in all."""
        return int(self.lengths.sum())

    def prompts(self, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
        """The prefix [X] and the questions [Q, P], random tokens that neither pad nor end."""
        random = np.random.RandomState(self.seed)
        prefix = random.randint(3, vocabulary, self.prefix)
        return prefix, random.randint(3, vocabulary, (self.questions, self.question))

    def rows_of(self, vocabulary: int) -> np.ndarray:
        """Prefix and question of every path [S, X + P], question-major."""
        prefix, questions = self.prompts(vocabulary)
        whole = np.concatenate([np.broadcast_to(prefix, (self.questions, self.prefix)), questions], axis=1)
        return np.repeat(whole, self.samples, axis=0)

    def flops(self, sizes: Sizes) -> float:
        """Of the least work: the prefix read once, each question once, the first tokens of a question's paths drawn
        from one row of logits, and the last token of a path not read."""
        start = self.prefix + self.question
        read = self.lengths - 1
        tokens = start - self.question + self.questions * self.question + int(read.sum())
        triangle = lambda first, count: count * first + count * (count + 1) / 2  # noqa: E731  sum of first + 1 ...
        seen = triangle(0, self.prefix) + self.questions * triangle(self.prefix, self.question)
        seen += float(sum(triangle(start, count) for count in read))
        return sizes.flops(tokens, self.questions + int(read.sum()), seen)


SHARED = Workload('S')
SPREAD = Workload('S2', prefix=0, room=256, least=16)
WORKLOADS = {workload.name: workload for workload in (SHARED, SPREAD)}


def chosen(name: str, shrink: int = 1) -> Workload:
    """A workload by its name, `shrink` times as short for a trial."""
    whole = WORKLOADS[name]
    if shrink == 1:
        return whole
    smaller = {field: max(getattr(whole, field) // shrink, 2) for field in ('question', 'samples', 'room')}
    return dataclasses.replace(whole, prefix=whole.prefix // shrink, least=whole.least // shrink, **smaller)


def model_directory(directory: str) -> str:
    """The Hugging Face directory of the model, in the folder that the arms share."""
    return str(pathlib.Path(directory, 'model'))
