"""What a model writes for itself: new questions, and the exemplars of a few-shot prompt (Huang et al. 2022,
arXiv:2210.11610, section 5.3)."""

import dataclasses
import functools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from t5x_selfimprove import files
from t5x_selfimprove.ask import ask
from t5x_selfimprove.checkpoints import describe_model, read_model
from t5x_selfimprove.consolidation import MajorityVote
from t5x_selfimprove.data import store
from t5x_selfimprove.data.items import Bank, Unlabelled, check_banks, encode_questions, make_item
from t5x_selfimprove.display import Display
from t5x_selfimprove.models import decoding
from t5x_selfimprove.models.config import ModelConfig
from t5x_selfimprove.sampling.sampler import Sampler
from t5x_selfimprove.session import check_writable
from t5x_selfimprove.templates import SLOT, Template
from t5x_selfimprove.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Lists:
    """Prompts that are lists of questions, which a model goes on with.

        before a mark before b mark before        a, b: seeds, drawn anew for every prompt and in an order of their own

    Attributes:
      shots: seeds of a prompt.
      before: text before every question.
      mark: text that a question ends with; what of it is no space is of the question.
    """

    shots: int = 4
    before: str = 'Q: '
    mark: str = '\n'

    def __post_init__(self):
        if self.shots < 1 or not self.mark:
            raise ValueError(f'Lists needs shots of at least 1 and a mark; they are {self.shots}, {self.mark!r}')

    def prompt(self, seeds: Sequence[str], draw: random.Random) -> str:
        """The text of one prompt.

        Raises:
          ValueError: there are fewer seeds than shots.
        """
        if len(seeds) < self.shots:
            raise ValueError(f'{len(seeds)} seeds are too few for prompts of {self.shots}; lower shots')
        ending = self.mark.strip()
        listed = [question.strip().removesuffix(ending).strip() for question in draw.sample(list(seeds), self.shots)]
        return ''.join(f'{self.before}{question}{self.mark}' for question in listed) + self.before.rstrip()

    def question(self, continuation: str) -> str | None:
        """The first question that the model went on with; None where it did not come to its end."""
        text, mark, _ = continuation.partition(self.mark)
        if not mark or not text.strip():
            return None
        return text.strip() + self.mark.strip()


@dataclasses.dataclass(frozen=True)
class GenerateQuestions:
    """Lets a model continue lists of questions, and writes the new ones on which its own vote is confident.

    Written is a JSON-lines file that `data.JsonLines` reads: question, answer of the vote, vote share. Left out are
    continuations without end, questions that are seeds or were written before, those that the vocabulary cannot spell,
    those longer than `question_room` and those of which the consolidator keeps no path. Each is counted. The paper does
    not say its threshold; here it is that of the consolidator (`min_share`).

    Raises:
      ValueError: a size below 1.
    """

    vocabulary: Vocabulary
    model: ModelConfig
    initial: str  # run directory, or Hugging Face directory, of the model
    seeds: Bank  # the first `seed_count` questions of it; labels are not read
    lists: Lists
    sampler: Sampler  # of continuations; `samples` a list
    prompt: Template  # put round a new question, for the vote
    vote_sampler: Sampler
    consolidator: MajorityVote
    output: str
    question_room: int  # tokens of the longest question
    seed_count: int = 10
    prompts: int = 64  # lists to be continued
    per_batch: int = 16  # lists, and questions of the vote, at a time
    seed: int = 0

    def __post_init__(self):
        sizes = {name: vars(self)[name] for name in ('question_room', 'seed_count', 'prompts', 'per_batch')}
        if min(sizes.values()) < 1:
            raise ValueError(f'sizes must be at least 1; they are {sizes}')

    def run(self, config: str) -> dict[str, int]:
        """Writes the questions. Raises ValueError or OSError on bad input, before anything long starts."""
        del config
        display = Display()
        check_banks(self.seeds)
        check_writable(Path(self.output).parent)
        seeds = [item.question for item in Unlabelled(self.seeds).take(0, self.seed_count)]
        describe_model(self.initial, self.vocabulary)
        model = read_model(self.initial, self.model.create(self.vocabulary.size, jax.random.key(0)))
        with display.phase('generate', f'continuing {self.prompts} lists of {self.lists.shots} questions'):
            written = self.continuations(model, seeds)
        found, counts = self.new_questions(written, seeds)
        with display.phase('vote', f'voting on {len(found)} new questions'):
            confident = self.confident(model, found)
        files.write_json_lines(Path(self.output), confident)
        counts |= {'not confident': len(found) - len(confident), 'written': len(confident)}
        display.say(', '.join(f'{name} {count:,}' for name, count in counts.items()))
        display.say(f'written: {self.output}')
        return counts

    def continuations(self, model: Any, seeds: list[str]) -> list[str]:
        """What the model wrote behind every list."""
        draw = random.Random(self.seed)
        # Lists repeat where seeds are few, and draws hang on ids: numbered, each list is continued in its own way.
        items = [
            dataclasses.replace(make_item(self.lists.prompt(seeds, draw)), id=f'{number:016x}')
            for number in range(self.prompts)
        ]
        room = max(len(self.vocabulary.encode(item.question)) for item in items)
        plain, frozen = Template(self.vocabulary), _laid_out(model, self.sampler)

        @jax.jit
        def continued(frozen: Any, questions: Any, key: jax.Array) -> Any:
            return self.sampler(frozen, plain(questions), key)

        texts = []
        for start in range(0, self.prompts, self.per_batch):
            part = items[start : start + self.per_batch]
            arrays, _ = encode_questions(part, self.vocabulary, room, count=self.per_batch)
            samples = jax.device_get(continued(frozen, arrays, jax.random.key(self.seed)))
            rows = len(part) * self.sampler.samples
            texts += [self.vocabulary.decode(samples.tokens[row][samples.mask[row]]) for row in range(rows)]
        return texts

    def new_questions(self, written: list[str], seeds: list[str]) -> tuple[list[str], dict[str, int]]:
        """The questions among continuations that are new, and how many there were of the others."""
        known, found = {one.strip() for one in seeds}, []
        counts = {'continuations': len(written), 'without end': 0, 'known': 0, 'not spelled': 0, 'too long': 0}
        for text in written:
            question = self.lists.question(text)
            if question is None:
                counts['without end'] += 1
            elif question in known:
                counts['known'] += 1
            elif (tokens := self.tokens_of(question)) is None:
                counts['not spelled'] += 1
            elif tokens > self.question_room:
                counts['too long'] += 1
            else:
                known.add(question)
                found.append(question)
        return found, counts

    def tokens_of(self, question: str) -> int | None:
        """Tokens of a question; None where the vocabulary, one of words, cannot spell its text again."""
        try:
            return len(self.vocabulary.encode(question))
        except ValueError:
            return None

    def confident(self, model: Any, questions: list[str]) -> list[dict[str, Any]]:
        """Those of which the consolidator keeps a path, with their vote."""
        items = [make_item(question) for question in questions]
        frozen = _laid_out(model, self.vote_sampler)

        @jax.jit
        def voted(frozen: Any, arrays: Any, key: jax.Array) -> Any:
            samples = self.vote_sampler(frozen, self.prompt(arrays), key)
            verdict = self.consolidator(frozen, arrays, samples, key)
            return verdict.chosen, verdict.share, verdict.keep.reshape(self.per_batch, -1).max(axis=1)

        found = []
        for start in range(0, len(items), self.per_batch):
            part = items[start : start + self.per_batch]
            form = self.consolidator.answers
            arrays, _ = encode_questions(part, self.vocabulary, self.question_room, form, count=self.per_batch)
            chosen, share, keep = jax.device_get(voted(frozen, arrays, jax.random.key(self.seed)))
            for row, item in enumerate(part):
                if keep[row] > 0:
                    answer = store.spelled(chosen[row])
                    found.append({'question': item.question, 'answer': answer, 'share': round(float(share[row]), 4)})
        return found


def _laid_out(model: Any, sampler: Sampler) -> Any:
    """The model as the sampler takes it, made once for all batches."""
    return jax.jit(functools.partial(decoding.for_sampling, weights=sampler.weights))(model)


@dataclasses.dataclass(frozen=True)
class GenerateExemplars:
    """Lets a model answer some questions step by step, and writes them as the exemplars of a few-shot prompt.

    The model answers greedily after a prompt without exemplars; answers that cannot be read, or that did not come to
    an end, are left out. Written is a gin file that sets `templates.Template.text`, for the runs that are to use it.

    Raises:
      ValueError: fewer than one exemplar is asked for, or a layout without its slots.
    """

    vocabulary: Vocabulary
    model: ModelConfig
    initial: str  # run directory, or Hugging Face directory, of the model
    questions: Bank  # labels are not read
    prompt: Template  # without exemplars, such as "Q: {question}\nA: Let's think step by step."
    sampler: Sampler  # its number of samples and temperature are not used
    consolidator: MajorityVote  # says how answers are read
    output: str  # the gin file
    exemplars: int = 4
    tried: int = 16  # questions that are answered; the first exemplars of them are taken
    layout: str = 'Q: {question}\nA:{path}\n\n'  # of an exemplar
    ending: str = 'Q: {question}\nA:'  # of the prompt

    def __post_init__(self):
        if not 1 <= self.exemplars <= self.tried:
            raise ValueError(f'exemplars must be in 1..tried = {self.tried}; it is {self.exemplars}')
        if self.layout.count(SLOT) != 1 or self.layout.count('{path}') != 1 or self.ending.count(SLOT) != 1:
            raise ValueError(
                f'layout needs {SLOT} and {{path}} once, and ending {SLOT}; they are {self.layout!r}, {self.ending!r}'
            )

    def run(self, config: str) -> str:
        """Writes the file; returns the text of the prompt.

        Raises:
          ValueError: too few answers could be read; or bad input, before anything long starts.
          OSError: bad input.
        """
        del config
        display = Display()
        check_banks(self.questions)
        check_writable(Path(self.output).parent)
        describe_model(self.initial, self.vocabulary)
        model = read_model(self.initial, self.model.create(self.vocabulary.size, jax.random.key(0)))
        questions = [item.question for item in Unlabelled(self.questions).take(0, self.tried)]
        greedy = dataclasses.replace(self.sampler, samples=1, temperature=0.0)
        with display.phase('answer', f'answering {self.tried} questions'):
            parts = {'prompt': self.prompt, 'sampler': greedy, 'consolidator': self.consolidator}
            told = [one.stored for one in ask(model, self.vocabulary, questions, **parts)]
        good = [one for one in told if one['votes'] > 0]
        if len(good) < self.exemplars:
            raise ValueError(
                f'of {self.tried} questions {len(good)} were answered so that it can be read, and {self.exemplars} are '
                'needed: raise tried, or change the prompt'
            )
        text = self.text(good[: self.exemplars])
        files.write_text(
            Path(self.output),
            f'# {self.exemplars} exemplars, written by {self.initial}\ntemplates.Template.text = {text!r}\n',
        )
        display.say(f'{len(good)} of {self.tried} answers could be read; {self.exemplars} are exemplars')
        display.say(f'written: {self.output}')
        return text

    def text(self, answered: list[dict[str, Any]]) -> str:
        """The prompt with these questions and their paths as exemplars."""
        shown = [
            self.layout.replace(SLOT, one['question'].strip()).replace('{path}', one['paths'][0]['text'].rstrip())
            for one in answered
        ]
        return ''.join(shown) + self.ending
