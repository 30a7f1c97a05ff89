"""Hugging Face tokenizers: the tokenizer.json of a checkpoint."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from t5x_selfimprove.vocabulary import special_tokens
from t5x_selfimprove.vocabulary.spelled import METASPACE, Spelled, encode_behind_mark
from t5x_selfimprove.vocabulary.tokenizer_file import TokenizerFile, load

FILE = 'tokenizer.json'


@dataclasses.dataclass(frozen=True)
class HuggingFaceVocabulary(Spelled):
    """The tokenizer.json of a checkpoint: byte-level BPE (GPT-2, Llama 3, Qwen), BPE with metaspace and byte tokens
    (Llama 2, Mistral, Gemma), Unigram (T5). Whatever would lose text (WordPiece, lower case ...) is refused.

    `encode` takes text for text: '</s>' in it is spelled out, and does not become the special token. What comes back is
    the text, but for what the tokenizer itself does to it:

    * Qwen composes Unicode (NFC). T5 takes compatibility forms for their plain ones (NFKC), and runs of spaces and
      line ends for one space.
    * Unknown characters show as U+2047. Where there are no byte tokens (T5), U+2581 is a space.
    * A tokenizer that puts a space before a text may take one that is there for its own (Mistral v0.3).
    * An added token that swallows the spaces beside it (lstrip, rstrip) does so.

    Special tokens are those that tokenizer_config.json or special_tokens_map.json beside the file name, else those
    whose ids are in generation_config.json or config.json (the first of several). Where none of them names padding,
    the end of text is padding too: lengths and masks say what is padding. There is a begin of text where the tokenizer
    puts one before a text. Whatever the tokenizer's files or the user name as end of text, the others that
    generation_config.json, else config.json, lists are ends too: Gemma writes <eos> behind a text and <end_of_turn>
    behind a message.

    Attributes:
      path: of a checkpoint's directory, or of the file itself.
      pad_token, eos_token, bos_token: tokens to use instead, such as '<end_of_turn>'; '' as bos_token = none.

    Raises:
      ValueError: a field of the wrong type. The file is read at the first use, which may raise more.
    """

    path: str
    pad_token: str | None = None
    eos_token: str | None = None
    bos_token: str | None = None
    name: ClassVar[str] = 'hugging_face'

    def __post_init__(self):
        if not isinstance(self.path, str) or not self.path:
            raise ValueError(f'HuggingFaceVocabulary.path must be the path of a checkpoint; it is {self.path!r}')
        for field in ('pad_token', 'eos_token', 'bos_token'):
            if not isinstance(getattr(self, field), str | None):
                raise ValueError(f'{field} must be a token; it is {getattr(self, field)!r}')

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # the rest is read again

    @property
    def file(self) -> Path:
        """The tokenizer.json."""
        path = Path(self.path).expanduser()
        return path / FILE if path.is_dir() else path

    @property
    def size(self) -> int:
        return len(self._read.spellings)

    @functools.cached_property
    def pad_id(self) -> int:
        """The padding token; end of text where there is none."""
        found = self._find('pad_token')
        return self.eos_id if found is None else found

    @functools.cached_property
    def eos_id(self) -> int:
        """The end of text.

        Raises:
          ValueError: no file names one.
        """
        found = self._find('eos_token')
        if found is None:
            looked = ', '.join((*special_tokens.NAMING, *special_tokens.NUMBERING))
            raise ValueError(f'no file beside {self.file} names an end-of-text token ({looked}); choose one: eos_token')
        return found

    @functools.cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """The ends of text: `eos_id`, and in order the others that the model's files list.

        Raises:
          ValueError: one of them is not in the vocabulary, or is text like any other.
        """
        folder, added = self.file.parent, self._read.tokenizer.get_added_tokens_decoder()
        others = sorted(set(special_tokens.numbered(folder, 'eos_token', self._tokens)) - {self.eos_id})
        for token in others:
            if token not in added and self._read.spellings[token]:
                raise ValueError(
                    f'a file of {folder} ({", ".join(special_tokens.NUMBERING)}) lists token {token} in eos_token_id, '
                    f'which spells {self._read.spellings[token].decode(errors="replace")!r}: no text could hold it. '
                    f'Mend the list; the tokenizer has {self.eos_id} as its end of text'
                )
        return (self.eos_id, *others)

    @functools.cached_property
    def bos_id(self) -> int | None:
        """What stands before a text: bos_token, else as add_bos_token says, else what the tokenizer puts there.

        Raises:
          ValueError: it puts more than one token there, or adds one that no file names.
        """
        if self.bos_token is not None:
            return special_tokens.number(self._tokens, 'bos_token', self.bos_token) if self.bos_token else None
        adds = special_tokens.read_json(self.file.parent / 'tokenizer_config.json').get('add_bos_token')
        if adds is None:
            return self._first()
        found = self._find('bos_token') if adds else None
        if adds and found is None:
            raise ValueError(f'tokenizer_config.json beside {self.file} has add_bos_token, and no file names bos_token')
        return found

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Special tokens in it are text.

        Raises:
          UnicodeEncodeError: half a surrogate pair.
        """
        if self._misread is None or not self._misread.search(text):
            return self._plain(text)
        ids, start = [], 0
        encode: Callable[[str], list[int]] = self._plain
        for found in self._misread.finditer(text):
            apart = found.group() == METASPACE
            ids += encode(text[start : found.start() + (not apart)])  # '<' and '/s>' make no '</s>'
            ids += self._metaspace_ids if apart else []
            start = found.end() if apart else found.start() + 1
            encode = self._plain_following
        return ids + encode(text[start:])

    def encode_marked(self, text: str, following: bool = False) -> list[int]:
        """Token ids of a text in which special tokens stand by their names, as in a rendered chat; none are added.

        Args:
          text: with special tokens.
          following: whether it goes on where other text ended.
        """
        if following and self.adds_space:
            return encode_behind_mark(self.encode_marked, self.token_bytes(), text)
        return self._marked.encode(text, add_special_tokens=False).ids

    def token_bytes(self) -> tuple[bytes, ...]:
        return self._spellings

    @functools.cached_property
    def adds_space(self) -> bool:
        """Whether a text begins with a space that is not its own."""
        first = self._plain('a')[0]
        return first != self._read.unknown and self._read.spellings[first].startswith(b' ')

    @functools.cached_property
    def _read(self) -> TokenizerFile:
        return TokenizerFile.read(self.file)

    @functools.cached_property
    def _marked(self) -> Any:
        """A tokenizer that finds special tokens in text."""
        tokenizer = load(self.file)
        tokenizer.encode_special_tokens = False
        return tokenizer

    @functools.cached_property
    def _tokens(self) -> Mapping[str, int]:
        return self._read.tokenizer.get_vocab(with_added_tokens=True)

    @functools.cached_property
    def _spellings(self) -> tuple[bytes, ...]:
        special = {self.pad_id, *self.eos_ids, self.bos_id}
        return tuple(b'' if token in special else spelling for token, spelling in enumerate(self._read.spellings))

    @functools.cached_property
    def _metaspace_ids(self) -> list[int]:
        """Byte tokens of the sign that stands for a space; empty where there are none, or where it is but a letter."""
        names = [f'<0x{byte:02X}>' for byte in METASPACE.encode()]
        alphabet = self._read.alphabet
        return [self._tokens[name] for name in names] if alphabet.byte_tokens and alphabet.space == METASPACE else []

    @functools.cached_property
    def _misread(self) -> re.Pattern | None:
        """What the tokenizer would not take for the text that it is."""
        strings = [METASPACE] if self._metaspace_ids else []
        strings += sorted(self._read.misread, key=len, reverse=True)
        return re.compile('|'.join(map(re.escape, strings))) if strings else None

    def _find(self, field: str) -> int | None:
        chosen = getattr(self, field)
        if chosen is not None:
            return special_tokens.number(self._tokens, field, chosen)
        return special_tokens.find(self.file.parent, field, self._tokens)

    def _first(self) -> int | None:
        """The token that the post-processor puts before a text."""
        text = self._plain('a')
        whole = self._read.tokenizer.encode('a').ids
        start = next(at for at in range(len(whole)) if whole[at : at + len(text)] == text)
        if start > 1:
            raise ValueError(f'{self.file} puts {start} tokens before a text; choose one: bos_token')
        return whole[0] if start else None

    def _plain(self, text: str) -> list[int]:
        try:
            return self._read.tokenizer.encode(text, add_special_tokens=False).ids
        except TypeError:
            text.encode()  # says which character cannot be
            raise

    def _plain_following(self, text: str) -> list[int]:
        return encode_behind_mark(self._plain, self._read.spellings, text) if self.adds_space else self._plain(text)
