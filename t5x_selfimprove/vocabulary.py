"""Token ids, special tokens, and the bytes that each token spells.

Every vocabulary is a frozen, hashable value with the same face (`Vocabulary`), so it can be a static argument under
`jit`. Joining the bytes of the tokens gives the text: answers are read on device from that byte stream
(`spelling_table`), so they mean the same thing however a text was cut into tokens.
"""

import dataclasses
import functools
import hashlib
import io
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

# A word or a number is one piece together with the space before it; anything else is a piece a character.
PIECE = re.compile(r" ?[A-Za-z']+| ?[0-9]+| ?[^\sA-Za-z0-9']|\s")
METASPACE = '\u2581'  # how SentencePiece writes a space
_LINE_PART = 50_000  # characters, of at most 4 bytes each


@runtime_checkable
class Vocabulary(Protocol):
    """What every vocabulary offers. `decode` drops special tokens; `encode` adds none."""

    @property
    def size(self) -> int: ...

    @property
    def pad_id(self) -> int: ...

    @property
    def eos_id(self) -> int: ...

    @property
    def bos_id(self) -> int | None: ...

    @property
    def name(self) -> str: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def token_bytes(self) -> tuple[bytes, ...]: ...

    def fingerprint(self) -> str: ...


class _Spelled:
    """What follows from `token_bytes` alone, the same for all vocabularies."""

    name: ClassVar[str]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the tokens; bytes that are no UTF-8 show as U+FFFD.

        Raises:
          ValueError: an id outside 0..size-1.
        """
        return self._join(ids).decode('utf-8', errors='replace')

    def fingerprint(self) -> str:
        """16 hex digits that change when a token, its place or a special id changes. Kept in checkpoints."""
        special = f'{self.name} pad {self.pad_id} eos {self.eos_id} bos {self.bos_id} size {self.size}'
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


@dataclasses.dataclass(frozen=True)
class ByteVocabulary(_Spelled):
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


@dataclasses.dataclass(frozen=True)
class WordVocabulary(_Spelled):
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


@dataclasses.dataclass(frozen=True)
class SentencePieceVocabulary(_Spelled):
    """A SentencePiece model file: one made by `train` here, or any other (T5, Gemma, Llama ...).

    Models made here are lossless: decode(encode(text)) == text for every text. A foreign model may normalise text,
    may put a space before it (dropped again by `decode`), and spells characters it does not know as U+2047.

    Attributes:
      path: of the .model file, from the working directory or absolute.
    """

    path: str
    name: ClassVar[str] = 'sentencepiece'

    def __post_init__(self):
        if not isinstance(self.path, str) or not self.path:
            raise ValueError(f'SentencePieceVocabulary.path must be the path of a model file; it is {self.path!r}')

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        path: str,
        size: int,
        model_type: str = 'unigram',
        character_coverage: float = 0.9995,
        threads: int = 1,
    ) -> 'SentencePieceVocabulary':
        """Trains a model of `size` tokens on the lines of `texts` and writes it to `path` in one move.

        Nothing is normalised, spaces are kept, digits are one token each, and what is not among the pieces is spelled
        byte by byte. Ids: 0 padding, 1 end of text, 2 begin of text, 3 unknown (never used), 4..259 the bytes.

        Args:
          texts: read once.
          path: where the model goes; its directory is made.
          size: tokens in all; at least 260 and the characters covered.
          model_type: 'unigram' (Kudo 2018) or 'bpe' (Sennrich et al. 2016).
          character_coverage: share of the text whose characters become pieces of their own.
          threads: of the trainer; the pieces may depend on it.

        Raises:
          ValueError: no text, or a size that the texts cannot fill or that leaves no room for the characters.
        """
        import sentencepiece

        if model_type not in ('unigram', 'bpe'):
            raise ValueError(f"model_type must be 'unigram' or 'bpe'; it is {model_type!r}")
        lines = _Lines(texts)
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines), model_writer=model, vocab_size=size, model_type=model_type,
                byte_fallback=True, normalization_rule_name='identity', remove_extra_whitespaces=False,
                add_dummy_prefix=False, split_digits=True, allow_whitespace_only_pieces=True,
                character_coverage=character_coverage, num_threads=threads, max_sentence_length=4 * _LINE_PART,
                pad_id=0, eos_id=1, bos_id=2, unk_id=3, minloglevel=2,
            )  # fmt: skip
        except (RuntimeError, ValueError, OSError) as error:
            if not lines.count:
                raise ValueError('SentencePieceVocabulary.train was given no text') from None
            advice = 'choose a size that the texts can fill and that holds 260 tokens and all characters'
            raise ValueError(
                f'SentencePiece could not train {size} tokens on {lines.count:,} lines: {error}; {advice}'
            ) from error
        _write_whole(path, model.getvalue())
        return cls(path)

    @property
    def size(self) -> int:
        return self._processor.get_piece_size()

    @property
    def pad_id(self) -> int:
        return max(self._processor.pad_id(), 0)  # models without padding: any id will do, lengths say what is padding

    @property
    def eos_id(self) -> int:
        return self._processor.eos_id()

    @property
    def bos_id(self) -> int | None:
        return None if self._processor.bos_id() < 0 else self._processor.bos_id()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; the sign that SentencePiece writes for a space is spelled as itself."""
        encode = self._processor.encode
        if METASPACE not in text or self._adds_space or not self._metaspace_ids:
            return encode(text, out_type=int)
        first, *rest = text.split(METASPACE)  # in a text it would be taken for a space
        ids = encode(first, out_type=int)
        for part in rest:
            ids += self._metaspace_ids + encode(part, out_type=int)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the tokens, without the space that some models put before a text."""
        text = super().decode(ids)
        return text[1:] if self._adds_space and text.startswith(' ') else text

    def token_bytes(self) -> tuple[bytes, ...]:
        return self._spellings

    @functools.cached_property
    def _processor(self) -> Any:
        import sentencepiece

        path = os.path.expanduser(self.path)
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f'there is no SentencePiece model at {path!r} (working directory {os.getcwd()}); '
                'train one with SentencePieceVocabulary.train(texts, path, size)'
            )
        try:
            processor = sentencepiece.SentencePieceProcessor(model_file=path)
        except (RuntimeError, OSError) as error:
            raise ValueError(f'{path!r} is not a SentencePiece model: {error}') from error
        if processor.eos_id() < 0:
            raise ValueError(f'the SentencePiece model {path!r} has no end-of-text token; train one with eos_id set')
        return processor

    @functools.cached_property
    def _adds_space(self) -> bool:
        return self._processor.encode('a', out_type=str)[0].startswith(METASPACE)

    @functools.cached_property
    def _metaspace_ids(self) -> list[int]:
        """Byte tokens of the character METASPACE; empty if the model has no byte tokens."""
        ids = [self._processor.piece_to_id(f'<0x{byte:02X}>') for byte in METASPACE.encode()]
        return ids if all(self._processor.is_byte(token) for token in ids) else []

    @functools.cached_property
    def _spellings(self) -> tuple[bytes, ...]:
        processor = self._processor
        return tuple(_piece_bytes(processor, token) for token in range(processor.get_piece_size()))


def _piece_bytes(processor: Any, token: int) -> bytes:
    piece = processor.id_to_piece(token)
    if processor.is_byte(token):  # '<0x0A>'
        return bytes([int(piece[3:5], 16)])
    if processor.is_unknown(token):
        return ' \u2047 '.encode()  # seen rather than lost; the same as SentencePiece shows
    if processor.is_control(token) or processor.is_unused(token):
        return b''
    return piece.replace(METASPACE, ' ').encode('utf-8')


class _Lines:
    """Lines of texts, counted, long ones in parts: the trainer takes a line as a sentence and drops overlong ones."""

    def __init__(self, texts: Iterable[str]):
        self.texts = texts
        self.count = 0

    def __iter__(self):
        for text in self.texts:
            for line in text.split('\n'):
                for start in range(0, len(line), _LINE_PART):
                    self.count += 1
                    yield line[start : start + _LINE_PART]


def _write_whole(path: str, content: bytes) -> None:
    """Writes a file so that at no moment a part of it stands under its name."""
    path = os.path.abspath(os.path.expanduser(path))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    partial = f'{path}.{os.getpid()}.partial'
    try:
        with open(partial, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.unlink(partial)


def spelling_table(vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of all tokens as arrays, for reading text on device.

    Returns:
      (bytes, lengths): uint8[V, Bmax], zero-padded at the right, where Bmax is the longest spelling (at least 1); and
      int32[V]. Both are read-only and cached.
    """
    return _table(vocabulary.token_bytes())


@functools.lru_cache(maxsize=16)
def _table(spellings: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(spelling) for spelling in spellings], np.int32)
    table = np.zeros((len(spellings), max(1, int(lengths.max(initial=0)))), np.uint8)
    for row, spelling in zip(table, spellings, strict=True):
        row[: len(spelling)] = np.frombuffer(spelling, np.uint8)
    table.setflags(write=False)
    lengths.setflags(write=False)
    return table, lengths
