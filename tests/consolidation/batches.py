"""Batches written as text, for tests of consolidation."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_selfimprove.consolidation import AnswerFormat, Consolidator
from t5x_selfimprove.records import Questions, Samples, Verdict, check
from t5x_selfimprove.vocabulary import ByteVocabulary

BYTES = ByteVocabulary()


@dataclasses.dataclass(frozen=True)
class Initials(AnswerFormat):
    """A format that compiles at once: the answer is the completion's first character, if that is a capital letter."""

    kind: str = 'option'
    room: int = 1

    def extract(
        self, tokens: jax.Array, mask: jax.Array, ended: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        byte = tokens[:, :1] - 3
        found = (byte >= ord('A')) & (byte <= ord('Z'))
        return jnp.where(found, byte + 32, 0).astype(jnp.uint8), found[:, 0]


LETTERS = Initials(BYTES)
OPTIONS = AnswerFormat(BYTES, kind='option', room=1)  # reads the same answers, from the end of the sentence


@dataclasses.dataclass(frozen=True)
class Spelled:
    """A vocabulary of any byte strings; token 0 is padding, 1 end of text."""

    spellings: tuple[bytes, ...]
    name: str = 'spelled'
    pad_id: int = 0
    eos_id: int = 1
    bos_id: int | None = None

    @property
    def size(self) -> int:
        return len(self.spellings)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return (self.eos_id,)

    def token_bytes(self) -> tuple[bytes, ...]:
        return self.spellings

    def encode(self, text: str) -> list[int]:
        return [self.spellings.index(bytes([byte])) for byte in text.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        return b''.join(self.spellings[token] for token in ids).decode()

    def fingerprint(self) -> str:
        return hashlib.sha256(repr(self.spellings).encode()).hexdigest()[:16]


def rows(completions: Sequence[Sequence[int]], room: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(tokens int32[S, C], mask bool[S, C]) of completions of different lengths; what is masked is no padding token."""
    room = room or max(1, *map(len, completions))
    tokens = np.full((len(completions), room), 77, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row, ids in enumerate(completions):
        tokens[row, : len(ids)] = ids
        mask[row, : len(ids)] = True
    return tokens, mask


def samples_of(texts: Sequence[str], room: int | None = None) -> Samples:
    """Samples of the byte vocabulary. A text that ends in '~' was cut off there; the others end with end-of-text."""
    cut = np.array([text.endswith('~') for text in texts])
    completions = [
        BYTES.encode(text.rstrip('~')) + [BYTES.eos_id] * (not c) for text, c in zip(texts, cut, strict=True)
    ]
    tokens, mask = rows(completions, room)
    return Samples(tokens, mask, np.where(mask, np.float32(-0.5), np.float32(0)), ~cut)


def questions_of(
    labels: Sequence[str | None], answers: AnswerFormat = LETTERS, weight: Sequence[float] | None = None, first: int = 0
) -> Questions:
    """One question a label; their ids count up from `first`."""
    count = len(labels)
    answer = np.zeros((count, answers.room), np.uint8)
    for row, label in enumerate(labels):
        if label is not None:
            spelled = answers.canonical(label)
            answer[row, : len(spelled)] = np.frombuffer(spelled, np.uint8)
    return Questions(
        tokens=np.zeros((count, 1), np.int32),
        length=np.ones(count, np.int32),
        answer=answer,
        known=np.array([label is not None for label in labels]),
        weight=np.ones(count, np.float32) if weight is None else np.asarray(weight, np.float32),
        id=np.stack([np.full(count, 9), np.arange(first, first + count)], 1).astype(np.uint32),
    )


def letters(*questions: str) -> Samples:
    """Samples from one string a question, one character a path: 'BB-A' answers b, b, nothing and a.

    Every path is worded differently, but for lower-case letters: those of a question are all the same completion.
    """
    texts = []
    for question in questions:
        for path, character in enumerate(question):
            wording = '.' if character.islower() else f'{path:x}'
            ending = 'Hm.' if character == '-' else f'The answer is {character.upper()}.'
            texts.append(f'{character.upper()}{wording} {ending}')
    return samples_of(texts, room=32)


@functools.partial(jax.jit, static_argnums=0)
def _judge(part: Consolidator, questions: Questions, samples: Samples, key: jax.Array) -> Verdict:
    return part(None, questions, samples, key)


def judge(part: Consolidator, questions: Questions, samples: Samples, seed: int = 0) -> Verdict:
    """The verdict, compiled, as checked NumPy arrays."""
    verdict = jax.tree.map(np.asarray, _judge(part, questions, samples, jax.random.key(seed)))
    check(verdict)
    assert verdict.answer.shape[0] == verdict.keep.shape[0] == samples.tokens.shape[0]
    assert verdict.chosen.shape[0] == verdict.share.shape[0] == questions.weight.shape[0]
    return verdict


def kept(verdict: Verdict, count: int) -> list[list[float]]:
    """Keep weights, a list a question of `count` paths."""
    return verdict.keep.reshape(-1, count).tolist()


def unchecked(part: Any, **fields: Any) -> Any:
    """A copy with other fields that has not checked them; call `__post_init__` to let it."""
    copy = object.__new__(type(part))
    for field in dataclasses.fields(part):
        object.__setattr__(copy, field.name, fields.get(field.name, getattr(part, field.name)))
    return copy
