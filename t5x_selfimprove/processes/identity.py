"""Which process of how many this one is: told by the user, by SLURM, or by a TPU pod."""

import dataclasses
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

EXPLICIT = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
SLURM = ('SLURM_STEP_NUM_TASKS', 'SLURM_PROCID', 'SLURM_LOCALID', 'SLURM_STEP_NODELIST', 'SLURM_JOB_ID')
PORT = 8476  # of process 0, where the environment does not say one
METADATA = 'http://{server}/computeMetadata/v1/instance/attributes/{name}'


@dataclasses.dataclass(frozen=True)
class Identity:
    """One process among those of a run.

    Raises:
      ValueError: numbers that do not go together.
    """

    number: int  # from 0; process 0 writes
    count: int
    coordinator: str  # host:port of process 0
    local_devices: tuple[int, ...] | None = None  # the GPUs of this process, by their numbers; None: all of its host
    hosts: tuple[str, ...] = ()  # of each process, where they are known beforehand: for messages

    def __post_init__(self):
        if not 0 <= self.number < self.count:
            raise ValueError(f'process {self.number} of {self.count}: processes are numbered from 0 to the count - 1')
        host, colon, port = self.coordinator.rpartition(':')
        if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
            raise ValueError(f'the coordinator must be host:port of process 0; it is {self.coordinator!r}')

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of process 0."""
        host, _, port = self.coordinator.rpartition(':')
        return host.strip('[]'), int(port)


def identify(environment: Mapping[str, str] = os.environ) -> Identity | None:
    """This process among those of a run, or None where it is alone.

    Looked at in this order:
      JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID: all three (--coordinator, --processes and --process);
      the variables that srun gives the tasks of a step;
      TPU_WORKER_HOSTNAMES and TPU_WORKER_ID, as GKE sets them on TPU nodes, MEGASCALE_* where there are slices;
      the metadata server of a TPU VM, where this host has TPU chips.
    T5X_SELFIMPROVE_HOSTS, names apart by commas, says which host each process is on.

    Raises:
      ValueError: some variables are there and others are not, or one is no number.
    """
    hosts = tuple(filter(None, environment.get('T5X_SELFIMPROVE_HOSTS', '').split(',')))
    found = _explicit(environment, hosts) or _slurm(environment, hosts) or _tpu(environment)
    return found if found is not None and found.count > 1 else None


def _explicit(environment: Mapping[str, str], hosts: tuple[str, ...]) -> Identity | None:
    there = [name for name in EXPLICIT if environment.get(name)]
    if not there:
        return None
    missing = [name for name in EXPLICIT if name not in there]
    if missing:
        raise ValueError(
            f'{", ".join(there)} is set and {", ".join(missing)} is not: give all of them (--coordinator=HOST:PORT '
            '--processes=COUNT --process=NUMBER), or none'
        )
    return Identity(
        _number(environment, 'JAX_PROCESS_ID'),
        _number(environment, 'JAX_NUM_PROCESSES'),
        environment['JAX_COORDINATOR_ADDRESS'],
        hosts=hosts,
    )


def _slurm(environment: Mapping[str, str], hosts: tuple[str, ...]) -> Identity | None:
    if not all(name in environment for name in SLURM):  # the batch script itself is no task of a step
        return None
    count = _number(environment, 'SLURM_STEP_NUM_TASKS')
    # Jobs that share a host take ports apart from each other.
    port = 20000 + _number(environment, 'SLURM_JOB_ID') % 10000
    local = _number(environment, 'SLURM_LOCALID')
    beside = environment.get('SLURM_STEP_TASKS_PER_NODE', environment.get('SLURM_TASKS_PER_NODE', '1'))
    # Tasks that share a host share out its GPUs, unless SLURM has shown each task its own.
    alone = beside.split('(')[0] == '1' or len(environment.get('CUDA_VISIBLE_DEVICES', '0,1').split(',')) == 1
    return Identity(
        _number(environment, 'SLURM_PROCID'),
        count,
        f'{first_host(environment["SLURM_STEP_NODELIST"])}:{port}',
        None if alone else (local,),
        hosts if len(hosts) == count else (),
    )


def first_host(nodes: str) -> str:
    """The first name of a SLURM node list: 'gpu[07-09,12],login' -> 'gpu07'."""
    name, bracket, rest = nodes.partition('[')
    if ',' in name or not bracket:
        return name.split(',')[0]
    numbers, _, after = rest.partition(']')
    return name + numbers.split(',')[0].split('-')[0] + after.split(',')[0]


def _tpu(environment: Mapping[str, str]) -> Identity | None:
    names = environment.get('TPU_PROCESS_ADDRESSES') or environment.get('TPU_WORKER_HOSTNAMES')
    of_slices = dict(environment)
    if names is not None:
        workers, number = names.split(','), _number(environment, 'TPU_WORKER_ID')
    else:
        if not _has_chips() or 'TPU_SKIP_MDS_QUERY' in environment:
            return None
        found = {name: _metadata(environment, name) for name in ('worker-network-endpoints', 'agent-worker-number')}
        if None in found.values():
            return None
        # Names, or name:id:address.
        workers = [worker.split(':')[-1] for worker in found['worker-network-endpoints'].split(',')]
        number = int(found['agent-worker-number'])
        for line in (_metadata(environment, 'tpu-env') or '').splitlines():
            name, _, value = line.partition(':')
            of_slices.setdefault(name.strip(), value.strip().strip("'"))
    slices, own = int(of_slices.get('MEGASCALE_NUM_SLICES') or 1), int(of_slices.get('MEGASCALE_SLICE_ID') or 0)
    first = (of_slices.get('MEGASCALE_COORDINATOR_ADDRESS') or workers[0]).split(':')[0]
    hosts = tuple(workers) if slices == 1 else ()
    return Identity(number + own * len(workers), slices * len(workers), f'{first}:{PORT}', hosts=hosts)


def _has_chips() -> bool:
    return any(Path('/dev').glob('accel*')) or any(Path('/dev/vfio').glob('[0-9]*'))


def _metadata(environment: Mapping[str, str], name: str) -> str | None:
    """An attribute of this virtual machine on Google Cloud; None elsewhere."""
    server = environment.get('GCE_METADATA_IP', 'metadata.google.internal')  # the variable that jax knows
    request = urllib.request.Request(METADATA.format(server=server, name=name), headers={'Metadata-Flavor': 'Google'})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, OSError):
        return None


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, '')
    if not value.isdecimal():
        raise ValueError(f'{name} must be a whole number; it is {value!r}')
    return int(value)
