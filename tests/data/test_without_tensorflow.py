"""Banks and vocabularies work where TensorFlow, seqio and TFDS are not installed."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]

PROGRAM = """
import sys
for name in ('tensorflow', 'seqio', 'tensorflow_datasets'):
    sys.modules[name] = None  # importing it raises ImportError

from t5x_selfimprove import vocabulary
from t5x_selfimprove.data import items, possessions, question_files, seqio_tasks, text_file

words = possessions.vocabulary()
taken = possessions.Possessions('held_out', seed=3).take(0, 4)
items.encode_questions(taken, words, 48)
items.encode_examples(taken, words, [], [], 80)
question_files.JsonLines('none.jsonl')
text_file.TextFile('none.txt')
print(taken[1].id)
try:
    seqio_tasks.SeqioTask('any').check()
except ImportError as error:
    print('ImportError')
"""


def test_everything_but_seqio_runs_with_tensorflow_blocked():
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ['fec9963a8b45c11b', 'ImportError']
