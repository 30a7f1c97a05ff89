"""Lists of questions as plain text, without what is known of them."""

import pytest

from t5x_selfimprove.data import possessions
from t5x_selfimprove.data.items import Bank, encode_examples
from t5x_selfimprove.data.possessions import Possessions
from t5x_selfimprove.data.question_lists import QuestionLists

BANK = Possessions('labelled', 0, count=7)


def test_lists_follow_the_bank():
    lists = QuestionLists(BANK, 3, 'Q: ', '\n')
    assert isinstance(lists, Bank) and lists.size == 2 and lists.check() == []
    asked = [item.question for item in BANK.take(0, 9)]
    taken = lists.take(0, 3)
    assert [item.rationale for item in taken] == [
        ''.join(f'Q: {question}\n' for question in asked[start : start + 3]) for start in (0, 3, 6)
    ]
    assert taken[1:] == lists.take(1, 2) and all(item.question == '' and item.answer is None for item in taken)
    assert QuestionLists(Possessions('labelled', 0)).size is None


def test_all_of_a_list_is_learnt():
    vocabulary = possessions.vocabulary()
    examples, skipped = encode_examples(QuestionLists(BANK).take(0, 2), vocabulary, [1], [2], 80)
    assert not skipped and examples.prompt_length.tolist() == [0, 0] and (examples.length > 30).all()


def test_mistakes_are_named():
    with pytest.raises(TypeError, match='must be a bank; it is a str'):
        QuestionLists('questions')
    with pytest.raises(ValueError, match=r'QuestionLists\.length must be at least 1'):
        QuestionLists(BANK, 0)
    with pytest.raises(ValueError, match='7 questions are too few for lists of 8'):
        QuestionLists(BANK, 8)
