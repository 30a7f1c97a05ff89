"""Vocabularies made for the tests of this folder."""

import functools

import pytest

from t5x_selfimprove.vocabulary import HuggingFaceVocabulary, SentencePieceVocabulary
from tests.vocabulary import made
from tests.vocabulary.texts import STORY


@pytest.fixture(scope='session')
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp('model') / 'deep' / 'pieces.model'
    texts = [
        f'{STORY} {name} has {n} {thing}.' for n in range(40) for name in ('Anna', 'Ben') for thing in ('cups', 'x')
    ]
    return SentencePieceVocabulary.train(texts, str(path), 300)


@pytest.fixture(scope='session')
def llama_pieces(tmp_path_factory):
    """A model as that of Llama 2: BPE, a space before every text, bytes for what it does not know, no padding."""
    path = tmp_path_factory.mktemp('llama') / 'tokenizer.model'
    return made.llama_pieces(path)


@pytest.fixture(scope='session')
def of_family(tmp_path_factory):
    """Name of a family -> a vocabulary made as its own is."""

    @functools.cache
    def make(family: str) -> HuggingFaceVocabulary:
        folder = tmp_path_factory.mktemp(family)
        return HuggingFaceVocabulary(made.save(made.MAKERS[family](), folder, eos_token=made.EOS.get(family, '</s>')))

    return make
