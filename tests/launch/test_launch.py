"""The launch scripts, run in a copy of the repository's frame with stub programs instead of Python, pip and df."""

import dataclasses
import os
import pathlib
import runpy
import shutil
import subprocess
import sys

import pytest
import setuptools

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPTS = ('quickstart.sh', 'test.sh')
BASH = shutil.which('bash')
# What the scripts may use beside bash itself; nothing else is on the PATH of these tests.
PROGRAMS = 'awk bash cat cp dirname env flock getconf grep ls mkdir rm sed tail tee timeout uname'.split()

# A Python that answers the scripts' questions and writes down what it is asked to do, arguments apart by |.
STUB_PYTHON = f"""#!{BASH}
if [ "$1" = -c ]; then
  case $2 in
    *version_info*) echo "$STUB_VERSION" ;;
    *ensurepip*) exit "${{STUB_VENV_STATUS:-0}}" ;;
  esac
  exit 0
fi
if [ "$1" = - ]; then exec '{sys.executable}' "$@"; fi
(IFS='|'; echo "$*") >> "$STUB_CALLS"
case "$*" in
  '-m venv'*) mkdir -p "$4/bin"; cp "$0" "$4/bin/python"; echo > "$4/pyvenv.cfg" ;;
  '-m pip install'*"${{STUB_MISSING:-no such word}}"*) echo 'ERROR: No matching distribution'; exit 1 ;;
  '-m pip install'*) echo "$STUB_PIP_SAYS"; exit "${{STUB_PIP_STATUS:-0}}" ;;
  '-m t5x_selfimprove'*) exit "${{STUB_RUN_STATUS:-0}}" ;;
  '-m ruff'*) exit "${{STUB_RUFF_STATUS:-0}}" ;;
  '-m pytest'*) exit "${{STUB_PYTEST_STATUS:-0}}" ;;
esac
"""

# Kilobytes free, in the columns of `df -P`.
STUB_DF = """#!{bash}
echo 'Filesystem 1024-blocks Used Available Capacity Mounted on'
echo '/dev/disk 90000000 1 {free} 1% /'
"""


@dataclasses.dataclass
class Place:
    """A repository and a PATH of their own."""

    folder: pathlib.Path

    @property
    def repository(self) -> pathlib.Path:
        # A space in the name: every path in the scripts must be quoted.
        return self.folder / 'a repository'

    @property
    def calls(self) -> list[str]:
        log = self.folder / 'calls'
        calls = log.read_text().splitlines() if log.exists() else []
        return [call for call in calls if call != '-m|pip|--version']

    def count(self, start: str) -> int:
        return sum(call.startswith(start) for call in self.calls)

    def program(self, name: str, text: str) -> None:
        path = self.folder / 'bin' / name
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def run(self, script: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess:
        environment = {
            'PATH': str(self.folder / 'bin'),
            'HOME': str(self.folder),
            'STUB_CALLS': str(self.folder / 'calls'),
            'STUB_VERSION': '3.12.1',
            'JAX_PLATFORMS': 'cpu',
        }
        elsewhere = self.folder / 'elsewhere'
        elsewhere.mkdir(exist_ok=True)
        return subprocess.run(
            [BASH, str(self.repository / 'launch' / script), *arguments],
            env=environment | settings, cwd=elsewhere, capture_output=True, text=True, timeout=60,
        )  # fmt: skip


@pytest.fixture
def place(tmp_path: pathlib.Path) -> Place:
    place = Place(tmp_path)
    (tmp_path / 'bin').mkdir()
    for name in PROGRAMS:
        found = shutil.which(name)
        if found:
            (tmp_path / 'bin' / name).symlink_to(found)
    place.program('python3', STUB_PYTHON)
    place.program('df', STUB_DF.format(bash=BASH, free=20_000_000))
    (place.repository / 'launch').mkdir(parents=True)
    for file in (ROOT / 'launch').glob('*.sh'):
        shutil.copy(file, place.repository / 'launch')
    shutil.copy(ROOT / 'setup.py', place.repository)
    return place


@pytest.mark.parametrize('path', [*ROOT.glob('launch/**/*.sh'), ROOT / '.ci' / 'run'], ids=lambda path: path.name)
def test_script_parses(path: pathlib.Path):
    subprocess.run([BASH, '-n', str(path)], check=True)


@pytest.mark.parametrize('script', SCRIPTS)
def test_script_can_be_run_as_it_is(script: str):
    assert os.access(ROOT / 'launch' / script, os.X_OK)


@pytest.mark.parametrize('script', SCRIPTS)
def test_help_names_every_variable_and_does_nothing(place: Place, script: str):
    done = place.run(script, '--help')
    assert done.returncode == 0
    assert 'Usage: launch/' + script in done.stdout
    assert 'T5X_SELFIMPROVE_VENV' in done.stdout
    assert not place.calls


def test_quickstart_makes_installs_runs_and_says_where_the_report_is(place: Place):
    done = place.run('quickstart.sh', '--seed', '3')
    assert done.returncode == 0, done.stderr
    venv, install, pretrain, improve = place.calls
    assert venv == f'-m|venv|--clear|{place.repository}/.venv'
    assert install.endswith(f'|-e|{place.repository}')
    runs = f'{place.repository}/runs/quickstart_seed_3'
    assert pretrain.startswith('-m|t5x_selfimprove|pretrain|--gin_file=gin/runs/')
    assert '--gin.SEED=3' in pretrain and f'--gin.RUN_DIR={runs}/' in pretrain
    assert improve.startswith('-m|t5x_selfimprove|improve|--gin_file=gin/runs/')
    assert '|--gin.SEED=3|' in improve and f'|--gin.RUN_DIR={runs}|' in improve
    assert f'{runs}/report.html' in done.stdout
    assert [line[:3] for line in done.stdout.splitlines() if line.startswith('[')] == ['[1]', '[2]', '[3]', '[4]']


def test_second_run_reuses_the_environment(place: Place):
    assert place.run('quickstart.sh').returncode == 0
    assert place.run('quickstart.sh').returncode == 0
    assert place.count('-m|pip|install') == place.count('-m|venv') == 1


def test_changed_requirements_are_installed(place: Place):
    place.run('quickstart.sh')
    with (place.repository / 'setup.py').open('a') as setup:
        setup.write('# changed\n')
    place.run('quickstart.sh')
    assert place.count('-m|pip|install') == 2


def test_environment_of_the_tests_serves_the_quickstart_too(place: Place):
    assert place.run('test.sh').returncode == 0
    assert place.run('quickstart.sh').returncode == 0
    install, torch, references = (call for call in place.calls if call.startswith('-m|pip|install'))
    assert install.endswith(f'|-e|{place.repository}[test]')
    assert '|torch==' in torch and references.endswith(f'|-e|{place.repository}[references]')


def test_tests_run_without_the_references(place: Place):
    # Everything but torch can be had.
    done = place.run('test.sh', STUB_MISSING='torch==')
    assert done.returncode == 0
    assert 'Tests beside transformers are skipped' in done.stdout
    assert place.count('-m|pytest') == 1
    place.run('test.sh')  # and tried again
    assert sum('|torch==' in call for call in place.calls) == 2


def test_interrupted_environment_is_made_anew(place: Place):
    (place.repository / '.venv' / 'bin').mkdir(parents=True)
    (place.repository / '.venv' / 'pyvenv.cfg').touch()
    (place.repository / '.venv' / 'bin' / 'python').symlink_to('/nonexistent')
    shutil.rmtree(place.repository / '.venv' / 'bin')  # the stub does not clear
    assert place.run('quickstart.sh').returncode == 0
    assert place.count('-m|venv|--clear') == 1


def test_folder_of_someone_else_is_left_alone(place: Place):
    theirs = place.folder / 'theirs'
    theirs.mkdir()
    (theirs / 'pyvenv.cfg').touch()
    done = place.run('quickstart.sh', T5X_SELFIMPROVE_VENV=str(theirs))
    assert done.returncode != 0
    assert f'{theirs} is not empty and is no working virtual environment' in done.stderr
    assert not place.calls


@pytest.mark.parametrize('argument', ['--sead=1', '--seed=one', '--seed', '--gin.NAME', 'three', '--run_dir='])
def test_wrong_option_is_refused_before_anything_is_done(place: Place, argument: str):
    done = place.run('quickstart.sh', argument)
    assert done.returncode != 0
    assert 'Cannot go on: ' in done.stderr and argument.split('=')[0] in done.stderr
    assert not place.calls


def test_settings_and_run_dir_reach_the_run(place: Place):
    done = place.run('quickstart.sh', '--run_dir=my runs/a', '--gin.ROUNDS=2', '--gin.NAME=two words')
    assert done.returncode == 0, done.stderr
    improve = place.calls[-1]
    assert f'|--gin.RUN_DIR={place.folder}/elsewhere/my runs/a|' in improve
    assert improve.endswith('|--gin.ROUNDS=2|--gin.NAME=two words')


def test_failure_of_the_run_is_the_failure_of_the_script(place: Place):
    done = place.run('quickstart.sh', STUB_RUN_STATUS='7')
    assert done.returncode == 7
    assert 'goes on from its last checkpoint' in done.stderr
    assert 'report.html' not in done.stdout


@pytest.mark.parametrize('script', SCRIPTS)
def test_too_old_python(place: Place, script: str):
    done = place.run(script, STUB_VERSION='3.10.13')
    assert done.returncode != 0
    assert 'Cannot go on: Python 3.11 or newer is needed; found here: python3 (3.10.13)' in done.stderr
    assert 'T5X_SELFIMPROVE_PYTHON' in done.stderr
    assert not place.calls


def test_no_python_at_all(place: Place):
    (place.folder / 'bin' / 'python3').unlink()
    done = place.run('quickstart.sh')
    assert done.returncode != 0
    assert 'found here: none' in done.stderr


def test_python3_is_taken_before_others(place: Place):
    place.program('python3.13', f'#!{BASH}\necho "no such version" >&2; exit 127\n')
    place.program('python3.12', STUB_PYTHON.replace('$STUB_VERSION', '3.12.9'))
    done = place.run('quickstart.sh')
    assert done.returncode == 0, done.stderr
    assert 'with python3 (Python 3.12.1)' in done.stdout


def test_python_without_venv(place: Place):
    done = place.run('quickstart.sh', STUB_VENV_STATUS='1')
    assert done.returncode != 0
    assert 'this Python has no venv module' in done.stderr and 'python3 (3.12.1)' in done.stderr
    assert 'apt-get install python3-venv' in done.stderr
    assert not place.calls


def test_environment_with_a_python_too_old(place: Place):
    place.run('quickstart.sh')
    done = place.run('quickstart.sh', STUB_VERSION='3.9.1')
    assert done.returncode != 0
    assert f'the environment {place.repository}/.venv has Python 3.9.1' in done.stderr


def test_too_little_disk(place: Place):
    place.program('df', STUB_DF.format(bash=BASH, free=3_500_000))
    done = place.run('quickstart.sh')
    assert done.returncode != 0
    assert f'needs 6 GB of free disk; {place.repository} has 3 GB' in done.stderr
    assert 'T5X_SELFIMPROVE_VENV' in done.stderr
    assert not place.calls


@pytest.mark.parametrize(
    ('pip_says', 'sentence'),
    [
        ("broken by 'NewConnectionError('<...>: Name or service not known')'", 'no connection to the package index'),
        ('ERROR: Could not install packages due to an OSError: No space left on device', 'the disk ran full'),
        ('ERROR: No matching distribution found for tensorflow', 'no version for this system: Python 3.12.1'),
        ('error: something else', 'pip could not install the project'),
    ],
)
def test_failing_installation(place: Place, pip_says: str, sentence: str):
    done = place.run('quickstart.sh', STUB_PIP_STATUS='1', STUB_PIP_SAYS=pip_says)
    assert done.returncode == 1
    assert f'pip: {pip_says}' in done.stderr
    assert sentence in done.stderr and 'run the same command again' in done.stderr
    assert place.count('-m|t5x_selfimprove') == 0
    # It is tried again, not taken for done.
    assert place.run('quickstart.sh').returncode == 0
    assert place.count('-m|pip|install') == 2


@pytest.mark.skipif(any(pathlib.Path('/dev').glob('accel*')), reason='this machine has a TPU')
def test_accelerator_is_asked_for_by_name(place: Place):
    run = "'-m t5x_selfimprove'*)"
    place.program('python3', STUB_PYTHON.replace(run, f'{run} echo $JAX_PLATFORMS;'))
    assert 'platform cpu\n' in place.run('quickstart.sh', JAX_PLATFORMS='').stdout
    place.program('nvidia-smi', f'#!{BASH}\necho "GPU 0: a GPU"\n')
    done = place.run('quickstart.sh', JAX_PLATFORMS='')
    assert 'platform cuda' in done.stdout and '\ncuda,cpu\n' in done.stdout
    assert place.calls[-3].endswith('[cuda]')
    assert 'platform cuda' in place.run('quickstart.sh', JAX_PLATFORMS='gpu').stdout
    done = place.run('quickstart.sh', JAX_PLATFORMS='cpu')
    assert 'platform cpu' in done.stdout and '\ncpu\n' in done.stdout


@pytest.mark.parametrize(('ruff', 'tests', 'status'), [(0, 0, 0), (1, 0, 1), (0, 2, 2), (1, 2, 2)])
def test_style_and_tests_both_count(place: Place, ruff: int, tests: int, status: int):
    done = place.run('test.sh', 'tests/x.py', '-k', 'a b', STUB_RUFF_STATUS=str(ruff), STUB_PYTEST_STATUS=str(tests))
    assert done.returncode == status
    assert place.calls[-2:] == ['-m|ruff|check|.', '-m|pytest|-n|2|tests/x.py|-k|a b']
    assert ('ruff found something' in done.stderr) == bool(ruff)


def test_installed_copy_has_every_gin_file_and_package(monkeypatch: pytest.MonkeyPatch):
    said = {}
    monkeypatch.setattr(setuptools, 'setup', lambda **keywords: said.update(keywords))
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / 'setup.py'))
    gin_folders = {file.parent.relative_to(ROOT).as_posix() for file in (ROOT / 'gin').rglob('*.gin')}
    assert said['package_dir'] == {f't5x_selfimprove.{folder.replace("/", ".")}': folder for folder in gin_folders}
    assert set(said['package_dir']) <= set(said['packages'])
    code_folders = {file.parent for file in (ROOT / 't5x_selfimprove').rglob('*.py')}
    assert {'.'.join(folder.relative_to(ROOT).parts) for folder in code_folders} <= set(said['packages'])


def test_continuous_integration_calls_the_tests():
    assert './launch/test.sh' in (ROOT / '.ci' / 'run').read_text()
