"""Word vocabularies: how text is cut, and what is refused."""

import pytest

from t5x_selfimprove.vocabulary import ByteVocabulary, WordVocabulary, pieces


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
