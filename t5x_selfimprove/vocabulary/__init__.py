"""Token ids, special tokens, and the bytes that each token spells.

Every vocabulary is a frozen, hashable value with the same face (`Vocabulary`), so it can be a static argument under
`jit`. Joining the bytes of the tokens gives the text: answers are read on device from that byte stream
(`spelling_table`), so they mean the same thing however a text was cut into tokens.
"""

from t5x_selfimprove.vocabulary.byte_tokens import ByteVocabulary
from t5x_selfimprove.vocabulary.directory import check_fits, of_directory
from t5x_selfimprove.vocabulary.hugging_face import HuggingFaceVocabulary
from t5x_selfimprove.vocabulary.placeholder import Placeholder
from t5x_selfimprove.vocabulary.sentencepieces import SentencePieceVocabulary
from t5x_selfimprove.vocabulary.spelled import Vocabulary, encode_following, encode_preceding, spelling_table, table_of
from t5x_selfimprove.vocabulary.words import WordVocabulary, pieces

__all__ = [
    'ByteVocabulary',
    'HuggingFaceVocabulary',
    'Placeholder',
    'SentencePieceVocabulary',
    'Vocabulary',
    'WordVocabulary',
    'check_fits',
    'encode_following',
    'encode_preceding',
    'of_directory',
    'pieces',
    'spelling_table',
    'table_of',
]
