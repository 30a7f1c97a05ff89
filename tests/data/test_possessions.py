"""The embedded task: true stories, valid rationales, splits that never meet, the same items whenever asked."""

import dataclasses
import itertools
import re
import time

import numpy as np
import pytest

from t5x_selfimprove.data import possessions
from t5x_selfimprove.data.items import Bank, encode_examples, encode_questions
from t5x_selfimprove.data.possessions import (
    GAINS,
    LOSSES,
    NAMES,
    OBJECTS,
    SPLITS,
    Possessions,
    split_bucket,
    vocabulary,
)

QUESTION = re.compile(r'(\w+) has (\d+) (\w+)\. ((?:(?:He|She) \w+ \d+\. )+)How many (\w+) does (he|she) have\?')
EVENT = re.compile(r'(He|She) (\w+) (\d+)\. ')
STEP = re.compile(r'(\d+) ([+-]) (\d+) = (\d+)\.')


def amounts_of(question: str) -> list[int]:
    """Signed amounts as told; asserts that the wording holds together."""
    name, first, thing, events, asked, pronoun = QUESTION.fullmatch(question).groups()
    assert dict(NAMES)[name].lower() == pronoun
    assert asked in OBJECTS and thing == (asked if first != '1' else asked[:-1])
    amounts = [int(first)]
    for subject, verb, number in EVENT.findall(events):
        assert subject.lower() == pronoun and verb in GAINS + LOSSES
        amounts.append(int(number) if verb in GAINS else -int(number))
    return amounts


@pytest.mark.parametrize(
    'difficulty',
    [
        {},
        {'min_steps': 2, 'max_steps': 8, 'max_amount': 50, 'max_total': 99},
        {'max_amount': 12, 'max_total': 12},  # often neither sign fits
    ],
)
@pytest.mark.parametrize('split', SPLITS)
def test_stories_and_rationales_are_true(split, difficulty):
    bank = Possessions(split, seed=5, **difficulty)
    steps_seen, in_story_order = set(), 0
    for item in bank.take(0, 400):
        amounts = amounts_of(item.question)
        steps_seen.add(len(amounts))
        assert all(1 <= abs(amount) <= bank.max_amount for amount in amounts)
        assert all(0 <= total <= bank.max_total for total in itertools.accumulate(amounts))
        steps = STEP.findall(item.rationale)
        assert ' '.join(f'{a} {sign} {b} = {c}.' for a, sign, b, c in steps) == item.rationale
        worked = [int(steps[0][0])] + [int(b) if sign == '+' else -int(b) for _, sign, b, _ in steps]
        totals = list(itertools.accumulate(worked))
        assert worked[0] > 0 and sorted(worked) == sorted(amounts)
        assert totals[:-1] == [int(a) for a, *_ in steps] and totals[1:] == [int(c) for *_, c in steps]
        assert all(0 <= total <= bank.max_total for total in totals)
        assert item.answer == str(sum(amounts))
        in_story_order += worked == amounts
    assert steps_seen == set(range(bank.min_steps, bank.max_steps + 1))
    assert 4 < in_story_order < 200


def test_every_valid_order_is_drawn_about_as_often(monkeypatch):
    amounts = np.tile(np.array([[5, -4, 3, 0]]), (6000, 1))  # of 6 orders, -4 first is not valid, nor 3 -4 5
    key = possessions._mix(np.arange(6000, dtype=np.uint64))
    orders, counts = np.unique(possessions._reordered(amounts, key, 8), axis=0, return_counts=True)
    assert orders.tolist() == [[3, 5, -4, 0], [5, -4, 3, 0], [5, 3, -4, 0]]
    assert (abs(counts - 2000) < 200).all()  # five standard deviations
    monkeypatch.setattr(possessions, '_ORDER_ATTEMPTS', 0)
    assert (possessions._reordered(amounts, key, 8) == amounts).all()  # falls back to the story


def test_order_as_told():
    for item in Possessions(seed=5, order='story').take(0, 100):
        assert item.rationale.startswith(f'{amounts_of(item.question)[0]} ')
    told = [item.question for item in Possessions(seed=5, order='story').take(0, 100)]
    assert told == [item.question for item in Possessions(seed=5).take(0, 100)]


def test_splits_never_share_content_across_seeds_and_difficulties():
    held = {split: set() for split in SPLITS}
    for split, seed, steps in itertools.product(SPLITS, (0, 100), ((2, 3), (3, 5))):
        bank = Possessions(split, seed=seed, min_steps=steps[0], max_steps=steps[1], max_amount=8, max_total=20)
        held[split] |= {tuple(sorted(amounts_of(item.question))) for item in bank.take(0, 2000)}
    assert all(len(contents) > 100 for contents in held.values())
    for one, other in itertools.combinations(held.values(), 2):
        assert not one & other


def test_bucket_does_not_see_order_or_padding():
    bucket = split_bucket(np.array([[3, -2, 5], [5, 3, -2], [-2, 5, 3]]))
    assert len(set(bucket.tolist())) == 1
    assert split_bucket(np.array([[3, -2, 5, 0, 0]])) == bucket[0]
    many = split_bucket(np.random.default_rng(0).integers(1, 1000, (20_000, 4)))
    assert (np.abs(np.bincount(many, minlength=100) - 200) < 80).all() and len(np.bincount(many)) == 100


def test_items_are_a_function_of_seed_split_and_index():
    bank = Possessions('unlabelled', seed=3)
    whole = bank.take(0, 3000)
    assert bank.take(1000, 50) == whole[1000:1050]
    direct = possessions._make_items(bank, np.array([2500, 7], np.int64))
    assert direct == [whole[2500], whole[7]]
    possessions._block.cache_clear()
    assert bank.take(0, 3000) == whole
    assert Possessions('unlabelled', seed=4).take(0, 20) != whole[:20]
    assert Possessions('labelled', seed=3).take(0, 20) != whole[:20]
    assert len({item.id for item in whole}) > 2990


def test_the_items_do_not_change_from_version_to_version():
    item = Possessions('held_out', seed=3).take(1, 1)[0]
    assert item.question == 'Laura has 9 coins. She finds 6. She gets 8. She donates 2. How many coins does she have?'
    assert item.rationale == '9 + 6 = 15. 15 - 2 = 13. 13 + 8 = 21.'
    assert item.id == 'fec9963a8b45c11b'


def test_finite_bank_is_the_first_items_and_goes_round():
    bank = Possessions('labelled', count=10)
    assert bank.size == 10 and isinstance(bank, Bank) and Possessions().size is None
    assert bank.take(8, 4) == [*Possessions('labelled').take(8, 2), *Possessions('labelled').take(0, 2)]
    shuffled = dataclasses.replace(bank, shuffle_seed=1)
    epochs = [shuffled.take(0, 10), shuffled.take(10, 10)]
    assert epochs[0] != epochs[1]
    for epoch in epochs:
        assert sorted(item.id for item in epoch) == sorted(item.id for item in bank.take(0, 10))


def test_large_shuffled_bank_gives_the_same_items(monkeypatch):
    bank = Possessions('labelled', count=3000, shuffle_seed=1)
    kept = bank.take(0, 40)
    monkeypatch.setattr(possessions, '_BLOCKS_KEPT', 2)
    assert bank.take(0, 40) == kept


def test_difficulty_reaches_the_items():
    base = [item.question for item in Possessions().take(0, 200)]
    for change in ({'min_steps': 2}, {'max_steps': 6}, {'max_amount': 9}, {'max_total': 40}, {'loss_share': 0.2}):
        assert [item.question for item in Possessions(**change).take(0, 200)] != base, change
    gains = Possessions(loss_share=0, max_total=1000).take(0, 100)
    assert all('-' not in item.rationale for item in gains)


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        ({'split': 'test'}, ValueError, "split must be one of 'labelled', 'held_out', 'unlabelled'; it is 'test'"),
        ({'min_steps': 1}, ValueError, r'min_steps must be in 2\.\.32; it is 1'),
        ({'max_steps': 2}, ValueError, r'max_steps must be in 3\.\.32; it is 2'),
        ({'max_amount': 31}, ValueError, r'max_amount must be in 1\.\.30; it is 31'),
        ({'max_total': 2.5}, TypeError, r'max_total must be an integer; it is 2\.5'),
        ({'seed': -1}, ValueError, 'seed must be in'),
        ({'seed': True}, TypeError, 'seed must be an integer'),
        ({'loss_share': 1.5}, ValueError, r'loss_share must be in 0\.\.1; it is 1\.5'),
        ({'loss_share': '1'}, TypeError, 'loss_share must be a number'),
        ({'order': 'any'}, ValueError, "order must be one of 'random', 'story'"),
        ({'count': 0}, ValueError, 'count must be at least 1; it is 0'),
        ({'shuffle_seed': 1}, ValueError, 'shuffle_seed needs a count'),
    ],
)
def test_refuses_wrong_settings(change, error, message):
    with pytest.raises(error, match=message):
        Possessions(**change)


def test_a_difficulty_without_questions_is_refused_early(monkeypatch):
    monkeypatch.setattr(possessions, '_ATTEMPTS', 50)
    empty = [split for split in SPLITS if not _has_items(Possessions(split, 0, 2, 2, 1, 2))]
    assert empty  # two contents, three splits
    with pytest.raises(ValueError, match=r'no question of 2 steps for split .* raise one of them'):
        Possessions(empty[0], 0, 2, 3, 1, 2).check()
    Possessions().check()


def _has_items(bank: Possessions) -> bool:
    try:
        bank.check()
    except ValueError:
        return False
    return True


def test_vocabulary_spells_the_task_with_one_token_a_number():
    words = vocabulary(99, texts=('Q: {question}\nA:',))
    bank = Possessions('unlabelled', max_steps=6, max_amount=40, max_total=99)
    examples, _ = encode_examples(bank.take(0, 500), words, words.encode('Q: '), words.encode('\nA:'), room=120)
    assert examples.length.max() < 90
    assert all(len(words.encode(f' {number}')) == 1 for number in range(100))
    everything = {f' {word}' for word in GAINS + LOSSES + OBJECTS}
    assert everything <= set(words.words)
    with pytest.raises(ValueError, match="' 100' at character"):
        words.encode('Hugo has 100 pens.')


def test_three_thousand_questions_take_well_under_a_second():
    bank, words = Possessions('unlabelled', seed=77), vocabulary()
    started = time.perf_counter()
    encode_questions(bank.take(5000, 3000), words, room=48)
    assert time.perf_counter() - started < 1.0  # 0.07 on one idle core
