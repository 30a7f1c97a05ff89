"""The gin files of the project: each opens with a comment, parses, is used, and the runs and methods among them build.

A run opens with its command, as

    # python -m t5x_selfimprove improve --gin_file=gin/runs/quickstart.gin --gin.RUN_DIR=runs/quickstart

which may go on in the next comment lines after a backslash. The test builds exactly that, and the commands that open
part files too: a part that no file includes has one that adds it to a run.
"""

import functools
import inspect
import json
import pathlib
import shlex

import pytest

from t5x_selfimprove import config
from t5x_selfimprove.config import checking
from t5x_selfimprove.config.reading import Reader, read_text
from t5x_selfimprove.config.statements import Binding, Include
from t5x_selfimprove.vocabulary import SentencePieceVocabulary
from tests.vocabulary import made

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / 'gin').rglob('*.gin'))
COMPLETE = ('gin/runs/', 'gin/methods/', 'gin/sweeps/embedded/')  # the folders of files that open with a command
PROGRAM = ('python', '-m', 't5x_selfimprove')
# Of a checkpoint's config.json.
SIZES = {'hidden_size': 8, 'num_hidden_layers': 1, 'num_attention_heads': 2, 'intermediate_size': 8}
LONGEST_PART = 20  # statements; a part file that says more is a run


def comment(text: str) -> list[str]:
    """The comment lines that a file opens with, without their signs."""
    lines = []
    for line in text.splitlines():
        if not line.startswith('#'):
            break
        lines.append(line[1:].strip())
    return lines


def commands(text: str) -> list[list[str]]:
    """The arguments of each command in the opening comment."""
    found, going_on = [], False
    for line in comment(text):
        if going_on or line.startswith(' '.join(PROGRAM)):
            if not going_on:
                found.append('')
            going_on = line.endswith('\\')
            found[-1] += ' ' + line.removesuffix('\\')
    return [shlex.split(command)[len(PROGRAM) :] for command in found]


def mistakes(files: dict[str, str]) -> list[str]:
    """What is wrong with gin files, given as path -> text."""
    found = []
    used: set[str] = set()
    for name, text in files.items():
        statements, problems = read_text(name, text)
        found += [str(problem) for problem in problems]
        used |= {said.file for said in statements if isinstance(said, Include)}
        arguments = [config.parse_arguments(argv) for argv in commands(text)]
        used |= {file for one in arguments for file in one.files}
        if not any(comment(text)):
            found.append(f'{name} does not open with a comment')
        if name.startswith(COMPLETE) and not arguments:
            found.append(f'{name} does not open with its command, {" ".join(PROGRAM)} ... --gin_file={name}')
        if name.startswith(COMPLETE) and arguments and not any(name in one.files for one in arguments):
            found.append(f'the command that opens {name} does not use it')
        if not name.startswith(COMPLETE) and sum(isinstance(said, Binding) for said in statements) > LONGEST_PART:
            found.append(f'{name} binds more than {LONGEST_PART} values; a part file is about one part')
    parts = [name for name in files if not name.startswith(COMPLETE)]
    return found + [f'{name} is used by no other file' for name in parts if name not in used]


def test_gin_files():
    found = mistakes({name: (ROOT / name).read_text(encoding='utf-8') for name in FILES})
    assert not found, '\n' + '\n'.join(found)


@functools.cache
def a_vocabulary(folder: pathlib.Path) -> bytes:
    """Some SentencePiece model."""
    path = folder / 'some.model'
    SentencePieceVocabulary.train(['ab abc bcd cde def ab abc bcd cde def'], str(path), 268)
    return path.read_bytes()


def make_vocabularies(files: tuple[str, ...], bindings: tuple[str, ...], folder: pathlib.Path) -> None:
    """Puts a vocabulary wherever gin files and bindings name one: a prompt is cut into tokens when it is built."""
    reader = Reader()
    for file in files:
        reader.file(file)
    for binding in bindings:
        reader.flag(binding)
    for named in {said.value for said in reader.bindings if str(said.value).endswith('.model')}:
        path = pathlib.Path(named)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(a_vocabulary(folder))
    for named in {said.value for said in reader.bindings if said.name == 'CHECKPOINT' and isinstance(said.value, str)}:
        template = '<|im_start|>{{ messages[0].content }}<|im_end|>'
        made.save(made.qwen(), pathlib.Path(named), eos_token='<|im_end|>', chat_template=template)
        config_json = {'architectures': ['LlamaForCausalLM'], **SIZES, 'vocab_size': 1000}
        (pathlib.Path(named) / 'config.json').write_text(json.dumps(config_json), encoding='utf-8')


@pytest.mark.parametrize('name', [name for name in FILES if commands((ROOT / name).read_text(encoding='utf-8'))])
def test_commands_build(name, tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path)  # files are found from the repository wherever one stands
    for argv in commands((ROOT / name).read_text(encoding='utf-8')):
        asked = config.parse_arguments(argv)
        make_vocabularies(asked.files, asked.bindings, tmp_path_factory.getbasetemp())
        built = config.build(config.ROOTS[asked.command], asked.files, asked.bindings)
        pathlib.Path('saved.gin').write_text(built.text, encoding='utf-8')
        again = config.build(config.ROOTS[asked.command], ['saved.gin'])
        assert again.value == built.value
        assert again.text == built.text


def test_the_table_holds_frozen_parts():
    for name, part in config.TABLE.items():
        made = checking.made_by(part)
        assert made.__dataclass_params__.frozen and made.__dataclass_params__.eq, name
        assert part.__module__.split('.')[1] == name.split('.')[0], name
        assert inspect.isfunction(part) or name.split('.')[1:] == [part.__name__], name
        assert checking.annotations(part) is not None
    assert set(config.ROOTS.values()) <= set(config.TABLE)


COMMAND = '# python -m t5x_selfimprove improve --gin_file=gin/runs/a.gin \\\n#     --gin.A=3\n'
GOOD = {
    'gin/runs/a.gin': COMMAND + "include 'gin/models/tiny.gin'\nA = 1\n",
    'gin/models/tiny.gin': '# A tiny model.\nB = 1\n',
}
BAD = {
    'does not open with a comment': {**GOOD, 'gin/models/tiny.gin': 'B = 1\n'},
    'does not open with its command': {**GOOD, 'gin/methods/b.gin': '# A method.\nA = 1\n'},
    'does not use it': {**GOOD, 'gin/runs/b.gin': COMMAND},
    'gin/models/big.gin is used by no other file': {**GOOD, 'gin/models/big.gin': '# A big model.\n'},
    'the bracket ( is never closed': {**GOOD, 'gin/models/tiny.gin': '# x\nB = (1\n'},
    'binds more than': {
        **GOOD,
        'gin/models/tiny.gin': '# x\n' + ''.join(f'B{number} = 1\n' for number in range(LONGEST_PART + 1)),
    },
}


def test_the_rules_find_what_they_are_for():
    assert mistakes(GOOD) == []
    assert commands(GOOD['gin/runs/a.gin']) == [['improve', '--gin_file=gin/runs/a.gin', '--gin.A=3']]
    for expected, files in BAD.items():
        (found,) = mistakes(files)
        assert expected in found
