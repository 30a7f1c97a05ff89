"""seqio: the embedded task has the same questions there, and any Task or Mixture can be read as a bank."""

import dataclasses

import numpy as np
import pytest

from t5x_selfimprove.data import seqio_tasks
from t5x_selfimprove.data.items import Bank, encode_examples, without_labels
from t5x_selfimprove.data.possessions import Possessions, vocabulary
from t5x_selfimprove.data.seqio_tasks import SeqioTask, answer_accuracy, register_possessions, stated_answer

SIZES = {'labelled': 30, 'unlabelled': 20, 'held_out': 40}
DIFFICULTY = Possessions(seed=9, max_steps=4, max_total=25)


@pytest.fixture(scope='module')
def seqio():
    return pytest.importorskip('seqio')


@pytest.fixture(scope='module')
def tasks(seqio) -> dict[str, str]:
    names = register_possessions(DIFFICULTY, SIZES, vocabulary(25), name='test_possessions')
    assert names == [f'test_possessions_{split}' for split in ('labelled', 'held_out', 'unlabelled')]
    return dict(zip(('labelled', 'held_out', 'unlabelled'), names, strict=True))


def test_both_faces_give_the_same_questions(tasks):
    for split, name in tasks.items():
        plain = dataclasses.replace(DIFFICULTY, split=split, count=SIZES[split])
        bank = SeqioTask(
            name, seqio_tasks.SEQIO_SPLITS[split], answer_after=seqio_tasks.ANSWER_AFTER, count=SIZES[split]
        )
        bank.check()
        expected = plain.take(0, SIZES[split])
        assert bank.take(0, SIZES[split]) == (without_labels(expected) if split == 'unlabelled' else expected)
        assert isinstance(bank, Bank) and bank.size == SIZES[split]


def test_source_reads_past_the_first_thousand(seqio):
    bank = dataclasses.replace(DIFFICULTY, count=1030)
    dataset = seqio_tasks.bank_source(bank, 'train').get_dataset('train', shuffle=False)
    questions = [example['inputs'].decode() for example in dataset.as_numpy_iterator()]
    assert questions == [item.question for item in bank.take(0, 1030)]


def test_tokens_are_those_of_our_own_encoding(seqio, tasks):
    words = vocabulary(25)
    dataset = seqio.get_mixture_or_task(tasks['labelled']).get_dataset(None, 'train', shuffle=False)
    items = dataclasses.replace(DIFFICULTY, count=30).take(0, 30)
    examples, _ = encode_examples(items, words, [], [], room=80)
    for row, item, example in zip(range(30), items, dataset.as_numpy_iterator(), strict=True):
        assert example['inputs'].tolist() == words.encode(item.question)
        prompted, length = int(examples.prompt_length[row]), int(examples.length[row])
        assert example['targets'].tolist() == examples.tokens[row, prompted:length].tolist()
        assert example['targets'].dtype == np.int32


def test_endless_stream_goes_on_and_back(tasks):
    stream = SeqioTask(tasks['labelled'])
    assert stream.size is None
    whole = stream.take(0, 70)
    assert whole[30:60] == whole[:30] and len({item.id for item in whole[:30]}) == 30
    assert stream.take(5, 20) == whole[5:25]
    assert stream.take(61, 4) == whole[61:65]
    assert stream.take(3, 0) == []
    shuffled = SeqioTask(tasks['labelled'], shuffle_seed=4)
    epochs = [shuffled.take(0, 30), shuffled.take(30, 30)]
    assert epochs[0] != whole[:30] and epochs[0] != epochs[1]
    assert len({tuple(sorted(item.id for item in epoch)) for epoch in [*epochs, whole[:30]]}) == 1
    seqio_tasks._stream.cache_clear()
    assert shuffled.take(30, 30) == epochs[1]


def test_a_task_without_examples_is_refused(seqio, tasks):
    import tensorflow

    task = seqio.TaskRegistry.get(tasks['labelled'])
    nothing = seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: task.source.get_dataset(split, shuffle=False).take(0), splits=('train',)
    )
    if 'test_nothing' not in seqio.TaskRegistry.names():
        seqio.TaskRegistry.add('test_nothing', nothing, task.output_features, preprocessors=task.preprocessors)
    with pytest.raises(ValueError, match="'test_nothing', split 'train', has no examples"):
        SeqioTask('test_nothing').check()
    with pytest.raises(ValueError, match='has 0 examples; count = 1 is more'):
        SeqioTask('test_nothing', count=1).check()
    assert not tensorflow.config.get_visible_devices('GPU')


def test_tokens_alone_and_plain_text(tasks):
    item = SeqioTask(tasks['labelled'], inputs='inputs', targets='targets', answer_after='The answer is').take(2, 1)[0]
    assert item == DIFFICULTY.take(2, 1)[0]
    plain = SeqioTask(tasks['labelled'], inputs=None, count=4).take(2, 1)[0]
    assert (plain.question, plain.answer) == ('', None)
    assert plain.rationale == f' {item.rationale} The answer is {item.answer}.'


def test_mixture(seqio, tasks):
    if 'test_mixture' not in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.add('test_mixture', [(tasks['labelled'], 1), (tasks['unlabelled'], 1)])
    mixed = SeqioTask('test_mixture', answer_after='The answer is').take(0, 80)
    answered = [item for item in mixed if item.answer is not None]
    assert 10 < len(answered) < 70
    assert answered[:5] == DIFFICULTY.take(0, 5)


def test_registering_again(tasks):
    assert register_possessions(DIFFICULTY, SIZES, vocabulary(25), name='test_possessions') == list(tasks.values())
    with pytest.raises(ValueError, match="'test_possessions_labelled' exists already and is different"):
        register_possessions(dataclasses.replace(DIFFICULTY, seed=10), SIZES, vocabulary(25), name='test_possessions')
    with pytest.raises(ValueError, match='sizes must have the keys'):
        register_possessions(sizes={'train': 3}, name='other')


def test_module_that_registers(seqio):
    bank = SeqioTask('possessions_held_out', 'validation', 't5x_selfimprove.data.seqio_tasks:register_possessions')
    assert bank.take(0, 3)[0].question == Possessions('held_out').take(0, 1)[0].question
    assert seqio.TaskRegistry.get('possessions_held_out').num_input_examples('validation') == 1000


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'name': 'nothing'}, "no seqio Task or Mixture 'nothing'; registered are: .*test_possessions_labelled"),
        ({'split': 'test'}, "has no split 'test'; it has train"),
        ({'inputs': 'question'}, "has no feature 'question'; the features are: inputs, inputs_pretokenized"),
        ({'count': 31}, 'has 30 examples; count = 31 is more'),
        ({'answer_after': '####'}, "has no '####' in it"),
        ({'module': 'no.such.module'}, "'no.such.module' cannot be imported"),
        ({'module': 'json:register'}, "json has no function 'register'"),
    ],
)
def test_wrong_names_are_refused(tasks, settings, message):
    with pytest.raises(ValueError, match=message):
        SeqioTask(**{'name': tasks['labelled'], **settings}).check()


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'name': ''}, 'name must be a name'),
        ({'targets': None}, 'targets must be a name'),
        ({'inputs': None, 'answer_after': 'x'}, 'needs inputs'),
        ({'count': 0}, 'count must be at least 1'),
        ({'shuffle_seed': -1}, 'shuffle_seed must be in'),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SeqioTask(**{'name': 'a', **settings})


def test_metric():
    assert stated_answer('The answer is 3. No: The answer is 41 .') == '41'
    assert stated_answer('41') is None and stated_answer('The answer is .') is None
    targets = ['1 + 1 = 2. The answer is 2.', 'The answer is 3.', 'The answer is 4.', 'nothing']
    predictions = ['so The answer is 2', 'The answer is 4.', '4', 'nothing']
    assert answer_accuracy(targets, predictions) == {'answer_accuracy': 0.25}
    assert answer_accuracy([], []) == {'answer_accuracy': 0.0}


def test_seqio_evaluates_with_the_metric(seqio, tasks):
    task = seqio.get_mixture_or_task(tasks['held_out'])
    (metric,) = task.metric_fns
    targets = [example['targets_pretokenized'].decode() for example in task.get_dataset(None, 'validation').take(9)
               .as_numpy_iterator()]  # fmt: skip
    assert metric(targets, targets) == {'answer_accuracy': 1.0}
    assert not seqio.get_mixture_or_task(tasks['unlabelled']).metric_fns


def test_vocabulary_face(seqio):
    words = vocabulary(25)
    wrapped = seqio_tasks.seqio_vocabulary(words)
    assert wrapped == seqio_tasks.seqio_vocabulary(vocabulary(25)) and wrapped != seqio_tasks.seqio_vocabulary(
        vocabulary(9)
    )
    ids = wrapped.encode('Hugo has 7 pens.')
    assert wrapped.encode_tf('Hugo has 7 pens.').numpy().tolist() == ids == words.encode('Hugo has 7 pens.')
    assert wrapped.decode([*ids, 1, *ids]) == 'Hugo has 7 pens.'
    assert wrapped.decode_tf(np.array([ids, ids], np.int32)).numpy().tolist() == [b'Hugo has 7 pens.'] * 2
    assert wrapped.vocab_size == words.size and wrapped.eos_id == words.eos_id
