"""SentencePiece vocabularies: training, files, models of other makers."""

import pytest
import sentencepiece

from t5x_selfimprove.vocabulary import SentencePieceVocabulary, encode_following, sentencepieces, spelled
from tests.vocabulary.texts import STORY


def test_sentencepiece_training_is_repeatable(trained, tmp_path):
    texts = [
        f'{STORY} {name} has {n} {thing}.' for n in range(40) for name in ('Anna', 'Ben') for thing in ('cups', 'x')
    ]
    again = SentencePieceVocabulary.train(iter(texts), str(tmp_path / 'again.model'), 300)
    assert again.fingerprint() == trained.fingerprint()
    assert (trained.pad_id, trained.eos_id, trained.bos_id, trained.size) == (0, 1, 2, 300)
    assert [path.name for path in tmp_path.iterdir()] == ['again.model']  # nothing partial stays


def test_sentencepiece_pieces_never_join_digits(tmp_path):
    learnt = SentencePieceVocabulary.train(['year 1205 1205'] * 50, str(tmp_path / 'a.model'), 272, model_type='bpe')
    assert [learnt.token_bytes()[token] for token in learnt.encode('1205')] == [b'1', b'2', b'0', b'5']
    assert b'ye' in b'|'.join(learnt.token_bytes())  # there was room for pieces of more than one character


@pytest.mark.parametrize(
    ('texts', 'size', 'message'),
    [
        ([], 300, 'no text'),
        (['hello world'], 5000, 'could not train 5000 tokens on 1 lines'),
        (['hello'], 100, '260 tokens'),
    ],
)
def test_sentencepiece_training_refuses(tmp_path, texts, size, message):
    with pytest.raises(ValueError, match=message):
        SentencePieceVocabulary.train(texts, str(tmp_path / 'a.model'), size)
    assert not list(tmp_path.iterdir())


def test_sentencepiece_training_uses_all_of_an_overlong_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sentencepieces, '_LINE_PART', 64)
    line = 'plain words ' * 50 + 'zebra ' * 50
    learnt = SentencePieceVocabulary.train([line], str(tmp_path / 'long.model'), 282, model_type='bpe')
    spelled = b'|'.join(learnt.token_bytes())
    assert b'ze' in spelled and b'wo' in spelled


def test_failed_write_leaves_the_old_model(trained, tmp_path, monkeypatch):
    path = tmp_path / 'kept.model'
    path.write_bytes(b'old')

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(sentencepieces.os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'):
        sentencepieces._write_whole(str(path), b'new')
    assert path.read_bytes() == b'old' and [file.name for file in tmp_path.iterdir()] == ['kept.model']


def test_sentencepiece_missing_or_broken_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no SentencePiece model at .*train one with'):
        SentencePieceVocabulary(str(tmp_path / 'none.model')).encode('a')
    (tmp_path / 'broken.model').write_bytes(b'this is no model')
    with pytest.raises(ValueError, match='is not a SentencePiece model'):
        _ = SentencePieceVocabulary(str(tmp_path / 'broken.model')).size
    with pytest.raises(ValueError, match='must be the path'):
        SentencePieceVocabulary('')


def test_foreign_model_that_puts_a_space_first_and_knows_no_bytes(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([STORY] * 10), model_prefix=str(tmp_path / 'foreign'), vocab_size=60,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    foreign = SentencePieceVocabulary(str(tmp_path / 'foreign.model'))
    ids = foreign.encode('The answer')
    assert foreign.bos_id is None
    assert b''.join(foreign.token_bytes()[token] for token in ids) == b' The answer'
    assert foreign.decode(ids) == 'The answer'
    assert '\u2047' in foreign.decode(foreign.encode('The 北 answer'))


def test_a_text_that_follows_has_no_space_before_it(llama_pieces):
    table = llama_pieces.token_bytes()
    for text in (STORY, ' a', '', '\u2581', 'a\u2581b', '.', '0.', '\u0301', '\nAnswer:'):
        assert b''.join(table[token] for token in encode_following(llama_pieces, text)) == text.encode()
        assert llama_pieces.decode(llama_pieces.encode(text)) == text
    assert encode_following(llama_pieces, ' pens') == llama_pieces.encode('pens')
    assert b''.join(table[token] for token in llama_pieces.encode('a\u2581b')) == ' a\u2581b'.encode()


def test_a_space_that_cannot_be_left_out_is_told(llama_pieces, monkeypatch):
    monkeypatch.setattr(spelled, 'MARKS', (' ',))  # in a model that takes every sign together with what follows
    with pytest.raises(ValueError, match="'pens' cannot be encoded without a space before it"):
        encode_following(llama_pieces, 'pens')
