"""The records that flow between the parts, with every shape.

Axis letters, the one legend of the project:

    Q  questions in a batch            N  samples a question          S  samples: S = Q * N, question-major; or the
                                                                         slots in which samples are drawn
    P  prompt length (tokens)          C  completion length           X  length of the prefix all prompts share
    R  training rows                   T  row length (tokens)         U  source length (tokens of an encoder's row)
    E  examples (prompt + completion pairs)
    A  answer length (canonical bytes) V  vocabulary                  D  model width
    L  layers   H  query heads   K  key/value heads   F  feed-forward   B  rows of a model call

Sample `s` belongs to question `s // N` and is its path number `s % N`.

Every record is a frozen dataclass and a pytree. Padding is at the right; what is padding is said by a length or a
weight, never by a token id alone. Answers are canonical bytes, zero-padded on the right; an answer of all zeros is
"no answer". `check` compares a record with its annotations and is used where arrays enter from the host and in tests.
"""

import dataclasses
from typing import Any

import jax
from jaxtyping import Bool, Float32, Int32, UInt8, UInt32, jaxtyped


def record(cls: type) -> type:
    """Makes a frozen dataclass that is also a pytree (all fields are children)."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@record
class Questions:
    """A batch of questions as token ids, before any prompt is put round them."""

    tokens: Int32[Any, '*outer Q P']
    length: Int32[Any, '*outer Q']
    answer: UInt8[Any, '*outer Q A']  # canonical bytes of the label; zeros where it is not known
    known: Bool[Any, '*outer Q']  # whether `answer` is a label; all False in a label-free run
    weight: Float32[Any, '*outer Q']  # 1 for a question, 0 for padding
    id: UInt32[Any, '*outer Q 2']  # stable: a 64-bit hash of the content, high word first


@record
class Prompts:
    """Questions rendered by a template. The text before each question is the same for all and kept apart.

    A question has one prompt, B = Q, or B / Q next to each other, of which its sample i reads number i mod B / Q.
    """

    prefix: Int32[Any, 'X']  # no padding; may be empty
    tokens: Int32[Any, 'B P']
    length: Int32[Any, 'B']
    id: UInt32[Any, 'Q 2']


@record
class Samples:
    """N completions of each prompt. The end-of-text token, where drawn, is the last token under the mask."""

    tokens: Int32[Any, '*outer S C']
    mask: Bool[Any, '*outer S C']
    log_probs: Float32[Any, '*outer S C']  # of each token under the untempered model; 0 outside the mask
    ended: Bool[Any, '*outer S']  # ended by itself rather than cut off at C
    # Under the distribution each token was drawn from: after temperature, transforms and a least length. None: unknown.
    proposal_log_probs: Any = None  # None, or Float32[Any, '*outer S C']
    drawn: Any = None  # None: all; or Bool[Any, '*outer S'], False where a path was given up, which has no token
    slot_steps: Any = None  # None, or Int32[Any, '*outer']: tokens that there was room for, in slots, while drawing


@record
class Verdict:
    """What consolidation decided about a batch of samples."""

    answer: UInt8[Any, '*outer S A']  # canonical answer of each sample, zeros where none was found
    found: Bool[Any, '*outer S']
    reward: Float32[Any, '*outer S']
    keep: Float32[Any, '*outer S']  # weight of the sample in training; 0 = not kept
    chosen: UInt8[Any, '*outer Q A']  # the consolidated answer of each question, zeros where there is none
    share: Float32[Any, '*outer Q']  # votes for the chosen answer / votes cast (samples with an answer)
    votes: Float32[Any, '*outer Q']  # votes cast
    voted: Bool[Any, '*outer S']  # its answer was counted; that of a truncated sample is not, unless asked for


@record
class Examples:
    """Prompt-completion pairs, unpacked: what lessons are made of."""

    tokens: Int32[Any, '*outer E T']  # prompt and completion, end-of-text included
    prompt_length: Int32[Any, '*outer E']
    length: Int32[Any, '*outer E']  # prompt + completion
    weight: Float32[Any, '*outer E']  # 0 = padding
    # None, or (most tokens of a prompt, most tokens of a completion) where they are known apart; static, as shapes are.
    rooms: Any = dataclasses.field(default=None, metadata={'static': True})


@record
class Sources:
    """What an encoder reads beside packed rows: segment s of a row is the prompt of segment s of its targets."""

    tokens: Int32[Any, 'R U']
    segment: Int32[Any, 'R U']  # 0 = padding


@record
class Lessons:
    """Packed training rows. Rows from `filled` on are padding.

    A decoder-only model's segment is a prompt and its completion. An encoder-decoder's is the completion alone, after
    one place for the model's start token; its prompt is in `source`.
    """

    tokens: Int32[Any, 'R T']
    targets: Int32[Any, 'R T']
    loss_weight: Float32[Any, 'R T']
    segment: Int32[Any, 'R T']  # 0 = padding, then 1, 2, ... for each example packed in the row
    position: Int32[Any, 'R T']  # restarts at 0 with each segment
    filled: Int32[Any, '']
    source: Any = None  # None, or Sources: prompts apart from completions


@record
class TrainState:
    """All that changes in a run. `base` holds the parameters each round starts from where a recipe asks for it."""

    step: Int32[Any, '']  # optimizer updates since the first
    round: Int32[Any, '']  # rounds of self-improvement done
    seed: UInt32[Any, '']  # every draw of the run is folded from it
    model: Any  # an nnx pytree of parameters
    optimizer: Any  # optax state
    base: Any  # None, or a model like `model`


def check(value: Any) -> None:
    """Compares every field of a record with its annotation, axis letters bound across the fields.

    Raises:
      TypeError: a field's dtype or shape is not what the record says; names record, field and what came.
    """

    @jaxtyped(typechecker=None)
    def fields() -> None:
        for field in dataclasses.fields(value):
            held = getattr(value, field.name)
            if field.type is Any:
                continue
            if not isinstance(held, field.type):
                raise TypeError(
                    f'{type(value).__name__}.{field.name} must be {field.type.__name__}; '
                    f'it is {getattr(held, "dtype", type(held).__name__)}{list(getattr(held, "shape", []))}'
                )

    fields()
