"""The encoder-decoder against transformers' T5 and UMT5: the same logits, the same greedy tokens, with padding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_selfimprove.models.encoder_decoder_config import EncoderDecoderConfig
from t5x_selfimprove.models.relative_position import buckets
from t5x_selfimprove.records import Prompts, Sources
from t5x_selfimprove.sampling.sampler import Sampler
from tests.consolidation.batches import Spelled
from tests.models import tiny_t5

torch = pytest.importorskip('torch')
torch.set_num_threads(1)
transformers = pytest.importorskip('transformers')

ROWS, SOURCE, ROOM, STEPS = 64, 40, 30, 64  # longer than the furthest distance of the position bias
CONFIG = EncoderDecoderConfig(
    width=24, encoder_layers=2, decoder_layers=3, heads=3, head_size=8, feed_forward=40, buckets=16, furthest=20
)
FAMILIES = {
    'T5 1.1': ({}, {}),
    'T5': (
        {'activation': 'relu', 'gated': False, 'tied': True},
        {'feed_forward_proj': 'relu', 'tie_word_embeddings': True},
    ),
    'mT5': ({'norm_epsilon': 1e-5}, {'layer_norm_epsilon': 1e-5}),
    'UL2': ({'activation': 'silu'}, {'feed_forward_proj': 'gated-silu'}),
    # transformers 5 takes the embedding of every UMT5 for tied and scales the logits, whatever its config says.
    'UMT5': ({'bias_per_layer': True, 'logit_scale': CONFIG.width**-0.5}, {}),
}
KINDS = {'mT5': 'MT5', 'UMT5': 'UMT5'}


@functools.cache
def theirs(family: str):
    """A small random model of transformers; its output embedding is its own where the family's is."""
    torch.manual_seed(0)
    kind = KINDS.get(family, 'T5')
    settings = {'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False, **FAMILIES[family][1]}
    made = getattr(transformers, f'{kind}Config')(
        vocab_size=ROWS, d_model=CONFIG.width, d_kv=CONFIG.head_size, d_ff=CONFIG.feed_forward,
        num_layers=CONFIG.encoder_layers, num_decoder_layers=CONFIG.decoder_layers, num_heads=CONFIG.heads,
        relative_attention_num_buckets=CONFIG.buckets, relative_attention_max_distance=CONFIG.furthest,
        decoder_start_token_id=0, **settings,
    )  # fmt: skip
    model = getattr(transformers, f'{kind}ForConditionalGeneration')(made).eval()
    with torch.no_grad():
        if not ours_config(family).tied:
            model.lm_head.weight = torch.nn.Parameter(torch.randn(ROWS, CONFIG.width))
        for name, parameter in model.named_parameters():
            if 'bias' in name:
                parameter.normal_()  # else distances hardly matter
            elif 'norm' in name:
                parameter.normal_(1.0, 0.1)
            elif name.endswith('o.weight'):
                parameter.mul_(4)  # else a token is followed by itself
    return model


def ours_config(family: str) -> EncoderDecoderConfig:
    return dataclasses.replace(CONFIG, **FAMILIES[family][0])


@functools.cache
def ours(family: str):
    """The same model here."""
    config, held = ours_config(family), theirs(family).state_dict()
    get = lambda name: held[name].numpy()  # noqa: E731
    heads = (config.heads, config.head_size)

    def stack(name: str, count: int, reshape) -> np.ndarray:
        return np.stack([reshape(get(name.format(layer))) for layer in range(count)])

    def attention(part: str, number: int, kind: str, count: int) -> dict[str, np.ndarray]:
        place = f'{part}.block.{{}}.layer.{number}.{kind}'
        inner = lambda weight: weight.T.reshape(config.width, *heads)  # noqa: E731
        made = {
            long: stack(f'{place}.{short}.weight', count, inner)
            for long, short in (('query', 'q'), ('key', 'k'), ('value', 'v'))
        }
        made['out'] = stack(f'{place}.o.weight', count, lambda weight: weight.T.reshape(*heads, config.width))
        made['norm'] = stack(f'{part}.block.{{}}.layer.{number}.layer_norm.weight', count, np.asarray)
        return made

    arrays = {'.embedding': get('shared.weight'), '.head': get('lm_head.weight')}
    for part, count, last in (('encoder', config.encoder_layers, 1), ('decoder', config.decoder_layers, 2)):
        inside = {f'.attention.{name}': array for name, array in attention(part, 0, 'SelfAttention', count).items()}
        if part == 'decoder':
            cross = attention(part, 1, 'EncDecAttention', count)
            inside |= {f'.cross_attention.{name}': array for name, array in cross.items()}
        place = f'{part}.block.{{}}.layer.{last}.'
        names = {'gate': 'wi_0', 'up': 'wi_1', 'down': 'wo'} if config.gated else {'up': 'wi', 'down': 'wo'}
        for long, short in names.items():
            inside[f'.feed_forward.{long}'] = stack(f'{place}DenseReluDense.{short}.weight', count, np.transpose)
        inside['.feed_forward_norm'] = stack(f'{place}layer_norm.weight', count, np.asarray)
        bias = f'{part}.block.{{}}.layer.0.SelfAttention.relative_attention_bias.weight'
        if config.bias_per_layer:
            inside['.bias'] = stack(bias, count, np.asarray)
        else:
            arrays[f'.{part}.bias'] = get(bias.format(0))
        arrays |= {f'.{part}.blocks{name}': array for name, array in inside.items()}
        arrays[f'.{part}.final_norm'] = get(f'{part}.final_layer_norm.weight')

    def fill(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = jax.tree_util.keystr(path).removesuffix('.value').replace('norm.scale', 'norm')
        assert arrays[name].shape == leaf.shape, name
        return jnp.asarray(arrays[name])

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(lambda: config.create(ROWS, jax.random.key(0))))


@functools.cache
def inputs() -> tuple[np.ndarray, ...]:
    """Three prompts and completions of different lengths, with their lengths."""
    generator = np.random.default_rng(0)
    draw = lambda *shape: generator.integers(2, ROWS, shape).astype(np.int32)  # noqa: E731
    return draw(3, SOURCE), np.array([SOURCE, 17, 1], np.int32), draw(3, ROOM), np.array([ROOM, 9, 22], np.int32)


@pytest.mark.parametrize('family', FAMILIES)
def test_logits(family):
    prompts, lengths, completions, rows = inputs()
    mask = np.arange(SOURCE) < lengths[:, None]
    completions = completions.copy()
    completions[:, 0] = 0  # the start token
    with torch.no_grad():
        wanted = theirs(family)(
            input_ids=torch.tensor(prompts * mask, dtype=torch.long),
            attention_mask=torch.tensor(mask),
            decoder_input_ids=torch.tensor(completions, dtype=torch.long),
        ).logits.numpy()
    place = jnp.broadcast_to(jnp.arange(ROOM), completions.shape)
    inside = np.arange(ROOM) < rows[:, None]
    source = Sources(jnp.asarray(prompts), jnp.asarray(mask, jnp.int32))
    got = tiny_t5.forward_logits(ours(family), jnp.asarray(completions), place, jnp.asarray(inside, jnp.int32), source)
    scale = np.abs(wanted[inside]).max()
    assert scale > 0.5
    gap = np.abs(np.asarray(got) - wanted)[inside].max() / scale
    print(f'{family}: largest difference of logits {gap:.1e} of their scale')
    assert gap < 1e-4


@pytest.mark.parametrize('family', ['T5 1.1', 'T5', 'UL2', 'UMT5'])
def test_greedy_tokens(family):
    prompts, lengths, *_ = inputs()
    mask = np.arange(SOURCE) < lengths[:, None]
    model = theirs(family)
    model.generation_config.eos_token_id = None  # no token ends a text, here and there
    padded = torch.tensor(prompts * mask, dtype=torch.long)
    # Their cache has as many layers as the encoder, so there is none here.
    settings = {'max_new_tokens': STEPS, 'do_sample': False, 'use_cache': False}
    wanted = model.generate(padded, attention_mask=torch.tensor(mask), **settings).numpy()[:, 1:]
    vocabulary = Spelled((b'',) * ROWS, eos_id=-1)
    put = Prompts(jnp.zeros(0, jnp.int32), jnp.asarray(prompts), jnp.asarray(lengths), jnp.zeros((3, 2), jnp.uint32))
    sampler = Sampler(vocabulary, samples=1, max_tokens=STEPS, temperature=0.0)
    got = jax.jit(sampler)(ours(family), put, jax.random.key(0))
    np.testing.assert_array_equal(got.tokens, wanted)
    assert len(set(wanted.ravel().tolist())) > 5


@pytest.mark.parametrize(('count', 'furthest'), [(32, 128), (16, 20), (8, 12), (64, 128)])
@pytest.mark.parametrize('both', [True, False])
def test_buckets(count, furthest, both):
    distance = np.arange(-600, 601)
    of = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket
    wanted = of(torch.tensor(distance), both, count, furthest).numpy()
    np.testing.assert_array_equal(buckets(distance, count, furthest, both), wanted)
