"""All vocabularies: lossless, byte-exact, hashable, and clear about what they cannot spell."""

import pickle

import numpy as np
import pytest

from t5x_selfimprove.vocabulary import ByteVocabulary, Placeholder, Vocabulary, WordVocabulary, spelling_table
from tests.vocabulary.texts import AWKWARD, STORY


@pytest.fixture(params=['bytes', 'words', 'sentencepiece', 'placeholder'])
def any_vocabulary(request, trained):
    return {
        'bytes': ByteVocabulary(),
        'words': WordVocabulary.learn([STORY, *AWKWARD]),
        'sentencepiece': trained,
        'placeholder': Placeholder(300, longest=12),
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
    assert len(specials) == 3 and any_vocabulary.eos_ids == (any_vocabulary.eos_id,)
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


@pytest.mark.parametrize('fields', [{'size': 258}, {'size': 300, 'longest': 0}], ids=str)
def test_a_placeholder_has_room_for_the_bytes(fields):
    with pytest.raises(ValueError, match='needs size of at least 259 and longest of at least 1'):
        Placeholder(**fields)
