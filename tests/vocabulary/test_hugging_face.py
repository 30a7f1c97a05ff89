"""Hugging Face tokenizers: bytes of tokens, text that looks like tokens, and what is refused."""

import json
import pickle

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from t5x_selfimprove.consolidation.answers import AnswerFormat, answer_bytes
from t5x_selfimprove.vocabulary import HuggingFaceVocabulary, Vocabulary
from t5x_selfimprove.vocabulary.tokenizer_file import byte_characters
from tests.consolidation.batches import rows
from tests.vocabulary import made

A_Z = {chr(97 + place): place for place in range(26)}


def spelling(vocabulary, token: str) -> bytes:
    return vocabulary.token_bytes()[Tokenizer.from_file(str(vocabulary.file)).token_to_id(token)]


@pytest.mark.parametrize('family', made.MAKERS)
def test_face(family, of_family):
    vocabulary = of_family(family)
    assert isinstance(vocabulary, Vocabulary)
    assert len(vocabulary.token_bytes()) == vocabulary.size
    assert type(vocabulary.encode(' 7')[0]) is int
    assert vocabulary == HuggingFaceVocabulary(vocabulary.path) != HuggingFaceVocabulary(vocabulary.path, pad_token='a')
    assert hash(vocabulary) == hash(HuggingFaceVocabulary(vocabulary.path))
    assert HuggingFaceVocabulary(str(vocabulary.file)).fingerprint() == vocabulary.fingerprint()
    assert len(vocabulary.fingerprint()) == 16
    with pytest.raises(ValueError, match=f'token id 9999 is outside this vocabulary of {vocabulary.size} tokens'):
        vocabulary.decode([9999])


def test_fingerprints_differ(of_family):
    prints = [of_family(family).fingerprint() for family in made.MAKERS]
    other = HuggingFaceVocabulary(of_family('gemma').path, eos_token='<pad>').fingerprint()
    assert len({*prints, other}) == len(prints) + 1


def test_a_copy_takes_text_for_text_too(of_family):
    vocabulary = of_family('llama_2')
    again = pickle.loads(pickle.dumps(vocabulary))
    assert again == vocabulary and again.encode('a</s>') == vocabulary.encode('a</s>')
    assert len(pickle.dumps(vocabulary)) < 1000  # the file is read again


def test_byte_characters_are_those_of_the_library():
    assert set(byte_characters()) == set(pre_tokenizers.ByteLevel.alphabet())
    for character, byte in byte_characters().items():
        assert decoders.ByteLevel().decode([character]) == bytes([byte]).decode(errors='replace')


def test_bytes_of_tokens(of_family):
    assert spelling(of_family('llama_3'), 'Ġcoins') == b' coins'
    assert spelling(of_family('llama_3'), 'Ċ') == b'\n'
    assert spelling(of_family('llama_3'), 'Ã') == b'\xc3'
    assert spelling(of_family('llama_2'), '▁coins') == b' coins' and spelling(of_family('t5'), '▁') == b' '
    assert spelling(of_family('llama_2'), '<0xC3>') == spelling(of_family('unigram_with_bytes'), '<0xC3>') == b'\xc3'
    assert spelling(of_family('gemma'), '▁▁▁') == b'   '
    assert spelling(of_family('gemma'), '\n\n\n') == b'\n\n\n'
    assert spelling(of_family('qwen'), '<think>') == b'<think>'
    assert spelling(of_family('qwen'), '</thïnk>') == '</thïnk>'.encode()


def test_special_tokens_spell_nothing_and_unknown_ones_are_seen(of_family):
    assert spelling(of_family('qwen'), '<|im_start|>') == spelling(of_family('llama_3'), '<|eot_id|>') == b''
    assert spelling(of_family('t5'), '<extra_id_0>') == spelling(of_family('t5'), '</s>') == b''
    assert spelling(of_family('t5'), '<unk>') == spelling(of_family('llama_2'), '<unk>') == ' \u2047 '.encode()
    assert of_family('t5').decode(of_family('t5').encode('12北3')) == '12 \u2047 3'  # and not 123


def test_ids_without_a_token_spell_nothing(tmp_path):
    tokenizer = made.llama_2()
    described = json.loads(tokenizer.to_str())
    described['model']['vocab']['far'] = 500
    tokenizer = Tokenizer.from_str(json.dumps(described))
    vocabulary = HuggingFaceVocabulary(made.save(tokenizer, tmp_path, eos_token='</s>'))
    assert vocabulary.size == 501
    assert vocabulary.token_bytes()[500] == b'far' and set(vocabulary.token_bytes()[450:500]) == {b''}


def test_names_of_special_tokens_in_a_text_are_text_unless_it_is_marked(of_family):
    for family, marked in (('qwen', '<|im_start|>user\nHi<|im_end|>'), ('llama_2', '<s>Hi</s>'), ('t5', 'Hi</s>')):
        vocabulary = of_family(family)
        special = {token for token, spelled in enumerate(vocabulary.token_bytes()) if not spelled}
        assert not special & set(vocabulary.encode(marked))
        assert vocabulary.decode(vocabulary.encode(marked)) == ('Hi</s>' if family == 't5' else marked)
        assert len(special & set(vocabulary.encode_marked(marked))) == marked.count('<')


def test_a_marked_text_that_follows_has_no_space_before_it(of_family):
    vocabulary = of_family('mistral')
    spell = vocabulary.token_bytes()
    ids = vocabulary.encode_marked(' pens[/INST]', following=True)
    assert b''.join(spell[token] for token in ids) == b' pens'
    assert ids[-1] == Tokenizer.from_file(str(vocabulary.file)).token_to_id('[/INST]')
    assert vocabulary.encode_marked('', following=True) == []


def test_text_is_neither_cut_nor_padded(tmp_path):
    tokenizer = made.gpt_2()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    vocabulary = HuggingFaceVocabulary(made.save(tokenizer, tmp_path, eos_token='<|endoftext|>'))
    assert vocabulary.decode(vocabulary.encode('one two three four')) == 'one two three four'


def test_half_a_surrogate_pair_is_refused(of_family):
    with pytest.raises(UnicodeEncodeError, match='surrogates not allowed'):
        of_family('gpt_2').encode('a\ud800')


def with_(tokenizer: Tokenizer, **parts) -> Tokenizer:
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


def changed(tokenizer: Tokenizer, **fields) -> Tokenizer:
    """The tokenizer with other fields in its model."""
    described = json.loads(tokenizer.to_str())
    described['model'] |= fields
    return Tokenizer.from_str(json.dumps(described))


def without(tokenizer: Tokenizer, *tokens: str) -> Tokenizer:
    """The tokenizer without some of its tokens."""
    vocab = json.loads(tokenizer.to_str())['model']['vocab']
    return changed(tokenizer, vocab={token: place for token, place in vocab.items() if token not in tokens}, merges=[])


SPLIT = pre_tokenizers.Split(' ', 'removed')
WORDS = pre_tokenizers.WhitespaceSplit()
BYTES = pre_tokenizers.ByteLevel()
REFUSED = {
    'its normalizer is or holds Lowercase': lambda: with_(made.gpt_2(), normalizer=normalizers.Lowercase()),
    'its normalizer is or holds StripAccents': lambda: with_(
        made.gpt_2(), normalizer=normalizers.Sequence([normalizers.NFC(), normalizers.StripAccents()])
    ),
    'its normalizer Replace changes text.*"a"': lambda: with_(made.gpt_2(), normalizer=normalizers.Replace('a', 'b')),
    'its pre_tokenizer is or holds Whitespace,': lambda: with_(
        made.gpt_2(), pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), BYTES])
    ),
    'its pre_tokenizer Split removes text': lambda: with_(
        made.gpt_2(), pre_tokenizer=pre_tokenizers.Sequence([SPLIT, BYTES])
    ),
    'WhitespaceSplit removes spaces': lambda: with_(
        made.gpt_2(), pre_tokenizer=pre_tokenizers.Sequence([WORDS, BYTES])
    ),
    'its decoder is or holds WordPiece': lambda: with_(made.gpt_2(), decoder=decoders.WordPiece()),
    'it has no decoder': lambda: with_(made.gpt_2(), decoder=None),
    'its decoder Replace is not one of a sign by a space': lambda: with_(
        made.llama_2(), decoder=decoders.Replace('▁▁', ' ')
    ),
    'its decoder Strip takes away more than one space': lambda: with_(
        made.llama_2(), decoder=decoders.Sequence([*made.JOIN, decoders.Strip(' ', 2, 0)])
    ),
    'only one of its decoder and its pre_tokenizer is ByteLevel': lambda: with_(made.gpt_2(), decoder=decoders.Fuse()),
    r"reads \['_'\] as a space and its normalizer and pre_tokenizer write \['▁'\]": lambda: with_(
        made.llama_2(), decoder=decoders.Replace('_', ' ')
    ),
    'its model is or holds WordLevel': lambda: with_(
        Tokenizer(models.WordLevel(A_Z, unk_token='a')), decoder=decoders.Fuse()
    ),
    "its model has end_of_word_suffix = '</w>'": lambda: changed(made.gpt_2(), end_of_word_suffix='</w>'),
    'its model has dropout = 0.1': lambda: changed(made.gpt_2(), dropout=0.1),
    'no unknown token and drops text: 2 of 256 bytes are missing': lambda: without(made.gpt_2(), 'Ġ', 'Ċ'),
    'no unknown token and drops text: 1 of 256': lambda: changed(without(made.llama_2(), '<0xC3>'), unk_token=None),
    'has neither an unknown token nor byte tokens': lambda: changed(made.t5(), unk_id=None),
}


@pytest.mark.parametrize('said', REFUSED)
def test_what_would_lose_text_is_refused(said, tmp_path):
    tokenizer = REFUSED[said]()
    vocabulary = HuggingFaceVocabulary(made.save(tokenizer, tmp_path, eos_token='</s>'))
    with pytest.raises(
        ValueError, match=rf'tokenizer\.json: .*{said}.*(?s:.)*Use a tokenizer that gives its text back'
    ):
        vocabulary.encode('a')


def test_missing_or_broken_file(tmp_path, of_family):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer file '.*tokenizer\.json'"):
        HuggingFaceVocabulary(str(tmp_path)).encode('a')
    text = of_family('gpt_2').file.read_text(encoding='utf-8')
    (tmp_path / 'tokenizer.json').write_text(text[: len(text) // 2], encoding='utf-8')
    with pytest.raises(ValueError, match=r'tokenizer\.json is no tokenizer\.json that tokenizers [\d.]+ can read'):
        _ = HuggingFaceVocabulary(str(tmp_path)).size
    with pytest.raises(ValueError, match='must be the path of a checkpoint'):
        HuggingFaceVocabulary('')
    with pytest.raises(ValueError, match='eos_token must be a token; it is 3'):
        HuggingFaceVocabulary('a', eos_token=3)


def test_added_tokens_in_normalised_text_are_written_as_the_others(tmp_path):
    tokenizer = made.gemma()
    tokenizer.add_tokens([AddedToken('two pens', normalized=True)])
    vocabulary = HuggingFaceVocabulary(made.save(tokenizer, tmp_path, eos_token='<eos>'))
    ids = vocabulary.encode('has two pens.')
    assert vocabulary.size - 1 in ids
    assert vocabulary.decode(ids) == 'has two pens.'


@pytest.mark.parametrize('family', made.MAKERS)
def test_answers_are_read_from_the_tokens(family, of_family):
    vocabulary = of_family(family)
    texts = [' He has 7 pens. The answer is 1,205.', ' The answer is naïve 7.', 'The answer is 21', ' The coins']
    read, found = AnswerFormat(vocabulary).extract_host(*rows([vocabulary.encode(text) for text in texts]))
    assert [answer_bytes(answer) for answer in read] == [b'1205', b'7', b'21', b'']
    assert found.tolist() == [True, True, True, False]
