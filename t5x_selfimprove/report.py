"""The HTML page of a run: one file that shows what happened and needs no network.

`write_report` reads what a run leaves in its directory (`metrics.jsonl`, `summary.json`, `config.gin`,
`samples/*.parquet`) and writes `report.html` beside it. It works on a run that was killed or is still going: what is
missing, unreadable or shown in part is said on the page with its count. The words are written here; tables, charts
and the browser of questions are made by the scripts in `report_page/` from the data embedded in the page.
"""

import collections
import dataclasses
import datetime
import html
import importlib.resources
import json
import os
import pathlib
import re
import string
from typing import Any

from t5x_selfimprove.data import store
from t5x_selfimprove.files import write_text

Json = dict[str, Any]

QUESTIONS_PER_FILE = 200
SAMPLE_BYTES = 16_000_000  # of stored samples behind one page; a phone still opens the page that this makes
SCRIPTS = ('charts.js', 'figures.js', 'tables.js', 'browser.js', 'page.js')  # each needs those before it
WORDS = {'improve': 'Self-improvement run', 'pretrain': 'Pre-training run', 'evaluate': 'Evaluation'}
SAMPLE_FILE = re.compile(r'(round|evaluation)_(?:(\w+)_)?(\d+)\.parquet')


@dataclasses.dataclass(frozen=True)
class Run:
    """What was read from a run directory. Rounds are in order; of a repeated record the later one is held."""

    name: str
    command: str
    run: Json  # the last record of kind 'run'
    pretrain: tuple[Json, ...]
    rounds: tuple[Json, ...]
    evaluations: dict[str, tuple[Json, ...]]  # by suite, in the order they were measured in: the held-out first
    summary: Json | None  # None where the run has not finished
    configuration: str | None
    compiles: tuple[Json, ...]  # the round that waited for each compilation, and the seconds it took
    labels_read: int | None  # in the rounds there are; None where that was not written
    lines: collections.Counter  # of metrics.jsonl, by kind
    seconds: float | None  # from start to end, or between the first and the last record
    notices: tuple[str, ...]


def write_report(run_directory: str | os.PathLike, questions_per_file: int = QUESTIONS_PER_FILE) -> pathlib.Path:
    """Writes `report.html` into the run directory and returns its path.

    Args:
      run_directory: where a run wrote its `metrics.jsonl`.
      questions_per_file: the most questions of one file of samples to put on the page, evenly spaced over the file;
        the page says how many there are.

    Raises:
      FileNotFoundError: the directory is not there or holds no `metrics.jsonl`.
      ValueError: no line of `metrics.jsonl` can be read, or `questions_per_file` is below 1.
    """
    directory = pathlib.Path(run_directory)
    if questions_per_file < 1:
        raise ValueError(f'questions_per_file must be at least 1; it is {questions_per_file}')
    run = read_run(directory)
    files, notices = read_samples(directory, run, questions_per_file)
    target = directory / 'report.html'
    write_text(target, render(dataclasses.replace(run, notices=run.notices + notices), files))
    return target


def read_json_lines(path: pathlib.Path) -> tuple[list[Json], list[int], int]:
    """Reads one JSON object a line; lines are counted from 1 without the empty ones.

    Returns:
      the objects; the numbers of the lines that are not JSON objects (a killed run leaves half a line); how many
      values were NaN or infinite, which read as None.
    """
    records, unreadable, infinite = [], [], []
    with open(path, 'rb') as file:
        for number, line in enumerate((line for line in file if line.strip()), 1):
            try:
                record = json.loads(line, parse_constant=infinite.append)  # append returns None
            except ValueError:
                record = None
            if isinstance(record, dict):
                records.append(record)
            else:
                unreadable.append(number)
    return records, unreadable, len(infinite)


def read_run(directory: pathlib.Path) -> Run:
    """Reads all but the samples. Raises as `write_report` does."""
    path = directory / 'metrics.jsonl'
    if not path.is_file():
        what = 'holds no metrics.jsonl' if directory.is_dir() else 'is not there'
        raise FileNotFoundError(f'{directory} {what}: name the directory that a run printed as its run directory')
    records, unreadable, infinite = read_json_lines(path)
    if not records:
        raise ValueError(f'{path} holds no readable line: the run ended before it wrote anything; start it again')
    kinds, repeated = _by_kind(records)
    evaluations: dict[str, tuple[Json, ...]] = {}
    for record in kinds['evaluation']:
        suite = record.get('suite', 'held_out')
        evaluations[suite] = (*evaluations.get(suite, ()), record)
    about = kinds['run'][-1] if kinds['run'] else {}
    command = str(about.get('command', 'improve'))
    summary, notices = _read_summary(directory / 'summary.json', kinds, command)
    if unreadable:
        notices.append(f'Left out as unreadable: {_numbers("line", unreadable)} of metrics.jsonl.')
    if infinite:
        notices.append(f'NaN or infinite in metrics.jsonl, shown as a dash: {_many(infinite, "value")}.')
    if repeated:
        notices.append(f'{_numbers("Round", repeated)} ran again after a restart; the later record is shown.')
    skipped = sum(record.get('skipped_questions') or 0 for record in kinds['round'])
    if skipped:
        notices.append(f'Too long for the room for questions, and skipped: {_many(skipped, "question")}.')
    config, labels = directory / 'config.gin', (summary or {}).get('labels_read')
    if labels is None and kinds['round'] and all('labels_read' in record for record in kinds['round']):
        labels = sum(record['labels_read'] for record in kinds['round'])
    times = [record['time'] for record in records if _number(record.get('time'))]
    return Run(
        name=str((summary or {}).get('name') or about.get('name') or directory.resolve().name),
        command=command,
        run=about,
        pretrain=tuple(kinds['pretrain']),
        rounds=tuple(kinds['round']),
        evaluations=evaluations,
        summary=summary,
        configuration=config.read_text('utf-8', 'replace') if config.is_file() else None,
        compiles=_compiles(records),
        labels_read=labels,
        lines=collections.Counter(str(record.get('kind')) for record in records),
        seconds=(summary or {}).get('wall_seconds') or (max(times) - min(times) if len(times) > 1 else None),
        notices=tuple(notices),
    )


def _by_kind(records: list[Json]) -> tuple[dict[str, list[Json]], list[int]]:
    """Sorts records into kinds, in order of round or step, and names the rounds that were written more than once."""
    latest: dict[tuple, Json] = {}
    repeated = set()
    for number, record in enumerate(records):
        kind = record.get('kind')
        place = number if kind == 'run' else record.get('step' if kind == 'pretrain' else 'round')
        if kind not in ('run', 'pretrain', 'round', 'evaluation') or not isinstance(place, int):
            continue  # counted by kind at the foot of the log
        key = (kind, place, record.get('suite'))
        if kind == 'round' and key in latest:
            repeated.add(place)
        latest[key] = record
    kinds: dict[str, list[Json]] = {kind: [] for kind in ('run', 'pretrain', 'round', 'evaluation')}
    for (kind, _, _), record in sorted(latest.items(), key=lambda item: item[0][1]):
        kinds[kind].append(record)
    return kinds, sorted(repeated)


def _compiles(records: list[Json]) -> tuple[Json, ...]:
    """Compilations with the round that came next."""
    found, upcoming = [], None
    for record in reversed(records):
        if record.get('kind') == 'round':
            upcoming = record.get('round')
        elif record.get('kind') == 'compile' and upcoming is not None:
            found.append({'round': upcoming, 'seconds': record.get('seconds')})
    return tuple(found)


def _read_summary(path: pathlib.Path, kinds: dict[str, list[Json]], command: str) -> tuple[Json | None, list[str]]:
    """The summary, or None and the reason where it is missing, torn, or older than the last round."""
    last = max((record['round'] for record in kinds['round'] + kinds['evaluation']), default=None)
    reached = 'no round has been written' if last is None else f'the last round written is {last}'
    if not path.is_file():
        return None, [
            f'This run has not finished: there is no summary.json; {reached}.'
        ] if command == 'improve' else []
    try:
        summary = json.loads(path.read_text('utf-8'), parse_constant=lambda name: None)
        covered = max((entry['round'] for entry in summary.get('rounds', ())), default=0)
    except (ValueError, AttributeError, KeyError, TypeError):
        return None, ['summary.json cannot be read; this page is made from metrics.jsonl alone.']
    if covered < (last or 0):
        return None, [f'This run was extended and has not finished: summary.json ends at round {covered}; {reached}.']
    return summary, []


def read_samples(directory: pathlib.Path, run: Run, most: int) -> tuple[list[Json], tuple[str, ...]]:
    """Reads up to `most` questions of each file of samples, evenly spaced; fewer where all would be too many bytes.

    Returns:
      a record for each file (kind, suite, round, questions stored, asked, and those for the page), in order of round;
      notices about files that could not be read.
    """
    found, unreadable = [], 0
    for path in (directory / 'samples').glob('*.parquet'):
        name = SAMPLE_FILE.fullmatch(path.name)
        if name:
            try:
                found.append((name[1], name[2], int(name[3]), path, store.about(path)))
            except (ValueError, OSError):
                unreadable += 1
    found.sort(key=lambda entry: (entry[0], entry[1] or '', entry[2]))
    size = sum(about['text_bytes'] * min(most, about['questions']) / max(1, about['questions']) for *_, about in found)
    if size > SAMPLE_BYTES:
        most = max(1, int(most * SAMPLE_BYTES / size))
    files, first = [], next(iter(run.evaluations), 'held_out')
    for kind, suite, number, path, about in found:
        stored = about['questions']
        shown = min(most, stored)
        wanted = {index * stored // shown for index in range(shown)} if shown else set()
        questions = store.questions(store.read(path, store.SHOWN), wanted)
        records = run.rounds if kind == 'round' else run.evaluations.get(suite or first, ())
        asked = next((record.get('questions') for record in records if record['round'] == number), None)
        files.append(
            {
                'kind': kind,
                'suite': suite or (first if kind == 'evaluation' else None),
                'round': number,
                'stored': stored,
                'asked': asked,
                'questions': [_pack(question) for question in questions],
            }
        )
    text = f'Left out as unreadable: {_many(unreadable, "file")} of the stored samples.'
    return files, (text,) if unreadable else ()


def _pack(question: Json) -> list:
    """A question as the browser unpacks it: values in a fixed order, without their names."""
    paths = [
        [
            path.get('text', ''),
            path.get('answer', ''),
            int(bool(path.get('found'))),
            int(bool(path.get('ended', True))),
            path.get('tokens', 0),
            _short(path.get('log_prob')),
            _short(path.get('reward')),
            _short(path.get('kept')) or 0,
        ]
        for path in question.get('paths', [])
    ]
    kept = question.get('kept_paths')
    return [
        question.get('id', ''),
        question.get('question', ''),
        question.get('chosen', ''),
        _short(question.get('share')),
        _short(question.get('votes')),
        question.get('gold'),
        sum(p[7] > 0 for p in paths) if kept is None else kept,
        paths,
    ]


# The words of the page.


def headline(run: Run) -> str:
    """What happened, in plain text: greedy and majority accuracy from the first evaluation to the last."""
    suite = next(iter(run.evaluations), None)
    held = [r for r in run.evaluations.get(suite, ()) if _value(r.get('greedy_accuracy')) is not None]
    if not held:
        if run.rounds:
            return f'{_many(len(run.rounds), "round")} of self-improvement; no accuracy has been measured yet.'
        losses = [record['loss'] for record in run.pretrain if _number(record.get('loss'))]
        if not losses:
            return 'Nothing has been trained or measured yet.'
        return (
            f'Pre-training: loss {losses[0]:.3g} at step {run.pretrain[0]["step"]:,}, {losses[-1]:.3g} at step '
            f'{run.pretrain[-1]["step"]:,}. No round of self-improvement yet.'
        )
    first, last = held[0], held[-1]
    questions = f'{_count(last.get("questions"))} {suite.replace("_", "-")} questions'
    if first is last:
        text = f'Greedy accuracy on {questions} is {_percent(first["greedy_accuracy"])} at round {first["round"]}.'
        return text + (' No round of self-improvement has been evaluated yet.' if first['round'] == 0 else '')
    text = (
        f'Greedy accuracy on {questions} {_change(first["greedy_accuracy"], last["greedy_accuracy"])} over '
        f'{_many(last["round"] - first["round"], "round")} of self-improvement'
    )
    if _overlap(first['greedy_accuracy'], last['greedy_accuracy']):
        text += '; the 95 % intervals overlap'
    majority = first.get('majority_accuracy'), last.get('majority_accuracy')
    if None not in map(_value, majority):
        text += f'. The majority of {last.get("samples_per_question", "N")} paths {_change(*majority)}'
    best = max(held, key=lambda record: _value(record['greedy_accuracy']))
    if _value(best['greedy_accuracy']) > _value(last['greedy_accuracy']):
        text += f'. The best greedy accuracy was {_percent(best["greedy_accuracy"])}, at round {best["round"]}'
    if run.command == 'improve' and not run.summary:
        text = f'So far: {text[0].lower()}{text[1:]}'
    return f'{text}. {_labels(run)}'


def _labels(run: Run) -> str:
    """Whether labels were used, as far as is known."""
    read = run.labels_read
    replayed = (run.summary or {}).get('replay_examples')
    if read is None:
        return 'How many labels were read is not in the log.'
    text = f'Labels read in the rounds: {read:,}' if read else 'No label was read in any round'
    return text + (f'; replay drew on {_many(replayed, "labelled pre-training example")}.' if replayed else '.')


def render(run: Run, files: list[Json]) -> str:
    """The whole page as text. Everything read from the run is escaped: for HTML, or as JSON inside its script."""
    asset = importlib.resources.files('t5x_selfimprove').joinpath('report_page')
    data = {
        name: getattr(run, name)
        for name in ('run', 'pretrain', 'rounds', 'evaluations', 'summary', 'seconds', 'compiles', 'labels_read')
    }
    data |= {'suites': list(run.evaluations), 'starts': run.lines['run'], 'files': files}
    packed = json.dumps(data, ensure_ascii=False, separators=(',', ':'))
    configuration = '<p class="empty">The run directory holds no config.gin, or an empty one.</p>'
    if run.configuration:
        lines = run.configuration.count('\n')
        configuration = (
            f'<details class="card"><summary>config.gin, the effective configuration ({_many(lines, "line")})</summary>'
            f'<pre tabindex="0">{html.escape(run.configuration)}</pre></details>'
        )
    kind = WORDS.get(run.command, f'Run of {run.command}')
    state = ('finished' if run.summary else 'unfinished') if run.command == 'improve' else ''
    now = datetime.datetime.now(datetime.UTC)
    notices = ''.join(f'<li>{html.escape(notice)}</li>' for notice in run.notices)
    lines = ', '.join(f'{count:,} {kind}' for kind, count in run.lines.items())
    return string.Template(asset.joinpath('page.html').read_text('utf-8')).substitute(
        title=html.escape(f'{run.name}: {kind.lower()}'),
        name=html.escape(run.name),
        headline=html.escape(headline(run)).replace(' %', '&nbsp;%'),
        kind=html.escape(kind),
        state=state,
        notices=f'<ul class="notice">{notices}</ul>' if notices else '',
        configuration=configuration,
        log_note=html.escape(f'Records in metrics.jsonl: {lines}.'),
        footer=f'Made by t5x_selfimprove on {now:%Y-%m-%d at %H:%M} UTC. This page loads nothing from the network.',
        style=asset.joinpath('page.css').read_text('utf-8'),
        script='\n'.join(asset.joinpath(name).read_text('utf-8') for name in SCRIPTS),
        data=packed.replace('&', '\\u0026').replace('<', '\\u003c').replace('>', '\\u003e'),
    )


# How figures are written.


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _value(estimate: Any) -> float | None:
    """The figure of an estimate, which comes bare or as {value, low, high}."""
    held = estimate.get('value') if isinstance(estimate, dict) else estimate
    return held if _number(held) else None


def _short(value: Any) -> Any:
    return float(f'{value:.5g}') if isinstance(value, float) else value


def _percent(estimate: Any) -> str:
    value = _value(estimate)
    return '–' if value is None else f'{100 * value:.1f} %'


def _count(value: Any) -> str:
    return f'{value:,.0f}' if _number(value) else '–'


def _many(count: int, name: str) -> str:
    return f'{count:,} {name}' + ('' if count == 1 else 's')


def _numbers(name: str, numbers: list[int]) -> str:
    shown = ', '.join(map(str, numbers[:8])) + (f' and {len(numbers) - 8} more' if len(numbers) > 8 else '')
    return f'{name}{"" if len(numbers) == 1 else "s"} {shown}'


def _change(first: Any, last: Any) -> str:
    """'rose from 42.5 % to 71.2 % (+28.7 points)', or fell, or stayed."""
    difference = _value(last) - _value(first)
    if abs(difference) < 0.0005:
        return f'stayed at {_percent(last)}'
    points = f'{100 * difference:+.1f} points'.replace('-', '−')
    return f'{"rose" if difference > 0 else "fell"} from {_percent(first)} to {_percent(last)} ({points})'


def _overlap(first: Any, last: Any) -> bool:
    ends = [e.get(key) if isinstance(e, dict) else None for e in (first, last) for key in ('low', 'high')]
    return all(map(_number, ends)) and ends[0] <= ends[3] and ends[2] <= ends[1]
