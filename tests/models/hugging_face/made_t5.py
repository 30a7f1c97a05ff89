"""Small checkpoints of the families of encoder-decoders, made by transformers from a config and random numbers."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from t5x_selfimprove.models import hugging_face
from t5x_selfimprove.models.encoder_decoder import EncoderDecoder
from t5x_selfimprove.models.encoder_decoder_config import EncoderDecoderConfig

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
torch.set_num_threads(1)

VOCABULARY = 64
CONFIG = EncoderDecoderConfig(
    width=24, encoder_layers=2, decoder_layers=3, heads=3, head_size=8, feed_forward=40, buckets=16, furthest=20
)

# Before 5.24, transformers 5 scales the logits of every UMT5, whatever its config says.
UMT5_SCALE = 1.0 if hasattr(transformers.UMT5Config(), 'scale_decoder_outputs') else CONFIG.width**-0.5


@dataclasses.dataclass(frozen=True)
class Case:
    """A family: its name in transformers, and what is special to it there and here."""

    kind: str
    theirs: dict[str, Any]
    ours: dict[str, Any]


CASES = {
    't5 1.1': Case('T5', {}, {}),
    't5': Case(
        'T5',
        {'feed_forward_proj': 'relu', 'tie_word_embeddings': True},
        {'activation': 'relu', 'gated': False, 'tied': True},
    ),
    'mt5': Case('MT5', {'layer_norm_epsilon': 1e-5}, {'norm_epsilon': 1e-5}),
    'ul2': Case('T5', {'feed_forward_proj': 'gated-silu'}, {'activation': 'silu'}),
    'umt5': Case('UMT5', {}, {'bias_per_layer': True, 'logit_scale': UMT5_SCALE}),
}


@functools.cache
def make(name: str) -> Any:
    """A small random model of transformers; its output embedding is its own where the family's is."""
    torch.manual_seed(0)
    case = CASES[name]
    settings = {'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False, **case.theirs}
    config = getattr(transformers, f'{case.kind}Config')(
        vocab_size=VOCABULARY, d_model=CONFIG.width, d_kv=CONFIG.head_size, d_ff=CONFIG.feed_forward,
        num_layers=CONFIG.encoder_layers, num_decoder_layers=CONFIG.decoder_layers, num_heads=CONFIG.heads,
        relative_attention_num_buckets=CONFIG.buckets, relative_attention_max_distance=CONFIG.furthest,
        decoder_start_token_id=0, **settings,
    )  # fmt: skip
    model = getattr(transformers, f'{case.kind}ForConditionalGeneration')(config).eval()
    model.generation_config.eos_token_id = None  # no token ends a text
    with torch.no_grad():
        if not our_config(name).tied:
            model.lm_head.weight = torch.nn.Parameter(torch.randn(VOCABULARY, CONFIG.width))
        for parameter_name, parameter in model.named_parameters():
            if 'bias' in parameter_name:
                parameter.normal_()  # else distances hardly matter
            elif 'norm' in parameter_name:
                parameter.normal_(1.0, 0.1)
            elif parameter_name.endswith('o.weight'):
                parameter.mul_(4)  # else a token is followed by itself
    return model


def our_config(name: str) -> EncoderDecoderConfig:
    """The configuration that a case's directory should be read as, but for what the file alone says."""
    return dataclasses.replace(CONFIG, **CASES[name].ours)


def save(name: str, folder: pathlib.Path) -> pathlib.Path:
    """The directory of a case, as transformers writes it."""
    make(name).save_pretrained(folder)
    return folder


def read(folder: pathlib.Path) -> EncoderDecoder:
    """Our model of a directory."""
    config = hugging_face.of_directory(str(folder))
    return hugging_face.read_model(folder, jax.eval_shape(lambda: config.create(VOCABULARY, jax.random.key(0))))


def tokens(rows: int, time: int, seed: int) -> np.ndarray:
    """Random token ids."""
    return np.random.default_rng(seed).integers(2, VOCABULARY, (rows, time)).astype(np.int32)


def torch_logits(model: Any, prompts: np.ndarray, seen: np.ndarray, completions: np.ndarray) -> np.ndarray:
    """Logits [B, T, V] of transformers; `completions` begin with the start token."""
    with torch.no_grad():
        found = model(
            input_ids=torch.tensor(prompts, dtype=torch.long),
            attention_mask=torch.tensor(seen, dtype=torch.long),
            decoder_input_ids=torch.tensor(completions, dtype=torch.long),
        )
    return found.logits.float().numpy()


def torch_greedy(model: Any, prompts: np.ndarray, seen: np.ndarray, steps: int) -> np.ndarray:
    """The likeliest token after another, [B, steps], of transformers."""
    found = model.generate(
        torch.tensor(prompts, dtype=torch.long),
        attention_mask=torch.tensor(seen, dtype=torch.long),
        max_new_tokens=steps,
        do_sample=False,
        use_cache=False,  # their cache has as many layers as the encoder
    )
    return found[:, 1:].numpy()
