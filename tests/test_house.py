"""The files of the project against the rules of the house (rules.py), and each rule against examples, bad and good."""

import pathlib
import subprocess
import sys

import pytest

from tests.rules import (
    CORE_FLOORS,
    FLOORS,
    LONGEST_FILE,
    LONGEST_FUNCTION,
    PACKAGE,
    PACKAGE_RULES,
    PYTHON_RULES,
    TEXT_RULES,
    Rule,
    docstrings,
    finished,
    floors,
    machine_independent,
    module_docstring,
    names,
    no_defaulted_getattr,
    only_jax_transforms,
    part_of,
    rights,
    sizes,
)

ROOT = pathlib.Path(__file__).resolve().parents[1]

# The compute core runs on a machine that has none of these. (flax itself imports rich.)
BLOCKED = tuple(
    'tensorflow tensorflow_datasets tensorflow_text seqio gin jinja2 safetensors sentencepiece tensorboardX '
    'tokenizers'.split()
)

# Where a rule is broken for a reason. One that is no longer needed must go.
EXCEPTIONS = {
    'no_defaulted_getattr': {
        f'{PACKAGE}/records.py:check',  # words of an error about a value of any type
    },
    'machine_independent': {
        f'{PACKAGE}/processes/identity.py',  # Google Cloud's metadata server, of one name on every machine there
    },
}

TEXT_SUFFIXES = frozenset('.py .sh .gin .toml .md .js .css .html .yaml .yml .cfg .txt .ipynb'.split())


def project_files() -> list[pathlib.PurePath]:
    """Files of the project, relative to its root: what git tracks or would, else what is in its folders."""
    command = ['git', '-C', str(ROOT), 'ls-files', '-z', '--cached', '--others', '--exclude-standard']
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split('\0')
        found = [pathlib.PurePath(name) for name in listed if name]
    except (OSError, subprocess.CalledProcessError):
        folders = [ROOT / name for name in (PACKAGE, 'gin', 'launch', 'tests', 'colabs')]
        paths = [*ROOT.glob('*.*'), *(path for folder in folders for path in folder.rglob('*'))]
        found = [path.relative_to(ROOT) for path in paths if '__pycache__' not in path.parts]
    return sorted(path for path in found if (ROOT / path).is_file())


def files_of(rule: Rule) -> list[pathlib.PurePath]:
    """The files a rule is for."""
    if rule in TEXT_RULES:
        return [path for path in project_files() if path.suffix in TEXT_SUFFIXES or path.name == 'run']
    python = [path for path in project_files() if path.suffix == '.py']
    return [path for path in python if path.parts[0] == PACKAGE] if rule in PACKAGE_RULES else python


@pytest.mark.parametrize('rule', [*PACKAGE_RULES, *PYTHON_RULES, *TEXT_RULES], ids=lambda rule: rule.__name__)
def test_rule(rule: Rule):
    files = files_of(rule)
    assert files
    found = [one for path in files for one in rule(path.as_posix(), (ROOT / path).read_text(encoding='utf-8'))]
    excepted = EXCEPTIONS.get(rule.__name__, set())
    wrong = [str(one) for one in found if one.place not in excepted]
    assert not wrong, '\n' + '\n'.join(wrong)
    unneeded = excepted - {one.place for one in found}
    assert not unneeded, f'exceptions that are no longer needed: {sorted(unneeded)}'


TWO_STATEMENTS = '\n        x = 1\n        return x'
LONG_FUNCTION = 'def f():\n' + '    x = 1\n' * LONGEST_FUNCTION
SAMPLER = f'{PACKAGE}/sampling/sampler.py'


@pytest.mark.parametrize(
    ('rule', 'path', 'source', 'said'),
    [
        (floors, SAMPLER, f'from {PACKAGE}.improve import one_round', 'floor 2 imports t5x_selfimprove.improve'),
        (floors, SAMPLER, f'from {PACKAGE} import train', 'of floor 5'),
        (floors, SAMPLER, f'def f():\n    import {PACKAGE}.learning.losses', 'meet in records only'),
        (floors, SAMPLER, f'from {PACKAGE} import templates', 'meet in records only'),
        (floors, SAMPLER, f'import {PACKAGE}.attic', 'stands on no floor'),
        (floors, SAMPLER, 'from . import transforms', 'write the whole name'),
        (floors, SAMPLER, 'def f():\n    from rich import table', 'imports rich'),
        (floors, f'{PACKAGE}/attic.py', '', 'attic stands on no floor'),
        (floors, f'{PACKAGE}/__init__.py', f'from {PACKAGE} import main', 'of floor 6'),
        (rights, SAMPLER, 'from flax import nnx', 'only models may'),
        (rights, f'{PACKAGE}/train.py', 'import orbax.checkpoint as ocp', 'only checkpoints may'),
        (rights, f'{PACKAGE}/main.py', 'def f():\n    import gin', 'only config may'),
        (rights, f'{PACKAGE}/evaluate.py', 'def f():\n    import tensorflow', 'only data may'),
        (rights, f'{PACKAGE}/data/tasks.py', 'if True:\n    import seqio', 'outside a function'),
        (sizes, SAMPLER, 'x = 1\n' * (LONGEST_FILE + 1), '401 lines'),
        (sizes, SAMPLER, LONG_FUNCTION, '61 lines'),
        (sizes, SAMPLER, 'class A:\n' + ''.join(f'    {line}\n' for line in LONG_FUNCTION.splitlines()), '61 lines'),
        (names, f'{PACKAGE}/data/utils.py', '', "'utils'"),
        (names, f'{PACKAGE}/model_lib.py', '', "'model_lib'"),
        (names, SAMPLER, f'from {PACKAGE} import metrics as metrics_lib', 'alias metrics_lib'),
        (no_defaulted_getattr, SAMPLER, 'def f(c):\n    return lambda: getattr(c, "x", 1)', 'sampler.py:f '),
        (only_jax_transforms, SAMPLER, '@nnx.jit\ndef f(): pass', 'nnx.jit'),
        (only_jax_transforms, SAMPLER, 'y = flax.nnx.scan(f)', 'nnx.scan'),
        (only_jax_transforms, SAMPLER, 'from flax.nnx import grad', 'grad'),
        (docstrings, SAMPLER, '"""A."""\ndef f(): pass', 'sampler.py:f '),
        (docstrings, SAMPLER, f'class A:\n    """A."""\n    def __call__(self):{TWO_STATEMENTS}', 'A.__call__ '),
        (docstrings, SAMPLER, 'x = 1', 'the module has no docstring'),
        (module_docstring, 'tests/test_a.py', 'x = 1', 'no docstring'),
        (finished, 'launch/a.sh', '# TO' + 'DO: the rest', "'TO" + "DO'"),
        (finished, 'README.md', 'It is off for ' + 'now.', 'for ' + 'now'),
        (machine_independent, 'gin/a.gin', "PATH = '/ho" + "me/ann/data'", '/ho' + 'me/a'),
        (machine_independent, 'launch/a.sh', 'curl http://10.' + '0.0.7/x', '10.' + '0.0.7'),
        (machine_independent, 'launch/a.sh', 'ssh build.' + 'internal', '.' + 'internal'),
    ],
)
def test_rule_is_red(rule: Rule, path: str, source: str, said: str):
    found = [str(one) for one in rule(path, source)]
    assert any(said in one for one in found), found


@pytest.mark.parametrize(
    ('rule', 'path', 'source'),
    [
        (floors, SAMPLER, f'from {PACKAGE} import records, sampling\nfrom {PACKAGE}.sampling.transforms import draw'),
        (floors, f'{PACKAGE}/evaluate.py', f'from {PACKAGE} import __version__\nfrom {PACKAGE}.improve import Recipe'),
        (rights, f'{PACKAGE}/data/tasks.py', 'def f():\n    import seqio'),
        (rights, f'{PACKAGE}/models/layers.py', 'from flax import nnx'),
        (sizes, SAMPLER, 'def f():\n' + '    x = 1\n' * (LONGEST_FUNCTION - 1)),
        (names, f'{PACKAGE}/tally.py', f'from {PACKAGE} import metrics'),
        (no_defaulted_getattr, SAMPLER, 'x = getattr(a, "b")'),
        (only_jax_transforms, SAMPLER, 'nnx.vmap(f)\njax.jit(f)'),
        (docstrings, SAMPLER, '"""A."""\nclass A:\n    """A."""\n    def size(self): return 1'),
        (docstrings, SAMPLER, '"""A."""\ndef _f(): pass\ndef g():\n    """G."""\n    def inner(): pass'),
        (machine_independent, 'launch/a.sh', 'x=/path/to/work/here ~/work/x 127.0.0.1 jax 0.10.2'),
    ],
)
def test_rule_is_green(rule: Rule, path: str, source: str):
    assert not list(rule(path, source))


IMPORT_ALL = """
import importlib, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in blocked:
            raise ImportError(f'{name} is blocked')

blocked, modules = set(sys.argv[1].split()), sys.argv[2].split()
sys.meta_path.insert(0, Block())
failed = []
for module in modules:
    try:
        importlib.import_module(module)
    except ImportError as error:
        failed.append(f'{module}: {error}')
sys.exit('\\n'.join(failed) or None)
"""


def import_without(blocked: tuple[str, ...], modules: list[str]) -> str:
    """Imports modules in a fresh Python where some packages cannot be imported; what failed, a line each."""
    command = [sys.executable, '-c', IMPORT_ALL, ' '.join(blocked), ' '.join(modules)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    return done.stderr if done.returncode else ''


def modules_of(*chosen: int) -> list[str]:
    """Module names of the parts that stand on these floors."""
    parts = {part for floor in chosen for part in FLOORS[floor]}
    files = [path for path in project_files() if path.parts[0] == PACKAGE and path.suffix == '.py']
    inside = [path.with_suffix('') for path in files if part_of(path.as_posix()) in parts]
    return ['.'.join(path.parts).removesuffix('.__init__') for path in inside]


def test_compute_core_imports_without_what_it_does_not_need():
    assert not import_without(BLOCKED, modules_of(*CORE_FLOORS))


def test_data_imports_without_tensorflow():
    assert not import_without(('tensorflow', 'tensorflow_datasets', 'tensorflow_text', 'seqio'), modules_of(4, 5))


def test_blocked_import_is_seen():
    assert 'jax is blocked' in import_without(('jax',), [f'{PACKAGE}.records'])
