"""The launchers for many hosts, with stub programs in place of ssh, gcloud, srun, kubectl and xpk: what each is asked
to do, and what becomes of its exit codes. `real_ssh.sh` and `real_slurm.sh` beside this file run the real ones."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / 'launch'
BASH = shutil.which('bash')
SCRIPTS = sorted([*LAUNCH.rglob('*.sh'), *LAUNCH.rglob('*.sbatch'), *(ROOT / 'tests' / 'launch').glob('*.sh')])
COMMAND = ('improve', '--gin_file=a.gin', "--gin.ASK=('two words', 1)")
WORDS = '|'.join(COMMAND)

# Writes its arguments down; the n-th call of it does what the n-th line of its file says.
STUB = f"""#!{BASH}
(IFS='|'; echo "$(basename "$0")|$*") >>"$STUBS/calls"
number=1
until mkdir "$STUBS/$(basename "$0").call_$number" 2>/dev/null; do number=$((number + 1)); done
eval "$(sed -n "${{number}}p" "$STUBS/$(basename "$0").does" 2>/dev/null)"
"""
# Runs what it is asked to run on the host, here.
SSH = f"""#!{BASH}
(IFS='|'; echo "ssh|$1") >>"$STUBS/calls"
{BASH} -c "$2"
"""
# A slice of two hosts, folders beside it: its commands are run in them, by bash as ssh would. A host with a file
# `unreachable` is so once, when it is to run.
GCLOUD = f"""#!{BASH}
(IFS='|'; echo "gcloud|${{*//$'\\n'/ }}") >>"$STUBS/calls"
cd "$STUBS"
case "$3 $4" in
  'queued-resources describe')
    state=$(head -n 1 gcloud.states)
    [ "$(wc -l <gcloud.states)" = 1 ] || sed -i 1d gcloud.states
    case $state in absent | refused) exit 1 ;; *) echo "$state" ;; esac
    ;;
  'queued-resources create') if grep -q refused gcloud.states; then echo 'no quota' >&2; exit 1; fi ;;
  'tpu-vm scp') for host in 0 1; do cp "$5" "host$host/${{6#*:}}" || exit; done ;;
  'tpu-vm ssh')
    for option; do
      case $option in --command=*) command=${{option#*=}} ;; --output-directory=*) out=${{option#*=}} ;; esac
    done
    for host in 0 1; do
      if [ -n "${{out:-}}" ] && rm "host$host/unreachable" 2>/dev/null; then
        echo 'ssh: connect to host: Connection timed out' >"$out/$host.log"
        status=255
        continue
      fi
      (export HOME=$PWD/host$host && cd && exec {BASH} -c "$command") >"${{out:-$STUBS}}/$host.log" 2>&1 &
      hosts+=($!)
    done
    for host in "${{hosts[@]}}"; do wait "$host" || status=255; done
    exit "${{status:-0}}"
    ;;
esac
"""
# Python of a host: what launch/environment.sh asks it is answered by a real one, the rest is the stub's.
HOST_PYTHON = f"""#!{BASH}
case "$1 $2" in
  -c* | -\\ *) exec '{sys.executable}' "$@" ;;
  '-m pip') exit 0 ;;
  *) exec "$STUBS/python" "$@" ;;
esac
"""


@dataclasses.dataclass
class Place:
    """A folder with stub programs."""

    folder: pathlib.Path

    def stub(self, name: str, *does: str, text: str = STUB) -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)
        (self.folder / f'{name}.does').write_text(''.join(f'{line}\n' for line in does))

    def run(self, script: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess:
        environment = {
            'PATH': f'{self.folder}:/usr/bin:/bin',
            'STUBS': str(self.folder),
            'T5X_SELFIMPROVE_RESTART_SECONDS': '0',
            'T5X_SELFIMPROVE_SSH': str(self.folder / 'ssh'),
        }
        return subprocess.run(
            [BASH, str(LAUNCH / script), *arguments],
            env=environment | settings, cwd=self.folder, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    def calls(self, name: str) -> list[str]:
        lines = (self.folder / 'calls').read_text().splitlines() if (self.folder / 'calls').exists() else []
        return [line.removeprefix(f'{name}|') for line in lines if line.startswith(f'{name}|')]


@pytest.fixture
def place(tmp_path: pathlib.Path) -> Place:
    return Place(tmp_path)


def program(name: str) -> str:
    """A program that comes with the environment's Python, or is on the PATH; skips the test where there is none."""
    found = shutil.which(name, path=os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ['PATH']]))
    return found or pytest.skip(f'{name} is not installed')


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(path: pathlib.Path):
    done = subprocess.run(
        [program('shellcheck'), '--shell=bash', '--external-sources', '--severity=warning', path.name],
        cwd=path.parent, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_dockerfile():
    done = subprocess.run([program('hadolint'), str(LAUNCH / 'Dockerfile')], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize('script', ['ssh.sh', 'tpu_vm.sh', 'gke/run.sh'])
@pytest.mark.parametrize(('arguments', 'said'), [(['--hots', 'a'], "no option '--hots'"), ([], 'is missing')])
def test_mistakes_are_said_before_anything_is_done(place: Place, script: str, arguments: list[str], said: str):
    done = place.run(script, *arguments)
    assert done.returncode == 2 and said in done.stderr
    assert place.run(script, '--help').stdout.startswith(f'Usage: launch/{script} ')


def ssh(place: Place, *does: str, hosts: str = 'me@a,b', **settings: str) -> subprocess.CompletedProcess:
    """The ssh launcher; python's calls, of all hosts, do what is said."""
    place.stub('ssh', text=SSH)
    place.stub('python', *does)
    options = ['--hosts', hosts, '--directory', str(place.folder), '--python', str(place.folder / 'python')]
    return place.run('ssh.sh', *options, *settings.pop('more', '').split(), '--', *COMMAND, **settings)


def test_ssh_starts_a_process_a_host(place: Place):
    does = ['echo "$T5X_SELFIMPROVE_HOSTS $XLA_FLAGS"'] * 2
    done = ssh(place, *does, XLA_FLAGS='--a="b c"')
    assert done.returncode == 0, done.stderr
    several = '--coordinator=a:8476|--processes=2|--process='
    assert sorted(place.calls('python')) == [f'-m|t5x_selfimprove|{WORDS}|{several}{number}' for number in (0, 1)]
    assert sorted(done.stdout.splitlines()) == ['b: me@a,b --a="b c"', 'me@a: me@a,b --a="b c"']
    assert (place.folder / 'runs/logs/run.1.log').read_text() == 'me@a,b --a="b c"\n'


@pytest.mark.parametrize(
    ('codes', 'status'),
    [((0, 0), 0), ((75, 75), 75), ((0, 75), 75), ((2, 76), 2), ((76, 75), 76), ((0, 137), 76), ((255, 76), 76)],
)
def test_ssh_exit_codes(place: Place, codes: tuple[int, int], status: int):
    done = ssh(place, *(f'exit {code}' for code in codes))
    assert done.returncode == status


@pytest.mark.parametrize(('restarts', 'starts', 'status'), [(0, 2, 76), (1, 4, 76), (3, 6, 0)])
def test_ssh_starts_again_when_a_host_was_lost(place: Place, restarts: int, starts: int, status: int):
    done = ssh(place, 'exit 137', 'exit 76', 'exit 76', 'exit 137', more=f'--restarts={restarts}')
    assert (done.returncode, len(place.calls('python'))) == (status, starts)


def test_ssh_does_not_start_again_what_failed_by_itself(place: Place):
    assert ssh(place, 'exit 2', 'exit 76', more='--restarts=3').returncode == 2
    assert len(place.calls('python')) == 2


@pytest.mark.parametrize(
    ('code', 'restart', 'requeued'),
    [(0, 0, 0), (75, 0, 1), (75, 99, 1), (76, 19, 1), (137, 0, 1), (76, 20, 0), (2, 0, 0)],
)
def test_slurm_queues_again_what_can_go_on(place: Place, code: int, restart: int, requeued: int):
    place.stub('srun', f'echo "hosts $T5X_SELFIMPROVE_HOSTS"; exit {code}')
    place.stub('scontrol', 'printf "a\\nb\\n"')  # the names of the hosts
    job = {'SLURM_JOB_ID': '7', 'SLURM_JOB_NODELIST': 'a,b', 'SLURM_NTASKS': '2', 'SLURM_JOB_NUM_NODES': '2'}
    settings = {'SLURM_SUBMIT_DIR': str(place.folder), 'SLURM_RESTART_COUNT': str(restart)}
    done = place.run('slurm/run.sbatch', *COMMAND, **job, **settings)
    assert done.returncode == code
    assert f'job 7, start {restart}: exit code {code}' in done.stdout and 'hosts a,b' in done.stdout
    (called,) = place.calls('srun')
    assert called.endswith(f'|.venv/bin/python|-m|t5x_selfimprove|{WORDS}')
    assert place.calls('scontrol')[1:] == ['requeue|7'] * requeued


def tpu_vm(place: Place, states: str, *does: str) -> list[str]:
    """Sets up gcloud and the hosts of a slice.

    Args:
      states: of the queued resource, as it is asked for one after the other; the last remains.
      *does: of the calls of the run on the hosts.

    Returns:
      The launcher's command line without the run.
    """
    place.stub('gcloud', text=GCLOUD)
    (place.folder / 'gcloud.states').write_text('\n'.join(states.split()) + '\n')
    place.stub('python', *does)
    for host in 'host0', 'host1':
        folder = place.folder / host / 'project' / '.venv' / 'bin'
        folder.mkdir(parents=True)
        (folder / 'python').write_text(HOST_PYTHON)
        (folder / 'python').chmod(0o755)
    return ['--name=one', '--zone=z', '--type=v5litepod-16', '--setup=touch mounted']


def test_tpu_vm_asks_installs_runs_and_asks_again_when_preempted(place: Place):
    does = ['exit 76', 'exit 137', 'echo one', 'echo one']
    options = tpu_vm(place, 'absent WAITING_FOR_RESOURCES ACTIVE SUSPENDED absent ACTIVE', *does)
    done = place.run('tpu_vm.sh', *options, '--spot', '--delete', '--', *COMMAND)
    assert done.returncode == 0, done.stderr
    calls = [call.split('|') for call in place.calls('gcloud')]
    assert [' '.join(call[2:4]) for call in calls if call[3] != 'describe'] == [
        'queued-resources create', 'tpu-vm scp', 'tpu-vm ssh', 'tpu-vm ssh',
        'queued-resources delete', 'queued-resources create', 'tpu-vm scp', 'tpu-vm ssh', 'tpu-vm ssh',
        'queued-resources delete',
    ]  # fmt: skip
    asked = next(call for call in calls if call[3] == 'create')
    software = '--runtime-version=v2-alpha-tpuv5-lite'
    assert asked[4:] == ['one', '--zone=z', '--node-id=one', '--accelerator-type=v5litepod-16', software, '--spot']
    assert all('--worker=all' in call for call in calls if call[2] == 'tpu-vm')
    ran = [call for call in place.calls('python') if call.startswith('-m|t5x')]
    assert ran == [f'-m|t5x_selfimprove|{WORDS}'] * 4
    for host in 'host0', 'host1':
        there = place.folder / host / 'project'
        assert (there / 'mounted').exists() and (there / '.venv' / 'installed.tpu').exists()
        assert (there / 'setup.py').read_bytes() == (ROOT / 'setup.py').read_bytes()
    assert 'exit codes: 76 137 ' in done.stderr and 'queued resource one: SUSPENDED' in done.stderr
    assert 'the run was lost; again (19 more times)' in done.stderr
    logs = place.folder / 'runs' / 'logs'
    assert [(logs / '1' / f'{host}.log').read_text() for host in (0, 1)] == ['one\nexit code 0\n'] * 2


def test_tpu_vm_collects_what_every_host_says(place: Place):
    """A host that cannot be reached is told of, and costs no other host's output."""
    options = tpu_vm(place, 'ACTIVE', 'echo waited; echo "no sign of process 1" >&2; exit 76', 'echo done', 'echo done')
    (place.folder / 'host1' / 'unreachable').touch()
    done = place.run('tpu_vm.sh', *options, '--logs=said', '--', *COMMAND)
    assert done.returncode == 0, done.stderr
    logs = place.folder / 'said'
    said = {path.relative_to(logs).as_posix(): path.read_text() for path in logs.glob('*/*.log')}
    timed_out = 'ssh: connect to host: Connection timed out\n'
    whole = 'done\nexit code 0\n'
    first = 'waited\nno sign of process 1\nexit code 76\n'
    assert said == {'0/0.log': first, '0/1.log': timed_out, '1/0.log': whole, '1/1.log': whole}
    assert f'said/0/1.log has no exit code; it ends with: {timed_out}' in done.stderr
    assert 'said/0/0.log has no' not in done.stderr and 'exit codes: 76 76 (output in said/0)' in done.stderr
    again = place.run('tpu_vm.sh', *options, '--logs=said', '--', *COMMAND)
    assert 'exit codes: 0 0 (output in said/2)' in again.stderr


@pytest.mark.parametrize(
    ('does', 'status', 'starts'),
    [(('exit 2', 'exit 76'), 2, 2), (('exit 75', 'exit 75'), 76, 4), (('kill -KILL $PPID',) * 2, 76, 4)],
)
def test_tpu_vm_ends(place: Place, does: tuple[str, ...], status: int, starts: int):
    options = tpu_vm(place, 'ACTIVE', *does, *does)
    done = place.run('tpu_vm.sh', *options, '--restarts=1', '--', *COMMAND)
    assert done.returncode == status, done.stderr
    assert len([call for call in place.calls('python') if call.startswith('-m|t5x')]) == starts


def test_tpu_vm_gives_up_where_it_may_not_ask(place: Place):
    options = tpu_vm(place, 'refused')
    done = place.run('tpu_vm.sh', *options, '--restarts=2', '--', *COMMAND)
    assert done.returncode == 76 and 'no quota' in done.stderr and 'no restart is left' in done.stderr
    assert len([call for call in place.calls('gcloud') if '|create|' in call]) == 3


def test_tpu_vm_passes_a_signal_on_to_all_hosts(place: Place):
    saves = f'trap "exit 75" TERM; kill -TERM $(cat "{place.folder}/launcher"); while :; do sleep 0.05; done'
    later = 'trap "exit 75" TERM; while :; do sleep 0.05; done'
    options = tpu_vm(place, 'ACTIVE', later, saves)
    place.stub('start', text=f'#!{BASH}\necho $$ >"{place.folder}/launcher"\nexec {BASH} "$@"\n')
    done = place.run(place.folder / 'start', str(LAUNCH / 'tpu_vm.sh'), *options, '--', *COMMAND)
    assert done.returncode == 75, done.stderr
    assert 'exit codes: 75 75 ' in done.stderr


def test_tpu_vm_ends_what_a_lost_connection_left(place: Place):
    options = tpu_vm(place, 'ACTIVE')
    left = subprocess.Popen([BASH, '-c', 'sleep 60; : t5x_selfimprove'])
    (place.folder / 'host1' / 'project' / 'process').write_text(str(left.pid))
    assert place.run('tpu_vm.sh', *options, '--', *COMMAND).returncode == 0
    assert left.wait(10) == -9


def manifest(place: Place, kind: str) -> dict:
    yaml = pytest.importorskip('yaml')
    options = ['--kind', kind, '--name=one', '--image=i', '--hosts=16', '--topology=8x8', '--print']
    done = place.run('gke/run.sh', *options, '--', *COMMAND, '--gin.TEXT="{NAME} \\ & "')
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


@pytest.mark.parametrize('kind', ['tpu', 'gpu'])
def test_gke_manifest(place: Place, kind: str):
    made = manifest(place, kind)
    assert (made['apiVersion'], made['kind'], made['metadata']['name']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet', 'one')
    (jobs,) = made['spec']['replicatedJobs']
    job = jobs['template']['spec']
    assert (job['parallelism'], job['completions'], job['backoffLimit']) == (16, 16, 0)
    (container,) = job['template']['spec']['containers']
    assert container['args'] == [*COMMAND, '--gin.TEXT="{NAME} \\ & "']
    if kind == 'gpu':
        said = {entry['name']: entry.get('value') for entry in container['env']}
        # JobSet's name of the first pod: <jobset>-<replicated job>-<job>-<pod>.<jobset>
        assert said['JAX_COORDINATOR_ADDRESS'] == f'one-{jobs["name"]}-0-0.one:8476'
        assert said['JAX_NUM_PROCESSES'] == '16'


@pytest.mark.parametrize('kind', ['tpu', 'gpu'])
def test_gke_job_fits_the_schema(place: Place, kind: str):
    validate = pytest.importorskip('kubernetes_validate', reason='kubernetes-validate is not installed')
    spec = manifest(place, kind)['spec']['replicatedJobs'][0]['template']['spec']
    job = {'apiVersion': 'batch/v1', 'kind': 'Job', 'metadata': {'name': 'one'}, 'spec': spec}
    validate.validate(job, '1.31', strict=True)
    with pytest.raises(validate.ValidationError):
        validate.validate(job | {'spec': spec | {'paralellism': 1}}, '1.31', strict=True)


def test_gke_applies_what_it_prints(place: Place):
    place.stub('kubectl', f'cat >"{place.folder}/applied"')
    options = ['--name=one', '--image=i', '--hosts=2', '--topology=2x4']
    printed = place.run('gke/run.sh', *options, '--print', '--', *COMMAND).stdout
    assert place.run('gke/run.sh', *options, '--', *COMMAND).returncode == 0
    assert place.calls('kubectl') == ['apply|-f|-'] and (place.folder / 'applied').read_text() == printed


def test_xpk(place: Place):
    place.stub('xpk')
    assert place.run('gke/xpk.sh', '--cluster=c', '--workload=w', '--', *COMMAND).returncode == 0
    (called,) = place.calls('xpk')
    assert called.startswith('workload|create|--max-restarts=20|--restart-on-exit-codes=75,76|')
    assert '|--cluster=c|--workload=w|--command=cd /project && exec python -m t5x_selfimprove improve ' in called
    asked = called.rpartition('exec ')[2]
    split = subprocess.run([BASH, '-c', f'printf "%s\\n" {asked}'], capture_output=True, text=True, check=True).stdout
    assert tuple(split.splitlines()) == ('python', '-m', 't5x_selfimprove', *COMMAND)


def test_container_starts_the_command_line():
    entry = next(line for line in (LAUNCH / 'Dockerfile').read_text().splitlines() if line.startswith('ENTRYPOINT '))
    assert json.loads(entry.removeprefix('ENTRYPOINT ')) == ['python', '-m', 't5x_selfimprove']
