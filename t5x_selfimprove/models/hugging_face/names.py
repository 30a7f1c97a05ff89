"""Which tensor of a checkpoint is which parameter of ours, and how each is laid out: one table for both directions."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

# Tensors that hold nothing that was learnt; old T5 checkpoints have copies of the embedding and a bias nobody reads.
CONSTANT = re.compile(
    r'rotary_emb\.inv_freq$|^(en|de)coder\.embed_tokens\.weight$|EncDecAttention\.relative_attention_bias\.weight$'
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one tensor of a file is laid out, in terms of the logical axes of our parameter.

    Attributes:
      stored: the axes of the tensor; axes joined by a dot are one there, as in 'heads.head model'.
      ours: the axes and sizes of the parameter, without those that count whole tensors (layers, experts).
      paired: rotary pairs are neighbours there (0, 1), (2, 3) ...; ours are half a head apart.
      share: (number, of): the tensor holds several parameters side by side on its second axis; which of how many.
    """

    stored: str
    ours: tuple[tuple[str, int], ...]
    paired: bool = False
    share: tuple[int, int] = (0, 1)

    @property
    def axes(self) -> list[list[str]]:
        """The logical axes that each axis of the tensor is made of."""
        return [axis.split('.') for axis in self.stored.split()]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of this parameter's share of the tensor."""
        sizes = dict(self.ours)
        return tuple(math.prod(sizes[name] for name in axis) for axis in self.axes)

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return tuple(size * self.share[1] if axis == 1 else size for axis, size in enumerate(self.shape))

    def read(self, tensor: Shaped[Array, '...']) -> Shaped[Array, '...']:
        """The tensor's share as our parameter."""
        split = tensor.reshape([dict(self.ours)[name] for axis in self.axes for name in axis])
        order = [name for axis in self.axes for name in axis]
        found = split.transpose([order.index(name) for name, _ in self.ours])
        if self.paired:  # the head's numbers are its last axis
            found = jnp.concatenate([found[..., 0::2], found[..., 1::2]], axis=-1)
        return found

    def write(self, parameter: Shaped[Array, '...']) -> Shaped[Array, '...']:
        """Our parameter as the tensor's share."""
        if self.paired:
            halves = jnp.stack(jnp.split(parameter, 2, axis=-1), axis=-1)
            parameter = halves.reshape(parameter.shape)
        order = [name for name, _ in self.ours]
        return parameter.transpose([order.index(name) for axis in self.axes for name in axis]).reshape(self.shape)

    def sharding(self, ours: jax.sharding.Sharding, counted: int) -> jax.sharding.Sharding:
        """How the tensor's share is split where our parameter, after `counted` axes, is split as `ours`.

        An axis made of several is split as the first of them; the others are never split.
        """
        if not isinstance(ours, NamedSharding):
            return ours
        spec = [*ours.spec, *[None] * (counted + len(self.ours) - len(ours.spec))][counted:]
        of = dict(zip((name for name, _ in self.ours), spec, strict=True))
        return NamedSharding(ours.mesh, PartitionSpec(*[of[axis[0]] for axis in self.axes]))


@dataclasses.dataclass(frozen=True)
class Name:
    """A row of the table: the name of the tensor with {layer} and {expert} in it, and its axes."""

    name: str
    stored: str
    paired: bool = False
    share: tuple[int, int] = (0, 1)


LAYER = 'model.layers.{layer}.'
ATTENTION, FEED_FORWARD = LAYER + 'self_attn.', LAYER + 'mlp.'
TABLE: Mapping[str, Name] = {
    'embedding': Name('model.embed_tokens.weight', 'vocabulary model'),
    'blocks.attention_norm.scale': Name(LAYER + 'input_layernorm.weight', 'norm'),
    'blocks.attention.query': Name(ATTENTION + 'q_proj.weight', 'heads.head model'),
    'blocks.attention.key': Name(ATTENTION + 'k_proj.weight', 'kv_heads.head model'),
    'blocks.attention.value': Name(ATTENTION + 'v_proj.weight', 'kv_heads.head model'),
    'blocks.attention.out': Name(ATTENTION + 'o_proj.weight', 'model heads.head'),
    'blocks.attention.query_bias': Name(ATTENTION + 'q_proj.bias', 'heads.head'),
    'blocks.attention.key_bias': Name(ATTENTION + 'k_proj.bias', 'kv_heads.head'),
    'blocks.attention.value_bias': Name(ATTENTION + 'v_proj.bias', 'kv_heads.head'),
    'blocks.attention.query_norm.scale': Name(ATTENTION + 'q_norm.weight', 'norm'),
    'blocks.attention.key_norm.scale': Name(ATTENTION + 'k_norm.weight', 'norm'),
    'blocks.feed_forward_norm.scale': Name(LAYER + 'post_attention_layernorm.weight', 'norm'),
    'blocks.feed_forward.gate': Name(FEED_FORWARD + 'gate_proj.weight', 'feed_forward model'),
    'blocks.feed_forward.up': Name(FEED_FORWARD + 'up_proj.weight', 'feed_forward model'),
    'blocks.feed_forward.down': Name(FEED_FORWARD + 'down_proj.weight', 'model feed_forward'),
    'final_norm.scale': Name('model.norm.weight', 'norm'),
    'head': Name('lm_head.weight', 'vocabulary model'),
}
GEMMA = {
    **TABLE,
    'blocks.attention_post_norm.scale': Name(LAYER + 'post_attention_layernorm.weight', 'norm'),
    'blocks.feed_forward_norm.scale': Name(LAYER + 'pre_feedforward_layernorm.weight', 'norm'),
    'blocks.feed_forward_post_norm.scale': Name(LAYER + 'post_feedforward_layernorm.weight', 'norm'),
}
COHERE = {
    **TABLE,
    'blocks.attention.query': Name(ATTENTION + 'q_proj.weight', 'heads.head model', paired=True),
    'blocks.attention.key': Name(ATTENTION + 'k_proj.weight', 'kv_heads.head model', paired=True),
}


def _experts(folder: str, gate: str, up: str, down: str) -> Mapping[str, Name]:
    each = LAYER + folder + 'experts.{expert}.'
    return {
        **TABLE,
        'blocks.feed_forward.router': Name(LAYER + folder + 'gate.weight', 'router model'),
        'blocks.feed_forward.gate': Name(f'{each}{gate}.weight', 'expert_feed_forward model'),
        'blocks.feed_forward.up': Name(f'{each}{up}.weight', 'expert_feed_forward model'),
        'blocks.feed_forward.down': Name(f'{each}{down}.weight', 'model expert_feed_forward'),
    }


def fused(table: Mapping[str, Name], folder: str = 'mlp.') -> Mapping[str, Name]:
    """The table for a checkpoint in which all experts of a layer are one tensor."""
    both, stored = f'{LAYER}{folder}experts.gate_up_proj', 'experts expert_feed_forward model'
    return {
        **table,
        'blocks.feed_forward.router': Name(LAYER + folder + 'gate.weight', 'router model'),
        'blocks.feed_forward.gate': Name(both, stored, share=(0, 2)),
        'blocks.feed_forward.up': Name(both, stored, share=(1, 2)),
        'blocks.feed_forward.down': Name(f'{LAYER}{folder}experts.down_proj', 'experts model expert_feed_forward'),
    }


QWEN_EXPERTS = _experts('mlp.', 'gate_proj', 'up_proj', 'down_proj')
MIXTRAL = _experts('block_sparse_moe.', 'w1', 'w3', 'w2')


def table_of(architecture: str, present: Sequence[str] = ()) -> Mapping[str, Name]:
    """The table of an architecture, for a checkpoint with the tensors `present`."""
    tables = {'Gemma': GEMMA, 'Cohere': COHERE, 'Mixtral': MIXTRAL, 'Qwen3Moe': QWEN_EXPERTS}
    table = next((table for start, table in tables.items() if architecture.startswith(start)), TABLE)
    return fused(table) if any(name.endswith('mlp.experts.gate_up_proj') for name in present) else table


@dataclasses.dataclass(frozen=True)
class Part:
    """One tensor that a parameter is made of."""

    name: str
    place: tuple[int, ...]  # of the tensor in the parameter's leading axes: layer, expert
    layout: Layout


def parts(entry: Name, axes: Sequence[str | None], shape: Sequence[int]) -> Iterator[Part]:
    """The tensors that a parameter with these logical axes is made of, in order."""
    inside = {name for axis in entry.stored.split() for name in axis.split('.')}
    counted = sum(name not in inside for name in axes)
    layout = Layout(
        entry.stored, tuple(zip(map(str, axes[counted:]), shape[counted:], strict=True)), entry.paired, entry.share
    )

    def places(sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
        if not sizes:
            yield ()
            return
        for first in range(sizes[0]):
            yield from ((first, *rest) for rest in places(sizes[1:]))

    for place in places(tuple(shape[:counted])):
        named = dict(zip(('layer', 'expert'), place, strict=False))
        yield Part(entry.name.format(**named), place, layout)
