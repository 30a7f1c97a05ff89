"""SentencePiece model files: trained here, or found in a checkpoint."""

import dataclasses
import functools
import io
import os
from collections.abc import Iterable
from typing import Any, ClassVar

from t5x_selfimprove.vocabulary.spelled import METASPACE, UNKNOWN, Spelled, encode_following

_LINE_PART = 50_000  # characters, of at most 4 bytes each


@dataclasses.dataclass(frozen=True)
class SentencePieceVocabulary(Spelled):
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
        if METASPACE not in text or not self._metaspace_ids:
            return encode(text, out_type=int)
        first, *rest = text.split(METASPACE)  # in a text it would be taken for a space
        ids = encode(first, out_type=int)
        for part in rest:
            ids += self._metaspace_ids + encode_following(self, part)
        return ids

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
    def adds_space(self) -> bool:
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
        return UNKNOWN
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
