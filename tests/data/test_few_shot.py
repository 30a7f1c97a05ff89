"""Items behind exemplars: which, in what layout, and what is learnt of them."""

import dataclasses

import pytest

from t5x_selfimprove.data import possessions
from t5x_selfimprove.data.few_shot import FewShot
from t5x_selfimprove.data.items import Bank, Unlabelled, encode_examples
from t5x_selfimprove.data.possessions import Possessions

BANK = Possessions('labelled', 0, count=3)
SHOWN = Possessions('labelled', 1, 2, 2)


def test_every_item_has_exemplars_of_its_own():
    bank = FewShot(BANK, SHOWN, 2)
    assert isinstance(bank, Bank) and bank.size == 3 and bank.check() == []
    items, shown = BANK.take(0, 4), SHOWN.take(0, 8)
    texts = [f'{one.question} A: {one.rationale} The answer is {one.answer}.' for one in shown]
    taken = bank.take(0, 4)
    assert [one.question for one in taken] == [
        texts[2 * place] + texts[2 * place + 1] + items[place].question for place in range(4)
    ]
    assert [(one.rationale, one.answer) for one in taken] == [(one.rationale, one.answer) for one in items]
    assert bank.take(2, 2) == taken[2:] and len({one.id for one in taken}) == 4


def test_exemplars_are_read_and_not_learnt():
    vocabulary = possessions.vocabulary(texts=('{question} A:',))
    after = vocabulary.encode(' A:')
    (plain,), (shown,) = (bank.take(0, 1) for bank in (BANK, FewShot(BANK, SHOWN)))
    examples, skipped = encode_examples([plain, shown], vocabulary, (), after, 130)
    learnt = (examples.length - examples.prompt_length).tolist()
    assert not skipped and learnt[0] == learnt[1] and examples.prompt_length[1] > examples.prompt_length[0] + 40


def test_mistakes_are_named():
    with pytest.raises(TypeError, match=r'FewShot\.exemplars must be a bank; it is a str'):
        FewShot(BANK, 'some')
    with pytest.raises(ValueError, match=r'FewShot\.shots must be at least 1'):
        FewShot(BANK, SHOWN, 0)
    with pytest.raises(ValueError, match=r'layout needs each of .*; it is .{5}question'):
        dataclasses.replace(FewShot(BANK, SHOWN), layout='Q: {question}')
    with pytest.raises(ValueError, match='has no rationale and no answer'):
        FewShot(BANK, Unlabelled(SHOWN)).check()
