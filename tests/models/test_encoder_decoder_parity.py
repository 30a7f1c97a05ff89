"""The encoder-decoder against T5, mT5 and UMT5 of transformers: logits, greedy tokens, checkpoints in and out."""

import dataclasses
import functools
import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from t5x_selfimprove.models import hugging_face
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
def saved(family: str) -> pathlib.Path:
    """The directory that transformers makes of its model."""
    folder = pathlib.Path(_folder().name) / family
    theirs(family).save_pretrained(folder)
    return folder


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()


@functools.cache
def ours(family: str):
    """The same model here."""
    return read(saved(family))


def read(folder: pathlib.Path):
    config = hugging_face.of_directory(str(folder))
    return hugging_face.read_model(folder, jax.eval_shape(lambda: config.create(ROWS, jax.random.key(0))))


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


def tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of a directory, read without the code under test."""
    return load_file(folder / 'model.safetensors')


@pytest.mark.parametrize('family', FAMILIES)
def test_a_round_trip_changes_no_bit(tmp_path, family):
    config = hugging_face.of_directory(str(saved(family)))
    wanted = ours_config(family)
    assert config == dataclasses.replace(wanted, embedding_rows=ROWS, logit_scale=wanted.scale)
    written = hugging_face.write_model(ours(family), tmp_path / 'ours', source=saved(family))
    kind = f'{KINDS.get(family, "T5")}ForConditionalGeneration'
    assert written['architecture'] == kind
    before, after = tensors(saved(family)), tensors(tmp_path / 'ours')
    assert set(before) == set(after)
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    again, told = getattr(transformers, kind).from_pretrained(tmp_path / 'ours', output_loading_info=True)
    assert not any(told.values()), told
    ids = torch.tensor(inputs()[0], dtype=torch.long)
    with torch.no_grad():
        logits = [each(input_ids=ids, decoder_input_ids=ids).logits for each in (theirs(family), again.eval())]
    assert torch.equal(*logits)


def write_json(folder: pathlib.Path, **fields) -> pathlib.Path:
    """A directory with the T5 1.1 case's files, its config.json changed; a field that is `...` is taken out."""
    folder.mkdir()
    values = {**json.loads((saved('T5 1.1') / 'config.json').read_text()), **fields}
    kept = {name: value for name, value in values.items() if value is not ...}
    (folder / 'config.json').write_text(json.dumps(kept))
    (folder / 'model.safetensors').symlink_to(saved('T5 1.1') / 'model.safetensors')
    return folder


def test_config_files_of_earlier_releases(tmp_path):
    """Before release 5, tie_word_embeddings alone said whether logits are scaled."""
    old = write_json(tmp_path / 'old', tie_word_embeddings=False, scale_decoder_outputs=..., n_positions=512)
    assert hugging_face.of_directory(str(old)) == hugging_face.of_directory(str(saved('T5 1.1')))
    first = write_json(tmp_path / 'first', tie_word_embeddings=..., scale_decoder_outputs=...)
    assert hugging_face.of_directory(str(first)).scale == CONFIG.width**-0.5


@pytest.mark.parametrize(
    ('fields', 'said'),
    [
        ({'feed_forward_proj': 'gated-swiglu'}, r'config.json: feed_forward_proj = "gated-swiglu" is not supported'),
        ({'is_encoder_decoder': False}, 'leaves out the encoder'),
        ({'d_model': 0}, 'd_model = 0 is not a positive whole number'),
        ({'scores': 'capped'}, 'scores = "capped" is not known here'),
        ({'d_ff': 39}, r'wi_0.weight is \[40, 24\], not \[39, 24\]'),
        ({'num_layers': 3}, 'encoder.block.2.* is missing'),
        ({'num_layers': 1}, 'encoder.block.1.* is left over'),
    ],
)
def test_what_is_not_supported_or_does_not_fit_is_refused(tmp_path, fields, said):
    folder = write_json(tmp_path / 'changed', **fields)
    with pytest.raises(ValueError, match=said):
        read(folder)


def test_a_model_that_no_family_says_is_refused(tmp_path):
    odd = tiny_t5.model(logit_scale=0.3)
    with pytest.raises(ValueError, match=r'no architecture of transformers .*logit_scale = 0\.3'):
        hugging_face.write_model(odd, tmp_path / 'ours')
    assert not list(tmp_path.iterdir())
