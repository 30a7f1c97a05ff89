"""Whole words as tokens, for small closed languages."""

import dataclasses
import functools
import re
from collections.abc import Iterable
from typing import ClassVar

from t5x_selfimprove.vocabulary.spelled import Spelled

# A word or a number is one piece together with the space before it; anything else is a piece a character.
PIECE = re.compile(r" ?[A-Za-z']+| ?[0-9]+| ?[^\sA-Za-z0-9']|\s")


@dataclasses.dataclass(frozen=True)
class WordVocabulary(Spelled):
    """Whole words and numbers as tokens, for small closed languages.

    Cutting is lossless: a piece is a word, a number or one other character, each with the space before it, so ' 7'
    and '7' are two pieces. 0 is padding, 1 end of text, 2 begin of text; `words[i]` has id i + 3.

    Attributes:
      words: the pieces, each as `pieces` cuts them; no piece twice.
    """

    words: tuple[str, ...]
    name: ClassVar[str] = 'words'
    pad_id: ClassVar[int] = 0
    eos_id: ClassVar[int] = 1
    bos_id: ClassVar[int | None] = 2

    def __post_init__(self):
        if not isinstance(self.words, tuple) or not self.words or not all(isinstance(w, str) for w in self.words):
            raise ValueError(f'WordVocabulary.words must be a tuple of at least one piece; it is {self.words!r:.80}')
        for word in self.words:
            if pieces(word) != [word]:
                raise ValueError(
                    f'WordVocabulary.words holds {word!r}, which no text is cut into; its pieces are {pieces(word)}. '
                    'Build the vocabulary with WordVocabulary.learn(texts)'
                )
        if len(self._ids) != len(self.words):
            twice = sorted({word for word in self.words if self.words.count(word) > 1})
            raise ValueError(f'WordVocabulary.words holds {twice[0]!r} more than once')

    @classmethod
    def learn(cls, texts: Iterable[str], max_size: int = 50_000) -> 'WordVocabulary':
        """The vocabulary of all pieces in `texts`, sorted, whatever the order of the texts.

        Raises:
          ValueError: no text at all, or more than `max_size` tokens.
        """
        found: set[str] = set()
        for text in texts:
            found.update(pieces(text))
        if not found:
            raise ValueError('WordVocabulary.learn was given no text')
        if len(found) + 3 > max_size:
            raise ValueError(
                f'the texts have {len(found):,} different words, more than max_size = {max_size:,} allows; '
                'use ByteVocabulary or train a SentencePieceVocabulary'
            )
        return cls(tuple(sorted(found)))

    @property
    def size(self) -> int:
        return 3 + len(self.words)

    def encode(self, text: str) -> list[int]:
        """Ids of the pieces of `text`.

        Raises:
          ValueError: a piece that is not in the vocabulary; names it and its place.
        """
        cut = pieces(text)
        try:
            return [self._ids[piece] for piece in cut]
        except KeyError as error:
            unknown = error.args[0]
            place = sum(len(piece) for piece in cut[: cut.index(unknown)])
            raise ValueError(
                f'{unknown!r} at character {place} of {text[:200]!r} is not in the vocabulary of {self.size} words; '
                'learn the vocabulary on this text too, or use ByteVocabulary or SentencePieceVocabulary'
            ) from None

    def token_bytes(self) -> tuple[bytes, ...]:
        return self._spellings

    # cached_property writes past the frozen __setattr__; it is no field, so equality and hash do not see it.
    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {word: 3 + index for index, word in enumerate(self.words)}

    @functools.cached_property
    def _spellings(self) -> tuple[bytes, ...]:
        return (b'', b'', b'', *(word.encode('utf-8') for word in self.words))


def pieces(text: str) -> list[str]:
    """Cuts text as `WordVocabulary` does: 'has 7 pens.' -> ['has', ' 7', ' pens', '.']. Joined they are the text."""
    return PIECE.findall(text)
