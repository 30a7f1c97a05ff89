"""Items as records: what is in the arrays, what is refused, what labels may not leak."""

import dataclasses

import numpy as np
import pytest

from t5x_selfimprove import records
from t5x_selfimprove.data.items import (
    Bank,
    Item,
    Unlabelled,
    completion_text,
    encode_examples,
    encode_questions,
    epoch_indices,
    item_texts,
    make_item,
    without_labels,
)
from t5x_selfimprove.data.possessions import Possessions
from t5x_selfimprove.vocabulary import ByteVocabulary
from tests.vocabulary.made import llama_pieces

BYTES = ByteVocabulary()
ITEMS = [make_item('2+3?', '2 + 3 = 5.', '5'), make_item('1?', None, '1'), make_item('9?')]


@dataclasses.dataclass(frozen=True)
class Digits:
    """Stands in for an answer format: the digits of the label."""

    room: int = 4

    def canonical(self, text: str) -> bytes:
        return ''.join(filter(str.isdigit, text)).encode()


def test_questions_exactly():
    questions, skipped = encode_questions(ITEMS, BYTES, room=5, answer_format=Digits(), count=4)
    records.check(questions)
    assert skipped == 0
    plus = 3
    assert questions.tokens.tolist() == [
        [50 + plus, 43 + plus, 51 + plus, 63 + plus, 0],
        [49 + plus, 63 + plus, 0, 0, 0],
        [57 + plus, 63 + plus, 0, 0, 0],
        [0] * 5,
    ]
    assert questions.length.tolist() == [4, 2, 2, 0]
    assert questions.answer.tolist() == [[53, 0, 0, 0], [49, 0, 0, 0], [0] * 4, [0] * 4]
    assert questions.known.tolist() == [True, True, False, False]
    assert questions.weight.tolist() == [1, 1, 1, 0]
    for row, item in zip(questions.id, ITEMS, strict=False):
        assert f'{row[0]:08x}{row[1]:08x}' == item.id
    assert questions.id[3].tolist() == [0, 0]


def test_id_is_a_hash_of_the_question_alone():
    assert make_item('2+3?').id == make_item('2+3?', 'x', '7').id == ITEMS[0].id == '444f1368e27c4363'
    assert len({item.id for item in ITEMS}) == 3
    assert make_item('', 'some text').id != make_item('', 'other text').id


def test_without_a_format_no_label_is_known():
    questions, _ = encode_questions(ITEMS, BYTES, room=5)
    records.check(questions)
    assert not questions.known.any() and not questions.answer.any() and questions.answer.shape == (3, 1)


def test_too_long_is_refused_or_counted():
    with pytest.raises(
        ValueError, match=rf"item {ITEMS[0].id}: its question has 4 tokens, the room is 3 .*too_long='skip'"
    ):
        encode_questions(ITEMS, BYTES, room=3)
    questions, skipped = encode_questions(ITEMS, BYTES, room=3, too_long='skip', count=3)
    assert skipped == 1
    # Its row is left: others stay where they are.
    assert questions.length.tolist() == [0, 2, 2] and questions.weight.tolist() == [0, 1, 1]
    assert not questions.tokens[0].any() and not questions.id[0].any() and questions.id[1:].any(axis=1).all()
    assert encode_questions(ITEMS, BYTES, room=4)[1] == 0
    with pytest.raises(ValueError, match="too_long must be one of 'refuse', 'skip'; it is 'cut'"):
        encode_questions(ITEMS, BYTES, room=3, too_long='cut')


def test_refusals_of_questions():
    with pytest.raises(ValueError, match='3 items do not fit in count = 2 rows'):
        encode_questions(ITEMS, BYTES, room=5, count=2)
    with pytest.raises(ValueError, match="its label 'five' is no answer of the kind"):
        encode_questions([make_item('2+3?', None, 'five')], BYTES, room=5, answer_format=Digits())
    with pytest.raises(ValueError, match=r"its label '12345' is no answer .* longer than 4 bytes"):
        encode_questions([make_item('2+3?', None, '12345')], BYTES, room=5, answer_format=Digits())
    with pytest.raises(ValueError, match='empty question'):
        encode_questions([make_item('', 'text')], BYTES, room=5)
    with pytest.raises(TypeError, match=r'room must be an integer; it is 5\.0'):
        encode_questions(ITEMS, BYTES, room=5.0)


def test_no_items_at_all():
    questions, _ = encode_questions([], BYTES, room=5, answer_format=Digits(), count=2)
    examples, _ = encode_examples([], BYTES, [], [], room=5, count=2)
    records.check(questions)
    records.check(examples)
    assert not questions.weight.any() and not examples.weight.any()


def test_examples_exactly():
    examples, skipped = encode_examples(ITEMS[:2], BYTES, [2, 81], (10,), room=40, count=3)
    records.check(examples)
    assert skipped == 0
    assert examples.prompt_length.tolist() == [7, 5, 0]
    first, second = (row[:length].tolist() for row, length in zip(examples.tokens[:2], examples.length, strict=False))
    assert first == [2, 81, *BYTES.encode('2+3?'), 10, *BYTES.encode(' 2 + 3 = 5. The answer is 5.'), BYTES.eos_id]
    assert second == [2, 81, *BYTES.encode('1?'), 10, *BYTES.encode(' The answer is 1.'), BYTES.eos_id]
    assert not examples.tokens[0, len(first) :].any() and examples.weight.tolist() == [1, 1, 0]


def test_plain_text_has_no_prompt():
    examples, _ = encode_examples([make_item('', 'to be')], BYTES, [2, 81], [10], room=8)
    assert examples.tokens.tolist() == [[*BYTES.encode('to be'), 1, 0, 0]]
    assert examples.prompt_length.tolist() == [0] and examples.length.tolist() == [6]


def test_a_completion_follows_its_prompt_and_plain_text_follows_nothing(tmp_path):
    pieces = llama_pieces(tmp_path / 'tokenizer.model')  # puts a space before every text
    items = [make_item('Why?', 'He has 7.'), make_item('', 'He has 7.')]
    examples, _ = encode_examples(items, pieces, [1], pieces.encode('A:'), room=40)
    start, end = examples.prompt_length[0], examples.length[0]
    assert [*examples.tokens[0, start:end]] == [*pieces.encode('He has 7.'), pieces.eos_id]  # no second space
    assert [*examples.tokens[1, : examples.length[1]]] == [*pieces.encode('He has 7.'), pieces.eos_id]


def test_examples_too_long():
    with pytest.raises(ValueError, match=rf'item {ITEMS[0].id}: its example .* has 33 tokens, the room is 32'):
        encode_examples(ITEMS[:2], BYTES, [], [], room=32)
    examples, skipped = encode_examples(ITEMS[:2], BYTES, [], [], room=32, too_long='skip')
    assert skipped == 1 and examples.length.tolist() == [0, 20] and examples.weight.tolist() == [0, 1]
    assert encode_examples(ITEMS[:1], BYTES, [], [], room=33)[1] == 0


def test_completion_text():
    assert completion_text(ITEMS[0], ' So {answer}!') == ' 2 + 3 = 5. So 5!'
    assert completion_text(make_item('q', 'only steps')) == ' only steps'
    assert completion_text(make_item('q', None, '{answer} \\1')) == ' The answer is {answer} \\1.'
    with pytest.raises(ValueError, match='neither rationale nor answer'):
        completion_text(ITEMS[2])
    with pytest.raises(ValueError, match='an empty question'):
        completion_text(Item('0' * 16, '', 'text', '5'))
    with pytest.raises(ValueError, match='must have'):
        encode_examples(ITEMS[:1], BYTES, [], [], room=40, answer_text=' The answer.')


def test_unlabelled_hides_answers_and_rationales():
    bank = Possessions('labelled', count=5, shuffle_seed=1)
    hidden = Unlabelled(bank)
    hidden.check()
    assert isinstance(hidden, Bank) and hidden.size == 5
    for item, open_item in zip(hidden.take(3, 6), bank.take(3, 6), strict=True):
        assert item == Item(open_item.id, open_item.question, None, None)
    assert hidden.take(3, 6) == without_labels(bank.take(3, 6))
    with pytest.raises(TypeError, match=r'must be a bank .* it is a list'):
        Unlabelled([1])


def test_epochs_hold_every_item_once_each_in_its_own_order():
    assert epoch_indices(3, 6, 4, None).tolist() == [3, 0, 1, 2, 3, 0]
    whole = epoch_indices(0, 30, 10, 7)
    epochs = whole.reshape(3, 10)
    assert (np.sort(epochs) == np.arange(10)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3
    assert (epoch_indices(7, 16, 10, 7) == whole[7:23]).all()
    assert (epoch_indices(0, 30, 10, 8) != whole).any()
    assert len(epoch_indices(5, 0, 10, 7)) == 0
    with pytest.raises(ValueError, match='position must be at least 0; it is -1'):
        epoch_indices(-1, 1, 10, None)


def test_item_texts_are_what_is_encoded():
    bank = Possessions('labelled', count=1500)
    texts = list(item_texts(bank))
    first = bank.take(0, 1)[0]
    assert len(texts) == 3000
    assert texts[:2] == [first.question, f' {first.rationale} The answer is {first.answer}.']
    assert list(item_texts(Unlabelled(bank), count=2)) == [item.question for item in bank.take(0, 2)]
    with pytest.raises(ValueError, match='endless'):
        list(item_texts(Possessions()))
