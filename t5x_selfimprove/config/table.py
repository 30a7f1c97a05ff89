"""The one list of parts that gin may name, and the part that each command builds.

A name is the file or folder of the package, then the class. A part is a frozen dataclass that is equal to another of
the same fields; a function that makes one will do too, where the making needs less to be said than the part holds
(the saved configuration then holds the part).
"""

from collections.abc import Callable
from typing import Any

from t5x_selfimprove.ask import Evaluate, SampleRun
from t5x_selfimprove.consolidation import AnswerFormat, GoldAnswer, MajorityVote, Unvoted
from t5x_selfimprove.data import possessions
from t5x_selfimprove.data.curriculum import Curriculum
from t5x_selfimprove.data.few_shot import FewShot
from t5x_selfimprove.data.pool import Pool
from t5x_selfimprove.data.possessions import Possessions
from t5x_selfimprove.data.question_files import Csv, Json, JsonLines, Parquet
from t5x_selfimprove.data.question_lists import QuestionLists
from t5x_selfimprove.data.seqio_tasks import SeqioTask
from t5x_selfimprove.data.stored_paths import StoredPaths
from t5x_selfimprove.data.tasks import TaskFile
from t5x_selfimprove.data.text_file import TextFile
from t5x_selfimprove.evaluate import Evaluation
from t5x_selfimprove.export import Export
from t5x_selfimprove.feed import Feed
from t5x_selfimprove.formats import LessonFormat
from t5x_selfimprove.generate import GenerateExemplars, GenerateQuestions, Lists
from t5x_selfimprove.guards import Guards
from t5x_selfimprove.improve import Recipe
from t5x_selfimprove.learning.lessons import Packing
from t5x_selfimprove.learning.optimizers import Adafactor, AdamW, Schedule
from t5x_selfimprove.learning.supervised import Supervised
from t5x_selfimprove.make_vocabulary import MakeVocabulary
from t5x_selfimprove.models import hugging_face
from t5x_selfimprove.models.adapters import LowRank
from t5x_selfimprove.models.config import Experts, Rope, TransformerConfig
from t5x_selfimprove.models.encoder_decoder_config import EncoderDecoderConfig
from t5x_selfimprove.partitioning import MeshShape
from t5x_selfimprove.precompile import Precompile
from t5x_selfimprove.pretrain import Pretrain
from t5x_selfimprove.processes import Patience
from t5x_selfimprove.sampling.adaptive import Adaptive
from t5x_selfimprove.sampling.sampler import Sampler
from t5x_selfimprove.sampling.transforms import MinP, NoRepeatedNgram, RepetitionPenalty, TopK, TopP
from t5x_selfimprove.sampling.two_stage import TwoStage, two_stage
from t5x_selfimprove.session import Place
from t5x_selfimprove.suite import OutOfDomain
from t5x_selfimprove.sweep import Sweep
from t5x_selfimprove.templates import ChatTemplate, Template, Variants, of_task
from t5x_selfimprove.train import Improve
from t5x_selfimprove.vocabulary import (
    ByteVocabulary,
    HuggingFaceVocabulary,
    Placeholder,
    SentencePieceVocabulary,
    WordVocabulary,
    of_directory,
)

TABLE: dict[str, Callable[..., Any]] = {
    'ask.Evaluate': Evaluate,
    'ask.SampleRun': SampleRun,
    'consolidation.AnswerFormat': AnswerFormat,
    'consolidation.GoldAnswer': GoldAnswer,
    'consolidation.MajorityVote': MajorityVote,
    'consolidation.Unvoted': Unvoted,
    'data.Csv': Csv,
    'data.Curriculum': Curriculum,
    'data.FewShot': FewShot,
    'data.Json': Json,
    'data.JsonLines': JsonLines,
    'data.Parquet': Parquet,
    'data.Pool': Pool,
    'data.Possessions': Possessions,
    'data.QuestionLists': QuestionLists,
    'data.SeqioTask': SeqioTask,
    'data.TaskFile': TaskFile,
    'data.StoredPaths': StoredPaths,
    'data.TextFile': TextFile,
    'data.possessions_vocabulary': possessions.vocabulary,
    'evaluate.Evaluation': Evaluation,
    'export.Export': Export,
    'formats.LessonFormat': LessonFormat,
    'generate.GenerateExemplars': GenerateExemplars,
    'generate.GenerateQuestions': GenerateQuestions,
    'generate.Lists': Lists,
    'guards.Guards': Guards,
    'improve.Recipe': Recipe,
    'learning.AdamW': AdamW,
    'learning.Adafactor': Adafactor,
    'learning.Packing': Packing,
    'learning.Schedule': Schedule,
    'learning.Supervised': Supervised,
    'make_vocabulary.MakeVocabulary': MakeVocabulary,
    'models.EncoderDecoderConfig': EncoderDecoderConfig,
    'models.Experts': Experts,
    'models.LowRank': LowRank,
    'models.Rope': Rope,
    'models.TransformerConfig': TransformerConfig,
    'models.of_directory': hugging_face.of_directory,
    'partitioning.MeshShape': MeshShape,
    'precompile.Precompile': Precompile,
    'pretrain.Pretrain': Pretrain,
    'processes.Patience': Patience,
    'sampling.Adaptive': Adaptive,
    'sampling.MinP': MinP,
    'sampling.NoRepeatedNgram': NoRepeatedNgram,
    'sampling.RepetitionPenalty': RepetitionPenalty,
    'sampling.Sampler': Sampler,
    'sampling.TopK': TopK,
    'sampling.TopP': TopP,
    'sampling.TwoStage': TwoStage,
    'sampling.two_stage': two_stage,
    'session.Place': Place,
    'suite.OutOfDomain': OutOfDomain,
    'sweep.Sweep': Sweep,
    'templates.ChatTemplate': ChatTemplate,
    'templates.Template': Template,
    'templates.Variants': Variants,
    'templates.of_task': of_task,
    'feed.Feed': Feed,
    'train.Improve': Improve,
    'vocabulary.ByteVocabulary': ByteVocabulary,
    'vocabulary.HuggingFaceVocabulary': HuggingFaceVocabulary,
    'vocabulary.Placeholder': Placeholder,
    'vocabulary.SentencePieceVocabulary': SentencePieceVocabulary,
    'vocabulary.WordVocabulary': WordVocabulary,
    'vocabulary.of_directory': of_directory,
}

ROOTS = {
    'vocabulary': 'make_vocabulary.MakeVocabulary',
    'pretrain': 'pretrain.Pretrain',
    'improve': 'train.Improve',
    'precompile': 'precompile.Precompile',
    'evaluate': 'ask.Evaluate',
    'sample': 'ask.SampleRun',
    'questions': 'generate.GenerateQuestions',
    'exemplars': 'generate.GenerateExemplars',
    'export': 'export.Export',
    'sweep': 'sweep.Sweep',
}

# Said before the bindings of the command line: these commands take the gin files of another.
IMPLIED = {'precompile': ('precompile.Precompile.improve=@train.Improve()',)}
