"""The vocabulary of a checkpoint on disk, and whether the checkpoint's embedding has a row for each of its tokens."""

from pathlib import Path

from t5x_selfimprove.vocabulary import hugging_face
from t5x_selfimprove.vocabulary.hugging_face import HuggingFaceVocabulary
from t5x_selfimprove.vocabulary.sentencepieces import SentencePieceVocabulary
from t5x_selfimprove.vocabulary.spelled import Spelled, Vocabulary

SENTENCEPIECE_FILES = ('tokenizer.model', 'spiece.model')


def of_directory(path: str) -> Spelled:
    """The vocabulary in a checkpoint's directory: its tokenizer.json, else its SentencePiece model.

    Args:
      path: of the directory.

    Raises:
      FileNotFoundError: there is no such directory, or neither file in it; says what was looked for.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f'path = {path!r} is no directory (working directory {Path.cwd()})')
    if (folder / hugging_face.FILE).is_file():
        return HuggingFaceVocabulary(path)
    for name in SENTENCEPIECE_FILES:
        if (folder / name).is_file():
            return SentencePieceVocabulary(str(Path(path) / name))
    looked = ', '.join((hugging_face.FILE, *SENTENCEPIECE_FILES))
    there = ', '.join(sorted(file.name for file in folder.iterdir())[:20]) or 'nothing'
    raise FileNotFoundError(
        f'path = {path!r} has no tokenizer that can be read: looked for {looked}; found {there}. Other formats '
        '(vocab.json with merges.txt, tiktoken) become a tokenizer.json when transformers loads them '
        '(AutoTokenizer.from_pretrained) and saves them (save_pretrained)'
    )


def check_fits(vocabulary: Vocabulary, embedding_rows: int) -> None:
    """Refuses a vocabulary with more tokens than a model's embedding has rows.

    More rows than tokens are usual (Qwen, T5): they round the embedding up, and no token stands for them.

    Raises:
      ValueError: too few rows; names the file and the numbers.
    """
    if vocabulary.size <= embedding_rows:
        return
    if isinstance(vocabulary, HuggingFaceVocabulary):
        which = str(vocabulary.file)
    else:
        which = vocabulary.path if isinstance(vocabulary, SentencePieceVocabulary) else f'({vocabulary.name})'
    raise ValueError(
        f'the vocabulary {which} has {vocabulary.size:,} tokens and the embedding of the model {embedding_rows:,} '
        f'rows: tokens {embedding_rows:,} to {vocabulary.size - 1:,} have none. Use the tokenizer that belongs to the '
        'checkpoint (tokens were added to this one), or resize the embedding and save the checkpoint again '
        '(transformers: model.resize_token_embeddings(len(tokenizer)))'
    )
