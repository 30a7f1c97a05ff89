"""The face of every vocabulary, and what follows from the bytes that its tokens spell."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

METASPACE = '\u2581'  # how SentencePiece, and those who learnt from it, write a space
UNKNOWN = ' \u2047 '.encode()  # an unknown token is seen rather than lost; the same as SentencePiece shows
MARKS = ('\ue000', '.', ',', '0')  # what a text is put behind, to be encoded as one that goes on


@runtime_checkable
class Vocabulary(Protocol):
    """What every vocabulary offers. `decode` drops special tokens; `encode` adds none.

    `eos_id` is the end of text that training puts behind a text; sampling ends a text at any of `eos_ids`, of which
    it is the first.
    """

    @property
    def size(self) -> int: ...

    @property
    def pad_id(self) -> int: ...

    @property
    def eos_id(self) -> int: ...

    @property
    def eos_ids(self) -> tuple[int, ...]: ...

    @property
    def bos_id(self) -> int | None: ...

    @property
    def name(self) -> str: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def token_bytes(self) -> tuple[bytes, ...]: ...

    def fingerprint(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class Spelled:
    """What follows from `token_bytes`, the same for all vocabularies.

    A vocabulary of which `adds_space` is true begins every text with a space, so that a word is the same token there
    as behind another word. That space is spelled like any other, because in a stream of tokens it is one; `decode`
    drops it, and `encode_following` goes without it.
    """

    name: ClassVar[str]
    adds_space: ClassVar[bool] = False

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The ends of text, `eos_id` first."""
        return (self.eos_id,)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the tokens; bytes that are no UTF-8 show as U+FFFD.

        Raises:
          ValueError: an id outside 0..size-1.
        """
        text = self._join(ids).decode('utf-8', errors='replace')
        return text[1:] if self.adds_space and text.startswith(' ') else text

    def fingerprint(self) -> str:
        """16 hex digits that change when a token, its place or a special id changes. Kept in checkpoints."""
        special = f'{self.name} pad {self.pad_id} eos {self.eos_id} bos {self.bos_id} size {self.size}'
        special += ''.join(f' or eos {token}' for token in self.eos_ids[1:])
        digest = hashlib.sha256(special.encode())
        for spelling in self.token_bytes():
            digest.update(len(spelling).to_bytes(4, 'little') + spelling)
        return digest.hexdigest()[:16]

    def _join(self, ids: Iterable[int]) -> bytes:
        table = self.token_bytes()
        ids = [int(token) for token in ids]
        for token in ids:
            if not 0 <= token < len(table):
                raise ValueError(f'token id {token} is outside this vocabulary of {len(table)} tokens ({self.name})')
        return b''.join([table[token] for token in ids])


def encode_preceding(vocabulary: Vocabulary, text: str) -> list[int]:
    """Tokens of a text that another one follows, which is encoded by itself.

    Where the vocabulary puts a space before that one, a space at the end of this one would be a second.
    """
    adds = isinstance(vocabulary, Spelled) and vocabulary.adds_space
    return vocabulary.encode(text.removesuffix(' ') if adds else text)


def encode_following(vocabulary: Vocabulary, text: str) -> list[int]:
    """Tokens of a text that goes on where other text ended: without the space that some vocabularies put first.

    Raises:
      ValueError: the vocabulary cannot spell it, or not as the end of a text.
    """
    if not isinstance(vocabulary, Spelled) or not vocabulary.adds_space:
        return vocabulary.encode(text)
    return encode_behind_mark(vocabulary.encode, vocabulary.token_bytes(), text)


def encode_behind_mark(encode: Callable[[str], list[int]], spellings: Sequence[bytes], text: str) -> list[int]:
    """Encodes a mark and the text behind it, and drops the tokens of the mark with the space before it.

    Args:
      encode: of a vocabulary that puts a space before a text.
      spellings: the bytes of its tokens.
      text: to be encoded.

    Raises:
      ValueError: there is no mark that the vocabulary can spell and keeps apart from the text.
    """
    for mark in MARKS if text else ():
        head, whole = encode(mark), encode(mark + text)
        if whole[: len(head)] == head and b''.join([spellings[token] for token in head]) == f' {mark}'.encode():
            return whole[len(head) :]
    if text:
        raise ValueError(f'{text[:80]!r} cannot be encoded without a space before it; begin it with another character')
    return []


def spelling_table(vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of all tokens as arrays, for reading text on device.

    Returns:
      (bytes, lengths): uint8[V, Bmax], zero-padded at the right, where Bmax is the longest spelling (at least 1); and
      int32[V]. Both are read-only and cached.
    """
    return table_of(vocabulary.token_bytes())


@functools.lru_cache(maxsize=16)
def table_of(spellings: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The same of the spellings alone."""
    lengths = np.array([len(spelling) for spelling in spellings], np.int32)
    table = np.zeros((len(spellings), max(1, int(lengths.max(initial=0)))), np.uint8)
    for row, spelling in zip(table, spellings, strict=True):
        row[: len(spelling)] = np.frombuffer(spelling, np.uint8)
    table.setflags(write=False)
    lengths.setflags(write=False)
    return table, lengths
