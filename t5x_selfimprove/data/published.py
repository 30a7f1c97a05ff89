"""How the records of public data sets become questions: one function a data set, for all the forms it is published in.

A function takes a record as plain Python values (of the data set's own file, of the same data as Parquet, of TFDS) and
`labels`, and gives the item. Without labels neither answer nor steps are looked at, so that what stands there, or that
nothing stands there, makes no difference.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from t5x_selfimprove.data.fields import labelled_choices, option_letter, text_at, value_at, with_options
from t5x_selfimprove.data.items import Item, make_item
from t5x_selfimprove.data.record_files import array_of

Read = Callable[[Mapping[str, Any], bool], Item]

CALCULATIONS = re.compile(r'<<.*?>>')  # GSM8K: '48/2 = <<48/2=24>>24'
LONGEST_ANSWER = 200  # bytes that an answer format can read
TELL = ('yes', 'it is not possible to tell', 'no')  # entailment, neutral, contradiction
# Words of American football games, for forms of DROP that do not say where a passage is from.
FOOTBALL = re.compile(r'\b(touchdowns?|field goals?|quarterbacks?|interceptions?|NFL)\b', re.IGNORECASE)


def gsm8k(record: Mapping[str, Any], labels: bool) -> Item:
    """GSM8K (Cobbe et al. 2021, arXiv:2110.14168): the answer is what follows '####' in the solution.

    The solution without that line and without calculator annotations is the rationale.
    """
    question = text_at(record, 'question')
    if not labels:
        return make_item(question)
    solution, mark, answer = text_at(record, 'answer').rpartition('####')
    if not mark or not answer.strip():
        raise ValueError(f"the solution has no '#### answer' at its end: {text_at(record, 'answer')[-60:]!r}")
    return make_item(question, CALCULATIONS.sub('', solution).strip() or None, answer.strip())


def svamp(record: Mapping[str, Any], labels: bool) -> Item:
    """SVAMP (Patel et al. 2021, arXiv:2103.07191): body and question are one text."""
    question = f'{text_at(record, "Body")} {text_at(record, "Question")}'
    return make_item(question, None, _label(record, labels, 'Answer'))


def multiarith(record: Mapping[str, Any], labels: bool) -> Item:
    """MultiArith (Roy and Roth 2015, arXiv:1608.01413): the first of `lSolutions` is the answer."""
    return make_item(text_at(record, 'sQuestion'), None, _label(record, labels, 'lSolutions.0'))


def aqua(record: Mapping[str, Any], labels: bool) -> Item:
    """AQuA-RAT (Ling et al. 2017, arXiv:1705.04146): the answer is the letter in `correct`."""
    letters, texts = labelled_choices(value_at(record, 'options'))
    question = with_options(text_at(record, 'question'), texts)
    if not labels:
        return make_item(question)
    answer = option_letter(text_at(record, 'correct'), letters)
    return make_item(question, text_at(record, 'rationale') or None, answer)


def strategyqa(record: Mapping[str, Any], labels: bool) -> Item:
    """StrategyQA (Geva et al. 2021, arXiv:2101.02235): yes or no.

    Two forms: the authors' own, with `question`, `answer` (true or false) and `facts`, and BIG-bench's task.json, with
    `input`, `target_scores` and `target`, which begins with the answer and goes on with the facts.
    """
    question = text_at(record, 'question' if 'question' in record else 'input')
    if not labels:
        return make_item(question)
    if 'target_scores' in record:
        scores = value_at(record, 'target_scores')
        answers = [name for name, score in scores.items() if score > 0]
        if len(answers) != 1 or answers[0].lower() not in ('yes', 'no'):
            raise ValueError(f'one of Yes and No must have a score; target_scores is {scores!r}')
        said, _, facts = text_at(record, 'target').partition('. ')
        if said.rstrip('.').lower() != answers[0].lower():
            raise ValueError(f'target begins with {said!r}, and target_scores says {answers[0]!r}')
        return make_item(question, facts.strip() or None, answers[0].lower())
    answer = value_at(record, 'answer')
    if not isinstance(answer, bool):
        raise ValueError(f"the field 'answer' must be true or false; it is {answer!r}")
    facts = ' '.join(record.get('facts') or ())
    return make_item(question, facts or None, 'yes' if answer else 'no')


def multiple_choice(record: Mapping[str, Any], labels: bool) -> Item:
    """CommonsenseQA, OpenBookQA, ARC: a question with choices; the answer is the letter of `answerKey`.

    (Talmor et al. 2019, arXiv:1811.00937; Mihaylov et al. 2018, arXiv:1809.02789; Clark et al. 2018, arXiv:1803.05457.)
    Choices are inside the question or beside it, labelled by letters or by numbers; test sets may have no key.
    """
    asked = record['question'] if isinstance(record.get('question'), Mapping) else record
    stem = text_at(asked, next((name for name in ('stem', 'question_stem') if name in asked), 'question'))
    if 'choice_A' in asked:
        letters = [name[-1] for name in sorted(asked) if name.startswith('choice_')]
        texts = [text_at(asked, f'choice_{letter}') for letter in letters]
    else:
        letters, texts = labelled_choices(value_at(asked if 'choices' in asked else record, 'choices'))
    key = _label(record, labels and bool(record.get('answerKey')), 'answerKey')
    return make_item(with_options(stem, texts), None, None if key is None else option_letter(key, letters))


def drop(record: Mapping[str, Any], labels: bool) -> Item:
    """DROP (Dua et al. 2019, arXiv:1903.00161): passage and question are one text.

    The answer is a number, a date or a span. Several spans are one answer, parted by commas, in their order: credit
    for a part of them, and for another order, which the official F1 gives, is left out. (TFDS has but the first span.)
    Answers longer than any answer format are errors, which `on_error='skip'` counts and leaves out.
    """
    question = f'{text_at(record, "passage")}\n{text_at(record, "question")}'
    if not labels:
        return make_item(question)
    answer = record.get('answers_spans', record.get('answer'))
    if isinstance(answer, Mapping):
        answer = _drop_answer(answer)
    answer = str(answer).strip() if answer else None
    if answer and len(answer.encode()) > LONGEST_ANSWER:
        raise ValueError(f'the answer is longer than {LONGEST_ANSWER} bytes: {answer[:60]!r}')
    return make_item(question, None, answer)


def _drop_answer(answer: Mapping[str, Any]) -> str:
    if str(answer.get('number') or '') != '':
        return str(answer['number'])
    date = [str(answer['date'].get(part) or '') for part in ('day', 'month', 'year')] if answer.get('date') else []
    return ' '.join(filter(None, date)) or ', '.join(answer.get('spans') or ())


def drop_records(document: Any) -> list[dict[str, Any]]:
    """The questions of drop_dataset_*.json, passages by name with `qa_pairs`, each with its passage and its name."""
    if isinstance(document, list):
        return document
    return [
        {**pair, 'passage': held['passage'], 'section_id': name}
        for name, held in document.items()
        for pair in held['qa_pairs']
    ]


def is_football(record: Mapping[str, Any]) -> bool:
    """Whether a record of DROP is about a football game.

    Huang et al. 2022 prompt for the two sorts apart, and do not say how they were told. Passages that have a name are
    told by it ('nfl_1184', 'history_3'); those without (TFDS) by words.
    """
    if 'section_id' in record:
        return text_at(record, 'section_id').startswith('nfl')
    return FOOTBALL.search(text_at(record, 'passage')) is not None


def not_football(record: Mapping[str, Any]) -> bool:
    """The rest of DROP."""
    return not is_football(record)


def bigbench_records(document: Any) -> list[Any]:
    """The examples of a BIG-bench task.json, or the array that a document is."""
    return array_of(document['examples'] if isinstance(document, Mapping) else document)


def anli(record: Mapping[str, Any], labels: bool) -> Item:
    """Adversarial NLI (Nie et al. 2020, arXiv:1910.14599); `reason` is the rationale where there is one.

    Three answers, put to the model as in Huang et al. 2022: yes, no, it is not possible to tell. The annotated
    development sets in CSV say `statement` and `gold_label` where the others say `hypothesis` and `label`.
    """
    premise, hypothesis = (
        text_at(record, 'context' if 'context' in record else 'premise'),
        _first(record, 'hypothesis', 'statement'),
    )
    answer = _entailment(record, labels, ('e', 'n', 'c'), 'label', 'gold_label')
    reason = text_at(record, 'reason') if labels and record.get('reason') else None
    return make_item(_can_we_conclude(premise, hypothesis, TELL), reason or None, answer)


def mnli(record: Mapping[str, Any], labels: bool) -> Item:
    """MultiNLI (Williams et al. 2018, arXiv:1704.05426); '-' (its judges did not agree) is no label."""
    premise, hypothesis = _first(record, 'premise', 'sentence1'), _first(record, 'hypothesis', 'sentence2')
    answer = _entailment(record, labels, ('entailment', 'neutral', 'contradiction'), 'gold_label', 'label')
    return make_item(_can_we_conclude(premise, hypothesis, TELL), None, answer)


def rte(record: Mapping[str, Any], labels: bool) -> Item:
    """RTE of GLUE and SuperGLUE (Wang et al. 2018, arXiv:1804.07461; 2019, arXiv:1905.00537): yes or no."""
    premise, hypothesis = _first(record, 'premise', 'sentence1'), _first(record, 'hypothesis', 'sentence2')
    answer = _entailment(record, labels, ('entailment', 'not_entailment'), 'label')
    no = {'it is not possible to tell': 'no'}.get(answer, answer)  # two classes: the second one is no
    return make_item(_can_we_conclude(premise, hypothesis, ('yes', 'no')), None, no)


def _can_we_conclude(premise: str, hypothesis: str, answers: Sequence[str]) -> str:
    if not premise or not hypothesis:
        raise ValueError('premise and hypothesis must not be empty')
    shown = 'yes, no' if len(answers) == 2 else 'yes, no, it is not possible to tell'
    return f'{premise}\nCan we conclude that "{hypothesis}"?\nOptions: {shown}'


def _entailment(record: Mapping[str, Any], labels: bool, classes: Sequence[str], *names: str) -> str | None:
    """The answer to whether a conclusion holds; None where there is no label: none of the fields, '-', '', -1."""
    name = next((name for name in names if name in record), None)
    if not labels or name is None or record[name] in (None, '', '-', -1):
        return None
    label = record[name]
    if isinstance(label, int) and 0 <= label < len(classes):
        return TELL[label]
    if label not in classes:
        raise ValueError(f'the field {name!r} must be one of {", ".join(classes)}; it is {label!r}')
    return TELL[classes.index(label)]


def _label(record: Mapping[str, Any], labels: bool, path: str) -> str | None:
    if not labels:
        return None
    text = text_at(record, path)
    if not text:
        raise ValueError(f'the field {path!r} holds no answer')
    return text


def _first(record: Mapping[str, Any], *names: str) -> str:
    return text_at(record, next((name for name in names if name in record), names[0]))
