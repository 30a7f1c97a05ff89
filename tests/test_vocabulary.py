"""Vocabularies: lossless, byte-exact, hashable, and clear about what they cannot spell."""

import pickle

import numpy as np
import pytest
import sentencepiece

from t5x_selfimprove import vocabulary as vocabulary_module
from t5x_selfimprove.vocabulary import (
    ByteVocabulary,
    SentencePieceVocabulary,
    Vocabulary,
    WordVocabulary,
    pieces,
    spelling_table,
)

AWKWARD = (
    '',
    ' ',
    '  two  spaces  ',
    '\n\n\tx\r\n',
    'naïve 北京 🙂',
    '\u2581 is how SentencePiece writes a space: a\u2581b\u2581\u2581',
    '\u00a0\ufb01\u2047\u0000',
    '$1,200.50 = 12*100.5',
    '<pad></s><unk><0x0A>',
)
STORY = "Hugo's pens cost 12 coins. He has 7 pens, and 1205 cards! The answer is 21.\nWhy?"


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp('model') / 'deep' / 'pieces.model'
    texts = [
        f'{STORY} {name} has {n} {thing}.' for n in range(40) for name in ('Anna', 'Ben') for thing in ('cups', 'x')
    ]
    return SentencePieceVocabulary.train(texts, str(path), 300)


@pytest.fixture(params=['bytes', 'words', 'sentencepiece'])
def any_vocabulary(request, trained):
    return {
        'bytes': ByteVocabulary(),
        'words': WordVocabulary.learn([STORY, *AWKWARD]),
        'sentencepiece': trained,
    }[request.param]


def test_round_trip_is_lossless(any_vocabulary):
    for text in (STORY, *AWKWARD):
        ids = any_vocabulary.encode(text)
        assert any_vocabulary.decode(ids) == text
        assert b''.join(any_vocabulary.token_bytes()[token] for token in ids) == text.encode()
        assert all(0 <= token < any_vocabulary.size for token in ids)


def test_specials_are_apart_from_text_and_spell_nothing(any_vocabulary):
    specials = {any_vocabulary.pad_id, any_vocabulary.eos_id, any_vocabulary.bos_id}
    assert any_vocabulary.pad_id == 0
    assert len(specials) == 3
    assert {any_vocabulary.token_bytes()[token] for token in specials} == {b''}
    ids = any_vocabulary.encode(STORY)
    assert not specials & set(ids)
    assert any_vocabulary.decode([any_vocabulary.bos_id, *ids, any_vocabulary.eos_id, 0, 0]) == STORY


def test_face(any_vocabulary):
    assert isinstance(any_vocabulary, Vocabulary)
    assert len(any_vocabulary.token_bytes()) == any_vocabulary.size
    again = pickle.loads(pickle.dumps(any_vocabulary))
    assert again == any_vocabulary and hash(again) == hash(any_vocabulary)
    assert again.fingerprint() == any_vocabulary.fingerprint()
    assert len(any_vocabulary.fingerprint()) == 16
    assert type(any_vocabulary.encode(' 7')[0]) is int


@pytest.mark.parametrize('token', [-1, 10**6])
def test_decode_refuses_ids_that_do_not_exist(any_vocabulary, token):
    with pytest.raises(
        ValueError, match=f'token id {token} is outside this vocabulary of {any_vocabulary.size} tokens'
    ):
        any_vocabulary.decode(np.array([3, token]))


def test_spelling_table_holds_the_token_bytes(any_vocabulary):
    table, lengths = spelling_table(any_vocabulary)
    assert table.dtype == np.uint8 and lengths.dtype == np.int32
    assert table.shape == (any_vocabulary.size, max(map(len, any_vocabulary.token_bytes())))
    for row, length, spelling in zip(table, lengths, any_vocabulary.token_bytes(), strict=True):
        assert row[:length].tobytes() == spelling and not row[length:].any()
    assert spelling_table(any_vocabulary)[0] is table
    with pytest.raises(ValueError, match='read-only'):
        table[0, 0] = 1


def test_byte_ids_are_those_of_byt5():
    assert ByteVocabulary().encode('Aé') == [65 + 3, 0xC3 + 3, 0xA9 + 3]
    assert ByteVocabulary().size == 259
    assert ByteVocabulary().decode([0xC3 + 3]) == '\ufffd'


def test_pieces_take_the_space_before_them():
    assert pieces('has 7 pens.') == ['has', ' 7', ' pens', '.']
    assert pieces("a  b .\n c12'") == ['a', ' ', ' b', ' .', '\n', ' c', '12', "'"]


def test_word_ids_and_unknown_words():
    words = WordVocabulary(('has', ' 7', '.'))
    assert words.encode('has 7.') == [3, 4, 5]
    with pytest.raises(ValueError, match=r"' 8' at character 5 of 'has\.\. 8\.' is not in the vocabulary of 6 words"):
        WordVocabulary(('has', ' 7', '.')).encode('has.. 8.')
    with pytest.raises(ValueError, match="'7' at character 0"):
        words.encode('7.')


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ((), 'at least one piece'),
        (['a'], 'must be a tuple'),
        (('a', 'b', 'a'), "holds 'a' more than once"),
        (('two words',), r"which no text is cut into; its pieces are \['two', ' words'\]"),
        (('',), 'no text is cut into'),
    ],
)
def test_word_vocabulary_refuses(words, message):
    with pytest.raises(ValueError, match=message):
        WordVocabulary(words)


def test_learning_words_does_not_depend_on_order_and_has_a_limit():
    assert WordVocabulary.learn(['b a', 'c']) == WordVocabulary.learn(['c', 'b a']) == WordVocabulary((' a', 'b', 'c'))
    with pytest.raises(ValueError, match=r'3 different words, more than max_size = 5 allows; use ByteVocabulary'):
        WordVocabulary.learn(['b a', 'c'], max_size=5)
    with pytest.raises(ValueError, match='no text'):
        WordVocabulary.learn([])


def test_fingerprint_sees_order_and_place_of_bytes():
    prints = [
        WordVocabulary(words).fingerprint() for words in [('a', 'b'), ('b', 'a'), ('ab',), ('a',), ('a', 'b', 'c')]
    ]
    assert len({*prints, ByteVocabulary().fingerprint()}) == 6


def test_sentencepiece_training_is_repeatable(trained, tmp_path):
    texts = [
        f'{STORY} {name} has {n} {thing}.' for n in range(40) for name in ('Anna', 'Ben') for thing in ('cups', 'x')
    ]
    again = SentencePieceVocabulary.train(iter(texts), str(tmp_path / 'again.model'), 300)
    assert again.fingerprint() == trained.fingerprint()
    assert (trained.pad_id, trained.eos_id, trained.bos_id, trained.size) == (0, 1, 2, 300)
    assert [path.name for path in tmp_path.iterdir()] == ['again.model']  # nothing partial stays


def test_sentencepiece_pieces_never_join_digits(tmp_path):
    learnt = SentencePieceVocabulary.train(['year 1205 1205'] * 50, str(tmp_path / 'a.model'), 272, model_type='bpe')
    assert [learnt.token_bytes()[token] for token in learnt.encode('1205')] == [b'1', b'2', b'0', b'5']
    assert b'ye' in b'|'.join(learnt.token_bytes())  # there was room for pieces of more than one character


@pytest.mark.parametrize(
    ('texts', 'size', 'message'),
    [
        ([], 300, 'no text'),
        (['hello world'], 5000, 'could not train 5000 tokens on 1 lines'),
        (['hello'], 100, '260 tokens'),
    ],
)
def test_sentencepiece_training_refuses(tmp_path, texts, size, message):
    with pytest.raises(ValueError, match=message):
        SentencePieceVocabulary.train(texts, str(tmp_path / 'a.model'), size)
    assert not list(tmp_path.iterdir())


def test_sentencepiece_training_uses_all_of_an_overlong_line(tmp_path, monkeypatch):
    monkeypatch.setattr(vocabulary_module, '_LINE_PART', 64)
    line = 'plain words ' * 50 + 'zebra ' * 50
    learnt = SentencePieceVocabulary.train([line], str(tmp_path / 'long.model'), 282, model_type='bpe')
    spelled = b'|'.join(learnt.token_bytes())
    assert b'ze' in spelled and b'wo' in spelled


def test_failed_write_leaves_the_old_model(trained, tmp_path, monkeypatch):
    path = tmp_path / 'kept.model'
    path.write_bytes(b'old')

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(vocabulary_module.os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'):
        vocabulary_module._write_whole(str(path), b'new')
    assert path.read_bytes() == b'old' and [file.name for file in tmp_path.iterdir()] == ['kept.model']


def test_sentencepiece_missing_or_broken_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no SentencePiece model at .*train one with'):
        SentencePieceVocabulary(str(tmp_path / 'none.model')).encode('a')
    (tmp_path / 'broken.model').write_bytes(b'this is no model')
    with pytest.raises(ValueError, match='is not a SentencePiece model'):
        _ = SentencePieceVocabulary(str(tmp_path / 'broken.model')).size
    with pytest.raises(ValueError, match='must be the path'):
        SentencePieceVocabulary('')


def test_foreign_model_that_puts_a_space_first_and_knows_no_bytes(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([STORY] * 10), model_prefix=str(tmp_path / 'foreign'), vocab_size=60,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    foreign = SentencePieceVocabulary(str(tmp_path / 'foreign.model'))
    ids = foreign.encode('The answer')
    assert foreign.bos_id is None
    assert b''.join(foreign.token_bytes()[token] for token in ids) == b' The answer'
    assert foreign.decode(ids) == 'The answer'
    assert '\u2047' in foreign.decode(foreign.encode('The 北 answer'))
