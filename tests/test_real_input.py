"""Real questions from beginning to end: vocabulary, pre-training, self-improvement and report on a slice of GSM8K.

The model learns to say an answer and no steps to it: that takes twenty updates, where reasoning would take hours.
"""

import json
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from t5x_selfimprove.data.question_files import JsonLines
from t5x_selfimprove.main import main
from t5x_selfimprove.vocabulary import SentencePieceVocabulary
from tests.stored import stored
from tests.test_report import Page

LABELLED, UNLABELLED, TEST = 48, 16, 16
SAMPLES, ROOM, EXAMPLE_ROOM, MAX_TOKENS = 4, 192, 224, 12
ACCURACIES = {'greedy_accuracy', 'majority_accuracy', 'pass_at_n', 'sample_accuracy', 'calibration_error', 'brier'}
ACCURACIES |= {'kept_precision', 'reliability', 'maj_at_k', 'pass_at_k', 'weighted_accuracy'}
CLOCK = {'time', 'seconds'}


def bindings(folder: pathlib.Path, run: str, *more: str) -> list[str]:
    """The command line of a run on the slice, everything small."""
    said = {
        'GSM8K': folder / 'train.jsonl',
        'LABELLED': LABELLED,
        'VOCABULARY_FILE': folder / 'vocabulary.model',
        'RUN_DIR': folder / run,
        'data.JsonLines.drop_pattern': '"(?s).*[a-z].*"',  # steps have letters, answers have none
        'session.Place.cpu_devices': None,  # jax is at work here with those of conftest.py
        'session.Place.tensorboard': False,
        'models.TransformerConfig.width': 32,
        'models.TransformerConfig.layers': 1,
        'models.TransformerConfig.heads': 1,
        'models.TransformerConfig.kv_heads': 1,
        'models.TransformerConfig.head_size': 32,
        'models.TransformerConfig.feed_forward': 64,
        'models.TransformerConfig.unroll': 1,
        'learning.Supervised.batch_rows': 8,
        'learning.Packing.row_length': EXAMPLE_ROOM,
        'learning.Schedule.warmup': 2,
    }
    return [*(f'--gin.{name}={value}' for name, value in said.items()), *more]


PRETRAIN = (
    f'--gin.pretrain.Pretrain.example_room={EXAMPLE_ROOM}',
    f'--gin.pretrain.Pretrain.examples_per_chunk={LABELLED}',
    '--gin.learning.Supervised.steps=10',
    '--gin.learning.Supervised.total_rounds=2',
    '--gin.learning.Schedule.peak=3e-2',
)
IMPROVE = (
    '--gin.train.Improve.rounds=1',
    f'--gin.sampling.Sampler.samples={SAMPLES}',
    f'--gin.sampling.Sampler.max_tokens={MAX_TOKENS}',
    '--gin.learning.Supervised.steps=4',
    *(f'--gin.{scope}/feed.Feed.per_round=16' for scope in ('unlabelled', 'test')),
    *(f'--gin.{scope}/feed.Feed.per_batch=8' for scope in ('unlabelled', 'test')),
    *(f'--gin.{scope}/feed.Feed.room={ROOM}' for scope in ('unlabelled', 'test')),
)


def read(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]


def write(path: pathlib.Path, records: list[dict]) -> None:
    path.write_text(''.join(json.dumps(record) + '\n' for record in records), encoding='utf-8')


def flipped(records: list[dict]) -> list[dict]:
    """The same questions with other steps and another answer, one that the model may give."""
    right = [record['answer'].rpartition('####')[2].strip() for record in records]
    wrong = ['5' if label == '4' else '4' for label in right]
    return [{**record, 'answer': f'A guess.\n#### {label}'} for record, label in zip(records, wrong, strict=True)]


def run(command: str, file: str, words: list[str]) -> None:
    assert main([command, f'--gin_file=gin/runs/{file}.gin', *words]) == 0


@pytest.fixture(scope='module')
def folder(shared_data, tmp_path_factory) -> pathlib.Path:
    """The slice, its vocabulary, a pre-trained model, and two runs from it: as it is, and with every label wrong."""
    folder = tmp_path_factory.mktemp('gsm8k')
    slices = {'train': LABELLED + UNLABELLED, 'test': TEST}
    for name, count in slices.items():
        records = read(shared_data / 'gsm8k' / f'{name}.jsonl')[:count]
        write(folder / f'{name}.jsonl', records)
        write(folder / f'{name}_flipped.jsonl', flipped(records))
    size = '--gin.make_vocabulary.MakeVocabulary.size=500'
    words = [word for word in bindings(folder, '') if '.GSM8K' in word or '.LABELLED' in word or '.VOCAB' in word]
    run('vocabulary', 'gsm8k_vocabulary', [*words, size])
    run('pretrain', 'gsm8k_pretrain', bindings(folder, 'pretrain', *PRETRAIN))
    start = f'--gin.INITIAL={folder}/pretrain'
    run('improve', 'gsm8k', bindings(folder, 'run', *IMPROVE, start, f'--gin.GSM8K_TEST={folder}/test.jsonl'))
    # Not only are the labels wrong: they are mapped, so that nothing but the run itself keeps away from them.
    wrong = (
        f'--gin.GSM8K={folder}/train_flipped.jsonl',
        f'--gin.GSM8K_TEST={folder}/test_flipped.jsonl',
        '--gin.unlabelled/data.JsonLines.answer=answer',
        "--gin.unlabelled/data.JsonLines.answer_after='####'",
    )
    run('improve', 'gsm8k', bindings(folder, 'flipped', *IMPROVE, start, *wrong))
    return folder


def events(directory: pathlib.Path, kind: str) -> list[dict]:
    return [event for event in read(directory / 'metrics.jsonl') if event['kind'] == kind]


def arrays(directory: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """All that a checkpoint holds, by name."""
    path = directory.absolute() / 'checkpoints' / str(step) / 'arrays'
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        there = checkpointer.metadata(path).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), there)
        return checkpointer.restore(path, ocp.args.PyTreeRestore(restore_args=as_numpy))


def bank(folder: pathlib.Path, name: str) -> list:
    return JsonLines(str(folder / f'{name}.jsonl'), answer_after='####').take(0, LABELLED + UNLABELLED)


def test_long_examples_are_counted_in_pre_training(folder):
    encode = SentencePieceVocabulary(str(folder / 'vocabulary.model')).encode
    before, after = [2, *encode('Question: ')], encode('\nAnswer:')
    lengths = [
        len(before) + len(encode(item.question)) + len(after) + len(encode(f' The answer is {item.answer}.')) + 1
        for item in bank(folder, 'train')[:LABELLED]
    ]
    fit = [length for length in lengths if length <= EXAMPLE_ROOM]
    assert 0 < len(fit) < LABELLED
    for event in events(folder / 'pretrain', 'pretrain'):
        assert event['skipped'] == LABELLED - len(fit)
    assert events(folder / 'pretrain', 'pretrain')[-1]['loss'] < 1.5


def test_a_round_counts_what_happened(folder):
    encode = SentencePieceVocabulary(str(folder / 'vocabulary.model')).encode
    questions = [item.question for item in bank(folder, 'train')[LABELLED:]]
    short = [question for question in questions if len(encode(question)) <= ROOM]
    assert 0 < len(short) < UNLABELLED
    (event,) = events(folder / 'run', 'round')
    questions = stored(folder / 'run' / 'samples' / 'round_0001.parquet')
    paths = [path for question in questions for path in question['paths']]
    assert [question['question'] for question in questions] == short
    assert event['questions'] == len(short) and event['skipped_questions'] == UNLABELLED - len(short)
    assert event['samples'] == len(paths) == SAMPLES * len(short)
    assert event['labels_read'] == 0
    assert all(question['gold'] is None for question in questions)
    for name, field in (('answered', 'found'), ('ended', 'ended')):
        assert event[name] == pytest.approx(np.mean([path[field] for path in paths]), abs=1e-6)
        assert 0 < event[name] < 1, name
    assert event['sampled_tokens'] == sum(path['length'] for path in paths)
    assert event['kept_paths'] == sum(path['kept'] for path in paths) > 0
    assert event['kept_questions'] == sum(question['kept_paths'] > 0 for question in questions)
    for path in paths:
        assert path['found'] == bool(path['answer'])
        assert path['found'] <= ('The answer is' in path['text'])


@pytest.mark.parametrize('name', ['run', 'flipped'])
def test_evaluation_counts_what_happened(folder, name):
    for event in events(folder / name, 'evaluation'):
        questions = stored(folder / name / 'samples' / f'evaluation_{event["round"]:04d}.parquet')
        assert event['suite'] == 'GSM8K test'
        assert event['questions'] == len(questions) < TEST
        right = [question['chosen'] == question['gold'].replace(',', '') for question in questions]
        assert event['majority_accuracy']['value'] == pytest.approx(np.mean(right))
        share = np.mean([question['vote_share'] for question in questions])
        assert event['mean_vote_share']['value'] == pytest.approx(share, abs=1e-4)


def test_labels_change_nothing_but_reported_accuracies(folder):
    runs = [folder / name for name in ('run', 'flipped')]
    rounds = [[{**event, **dict.fromkeys(CLOCK)} for event in events(run, 'round')] for run in runs]
    assert rounds[0] == rounds[1]
    texts = [(run / 'samples' / 'round_0001.parquet').read_bytes() for run in runs]
    assert texts[0] == texts[1]
    held = [arrays(run, 1) for run in runs]
    assert held[0].keys() == held[1].keys() and len(held[0]) > 20
    for name, array in held[0].items():
        np.testing.assert_array_equal(array, held[1][name], err_msg=name)
    for one, other in zip(*[events(run, 'evaluation') for run in runs], strict=True):
        changed = {name for name in one if one[name] != other[name]} - CLOCK
        assert changed <= ACCURACIES
    golds = [[line['gold'] for line in stored(run / 'samples' / 'evaluation_0001.parquet')] for run in runs]
    assert not set(zip(*golds, strict=True)) & {(gold, gold) for gold in golds[0]}


def test_the_report_shows_real_paths(folder):
    assert main(['report', str(folder / 'run')]) == 0
    page = Page(folder / 'run' / 'report.html')
    questions = stored(folder / 'run' / 'samples' / 'round_0001.parquet')
    held = json.dumps(page.data, ensure_ascii=False)
    for question in questions[:3]:
        assert json.dumps(question['question'], ensure_ascii=False) in held
        assert all(json.dumps(path['text'], ensure_ascii=False) in held for path in question['paths'])


def test_the_vocabulary_is_kept_or_refused(folder, capsys):
    words = [word for word in bindings(folder, '') if '.GSM8K' in word or '.LABELLED' in word or '.VOCAB' in word]
    model, path = (folder / 'vocabulary.model').read_bytes(), '--gin_file=gin/runs/gsm8k_vocabulary.gin'
    size = '--gin.make_vocabulary.MakeVocabulary.size='
    assert main(['vocabulary', path, *words, f'{size}500']) == 0
    assert 'reused' in capsys.readouterr().out
    for changed in (f'{size}400', f'--gin.LABELLED={LABELLED - 1}'):
        assert main(['vocabulary', path, *words, f'{size}500', changed]) == 2
        assert 'was made otherwise' in capsys.readouterr().err
    assert (folder / 'vocabulary.model').read_bytes() == model


def test_a_vocabulary_that_somebody_else_made_is_refused(folder, tmp_path, capsys):
    path = tmp_path / 'theirs.model'
    path.write_bytes((folder / 'vocabulary.model').read_bytes())
    words = [f'--gin.GSM8K={folder}/train.jsonl', f'--gin.LABELLED={LABELLED}', f'--gin.VOCABULARY_FILE={path}']
    words += ['--gin_file=gin/runs/gsm8k_vocabulary.gin', '--gin.make_vocabulary.MakeVocabulary.size=500']
    assert main(['vocabulary', *words]) == 2
    assert 'was not made by this command' in capsys.readouterr().err
    (tmp_path / 'theirs.model.json').write_text((folder / 'vocabulary.model.json').read_text())
    assert main(['vocabulary', *words]) == 0
    SentencePieceVocabulary.train(['ab abc bcd cde def ab abc bcd cde def'], str(path), 268)
    assert main(['vocabulary', *words]) == 2
    assert 'is not the vocabulary that' in capsys.readouterr().err
