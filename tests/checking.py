"""The run-time check of annotations: jaxtyping's shapes and dtypes by beartype, on every call of hooked modules."""

import inspect
import typing
from collections.abc import Callable

import beartype
import jaxtyping

# An int will do where a float is asked for.
CONF = beartype.BeartypeConf(is_pep484_tower=True)


def checked(function: Callable) -> Callable:
    """Beartype, with two provisions.

    Protocols become checkable at run time: an argument must have their methods. The construction of a dataclass with
    array fields is not checked: where it is a pytree, JAX rebuilds it around leaves that are no arrays (shardings,
    None, sentinels).
    """
    hints = [part for hint in function.__annotations__.values() for part in parts(hint)]
    if function.__name__ == '__init__' and any(is_array(hint) for hint in hints):
        return function
    for hint in hints:
        if isinstance(hint, type) and typing.Protocol in hint.__bases__:
            typing.runtime_checkable(hint)
    return beartype.beartype(conf=CONF)(function)


def parts(hint: object) -> list[object]:
    """A hint and the hints it is made of."""
    return [hint, *(inner for argument in typing.get_args(hint) for inner in parts(argument))]


def is_array(hint: object) -> bool:
    """Whether a hint is a jaxtyping annotation, such as Float32[Array, 'Q']."""
    return inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)
