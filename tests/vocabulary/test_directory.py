"""The vocabulary of a checkpoint's directory, and whether the embedding has rows for it."""

import operator
import pathlib
import shutil

import pytest
import transformers

from t5x_selfimprove.vocabulary import (
    ByteVocabulary,
    HuggingFaceVocabulary,
    SentencePieceVocabulary,
    check_fits,
    encode_following,
    of_directory,
)
from tests.vocabulary import made


def test_tokenizer_json_comes_first(tmp_path, of_family, llama_pieces):
    with pytest.raises(FileNotFoundError, match=r'is no directory'):
        of_directory(str(tmp_path / 'none'))
    (tmp_path / 'vocab.json').write_text('{}', encoding='utf-8')
    looked = r'looked for tokenizer\.json, tokenizer\.model, spiece\.model; found vocab\.json\. Other formats'
    with pytest.raises(FileNotFoundError, match=looked):
        of_directory(str(tmp_path))
    for name in ('spiece.model', 'tokenizer.model'):
        shutil.copy(llama_pieces.path, tmp_path / name)
        found = of_directory(str(tmp_path))
        assert found == SentencePieceVocabulary(str(tmp_path / name))
        assert found.fingerprint() == llama_pieces.fingerprint()
    shutil.copytree(of_family('gemma').path, tmp_path, dirs_exist_ok=True)
    assert of_directory(str(tmp_path)) == HuggingFaceVocabulary(str(tmp_path))


def test_an_embedding_may_have_more_rows_than_tokens_but_not_fewer(of_family, llama_pieces):
    vocabulary = of_family('gemma')
    size = vocabulary.size
    check_fits(vocabulary, size)
    check_fits(vocabulary, size + 64)
    said = rf'vocabulary .*gemma.*tokenizer\.json has {size} tokens and the embedding of the model {size - 2} rows: '
    with pytest.raises(ValueError, match=rf'{said}tokens {size - 2} to {size - 1} have none\. Use the tokenizer'):
        check_fits(vocabulary, size - 2)
    with pytest.raises(ValueError, match=r'tokenizer\.model has 330 tokens'):
        check_fits(llama_pieces, 300)
    with pytest.raises(ValueError, match=r'vocabulary \(bytes\) has 259 tokens'):
        check_fits(ByteVocabulary(), 256)


@pytest.mark.parametrize('family', ['llama', 't5'])
def test_what_transformers_converts_is_read_as_the_sentencepiece_model_is(family, tmp_path, llama_pieces):
    if family == 'llama':
        kind, name, model = transformers.LlamaTokenizer, 'tokenizer.model', pathlib.Path(llama_pieces.path).read_bytes()
    else:
        kind, name, model = transformers.T5Tokenizer, 'spiece.model', made.t5_pieces()
    (tmp_path / name).write_bytes(model)
    pieces = of_directory(str(tmp_path))
    kind.from_pretrained(str(tmp_path)).save_pretrained(str(tmp_path / 'converted'))
    converted = of_directory(str(tmp_path / 'converted'))
    assert isinstance(pieces, SentencePieceVocabulary) and isinstance(converted, HuggingFaceVocabulary)
    assert converted.eos_id == pieces.eos_id and converted.adds_space and pieces.adds_space
    same = [*map(operator.eq, converted.token_bytes(), pieces.token_bytes())]
    assert all(same[1:])  # 0 is the unknown token of the one, and stands for padding in the other
    for text in made.LESSONS[::5]:
        assert converted.encode(text) == pieces.encode(text)
        assert encode_following(converted, text) == encode_following(pieces, text)
