"""Reading a tokenizer.json: whether its text comes back, and the bytes that each of its tokens spells.

Three ways of writing bytes as tokens are known, and are told by the decoder:

    byte level    every byte is a printable character ('Ġ' is the space; GPT-2, Llama 3, Qwen)
    metaspace     a character, mostly U+2581, is the space (T5); with byte tokens such as <0x0A> where the model has
                  them (Llama 2, Mistral, Gemma)
    plain         tokens are text as it stands
"""

import dataclasses
import functools
import json
import re
from pathlib import Path
from typing import Any

from t5x_selfimprove.vocabulary.spelled import UNKNOWN

BYTE_TOKEN = re.compile(r'<0x([0-9A-Fa-f]{2})>')
SPACES = re.compile(r'[ \\s\[\]]+([+*]|\{\d+,\d*\})?')  # a regular expression for runs of spaces
NORMALIZERS = {'NFC', 'NFKC', 'Nmt', 'Precompiled', 'Prepend', 'Replace', 'Strip', 'ByteLevel'}
PRE_TOKENIZERS = {
    'ByteLevel', 'Digits', 'FixedLength', 'Metaspace', 'Punctuation', 'Split', 'UnicodeScripts', 'WhitespaceSplit',
}  # fmt: skip
DECODERS = {'ByteFallback', 'ByteLevel', 'Fuse', 'Metaspace', 'Replace', 'Strip'}
MODELS = {'BPE', 'Unigram'}


@dataclasses.dataclass(frozen=True)
class Alphabet:
    """How bytes are written as tokens."""

    byte_level: bool
    space: str | None  # what stands for a space
    byte_tokens: bool  # <0x0A> and the like are bytes

    def spell(self, token: str) -> bytes:
        """The bytes of a token of the model."""
        if self.byte_level:
            table = byte_characters()
            # A token with other characters is decoded as it stands, as the library does.
            return bytes(map(table.get, token)) if all(sign in table for sign in token) else token.encode()
        found = BYTE_TOKEN.fullmatch(token) if self.byte_tokens else None
        if found:
            return bytes([int(found[1], 16)])
        return (token.replace(self.space, ' ') if self.space else token).encode()


@functools.cache
def byte_characters() -> dict[str, int]:
    """Character -> byte, of the byte-level alphabet (Radford et al. 2019): printable Latin-1 stands for itself, the
    other bytes, in order, for the characters from U+0100 on."""
    own = [*range(ord('!'), ord('~') + 1), *range(ord('¡'), ord('¬') + 1), *range(ord('®'), ord('ÿ') + 1)]
    others = [byte for byte in range(256) if byte not in own]
    return {**{chr(byte): byte for byte in own}, **{chr(256 + place): byte for place, byte in enumerate(others)}}


@dataclasses.dataclass(frozen=True)
class TokenizerFile:
    """What was read from a file."""

    tokenizer: Any  # tokenizers.Tokenizer
    alphabet: Alphabet
    unknown: int | None  # the id of the token for what the others cannot spell
    spellings: tuple[bytes, ...]  # by id; nothing for special tokens and for ids that no token has
    misread: tuple[str, ...]  # strings that the model takes for tokens that do not spell them

    @classmethod
    def read(cls, path: Path) -> 'TokenizerFile':
        """Reads a tokenizer.json.

        Raises:
          FileNotFoundError: it is not there.
          ValueError: it is no tokenizer, or a part of it loses text; names the part.
        """
        tokenizer, model = load(path), {}
        try:
            model = json.loads(path.read_text(encoding='utf-8'))['model']
            kind = type(tokenizer.model).__name__
            check_parts(tokenizer, kind)
            alphabet = alphabet_of(tokenizer, model)
            check_model(kind, model, alphabet)
        except Unsupported as error:
            raise ValueError(
                f'{path}: {error}. Use a tokenizer that gives its text back, such as those of Llama, Qwen, Gemma, '
                'Mistral and T5, or the tokenizer.model beside it if there is one'
            ) from None
        if kind == 'Unigram':
            known, unknown = {piece: token for token, (piece, _) in enumerate(model['vocab'])}, model.get('unk_id')
        else:
            known, unknown = model['vocab'], model['vocab'].get(model.get('unk_token'))
        spellings = spell_all(tokenizer, known, unknown, alphabet)
        misread = [piece for piece, token in known.items() if kind == 'Unigram' and is_marker(piece, spellings[token])]
        return cls(tokenizer, alphabet, unknown, spellings, tuple(misread))


class Unsupported(Exception):
    """A part of a tokenizer.json that loses text, or is not known."""


def load(path: Path) -> Any:
    """The tokenizer in a file; text is never taken for its special tokens, and is never cut or padded.

    Raises:
      FileNotFoundError: it is not there.
      ValueError: it is no tokenizer.
    """
    import tokenizers

    if not path.is_file():
        raise FileNotFoundError(f'there is no tokenizer file {str(path)!r}')
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower one
        raise ValueError(
            f'{path} is no tokenizer.json that tokenizers {tokenizers.__version__} can read: {error}; fetch the file '
            'again if it is truncated, or install a newer tokenizers'
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def steps(component: Any) -> list[dict[str, Any]]:
    """A component of a tokenizer as the list of its steps, sequences taken apart."""

    def flat(described: dict[str, Any]) -> list[dict[str, Any]]:
        if described['type'] != 'Sequence':
            return [described]
        inner = next(value for value in described.values() if isinstance(value, list))
        return [step for each in inner for step in flat(each)]

    return [] if component is None else flat(json.loads(component.__getstate__()))


def check_parts(tokenizer: Any, model: str) -> None:
    """Raises Unsupported for a component that loses text, or that is not known."""
    normalizers, splits, decoders = map(steps, (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder))
    known = (('normalizer', normalizers, NORMALIZERS), ('pre_tokenizer', splits, PRE_TOKENIZERS))
    for what, found, fine in (*known, ('decoder', decoders, DECODERS), ('model', [{'type': model}], MODELS)):
        for step in found:
            if step['type'] not in fine:
                raise Unsupported(f'its {what} is or holds {step["type"]}, which does not give every text back')
    if not decoders:
        raise Unsupported('it has no decoder, so that nothing says how its tokens are joined')
    for step in splits:
        if step.get('behavior') == 'Removed':
            raise Unsupported(f'its pre_tokenizer {step["type"]} removes text: {json.dumps(step)[:200]}')
    last = splits[-1] if splits else {}
    restored = last.get('type') == 'Metaspace' and last['prepend_scheme'] == 'always'
    if any(step['type'] == 'WhitespaceSplit' for step in splits) and not restored:
        raise Unsupported('its pre_tokenizer WhitespaceSplit removes spaces, and no Metaspace behind it puts them back')
    for step in normalizers:
        if step['type'] == 'Replace' and not (step['pattern'].get('String') == ' ' or only_spaces(step)):
            raise Unsupported(f'its normalizer Replace changes text: {json.dumps(step)[:200]}')


def only_spaces(step: dict[str, Any]) -> bool:
    """Whether a Replace is about runs of spaces only."""
    return SPACES.fullmatch(step['pattern'].get('Regex', '')) is not None


def alphabet_of(tokenizer: Any, model: dict[str, Any]) -> Alphabet:
    """The alphabet that decoder and encoder agree on.

    Raises:
      Unsupported: they do not.
    """
    decoders, splits, normalizers = map(steps, (tokenizer.decoder, tokenizer.pre_tokenizer, tokenizer.normalizer))
    written = {step['content'] for step in normalizers if step['type'] == 'Replace'}
    written |= {step['prepend'] for step in normalizers if step['type'] == 'Prepend'}
    written |= {step['replacement'] for step in splits if step['type'] == 'Metaspace'}
    read = {step['replacement'] for step in decoders if step['type'] == 'Metaspace'}
    for step in decoders:
        if step['type'] == 'Replace':
            sign = step['pattern'].get('String', '')
            if step['content'] != ' ' or len(sign) != 1:
                raise Unsupported(f'its decoder Replace is not one of a sign by a space: {json.dumps(step)[:200]}')
            read.add(sign)
        if step['type'] == 'Strip' and (step['content'] != ' ' or step['start'] > 1 or step['stop']):
            raise Unsupported(f'its decoder Strip takes away more than one space in front: {json.dumps(step)}')
    byte_level = any(step['type'] == 'ByteLevel' for step in decoders)
    if byte_level != any(step['type'] == 'ByteLevel' for step in (*splits, *normalizers)):
        raise Unsupported('only one of its decoder and its pre_tokenizer is ByteLevel')
    if read != written - {' '} or len(read) > 1 or (byte_level and read):
        raise Unsupported(
            f'its decoder reads {sorted(read)} as a space and its normalizer and pre_tokenizer write {sorted(written)}'
        )
    return Alphabet(byte_level, next(iter(read), None), model.get('byte_fallback') or False)


def check_model(kind: str, model: dict[str, Any], alphabet: Alphabet) -> None:
    """Raises Unsupported for a model that draws its pieces, marks the ends of words, or drops what it does not know."""
    for field in ('continuing_subword_prefix', 'end_of_word_suffix', 'dropout', 'alpha', 'nbest_size'):
        if model.get(field):
            raise Unsupported(f'its model has {field} = {model[field]!r}')
    if kind == 'Unigram':
        if model.get('unk_id') is None and not alphabet.byte_tokens:
            raise Unsupported('its Unigram model has neither an unknown token nor byte tokens')
        return
    if model.get('unk_token') is not None:
        return
    spelled = {alphabet.spell(token) for token in model['vocab']}
    missing = [byte for byte in range(256) if bytes([byte]) not in spelled]
    if missing or not (alphabet.byte_level or alphabet.byte_tokens):
        raise Unsupported(f'its BPE model has no unknown token and drops text: {len(missing)} of 256 bytes are missing')


def spell_all(tokenizer: Any, known: dict[str, int], unknown: int | None, alphabet: Alphabet) -> tuple[bytes, ...]:
    """The spelling of every id."""
    added = tokenizer.get_added_tokens_decoder()
    spellings = [b''] * (1 + max((*known.values(), *added)))
    for piece, token in known.items():
        spellings[token] = alphabet.spell(piece)
    for token, described in added.items():
        if described.special:
            spellings[token] = b''
        elif known.get(described.content) != token:
            content = described.content  # not of the model, so it is not written in its byte-level characters
            spellings[token] = content.encode() if alphabet.byte_level else alphabet.spell(content)
    if unknown is not None:
        spellings[unknown] = UNKNOWN
    return tuple(spellings)


def is_marker(piece: str, spelling: bytes) -> bool:
    """Whether a piece such as '</s>' or '<0x0A>' spells something else than its own name.

    The Unigram model takes such a string in a text for the token; the BPE model does not, as no merge leads to it.
    """
    return bool(piece) and (spelling in (b'', UNKNOWN) or (len(spelling) == 1 and bool(BYTE_TOKEN.fullmatch(piece))))
