"""Whether two configurations compute the same, however each of them is written."""

import math
from typing import Any

from t5x_selfimprove.models.config import EXECUTION_FIELDS, Rope, TransformerConfig
from t5x_selfimprove.models.encoder_decoder_config import EncoderDecoderConfig

Config = TransformerConfig | EncoderDecoderConfig

# Of how it is computed or trained: no config.json speaks of these.
OWN = (*EXECUTION_FIELDS, 'dtype', 'parameter_dtype', 'dropout', 'low_rank')


def differences(ours: Config, theirs: Config) -> list[str]:
    """The fields in which two configurations compute something else, with the values of the first."""
    if type(ours) is not type(theirs):
        return [f'the kind of the model ({type(ours).__name__})']
    one, other = _comparable(ours), _comparable(theirs)
    close = lambda a, b: math.isclose(a, b) if isinstance(a, float) and isinstance(b, float) else a == b  # noqa: E731
    return [f'{name} = {one[name]}' for name in one if not close(one[name], other[name])]


def shortest(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """The shortest pattern that repeats to the kinds of the layers."""
    for length in range(1, len(kinds) + 1):
        if all(kind == kinds[layer % length] for layer, kind in enumerate(kinds)):
            return kinds[:length]
    return kinds


def _comparable(config: Config) -> dict[str, Any]:
    """The fields that say what is computed, each in one way of several that mean the same."""
    if isinstance(config, EncoderDecoderConfig):
        values = {**vars(config), 'logit_scale': config.scale}
        return {name: value for name, value in values.items() if name not in OWN}
    local = config.local_rope or config.rope
    values = {
        **vars(config),
        'attention_pattern': shortest(tuple('sliding' if slides else 'full' for slides in config.sliding)),
        'query_scale': config.query_scale or config.head_size**-0.5,
        'rope': config.rope and _said(config.rope),
        'local_rope': _said(local) if local and any(config.sliding) else None,
        'feed_forward': None if config.experts else config.feed_forward,
    }
    return {name: value for name, value in values.items() if name not in OWN}


def _said(rope: Rope) -> Rope:
    if rope.scaling == 'llama3':
        return rope
    return Rope(rope.theta) if rope.scaling == 'none' else Rope(rope.theta, rope.scaling, rope.factor)
