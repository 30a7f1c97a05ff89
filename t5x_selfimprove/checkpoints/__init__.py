"""Orbax checkpoints: the whole state, where the data stands, and the configuration, in one atomic step."""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from t5x_selfimprove import partitioning
from t5x_selfimprove.checkpoints import s3
from t5x_selfimprove.models import adapters, hugging_face, parameters
from t5x_selfimprove.vocabulary import Vocabulary, check_fits

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Described:
    """What is known of a checkpoint beside its arrays."""

    step: int
    kind: str  # 'pretrain' or 'improve'
    data_position: int  # items of the bank that were used
    vocabulary: str  # the vocabulary's fingerprint
    config: str  # the effective gin text
    manifest: dict[str, Any]  # what else the run wants to find again


def names_of(tree: Any) -> list[str]:
    """A readable name for each leaf, such as `model.blocks.attention.query`, in the order of `jax.tree.leaves`."""

    def part(entry: Any) -> str:
        for attribute in ('name', 'key', 'idx'):
            if hasattr(entry, attribute):
                return str(getattr(entry, attribute))
        raise TypeError(f'cannot name the path entry {entry!r}')

    named = [[part(entry) for entry in path] for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    # A parameter is a box with its array under 'value'; the box is no part of the name.
    return ['.'.join(names[:-1] if names[-1] == 'value' else names) for names in named]


def model_facts(config: Any) -> dict[str, Any]:
    """A model's configuration for a manifest, so that the checkpoint tells what it is of."""
    return {'kind': type(config).__name__, 'fields': dataclasses.asdict(config)}


class Damaged(OSError):
    """A checkpoint that cannot be read, or whose arrays are not those that were saved."""

    def __init__(self, step: int, place: str, why: str):
        self.step = step
        super().__init__(f'the checkpoint {place} is damaged: {why}')


@dataclasses.dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the last ones, and beside them the best, and one of every so many steps.

    Raises:
      ValueError: a field out of range.
    """

    last: int = 2
    best: int = 0  # by a figure that is given at saving, the higher the better; those saved without one do not count
    every: int | None = None  # all steps that this divides

    def __post_init__(self):
        if self.last < 1 or self.best < 0 or (self.every is not None and self.every < 1):
            raise ValueError(
                f'keep_checkpoints and keep_every must be at least 1, keep_best at least 0; they are {self.last}, '
                f'{self.every}, {self.best}'
            )

    def policy(self) -> Any:
        """As Orbax has it."""
        managers = ocp.checkpoint_managers
        best = managers.BestN(
            get_metric_fn=lambda metrics: metrics['figure'], n=self.best, keep_checkpoints_without_metrics=False
        )
        every = [managers.EveryNSteps(self.every)] if self.every else []
        return managers.AnyPreservationPolicy([managers.LatestN(self.last), *([best] if self.best else []), *every])


class Checkpoints:
    """The checkpoints of one run directory.

    Every step holds the arrays by name and a description with the arrays' fingerprints. Steps are written by threads
    while the run goes on. A step appears under its number only once it is whole, so a process killed at any instant
    leaves the step before; what a disk or somebody changed afterwards is found when it is read.

    Args:
      directory: of the run; a path, or a URL of Google Cloud Storage or Amazon S3 (gs://bucket/run, s3://bucket/run).
      retention: which steps stay.

    Raises:
      OSError: the directory cannot be written, or its bucket not be used.
    """

    def __init__(self, directory: Path | str, retention: Retention = Retention()):
        self.directory = located(directory) / 'checkpoints'
        s3.check_bucket(self.directory)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=retention.policy(),
            enable_async_checkpointing=True,
            create=True,
            best_fn=(lambda metrics: metrics['figure']) if retention.best else None,
            temporary_path_class=s3.COMMIT if str(self.directory).startswith(s3.PREFIX) else None,
        )
        self._ranked = retention.best > 0
        self._failed: Exception | None = None  # of a save, and not told yet
        handlers = {'arrays': ocp.PyTreeCheckpointHandler(), 'described': ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

    @property
    def latest(self) -> int | None:
        """The last whole step, or None; waits for the one that is being written. If that fails `finish` tells."""
        try:
            self.finish()
        except Exception as failed:  # of many kinds: what Orbax and tensorstore stumble over
            self._failed = failed
        return self._manager.latest_step()

    @property
    def count(self) -> int:
        """How many steps there are."""
        return len(self._manager.all_steps())

    def save(self, step: int, state: Any, described: Described, figure: float | None = None) -> None:
        """Begins to write a step, once the one before is on disk. A step that is already there is left as it is.

        When it returns the arrays are copied, so that they may be given away; `finish` waits for the disk.

        Args:
          figure: how good it is, for `Retention.best`.

        Raises:
          Exception: what kept the step before from the disk, of many kinds.
        """
        self.finish()
        if step in self._manager.all_steps():
            return
        arrays = dict(zip(names_of(state), jax.tree.leaves(state), strict=True))
        said = dataclasses.asdict(described) | {'fingerprints': fingerprints(arrays)}
        said |= {'format': FORMAT, 'checksum': checksum(said)}
        self._manager.save(
            step,
            args=ocp.args.Composite(arrays=ocp.args.PyTreeSave(arrays), described=ocp.args.JsonSave(said)),
            metrics={'figure': float(figure)} if self._ranked and figure is not None else None,
        )

    def finish(self) -> None:
        """Waits until what was saved is on disk. Raises what stood in the way, of many kinds."""
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed
        self._manager.wait_until_finished()

    def describe(self, step: int | None = None) -> Described:
        """The description of a step (the last one by default).

        Raises:
          FileNotFoundError: there is no checkpoint.
          Damaged: it cannot be read.
          ValueError: it was written in another format.
        """
        found = self._said(self._step(step))
        found.pop('fingerprints', None)
        return Described(**found)

    def restore(self, target: Any, step: int | None = None) -> Any:
        """Reads arrays into the structure, dtypes and shardings of `target` (arrays or ShapeDtypeStructs).

        `target` may hold fewer leaves than were saved (a model without its optimizer, as {'model': ...}).

        Raises:
          FileNotFoundError: there is no checkpoint.
          Damaged: an array cannot be read, or does not have the bits that were saved; names all of those.
          ValueError: an array is missing or has another shape; names all of them.
        """
        step = self._step(step)
        leaves, treedef = jax.tree.flatten(target)
        wanted = dict(zip(names_of(target), leaves, strict=True))
        saved = self._saved(step)
        problems = [f'{name} is missing' for name in wanted if name not in saved]
        problems += [
            f'{name} is {tuple(saved[name].shape)} there and {tuple(leaf.shape)} here'
            for name, leaf in wanted.items()
            if name in saved and tuple(saved[name].shape) != tuple(leaf.shape)
        ]
        if problems:
            raise ValueError(
                f'the checkpoint {self.directory}/{step} does not fit this configuration: {"; ".join(problems)}. '
                'Use the configuration it was made with (saved beside it), or another run directory.'
            )
        arguments = ocp.checkpoint_utils.construct_restore_args(wanted)
        arrays = ocp.args.PyTreeRestore(wanted, restore_args=arguments, partial_restore=True)
        with self._reading(step):
            restored = self._manager.restore(step, args=ocp.args.Composite(arrays=arrays)).arrays
        before = self._said(step).get('fingerprints', {})
        same = {name: array for name, array in restored.items() if str(saved[name].dtype) == str(array.dtype)}
        changed = [name for name, words in fingerprints(same).items() if before.get(name, words) != words]
        if changed:
            raise Damaged(step, f'{self.directory}/{step}', f'{", ".join(changed)} changed since it was saved')
        return jax.tree.unflatten(treedef, [restored[name] for name in wanted])

    def set_aside(self, step: int) -> str:
        """Moves a step to the folder `damaged` beside the checkpoints; where it is then."""
        place = self.directory.parent / 'damaged' / f'{step}'
        number = 0
        while place.exists():
            number += 1
            place = place.parent / f'{step}_{number}'
        place.parent.mkdir(parents=True, exist_ok=True)
        (self.directory / str(step)).rename(place)
        return str(place)

    def look_again(self) -> None:
        """Looks at which steps there are."""
        self._manager.reload()

    def names(self, step: int | None = None) -> set[str]:
        """The names of the arrays of a step."""
        return set(self.shapes(step))

    def shapes(self, step: int | None = None) -> dict[str, tuple[int, ...]]:
        """The shapes of the arrays of a step, by name."""
        return {name: tuple(array.shape) for name, array in self._saved(self._step(step)).items()}

    def close(self) -> None:
        """Waits for what is being written. Raises as `finish` does."""
        try:
            self.finish()
        finally:
            self._manager.close()

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of many kinds: what Orbax, JSON and tensorstore stumble over
            why = f'{type(error).__name__}: {error}'.split('\n')[0]
            raise Damaged(step, f'{self.directory}/{step}', why[:300]) from error

    def _said(self, step: int) -> dict[str, Any]:
        with self._reading(step):
            found = self._manager.restore(step, args=ocp.args.Composite(described=ocp.args.JsonRestore())).described
            written = found.pop('format')
        if written != FORMAT:
            raise ValueError(f'{self.directory}/{step} is in another format than {FORMAT}, the one this version reads')
        if found.pop('checksum', None) not in (None, checksum(found)):  # checkpoints of before have none
            raise Damaged(step, f'{self.directory}/{step}', 'its description changed since it was saved')
        return found

    def _saved(self, step: int) -> dict[str, Any]:
        with self._reading(step):
            return dict(self._manager.item_metadata(step)['arrays'].tree)

    def _step(self, step: int | None) -> int:
        last = self.latest
        step = last if step is None else step
        if step is None:
            raise FileNotFoundError(f'there is no checkpoint in {self.directory}')
        return step


def located(directory: Path | str) -> epath.Path:
    """A directory or a URL as Orbax takes it: paths are absolute.

    Raises:
      ValueError: a URL to which Orbax writes no arrays, or whose package is not installed.
    """
    name = os.fspath(directory)
    if name.startswith('gs://'):
        return epath.Path(name)
    if name.startswith(s3.PREFIX):
        return s3.path(name)
    if '://' in name:
        raise ValueError(
            f'{name}: checkpoints go to a folder, to gs:// or to s3://; Orbax writes arrays to no other URL. Mount the '
            'bucket as a folder (such as by blobfuse) and name that'
        )
    return epath.Path(name).expanduser().absolute()


def fingerprints(arrays: dict[str, Any]) -> dict[str, str]:
    """64 bits of each array, as hex digits: the same on every mesh."""
    words = partitioning.fetch({name: _fingerprint(array) for name, array in arrays.items()})
    return {name: parameters.fingerprint_text(pair) for name, pair in words.items()}


def checksum(said: dict[str, Any]) -> str:
    """Of what JSON has words for."""
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


@jax.jit
def _fingerprint(array: Any) -> Any:
    return parameters.fingerprint(array.astype(jnp.uint8) if array.dtype == jnp.bool_ else array)


def kind_of(directory: str) -> str:
    """What a directory with a model is: 'run' (our own) or 'hugging_face'.

    Raises:
      FileNotFoundError: it is not there, or nothing in it is known.
      OSError: its bucket cannot be used.
      ValueError: it is of a kind that is not read here; says how to make one that is.
    """
    folder = located(directory)
    s3.check_bucket(folder)
    if (folder / 'checkpoints').is_dir():
        return 'run'
    if (folder / 'config.json').is_file():
        return 'hugging_face'
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if found & {'checkpoint', 'model-info.txt'} or any(name.startswith(('target.', 'checkpoint_')) for name in found):
        raise ValueError(
            f'{directory} is a T5X checkpoint, which is not read here. The public T5 models are on Hugging Face in the '
            "same weights: name such a directory, or convert this one with transformers' T5X conversion script"
        )
    if found & {'_CHECKPOINT_METADATA', '_METADATA', 'manifest.ocdbt'}:
        raise ValueError(
            f'{directory} is an Orbax checkpoint. If a run of this program wrote it, name the run directory (the one '
            'that holds `checkpoints`); those of other programs are not read: export them for Hugging Face there'
        )
    there = ', '.join(sorted(found)[:10]) or ('nothing' if folder.is_dir() else 'no such directory')
    raise FileNotFoundError(
        f'{directory} has no checkpoints; pre-train a model there first, or name another run directory, or one of '
        f'Hugging Face with its config.json (found there: {there})'
    )


def describe_model(directory: str, vocabulary: Vocabulary) -> Described:
    """What the last checkpoint of a run directory, or the model of a Hugging Face directory, is.

    Raises:
      FileNotFoundError: there is none.
      ValueError: its model was made with another vocabulary, or is one that is not supported.
    """
    if kind_of(directory) == 'hugging_face':
        source = hugging_face.read_source(directory)
        check_fits(vocabulary, source.config.embedding_rows)
        return Described(0, 'hugging_face', 0, vocabulary.fingerprint(), '', {'architecture': source.architecture})
    checkpoints = Checkpoints(directory)
    described = checkpoints.describe()
    checkpoints.close()
    if described.vocabulary != vocabulary.fingerprint():
        raise ValueError(
            f'the model in {directory} was made with vocabulary {described.vocabulary}, this run uses '
            f'{vocabulary.fingerprint()} ({vocabulary.name}, {vocabulary.size} tokens): '
            'use the vocabulary that the model was made with'
        )
    return described


def read_model(directory: str, like: Any) -> Any:
    """The model of the last checkpoint of a run directory, or of a Hugging Face directory, in the shardings of `like`.

    The arrays of `like` may be written over. Where `like` has adapters and the checkpoint has none, the adapters of
    `like` are put on the checkpoint's weights.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: it does not fit; names every array that does not.
    """
    plain = adapters.unadapted(like)
    if kind_of(directory) == 'hugging_face':
        return adapters.with_base(like, hugging_face.read_model(directory, plain))
    source = Checkpoints(directory)
    adapted = {name for name in names_of({'model': like}) if name not in names_of({'model': plain})}
    if adapted and not adapted & source.names():
        model = adapters.with_base(like, source.restore({'model': plain})['model'])
    else:
        model = source.restore({'model': like})['model']
    source.close()
    return model
