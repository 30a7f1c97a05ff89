"""Tokenizers made as the families make theirs, of few tokens learnt on a short text."""

import functools
import io
import json
import pathlib
from collections.abc import Callable
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from t5x_selfimprove.vocabulary import SentencePieceVocabulary
from tests.vocabulary.texts import STORY

LESSONS = [f'{STORY} {name} has {n} {thing}.' for n in range(40) for name in ('Anna', 'Ben') for thing in ('cups', 'é')]
LESSONS += ['a < b > c / d = $3, <s> and <u>, x, naïve, Ångström']
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
LLAMA_3_SPLIT = CONTRACTIONS + r'\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
QWEN_SPLIT = CONTRACTIONS + r'\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
BYTE_TOKENS = [f'<0x{byte:02X}>' for byte in range(256)]
REPLACE = normalizers.Replace(' ', '▁')
JOIN = [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse()]


def byte_level(splits: list, special: list[str], normalizer: Any = None, ignore_merges: bool = False) -> Tokenizer:
    """BPE over the byte-level alphabet."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits) if len(splits) > 1 else splits[0]
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=380, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(LESSONS, trainer)
    tokenizer.add_special_tokens(special)
    return tokenizer


def gpt_2() -> Tokenizer:
    """With the split that is built in."""
    return byte_level([pre_tokenizers.ByteLevel(add_prefix_space=False)], ['<|endoftext|>'])


def llama_3() -> Tokenizer:
    """With a begin of text before every text."""
    splits = [pre_tokenizers.Split(Regex(LLAMA_3_SPLIT), 'isolated'), pre_tokenizers.ByteLevel(False, use_regex=False)]
    special = ['<|begin_of_text|>', '<|end_of_text|>', '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>']
    tokenizer = byte_level(splits, special, ignore_merges=True)
    begin = (special[0], tokenizer.token_to_id(special[0]))
    start = processors.TemplateProcessing(single=f'{special[0]} $A', special_tokens=[begin])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), start])
    return tokenizer


def qwen() -> Tokenizer:
    """With composed Unicode, and added tokens that are text."""
    splits = [pre_tokenizers.Split(Regex(QWEN_SPLIT), 'isolated'), pre_tokenizers.ByteLevel(False, use_regex=False)]
    tokenizer = byte_level(splits, ['<|endoftext|>', '<|im_start|>', '<|im_end|>'], normalizers.NFC())
    tokenizer.add_tokens([AddedToken('<think>', normalized=False), AddedToken('</thïnk>', normalized=False)])
    return tokenizer


def metaspace(normalizer: Any, splits: Any, decoder: list, special: list[str]) -> Tokenizer:
    """BPE with byte tokens, of which the space is written '▁'."""
    learnt = Tokenizer(models.BPE())
    learnt.normalizer = normalizers.Replace(Regex(' '), '▁')
    learnt.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='always')
    trainer = trainers.BpeTrainer(vocab_size=450, special_tokens=[*special, *BYTE_TOKENS], show_progress=False)
    learnt.train_from_iterator(LESSONS, trainer)
    model = json.loads(learnt.to_str())['model']
    merges = [tuple(merge) for merge in model['merges']]
    tokenizer = Tokenizer(models.BPE(model['vocab'], merges, unk_token='<unk>', fuse_unk=True, byte_fallback=True))
    if normalizer:
        tokenizer.normalizer = normalizer
    if splits:
        tokenizer.pre_tokenizer = splits
    tokenizer.decoder = decoders.Sequence(decoder)
    tokenizer.add_special_tokens(special)
    return tokenizer


def llama_2() -> Tokenizer:
    """With a space put before every text, by a normalizer."""
    normalizer = normalizers.Sequence([normalizers.Prepend('▁'), REPLACE])
    tokenizer = metaspace(normalizer, None, [*JOIN, decoders.Strip(' ', 1, 0)], ['<unk>', '<s>', '</s>'])
    tokenizer.post_processor = processors.TemplateProcessing(single='<s> $A', special_tokens=[('<s>', 1)])
    return tokenizer


def mistral() -> Tokenizer:
    """With a space put before every text, by a pre-tokenizer."""
    splits = pre_tokenizers.Metaspace(prepend_scheme='first', split=False)
    return metaspace(None, splits, [*JOIN, decoders.Strip(' ', 1, 0)], ['<unk>', '<s>', '</s>', '[INST]', '[/INST]'])


def gemma() -> Tokenizer:
    """With no space put before a text, and added tokens of several spaces."""
    splits = pre_tokenizers.Split(' ', 'merged_with_previous')
    tokenizer = metaspace(REPLACE, splits, JOIN, ['<pad>', '<eos>', '<bos>', '<unk>'])
    tokenizer.add_tokens([AddedToken('▁▁▁', normalized=False), AddedToken('\n\n\n', normalized=False)])
    return tokenizer


def unigram(normalizer: Any, splits: Any, byte_tokens: bool = False) -> Tokenizer:
    """A Unigram model, its space written '▁'; with '<pad>', '</s>', '<unk>' and extra ids."""
    learnt = Tokenizer(models.Unigram())
    learnt.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, show_progress=False, special_tokens=['<pad>', '</s>', '<unk>'])
    learnt.train_from_iterator(LESSONS, trainer)
    pieces = [tuple(piece) for piece in json.loads(learnt.to_str())['model']['vocab']]
    pieces += [(token, -20.0) for token in BYTE_TOKENS] if byte_tokens else []
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=byte_tokens))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splits
    tokenizer.decoder = decoders.Metaspace()
    if byte_tokens:
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens(['<pad>', '</s>', '<unk>', '<extra_id_0>'])
    tokenizer.post_processor = processors.TemplateProcessing(single='$A </s>', special_tokens=[('</s>', 1)])
    return tokenizer


@functools.cache
def t5_pieces() -> bytes:
    """A SentencePiece model as that of T5: Unigram, with the default rules."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LESSONS), model_writer=model, vocab_size=60, hard_vocab_limit=False, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def compatibility_forms() -> Any:
    """The normalizer of T5."""
    rules = sentencepiece_model_pb2.ModelProto.FromString(t5_pieces()).normalizer_spec
    return normalizers.Precompiled(rules.precompiled_charsmap)


def t5() -> Tokenizer:
    """As the T5 checkpoints have it."""
    words = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    return unigram(compatibility_forms(), words)


def t5_converted() -> Tokenizer:
    """As T5 is converted from its SentencePiece model."""
    runs = normalizers.Replace(Regex(' {2,}'), '▁')
    normalizer = normalizers.Sequence([compatibility_forms(), normalizers.Strip(left=False, right=True), runs])
    return unigram(normalizer, pre_tokenizers.Metaspace())


def unigram_with_bytes() -> Tokenizer:
    """Unigram that spells what it does not know byte by byte."""
    return unigram(None, pre_tokenizers.Metaspace(), byte_tokens=True)


def llama_pieces(path: pathlib.Path) -> SentencePieceVocabulary:
    """A SentencePiece model as that of Llama 2: BPE with byte tokens, a space put before every text, no padding."""
    with path.open('wb') as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([STORY] * 10), model_writer=model, vocab_size=330, model_type='bpe',
            byte_fallback=True, normalization_rule_name='identity', remove_extra_whitespaces=False, split_digits=True,
            allow_whitespace_only_pieces=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2,
        )  # fmt: skip
    return SentencePieceVocabulary(str(path))


MAKERS: dict[str, Callable[[], Tokenizer]] = {
    made.__name__: made
    for made in (gpt_2, llama_3, qwen, llama_2, mistral, gemma, t5, t5_converted, unigram_with_bytes)
}
EOS = {'gpt_2': '<|endoftext|>', 'llama_3': '<|end_of_text|>', 'qwen': '<|im_end|>', 'gemma': '<eos>'}  # else '</s>'


def save(tokenizer: Tokenizer, folder: pathlib.Path, **named: Any) -> str:
    """Puts a tokenizer into a checkpoint's directory, with what tokenizer_config.json is to say."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / 'tokenizer.json'))
    (folder / 'tokenizer_config.json').write_text(json.dumps(named), encoding='utf-8')
    return str(folder)
