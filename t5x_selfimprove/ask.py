"""Evaluating and asking a trained model, outside a run of training."""

import collections
import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from t5x_selfimprove import files, processes
from t5x_selfimprove.checkpoints import describe_model, read_model
from t5x_selfimprove.consolidation import AnswerFormat, MajorityVote
from t5x_selfimprove.data import store
from t5x_selfimprove.data.items import check_banks, encode_questions, make_item
from t5x_selfimprove.display import Display, percent
from t5x_selfimprove.evaluate import Evaluation
from t5x_selfimprove.feed import Feed
from t5x_selfimprove.harness import harness_results
from t5x_selfimprove.improve import Consolidator
from t5x_selfimprove.models import decoding
from t5x_selfimprove.models.config import ModelConfig
from t5x_selfimprove.records import Questions, Samples, Verdict
from t5x_selfimprove.sampling.sampler import Sampler
from t5x_selfimprove.session import Place, Session, check_writable
from t5x_selfimprove.suite import OutOfDomain, Suite, open_suites
from t5x_selfimprove.templates import Template
from t5x_selfimprove.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measures the model of a run directory on labelled questions.

    All that it writes, evaluation.json first of all, goes to `evaluation` in the place's directory: the record of a
    run of training that may be there stays as it is.
    """

    place: Place
    vocabulary: Vocabulary
    model: ModelConfig
    initial: str  # run directory, or Hugging Face directory, of the model
    evaluation: Evaluation
    evaluation_questions: Feed
    out_of_domain: tuple[OutOfDomain, ...] = ()  # further suites, side by side with those questions
    stored_questions: int | None = None  # whose paths are written to the sample store; None = all

    def run(self, config: str) -> dict[str, Any]:
        """Measures once. Raises ValueError or OSError on bad input, before anything long starts."""
        self.place.devices()  # before anything else wakes jax up
        left_out = check_banks(self.evaluation_questions.bank, *(one.questions.bank for one in self.out_of_domain))
        described = describe_model(self.initial, self.vocabulary)
        place = dataclasses.replace(self.place, directory=str(Path(self.place.directory, 'evaluation')))
        with Session(place, config) as session:
            state = session.place_state(lambda: _Holder.create(self.model, self.vocabulary))
            state = _Holder(read_model(self.initial, state.model))
            session.announce('evaluate', state, {'model': f'{self.initial}, step {described.step:,}', **left_out})
            asked = self.evaluation, self.evaluation_questions, self.out_of_domain
            suites = open_suites(session, self.vocabulary, *asked, self.stored_questions)
            number = described.manifest.get('round', 0)
            found = {suite.name: suite.measure(state.model, number) for suite in suites}
            self.write(session, suites, found, described.step)
        return found[suites[0].name]

    def write(self, session: Session, suites: list[Suite], found: dict[str, dict[str, Any]], step: int) -> None:
        """Writes evaluation.json and results.json, and prints the table."""
        model = {'model': self.initial, 'step': step}
        first, *others = (suite.name for suite in suites)
        rest = {'suites': {name: found[name] for name in others}} if others else {}
        kinds = {suite.name: suite.evaluation.consolidator.answers.kind for suite in suites}
        if processes.first():
            files.write_json(session.directory / 'evaluation.json', {**model, **found[first], **rest})
            files.write_json(session.directory / 'results.json', harness_results(found, kinds, model))
        session.display.table('per cent [95 % interval]', *evaluation_table(found))
        session.display.say(f'written: {session.directory / "evaluation.json"}, results.json beside it')


def evaluation_table(found: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of suites side by side, a column each."""
    names = {
        'standard_accuracy': 'standard',
        'greedy_accuracy': 'greedy',
        'majority_accuracy': 'majority',
        'weighted_accuracy': 'weighted vote',
        'maj_at_k': 'maj@',
        'pass_at_k': 'pass@',
        'answered': 'answered',
        'truncated': 'truncated',
        'calibration_error': 'calibration error',
        'brier': 'Brier score',
    }
    rows: dict[str, dict[str, str]] = {}
    for suite, one in found.items():
        told = [(names[name], one[name]) for name in names if name in one and not name.endswith('_at_k')]
        told += [(f'{names[name]}{k}', value) for name in ('maj_at_k', 'pass_at_k') for k, value in one[name].items()]
        for name, value in told:
            rows.setdefault(name, {})[suite] = percent(value)
        rows.setdefault('questions', {})[suite] = f'{one["questions"]:,}'
    return ['', *found], [[name, *(cells.get(suite, '-') for suite in found)] for name, cells in rows.items()]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Holder:
    """A model where a state is expected."""

    model: Any

    @classmethod
    def create(cls, config: ModelConfig, vocabulary: Vocabulary) -> '_Holder':
        return cls(config.create(vocabulary.size, jax.random.key(0)))


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question, its N paths and their vote."""

    stored: dict[str, Any]  # as the sample store writes it, with all that is known of each path

    @property
    def question(self) -> str:
        return self.stored['question']

    @property
    def chosen(self) -> str:
        """The consolidated answer, canonical; '' where there is none (no path answered, or a tie)."""
        return self.stored['chosen']

    @property
    def share(self) -> float:
        """The share of an answer in the lead, 0..1, of what the consolidator takes shares of."""
        return self.stored['share']

    @property
    def texts(self) -> list[str]:
        """The N paths."""
        return [path['text'].strip() for path in self.stored['paths']]

    @property
    def answers(self) -> list[str | None]:
        """The canonical answer of each path, None where it has none."""
        return [path['answer'] if path['found'] else None for path in self.stored['paths']]

    @property
    def votes(self) -> dict[str | None, int]:
        """How many paths have each answer (None: no answer), the most first."""
        return dict(collections.Counter(self.answers).most_common())


def ask(
    model: Any,
    vocabulary: Vocabulary,
    questions: list[str],
    n: int | None = None,
    *,
    prompt: Template | None = None,
    sampler: Sampler | None = None,
    consolidator: Consolidator | None = None,
    room: int | None = None,
    seed: int = 0,
) -> list[Asked]:
    """Asks a model questions, N times each, and has the paths vote.

    Asked again with parts that are equal and questions that are as many and fit in the same room, nothing is compiled.

    Args:
      model: the parameters.
      vocabulary: of the model.
      questions: texts.
      n: paths a question; None takes the sampler's (16 without one).
      prompt: put round each question; None asks it as it is.
      sampler: of the paths; None draws at temperature 1, at most 256 tokens.
      consolidator: of the vote; None takes the majority of the numbers behind "The answer is".
      room: tokens of the longest question; None measures them.
      seed: of the draws.

    Raises:
      ValueError: a question is longer than the room, or cannot be spelled in the vocabulary; a part is of another one.
    """
    prompt = prompt or Template(vocabulary)
    sampler = sampler or Sampler(vocabulary, max_tokens=256)
    consolidator = consolidator or MajorityVote(AnswerFormat(vocabulary))
    parts = {'prompt': prompt, 'sampler': sampler, "consolidator's answers": consolidator.answers}
    others = [name for name, part in parts.items() if part.vocabulary != vocabulary]
    if others:
        raise ValueError(f'{" and ".join(others)} have another vocabulary than {vocabulary.name}, which was given')
    sampler = sampler if n is None else dataclasses.replace(sampler, samples=n)
    items = [make_item(question) for question in questions]
    room = room or max(len(vocabulary.encode(question)) for question in questions)
    arrays, _ = encode_questions(items, vocabulary, room, consolidator.answers)
    samples, verdict = jax.device_get(_draw(model, arrays, seed, prompt, sampler, consolidator))
    return [Asked(line) for line in store.lines(items, samples, verdict, vocabulary, labels=False)]


@functools.partial(jax.jit, static_argnames=('prompt', 'sampler', 'consolidator'))
def _draw(
    model: Any, questions: Questions, seed: int, prompt: Template, sampler: Sampler, consolidator: Consolidator
) -> tuple[Samples, Verdict]:
    key = jax.random.key(seed)
    samples = sampler(decoding.for_sampling(model, sampler.weights), prompt(questions), key)
    return samples, consolidator(model, questions, samples, key)


@dataclasses.dataclass(frozen=True)
class SampleRun:
    """Asks the model of a run directory questions, typed or from a file, and shows the vote.

    Raises:
      ValueError: neither or both of `ask` and `file` are given.
    """

    vocabulary: Vocabulary
    model: ModelConfig
    initial: str  # run directory, or Hugging Face directory, of the model
    prompt: Template
    sampler: Sampler
    consolidator: Consolidator
    ask: tuple[str, ...] = ()  # questions, typed
    file: str | None = None  # or a text file with one question a line
    seed: int = 0
    output: str | None = None  # JSON file for all paths; None shows the votes alone
    shown_paths: int = 3  # paths printed a question

    def __post_init__(self):
        if bool(self.ask) == bool(self.file):
            raise ValueError(
                f'give questions either typed (ask) or as a file; got ask = {self.ask}, file = {self.file}'
            )

    def questions(self) -> list[str]:
        """The questions. Raises OSError where the file cannot be read, ValueError where it holds none."""
        if not self.file:
            return list(self.ask)
        lines = [line.strip() for line in Path(self.file).read_text(encoding='utf-8').splitlines()]
        if not any(lines):
            raise ValueError(f'{self.file} holds no question; write one a line')
        return [line for line in lines if line]

    def load(self) -> Any:
        """The model. Raises as `read_model` does."""
        return read_model(self.initial, self.model.create(self.vocabulary.size, jax.random.key(0)))

    def run(self, config: str) -> list[dict[str, Any]]:
        """Asks, prints a table, writes JSON where asked to."""
        del config
        display, questions = Display(), self.questions()
        if self.output:
            check_writable(Path(self.output).parent)
        described = describe_model(self.initial, self.vocabulary)
        model = self.load()
        device = jax.devices()[0]
        display.say(f'{self.initial}, step {described.step:,}, on {device.platform} ({device.device_kind})')
        start = time.perf_counter()
        with display.phase('sample', f'sampling {len(questions)} x {self.sampler.samples} paths'):
            parts = {'prompt': self.prompt, 'sampler': self.sampler, 'consolidator': self.consolidator}
            asked = ask(model, self.vocabulary, questions, **parts, seed=self.seed)
        seconds = time.perf_counter() - start
        for one in asked:
            self.show(display, one)
        found = [one.stored for one in asked]
        tokens = int(np.sum([[path['tokens'] for path in entry['paths']] for entry in found]))
        display.say(f'{tokens:,} tokens in {seconds:.1f} s, compilation included')
        if self.output:
            files.write_json(Path(self.output), found)
            display.say(f'written: {self.output}')
        return found

    def show(self, display: Display, asked: Asked) -> None:
        """Prints one question with its votes."""
        rows = [[answer or 'no answer', str(count), percent(count / len(asked.texts), 0)]
                for answer, count in asked.votes.items()]  # fmt: skip
        display.table(asked.question, ['answer', 'paths', 'per cent'], rows)
        for text in asked.texts[: self.shown_paths]:
            display.say(f'  {text}')
