"""Rotary positions in a config.json: `rope_theta` with `rope_scaling`, and the newer `rope_parameters`."""

from collections.abc import Mapping
from typing import Any

from t5x_selfimprove.models.config import Rope
from t5x_selfimprove.models.hugging_face.fields import WAY_OUT, Fields

SCALINGS = {'default': 'none', 'linear': 'linear', 'llama3': 'llama3'}
KEYS = {
    'none': (),
    'linear': ('factor',),
    'llama3': ('factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings'),
}
LAYER_TYPES = ('full_attention', 'sliding_attention')


def read_rope(fields: Fields) -> Rope:
    """The one rope of all layers. Raises ValueError as `Fields` does: a scaling not known here, wrong numbers."""
    theta = fields.get('rope_theta')
    fields.off('partial_rotary_factor', 'rotates a part of each head, which is not supported', 1)
    scaling, parameters = fields.get('rope_scaling'), fields.get('rope_parameters')
    name = 'rope_scaling' if scaling else 'rope_parameters'
    found = dict(scaling or parameters or {})
    if set(found) & set(LAYER_TYPES):
        alike = [found[kind] for kind in LAYER_TYPES if found.get(kind) is not None]
        if any(one != alike[0] for one in alike) or set(found) - set(LAYER_TYPES):
            raise fields.refuse(name, 'differs by layer, which this family does not have')
        found = dict(alike[0])
    return _rope(fields, name, found, theta)


def read_ropes(fields: Fields) -> tuple[Rope, Rope]:
    """The ropes of the full and of the sliding layers (Gemma 3). Raises as `read_rope`."""
    full_theta, local_theta = fields.get('rope_theta'), fields.get('rope_local_base_freq')
    scaling, parameters = fields.get('rope_scaling'), fields.get('rope_parameters')
    parameters = parameters or {}
    if unknown := set(parameters) - set(LAYER_TYPES):
        raise fields.refuse('rope_parameters', f'has {sorted(unknown)} where {LAYER_TYPES} are expected')
    full = {**(parameters.get('full_attention') or {}), **(scaling or {})}
    name = 'rope_scaling' if scaling else 'rope_parameters'
    local = dict(parameters.get('sliding_attention') or {})
    return _rope(fields, name, full, full_theta), _rope(fields, 'rope_parameters', local, local_theta)


def _rope(fields: Fields, name: str, found: dict[str, Any], theta: Any) -> Rope:
    old, new = found.pop('type', None), found.pop('rope_type', None)
    kind = new or old or 'default'
    if kind not in SCALINGS:
        raise fields.refuse(
            name,
            f'scales rotary positions as {kind!r}, and only {", ".join(SCALINGS)} are known here',
            f'{WAY_OUT}; if no text is longer than the original context, a copy of the directory with {name} removed '
            'may serve',
        )
    theta = found.pop('rope_theta', theta)
    if found.pop('partial_rotary_factor', None) not in (None, 1, 1.0):
        raise fields.refuse(name, 'rotates a part of each head, which is not supported')
    if kind == 'llama3':
        found.setdefault('original_max_position_embeddings', fields.get('max_position_embeddings'))
    keys = KEYS[SCALINGS[kind]]
    unknown = [key for key in found if key not in keys and found[key] is not None]
    missing = [key for key in keys if found.get(key) is None]
    wrong = [key for key in keys if key not in missing and type(found[key]) not in (int, float)]
    if unknown or missing or wrong or type(theta) not in (int, float):
        what = {'unknown': unknown, 'missing': missing, 'no number': wrong}
        said = '; '.join(f'{word}: {", ".join(names)}' for word, names in what.items() if names)
        raise fields.refuse(name, f'is not understood ({said or f"rope_theta = {theta!r}"})')
    scaled = {key: found[key] for key in keys}
    return Rope(
        theta=float(theta),
        scaling=SCALINGS[kind],
        factor=float(scaled.get('factor', Rope.factor)),
        low_frequency_factor=float(scaled.get('low_freq_factor', Rope.low_frequency_factor)),
        high_frequency_factor=float(scaled.get('high_freq_factor', Rope.high_frequency_factor)),
        original_length=int(scaled.get('original_max_position_embeddings', Rope.original_length)),
    )


def write_rope(rope: Rope | None) -> Mapping[str, Any]:
    """`rope_theta` and `rope_scaling`, which every release of transformers reads.

    Raises:
      ValueError: there is no rope, which no family is without.
    """
    if rope is None:
        raise ValueError('rope = None')
    numbers = {
        'factor': rope.factor,
        'low_freq_factor': rope.low_frequency_factor,
        'high_freq_factor': rope.high_frequency_factor,
        'original_max_position_embeddings': rope.original_length,
    }
    scaling = {'rope_type': rope.scaling, **{key: numbers[key] for key in KEYS[rope.scaling]}}
    return {'rope_theta': rope.theta, 'rope_scaling': None if rope.scaling == 'none' else scaling}
