"""Any text, in any vocabulary: the bytes that its tokens spell are the text, or what is documented of it."""

import re
from collections.abc import Callable

import pytest
from tokenizers import Tokenizer

from t5x_selfimprove.vocabulary import (
    ByteVocabulary,
    SentencePieceVocabulary,
    Vocabulary,
    WordVocabulary,
    encode_following,
)
from tests.vocabulary import made
from tests.vocabulary.texts import AWKWARD, STORY, any_texts

COUNT = 300
WHITE = r'[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+'  # White_Space of Unicode
LOSSLESS = ('gpt_2', 'llama_3', 'llama_2', 'mistral', 'gemma', 'unigram_with_bytes')


def same(text: str) -> str:
    return text


def composed(text: str) -> str:
    return made.normalizers.NFC().normalize_str(text)


def plain_forms(text: str) -> str:
    """What T5 makes of a text, before it looks for unknown characters."""
    text = made.compatibility_forms().normalize_str(text).replace('\u2581', ' ')
    return ' '.join(word for word in re.split(WHITE, text) if word)


def plain_forms_converted(text: str) -> str:
    """The same where the steps are those of the converter: only runs of plain spaces become one."""
    text = re.sub(f'{WHITE}$', '', made.compatibility_forms().normalize_str(text))
    text = re.sub(' {2,}', ' ', text).replace('\u2581', ' ')
    return text.removeprefix(' ')


def spelled(vocabulary: Vocabulary, ids: list[int]) -> str:
    return b''.join(vocabulary.token_bytes()[token] for token in ids).decode()


def check(vocabulary: Vocabulary, expected: Callable[[str], str], seed: int, takes_a_space: bool = False) -> None:
    """Tries many texts; `takes_a_space` where a space that begins a text is taken for the one put there."""
    for text in (STORY, *AWKWARD, *any_texts(seed, COUNT)):
        ids, wanted = vocabulary.encode(text), expected(text)
        assert spelled(vocabulary, ids) in ((wanted, f' {wanted}') if vocabulary.adds_space else (wanted,)), text
        assert vocabulary.decode(ids) == (wanted.removeprefix(' ') if takes_a_space else wanted), text
        assert not {vocabulary.pad_id, vocabulary.eos_id, vocabulary.bos_id} & set(ids)


def test_bytes():
    check(ByteVocabulary(), same, seed=1)


def test_words():
    check(WordVocabulary.learn([STORY, *AWKWARD, *any_texts(2, COUNT)]), same, seed=2)


@pytest.mark.parametrize('model_type', ['unigram', 'bpe'])
def test_sentencepiece_made_here(model_type, tmp_path):
    vocabulary = SentencePieceVocabulary.train(made.LESSONS, str(tmp_path / 'a.model'), 310, model_type)
    check(vocabulary, same, seed=3)


def test_sentencepiece_of_llama(llama_pieces):
    check(llama_pieces, same, seed=4)


@pytest.mark.parametrize('family', LOSSLESS)
def test_tokenizers_that_keep_text_as_it_is(family, of_family):
    check(of_family(family), same, seed=5, takes_a_space=family in ('mistral', 'unigram_with_bytes'))


def test_qwen_composes_unicode(of_family):
    check(of_family('qwen'), composed, seed=6)


@pytest.mark.parametrize(('family', 'forms'), [('t5', plain_forms), ('t5_converted', plain_forms_converted)])
def test_t5_takes_plain_forms_and_shows_what_it_does_not_know(family, forms, of_family):
    vocabulary = of_family(family)
    known = {spelling.decode() for spelling in vocabulary.token_bytes()} | {'\u2581'}
    letters = ''.join(re.escape(letter) for letter in known if len(letter) == 1)

    def expected(text: str) -> str:
        return re.sub(f'[^ {letters}]+', ' \u2047 ', forms(text))

    check(vocabulary, expected, seed=7)


@pytest.mark.parametrize('family', LOSSLESS)
def test_parts_that_follow_each_other_are_the_text(family, of_family):
    vocabulary = of_family(family)
    for text in any_texts(8, 100):
        for cut in {0, len(text) // 2, len(text)}:
            first = vocabulary.encode(text[:cut])
            found = spelled(vocabulary, first + encode_following(vocabulary, text[cut:]))
            assert found in ((text, f' {text}') if vocabulary.adds_space else (text,))


@pytest.mark.parametrize('family', made.MAKERS)
def test_plain_text_decodes_as_the_library_decodes_it(family, of_family):
    vocabulary = of_family(family)
    tokenizer = Tokenizer.from_file(str(vocabulary.file))
    texts = [*made.LESSONS[::7], 'Anna has 12 pens.'] + (
        ['naïve 北京 🙂\n\n x  y'] if not family.startswith('t5') else []
    )
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert vocabulary.encode(text) == ids
        assert vocabulary.decode(ids) == tokenizer.decode(ids) == vocabulary.decode(tokenizer.encode(text).ids)
