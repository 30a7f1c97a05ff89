"""Orbax checkpoints: the whole state, where the data stands, and the configuration, in one atomic step."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from t5x_selfimprove.models import adapters, hugging_face
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

    @property
    def count(self) -> int:
        """How many whole steps there are."""
        return len(self._manager.all_steps())

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
        return set(self.shapes(step))

    def shapes(self, step: int | None = None) -> dict[str, tuple[int, ...]]:
        """The shapes of the arrays of a step, by name."""
        saved = self._manager.item_metadata(self._step(step))['arrays'].tree
        return {name: tuple(array.shape) for name, array in saved.items()}

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()

    def _step(self, step: int | None) -> int:
        step = self.latest if step is None else step
        if step is None:
            raise FileNotFoundError(f'there is no checkpoint in {self.directory}')
        return step


def kind_of(directory: str) -> str:
    """What a directory with a model is: 'run' (our own) or 'hugging_face'.

    Raises:
      FileNotFoundError: it is not there, or nothing in it is known.
      ValueError: it is of a kind that is not read here; says how to make one that is.
    """
    folder = Path(directory).expanduser()
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
    checkpoints = Checkpoints(Path(directory))
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
    source = Checkpoints(Path(directory))
    adapted = {name for name in names_of({'model': like}) if name not in names_of({'model': plain})}
    if adapted and not adapted & source.names():
        model = adapters.with_base(like, source.restore({'model': plain})['model'])
    else:
        model = source.restore({'model': like})['model']
    source.close()
    return model
