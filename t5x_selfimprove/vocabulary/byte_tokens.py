"""Bytes as tokens."""

import dataclasses
from typing import ClassVar

from t5x_selfimprove.vocabulary.spelled import Spelled


@dataclasses.dataclass(frozen=True)
class ByteVocabulary(Spelled):
    """UTF-8 bytes as tokens: id = byte + 3, where ByT5 has them. 0 is padding, 1 end of text, 2 begin of text."""

    name: ClassVar[str] = 'bytes'
    pad_id: ClassVar[int] = 0
    eos_id: ClassVar[int] = 1
    bos_id: ClassVar[int | None] = 2

    @property
    def size(self) -> int:
        return 3 + 256

    def encode(self, text: str) -> list[int]:
        return [byte + 3 for byte in text.encode('utf-8')]

    def token_bytes(self) -> tuple[bytes, ...]:
        return _BYTE_SPELLINGS


_BYTE_SPELLINGS = (b'', b'', b'', *(bytes([byte]) for byte in range(256)))
