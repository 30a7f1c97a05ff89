"""What every run does around its work: checks the place, lays out the mesh, opens the files, says what it runs on."""

import contextlib
import dataclasses
import errno
import importlib.metadata
import os
import platform as machine
import shutil
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from t5x_selfimprove import files, metrics, partitioning, placement, processes, stopping
from t5x_selfimprove.checkpoints import Checkpoints, Damaged, Described, Retention, located
from t5x_selfimprove.display import Display, number_of_bytes
from t5x_selfimprove.models import kernels, native, parameters
from t5x_selfimprove.partitioning import MeshShape
from t5x_selfimprove.processes import Patience
from t5x_selfimprove.vocabulary import Vocabulary

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
SEEN_SECONDS = 30.0  # in which a file of one host is seen by the others
SPARE_BYTES = 64 << 20  # room that a run directory needs beside its checkpoints


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run happens: directory, seed, devices.

    Raises:
      ValueError: a field out of range.
    """

    directory: str  # everything that the run writes
    name: str = 'run'  # shown in the report
    seed: int = 0  # of every draw
    platform: str | None = None  # 'cpu', 'gpu' or 'tpu'; None takes what jax finds
    cpu_devices: int | None = None  # devices that a CPU is split into, so that a mesh can use its cores; None = 1
    mesh: MeshShape = MeshShape()
    patience: Patience = Patience()  # with other processes, where there are some
    keep_checkpoints: int = 2  # the last ones
    keep_best: int = 0  # and those with the highest figure `best_by` of the evaluation of the held-out questions
    best_by: str = 'greedy_accuracy'
    keep_every: int | None = None  # and one of so many rounds (chunks, of pre-training)
    checkpoint_directory: str | None = None  # that holds `checkpoints`, or its gs:// or s3:// URL; None: `directory`
    tensorboard: bool = True
    profile: tuple[int, ...] = ()  # rounds (chunks, of pre-training) that are profiled, into the folder `profile`

    def __post_init__(self):
        if not 0 <= self.seed < 2**32:
            raise ValueError(f'seed must be in 0..2**32-1; it is {self.seed}')
        if '://' in self.directory:
            raise ValueError(
                f'directory = {self.directory!r} is a URL; metrics and samples are written to a folder. Set '
                'checkpoint_directory for the checkpoints to go to a URL'
            )
        _ = self.retention, located(self.checkpoint_directory or self.directory)

    @property
    def retention(self) -> Retention:
        """Which checkpoints stay."""
        return Retention(self.keep_checkpoints, self.keep_best, self.keep_every)

    def devices(self) -> list[jax.Device]:
        """The devices of the platform that was asked for, of all processes of the run.

        Raises:
          TimeoutError: another process did not come.
          RuntimeError: they are not there (there is no silent fall-back to another platform), or jax was at work before
        with another number of CPU devices.
        """
        processes.start(self.patience)
        if self.cpu_devices is not None and jax.config.jax_num_cpu_devices != self.cpu_devices:
            try:
                jax.config.update('jax_num_cpu_devices', self.cpu_devices)
            except RuntimeError as error:
                there = len(jax.devices('cpu'))
                if there != self.cpu_devices:
                    raise RuntimeError(
                        f'cpu_devices = {self.cpu_devices} comes too late: jax is already at work with {there}. Start '
                        f'again in a new process, or set cpu_devices = {there}'
                    ) from error
        if self.platform is None:
            return jax.devices()
        try:
            return jax.devices(self.platform)
        except RuntimeError as error:
            found = sorted({device.platform for device in jax.devices()})
            raise RuntimeError(
                f'platform {self.platform!r} was asked for and is not there; jax found {found}. Install the jax build '
                f'for it (for example jax[cuda13] or jax[tpu]), or leave platform out. ({error})'
            ) from error


class Session:
    """A run directory that is open for writing, on a mesh.

    Raises:
      OSError: the directory cannot be written or the disk is nearly full.
      ValueError: the mesh does not fit the devices.
      RuntimeError: the platform is not there.
    """

    def __init__(self, place: Place, config: str, display: Display | None = None):
        self.place = place
        self.config = config
        self.display = display or Display(None if processes.first() else Console(quiet=True))
        self.devices = place.devices()
        self.mesh = place.mesh.build(self.devices)
        self.directory = Path(place.directory)
        processes.same('the configuration', config, 'Give all of them the same command')
        check_writable(self.directory)
        check_shared(self.directory)
        self.writer = metrics.Writer(self.directory, place.tensorboard) if processes.first() else metrics.NoWriter()
        self.checkpoints = Checkpoints(place.checkpoint_directory or self.directory, place.retention)

    def __enter__(self) -> 'Session':
        self._use = partitioning.use(self.mesh)
        self._use.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Closes everything.

        Raises:
          OSError: a disk that filled up, be it what ended the run: says where, and what to do.
        """
        failure = error[1]
        try:
            with contextlib.ExitStack() as closing:  # all of them, whatever fails
                closing.callback(self.writer.close)
                closing.callback(self.checkpoints.close)
                closing.callback(self._use.__exit__, *error)
        except Exception as failed:  # of many kinds, where it is a checkpoint's
            failure = failure or failed
        said = disk_failure(failure)
        if said is not None:
            free, last = number_of_bytes(shutil.disk_usage(self.directory).free), self.checkpoints.latest
            raise OSError(
                f'{self.directory}: {said} ({free} free there). Make room and run the same command again'
                + (f'; it goes on from checkpoint {last}' if last is not None else '')
            ) from failure
        if failure is not error[1]:
            raise failure

    def place_state(self, create: Any) -> Any:
        """Creates a state already split over the mesh: no device ever holds all of it.

        Raises:
          ValueError: a parameter cannot be divided as the rules say; names it and the numbers.
        """
        abstract = jax.eval_shape(create)
        shardings = parameters.shardings(abstract, self.mesh, partitioning.LEARNING)
        return jax.jit(create, out_shardings=shardings)()

    def replicate(self, tree: Any) -> Any:
        """Puts host arrays on every device of the mesh."""
        return partitioning.put(tree, jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec()))

    def announce(self, command: str, state: Any, batch: dict[str, Any]) -> None:
        """Says, and writes, what is about to run and on what."""
        kinds = sorted({device.device_kind for device in self.devices})
        on_device = partitioning.bytes_per_device(state)
        facts = {
            'platform': f'{len(self.devices)} x {self.devices[0].platform} ({", ".join(kinds)})'
            + (f' in {processes.count()} processes' if processes.count() > 1 else ''),
            'mesh': placement.describe(self.mesh),
            'attention': kernels.describe(state.model.config, self.devices[0].platform),
            **self._kernels(state.model.config.dtype),
            'parameters': f'{parameters.count(state.model):,}',
            'state': f'{number_of_bytes(on_device)} per device (parameters, optimizer, base)',
            **{name.replace('_', ' '): value for name, value in batch.items()},
            'directory': str(self.directory),
        }
        self.display.say(f'{command}: {self.place.name}, seed {self.place.seed}')
        self.display.facts(facts)
        if self.mesh.size > 1:
            placement.show(self.display, state.model, self.mesh)
        self.writer.write(
            'run',
            command=command,
            name=self.place.name,
            seed=self.place.seed,
            devices=[f'{device.platform}: {device.device_kind}' for device in self.devices],
            processes=processes.count(),
            mesh=dict(self.mesh.shape),
            parameters=parameters.count(state.model),
            bytes_per_device=on_device,
            batch=batch,
            versions=versions(),
        )

    def _kernels(self, dtype: str) -> dict[str, str]:
        """What multiplies and attends in sampling, where that is a question."""
        with partitioning.use(self.mesh):
            cpu = partitioning.platform() == 'cpu'
            return {'products and attention of sampling': native.describe(dtype)} if cpu else {}

    def resume_point(self, kind: str, vocabulary: Vocabulary) -> int | None:
        """The last step saved in the directory, or None where the run is a new one.

        What the metrics tell of later steps is taken back: it is done again. A step whose description cannot be read
        is set aside, and the one before is taken.

        Raises:
          ValueError: what is there is another run: of another kind, seed or vocabulary.
          OSError: there are checkpoints, and none can be read.
        """
        step = self.checkpoints.latest
        processes.same('the last checkpoints', step, f'{self.directory} must be one directory that all hosts share')
        if step is None:
            self.writer.forget(-1)
            return None
        found = self._read(lambda: self.checkpoints.describe(step))
        if not isinstance(found, Described):
            return self.resume_point(kind, vocabulary)
        there = {'kind': found.kind, 'seed': found.manifest['seed'], 'vocabulary': found.vocabulary}
        here = {'kind': kind, 'seed': self.place.seed, 'vocabulary': vocabulary.fingerprint()}
        other = [f"its {name} is {there[name]}, this one's {here[name]}" for name in here if there[name] != here[name]]
        if other:
            raise ValueError(
                f'{self.directory} holds another run: {"; ".join(other)}. Go on with it as it was, or use another run '
                'directory'
            )
        self.writer.forget(found.step if kind == 'pretrain' else step)  # events count updates there, rounds here
        return step

    def restore(self, state: Any, step: int, kind: str, vocabulary: Vocabulary) -> tuple[Any, int]:
        """The state of the step that `resume_point` found, or of the last before it that is not damaged; its number.

        Raises:
          OSError: none can be read.
        """
        while True:
            found = self._read(lambda step=step: self.checkpoints.restore(state, step))
            if found is not None:
                return found, step
            step = self.resume_point(kind, vocabulary)

    def _read(self, read: Any) -> Any:
        """What `read` gives; None in all processes where in one of them the checkpoint is damaged: it is set aside.

        Raises:
          OSError: it was the last one.
        """
        found = failure = None
        try:
            found = read()
        except Damaged as damaged:
            failure = damaged
        said = failure and [failure.step, str(failure)]
        bad = [one for one in processes.compare('reading a checkpoint', said) if one]
        if not bad:
            return found
        (step, why), place = bad[0], ''
        if self.checkpoints.count == 1:
            raise OSError(
                f'{why}, and there is no other to go on from. Put a copy of it back, or remove '
                f'{self.checkpoints.directory} to begin anew'
            )
        if processes.first():
            place = self.checkpoints.set_aside(step)
        processes.compare('setting a checkpoint aside', None)
        self.checkpoints.look_again()
        self.display.say(f'{why}. It is set aside as {place}; the run goes on from the one before')
        return None

    def save_config(self) -> None:
        """Writes the effective configuration beside the checkpoints; it re-parses to an equal run."""
        if processes.first():
            files.write_text(self.directory / 'config.gin', self.config)

    def stop_if_asked(self, done: str) -> None:
        """Ends the run at a boundary, where everything is saved, if SIGTERM or SIGUSR1 came to any of its processes.

        Args:
          done: where it stands, for the message.

        Raises:
          Stopped: it was asked to.
        """
        signals = [signal for signal in processes.compare('looking for signals', stopping.asked()) if signal]
        if signals:
            self.checkpoints.finish()
            raise stopping.Stopped(f'stopped as {signals[0]} asked, after {done}; all of it is saved')

    def check_room(self, state: Any) -> None:
        """Refuses to start where the checkpoints would not fit on the disk, beside those that are there.

        Raises:
          OSError: too little room; says how much is needed.
        """
        kept = self.place.keep_checkpoints + self.place.keep_best
        missing = max(1, kept + 1 - self.checkpoints.count)  # one more is written than is kept
        bytes_of_state = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        place = self.checkpoints.directory.parent
        if '://' in str(place):
            place, missing = self.directory, 0
        needed = missing * bytes_of_state + SPARE_BYTES
        free = shutil.disk_usage(place).free
        if free < needed:
            raise OSError(
                f'{place} has {number_of_bytes(free)} free and the run needs about {number_of_bytes(needed)} '
                f'for {missing} more checkpoints; free some, or set another directory'
            )


def disk_failure(error: BaseException | None) -> str | None:
    """What the disk had against a write, in words; None where an error is of another kind or there is none."""
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        # Arrays are written by tensorstore, which has it in the text of a ValueError.
        if (isinstance(error, OSError) and error.errno == number) or f"os_error_code='{number}'" in str(error):
            return os.strerror(number)
    return None


def check_writable(directory: Path) -> None:
    """Raises OSError with the way out unless files can be made in the directory (which is created)."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b'\0' * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(f'cannot write to the directory {directory}: {error.strerror}. Choose another one.') from error


def check_shared(directory: Path) -> None:
    """Raises OSError unless all processes see one directory; names those that do not."""
    if processes.count() == 1:
        return
    mark = directory / f'.processes.{processes.compare("the mark", uuid.uuid4().hex)[0]}'
    if processes.first():
        mark.touch()
    processes.compare('marking the directory', None)
    end = time.monotonic() + SEEN_SECONDS
    while not (seen := mark.exists()) and time.monotonic() < end:
        time.sleep(0.2)
    blind = [str(number) for number, sees in enumerate(processes.compare('seeing the mark', seen)) if not sees]
    if processes.first():
        mark.unlink()
    if blind:
        raise OSError(
            f'{directory} of process {", ".join(blind)} is not that of process 0; choose one that all hosts share'
        )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {package: importlib.metadata.version(package) for package in PACKAGES}
    return {'python': machine.python_version(), **found}
