"""A vocabulary of a given size for programs that are compiled and never run."""

import dataclasses
import functools
from typing import ClassVar

from t5x_selfimprove.vocabulary.spelled import Spelled


@dataclasses.dataclass(frozen=True)
class Placeholder(Spelled):
    """Stands for a tokenizer that is not at hand: compiled programs depend on the number of tokens and on the length of
    the longest, not on what they say. Bytes as `ByteVocabulary` has them, then tokens that no text is cut into.

    Raises:
      ValueError: a size below the 259 of the bytes, or a longest token without a byte.
    """

    size: int
    longest: int = 16  # bytes of the longest token
    name: ClassVar[str] = 'placeholder'
    pad_id: ClassVar[int] = 0
    eos_id: ClassVar[int] = 1
    bos_id: ClassVar[int | None] = 2

    def __post_init__(self):
        if self.size < 3 + 256 or self.longest < 1:
            raise ValueError(
                f'a Placeholder needs size of at least 259 and longest of at least 1; they are {self.size}, '
                f'{self.longest}'
            )

    def encode(self, text: str) -> list[int]:
        return [byte + 3 for byte in text.encode('utf-8')]

    def token_bytes(self) -> tuple[bytes, ...]:
        return _spellings(self.size, self.longest)


@functools.lru_cache(maxsize=4)
def _spellings(size: int, longest: int) -> tuple[bytes, ...]:
    rest = size - 3 - 256
    return (b'', b'', b'', *(bytes([byte]) for byte in range(256)), *(b'?' * longest for _ in range(rest)))
