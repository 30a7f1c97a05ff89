"""Orbax checkpoints: the whole state, where the data stands, and the configuration, in one atomic step."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from t5x_selfimprove.models import adapters
from t5x_selfimprove.vocabulary import Vocabulary

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


class Checkpoints:
    """The checkpoints of one run directory.

    Every step holds the arrays by name and a description. A step appears under its number only once it is whole, so
    a process killed at any instant leaves the step before.

    Raises:
      OSError: the directory cannot be written.
    """

    def __init__(self, directory: Path, keep: int = 2):
        self.directory = Path(directory).absolute() / 'checkpoints'
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False, create=True)
        handlers = {'arrays': ocp.PyTreeCheckpointHandler(), 'described': ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

    @property
    def latest(self) -> int | None:
        """The last whole step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, described: Described) -> None:
        """Writes a step and returns when it is on disk. A step that is already there is left as it is."""
        if step in self._manager.all_steps():
            return
        arrays = dict(zip(names_of(state), jax.tree.leaves(state), strict=True))
        self._manager.save(
            step,
            args=ocp.args.Composite(
                arrays=ocp.args.PyTreeSave(arrays),
                described=ocp.args.JsonSave({'format': FORMAT, **dataclasses.asdict(described)}),
            ),
        )
        self._manager.wait_until_finished()

    def describe(self, step: int | None = None) -> Described:
        """The description of a step (the last one by default).

        Raises:
          FileNotFoundError: there is no checkpoint.
          ValueError: it was written in another format.
        """
        step = self._step(step)
        found = self._manager.restore(step, args=ocp.args.Composite(described=ocp.args.JsonRestore())).described
        if found.pop('format') != FORMAT:
            raise ValueError(f'{self.directory}/{step} is in another format than {FORMAT}, the one this version reads')
        return Described(**found)

    def restore(self, target: Any, step: int | None = None) -> Any:
        """Reads arrays into the structure, dtypes and shardings of `target` (arrays or ShapeDtypeStructs).

        `target` may hold fewer leaves than were saved (a model without its optimizer, as {'model': ...}).

        Raises:
          FileNotFoundError: there is no checkpoint.
          ValueError: an array is missing or has another shape; names all of them.
        """
        step = self._step(step)
        leaves, treedef = jax.tree.flatten(target)
        wanted = dict(zip(names_of(target), leaves, strict=True))
        saved = self._manager.item_metadata(step)['arrays'].tree
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
        restored = self._manager.restore(step, args=ocp.args.Composite(arrays=arrays)).arrays
        return jax.tree.unflatten(treedef, [restored[name] for name in wanted])

    def names(self, step: int | None = None) -> set[str]:
        """The names of the arrays of a step."""
        return set(self._manager.item_metadata(self._step(step))['arrays'].tree)

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()

    def _step(self, step: int | None) -> int:
        step = self.latest if step is None else step
        if step is None:
            raise FileNotFoundError(f'there is no checkpoint in {self.directory}')
        return step


def describe_model(directory: str, vocabulary: Vocabulary) -> Described:
    """What the last checkpoint of a run directory is.

    Raises:
      FileNotFoundError: there is none.
      ValueError: its model was made with another vocabulary.
    """
    if not Path(directory, 'checkpoints').is_dir():
        raise FileNotFoundError(
            f'{directory} has no checkpoints; pre-train a model there first, or name another run directory'
        )
    source = Checkpoints(Path(directory))
    described = source.describe()
    source.close()
    if described.vocabulary != vocabulary.fingerprint():
        raise ValueError(
            f'the model in {directory} was made with vocabulary {described.vocabulary}, this run uses '
            f'{vocabulary.fingerprint()} ({vocabulary.name}, {vocabulary.size} tokens): '
            'use the vocabulary that the model was made with'
        )
    return described


def read_model(directory: str, like: Any) -> Any:
    """The model of the last checkpoint of a run directory, in the shardings of `like`.

    Where `like` has adapters and the checkpoint has none, the adapters of `like` are put on the checkpoint's weights.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: it does not fit; names every array that does not.
    """
    source = Checkpoints(Path(directory))
    adapted = {name for name in names_of({'model': like}) if name not in names_of({'model': adapters.unadapted(like)})}
    if adapted and not adapted & source.names():
        model = adapters.with_base(like, source.restore({'model': adapters.unadapted(like)})['model'])
    else:
        model = source.restore({'model': like})['model']
    source.close()
    return model
