"""The report: what it says of whole, killed and odd runs, and that it is safe and draws in a browser."""

import html
import html.parser
import json
import pathlib
import re
import shutil
import subprocess

import pytest

from t5x_selfimprove import report
from tests.made_run import around, made_run, write_lines
from tests.stored import stored, write_stored

# Reading a page back.


class Page(html.parser.HTMLParser):
    """Tags, attributes, shown text and embedded data of a page."""

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.text, self.tags, self.attributes, self.data = '', [], [], None
        self._inside, self._is_data = None, False
        self.source = path.read_text(encoding='utf-8')
        self.feed(self.source)
        self.close()
        self.text = self.text.replace('\xa0', ' ')

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        self._inside, self._is_data = tag, ('id', 'run-data') in attributes

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside == 'script' and self._is_data:
            assert '<' not in data  # nothing in it can end the script or open another
            self.data = json.loads(data, parse_constant=lambda name: pytest.fail(f'{name} is not JSON'))
        elif self._inside not in ('script', 'style'):
            self.text += data


def page_of(directory: pathlib.Path, **options) -> Page:
    path = report.write_report(directory, **options)
    assert path == directory / 'report.html'
    assert not list(directory.glob('report.html.*'))  # no half page stays behind
    return Page(path)


def events(directory: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (directory / 'metrics.jsonl').read_text().splitlines()]


def greedy(record: dict) -> str:
    return f'{100 * record["greedy_accuracy"]["value"]:.1f} %'


@pytest.fixture(scope='module')
def finished(tmp_path_factory) -> pathlib.Path:
    return made_run(tmp_path_factory.mktemp('finished'))


def unfinish(directory: pathlib.Path, keep) -> None:
    (directory / 'summary.json').unlink()
    write_lines(directory / 'metrics.jsonl', [record for record in events(directory) if keep(record)])


# Tests.


def test_finished_run_says_what_happened(finished):
    page = page_of(finished)
    held = [record for record in events(finished) if record['kind'] == 'evaluation']
    assert f'30 held-out questions rose from {greedy(held[0])} to {greedy(held[-1])} (+' in page.text
    assert 'over 3 rounds of self-improvement' in page.text and 'The majority of 16 paths' in page.text
    assert 'No label was read in any round; replay drew on 2,000 labelled pre-training examples.' in page.text
    assert 'MajorityVote.threshold = 0.6' in page.text
    assert page.data['evaluations'] == {'held_out': held}
    assert page.data['rounds'] == [record for record in events(finished) if record['kind'] == 'round']
    assert page.data['compiles'] == [{'round': 1, 'seconds': 9.4}]
    assert (page.data['seconds'], page.data['labels_read'], len(page.data['pretrain'])) == (192.4, 0, 30)
    assert '>finished</span>' in page.source and 'has not finished' not in page.text


def test_page_loads_nothing(finished):
    page = page_of(finished)
    assert not {'link', 'img', 'iframe', 'object', 'embed', 'base', 'form'} & set(page.tags)
    assert not [value for name, value in page.attributes if name in ('src', 'srcset', 'action', 'data', 'poster')]
    assert all(value.startswith('#') for name, value in page.attributes if name == 'href')
    assert not re.search(r'https?://|@import|url\(|fetch\(|XMLHttpRequest|innerHTML', page.source)
    assert any(value.startswith("default-src 'none'") for name, value in page.attributes if name == 'content')


HOSTILE = '</script><script>alert(1)</script><!-- <b>bold</b> & "quoted" $name ${x} \u2028 \\'


def test_hostile_text_stays_text(tmp_path, finished):
    directory = shutil.copytree(finished, tmp_path / 'run')
    summary = json.loads((directory / 'summary.json').read_text()) | {'name': HOSTILE}
    (directory / 'summary.json').write_text(json.dumps(summary))
    (directory / 'config.gin').write_text(HOSTILE)
    path = {'text': HOSTILE, 'answer': HOSTILE, 'found': True, 'ended': True, 'tokens': 3, 'kept': 0.0}
    row = {'id': HOSTILE, 'question': HOSTILE, 'chosen': HOSTILE, 'share': 1.0, 'votes': 1.0, 'paths': [path]}
    write_stored(directory / 'samples/round_0001.parquet', [row])
    page = page_of(directory)
    assert page.tags.count('script') == page_of(finished).tags.count('script') and 'b' not in page.tags
    assert page.text.count('alert(1)') == 3  # title, heading, configuration; all else is data
    (file,) = (file for file in page.data['files'] if (file['kind'], file['round']) == ('round', 1))
    assert file['questions'][0][1] == file['questions'][0][7][0][0] == HOSTILE


def test_killed_run_says_how_far_it_came(tmp_path):
    directory = made_run(tmp_path)
    unfinish(directory, lambda record: record.get('round', 0) < 3)
    with open(directory / 'metrics.jsonl', 'a') as file:
        file.write('{"kind": "evaluation", "round": 3, "gree')
    page = page_of(directory)
    lines = (directory / 'metrics.jsonl').read_text().count('\n') + 1
    assert 'This run has not finished: there is no summary.json; the last round written is 2.' in page.text
    assert f'Left out as unreadable: line {lines} of metrics.jsonl.' in page.text
    assert 'So far: greedy accuracy' in page.text and 'over 2 rounds' in page.text and 'No label was read' in page.text
    assert [record['round'] for record in page.data['rounds']] == [1, 2] and page.data['summary'] is None


@pytest.mark.parametrize('kinds, says', [
    (('run',), 'Nothing has been trained or measured yet.'),
    (('run', 'pretrain'), 'Pre-training: loss 2.95 at step 20, 0.507 at step 600.'),
    (('run', 'round'), '3 rounds of self-improvement; no accuracy has been measured yet.'),
])  # fmt: skip
def test_part_of_a_run(tmp_path, kinds, says):
    directory = made_run(tmp_path, questions=4, paths=2)
    unfinish(directory, lambda record: record['kind'] in kinds)
    shutil.rmtree(directory / 'samples')
    (directory / 'config.gin').unlink()
    page = page_of(directory)
    assert says in page.text and 'holds no config.gin, or an empty one' in page.text and page.data['files'] == []


def test_later_record_of_a_round_wins(tmp_path):
    directory = made_run(tmp_path, questions=4, paths=2)
    again = [record | {'loss': 0.123, 'seconds': {}} for record in events(directory) if record['kind'] == 'round'][1:2]
    again += [record | {'brier': 0.5} for record in events(directory) if record['kind'] == 'evaluation'][2:3]
    write_lines(directory / 'metrics.jsonl', events(directory) + again)
    page = page_of(directory)
    assert [record['round'] for record in page.data['rounds']] == [1, 2, 3]
    assert page.data['rounds'][1]['loss'] == 0.123 and page.data['evaluations']['held_out'][2]['brier'] == 0.5
    assert 'Round 2 ran again after a restart' in page.text


def test_summary_that_is_older_than_the_run_or_torn_is_not_believed(tmp_path):
    directory = made_run(tmp_path, questions=4, paths=2)
    summary = json.loads((directory / 'summary.json').read_text())
    (directory / 'summary.json').write_text(json.dumps(summary | {'rounds': summary['rounds'][:2]}))
    assert 'summary.json ends at round 1; the last round written is 3' in page_of(directory).text
    (directory / 'summary.json').write_text(json.dumps(summary)[:50])
    assert 'summary.json cannot be read' in page_of(directory).text


def test_not_a_number_becomes_null_and_is_counted(tmp_path):
    directory = made_run(tmp_path, questions=4, paths=2)
    changed = [record | ({'loss': float('nan')} if record['kind'] == 'round' else {}) for record in events(directory)]
    write_lines(directory / 'metrics.jsonl', changed)
    page = page_of(directory)  # which refuses NaN in the embedded JSON
    assert 'NaN or infinite in metrics.jsonl, shown as a dash: 3 values.' in page.text
    assert [record['loss'] for record in page.data['rounds']] == [None] * 3


def test_only_some_of_the_stored_questions_are_shown_and_counted(tmp_path, monkeypatch):
    directory = made_run(tmp_path, rounds=1, questions=10, paths=2)
    ids = [question['question_id'] for question in stored(directory / 'samples/round_0001.parquet')]
    file = page_of(directory, questions_per_file=4).data['files'][-1]
    assert (file['kind'], file['stored'], file['asked']) == ('round', 10, 10.0)
    assert [question[0] for question in file['questions']] == [ids[place] for place in (0, 2, 5, 7)]
    assert len(page_of(directory).data['files'][-1]['questions']) == 10
    shown = [path['text'] for one in stored(directory / 'samples/round_0001.parquet') for path in one['paths']]
    monkeypatch.setattr(report, 'SAMPLE_BYTES', sum(map(len, shown)))
    assert 2 <= len(page_of(directory, questions_per_file=10).data['files'][-1]['questions']) <= 4  # of three files


def test_files_of_samples_that_are_none_are_left_out_and_counted(tmp_path):
    directory = made_run(tmp_path, rounds=1, questions=4, paths=2)
    (directory / 'samples/round_0001.parquet').write_bytes(b'PAR1 half a file')
    page = page_of(directory)
    assert [(file['kind'], file['round']) for file in page.data['files']] == [('evaluation', 0), ('evaluation', 1)]
    assert 'Left out as unreadable: 1 file of the stored samples.' in page.text


def test_errors_name_the_way_out(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere is not there: name the directory'):
        report.write_report(tmp_path / 'nowhere')
    with pytest.raises(FileNotFoundError, match=r'holds no metrics\.jsonl'):
        report.write_report(tmp_path)
    (tmp_path / 'metrics.jsonl').write_text('{"kind": "ru')
    with pytest.raises(ValueError, match='no readable line'):
        report.write_report(tmp_path)
    with pytest.raises(ValueError, match='questions_per_file must be at least 1; it is 0'):
        report.write_report(tmp_path, questions_per_file=0)


@pytest.mark.parametrize(
    'first, last, labels, says',
    [
        (
            0.5,
            0.6,
            7,
            'rose from 50.0 % to 60.0 % (+10.0 points) over 1 round of self-improvement. Labels read in the rounds: 7',
        ),
        (0.6, 0.5, 0, 'fell from 60.0 % to 50.0 % (−10.0 points) over 1 round'),
        (0.6, 0.5, 0, 'The best greedy accuracy was 60.0 %, at round 0. No label was read in any round.'),
        (
            0.5,
            0.5,
            None,
            'stayed at 50.0 % over 1 round of self-improvement; the 95 % intervals overlap. How many labels',
        ),
        (0.5, 0.52, 0, '(+2.0 points) over 1 round of self-improvement; the 95 % intervals overlap. No label was read'),
    ],
)
def test_headline_is_true(tmp_path, first, last, labels, says):
    write_lines(tmp_path / 'metrics.jsonl', [
        {'kind': 'evaluation', 'round': number, 'questions': 1000, 'greedy_accuracy': around(value, 1000)}
        for number, value in enumerate((first, last))
    ])  # fmt: skip
    summary = {'rounds': [{'round': 1}]} | ({} if labels is None else {'labels_read': labels})
    (tmp_path / 'summary.json').write_text(json.dumps(summary))
    assert says in page_of(tmp_path).text


# In a browser.

PROBE = """
const seen = {}, all = (what) => [...document.querySelectorAll(what)];
const click = (value) => document.querySelector(`.chips input[value=${value}]`).click();
seen.fault = !document.getElementById('script-error').hidden;
seen.charts = all('.figure svg').length;
seen.lines = all('#accuracy-chart .line').length;
seen.rows = all('#round-tables tbody tr').length;
seen.cell = document.querySelector('#round-tables tbody tr:last-child td').textContent;
seen.tiles = all('#tiles dd').map((one) => one.textContent);
seen.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
seen.questions = all('.question').length;
const opened = document.querySelector('.question');
opened.open = true;
setTimeout(() => {
  seen.paths = opened.querySelectorAll('.path').length;
  seen.history = opened.querySelectorAll('.history button').length;
  click('wrong');
  seen.wrong = all('.question .verdict').map((one) => one.textContent.includes('✗'));
  seen.wrongCount = document.querySelector('.chips label:has(input[value=wrong]) small').textContent;
  const files = document.querySelector('.controls select');
  files.value = [...files.options].find((option) => option.textContent.startsWith('Round 1: training')).value;
  files.dispatchEvent(new Event('change'));
  click('kept');
  seen.kept = all('.question .verdict').map((one) => /[0-9] paths? kept/.test(one.textContent));
  const search = document.querySelector('input[type=search]');
  search.value = 'no such words';
  search.dispatchEvent(new Event('input'));
  seen.found = all('.question').length;
  document.querySelector('#round-choice input').click();
  seen.round = document.querySelector('#round-figures').textContent.includes('Round 0 in numbers');
  const place = document.createElement('pre');
  place.id = 'probe';
  place.textContent = JSON.stringify(seen);
  document.body.append(place);
}, 100);
"""


def in_browser(path: pathlib.Path, profile: pathlib.Path, script: str) -> dict:
    """Opens the page without a network, runs a script in it and returns what that left in its probe."""
    browser = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)
    if browser is None:
        pytest.skip('no chromium or chrome on this machine')
    probed = path.with_name('probed.html')
    probed.write_text(path.read_text('utf-8').replace('</body>', f'<script>{script}</script></body>'), 'utf-8')
    options = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync',
               '--disable-background-networking', '--disable-component-update', '--virtual-time-budget=5000',
               f'--user-data-dir={profile}', '--window-size=1200,900', '--dump-dom']  # fmt: skip
    done = subprocess.run([browser, *options, probed.as_uri()], capture_output=True, text=True, timeout=120)
    left = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert left, f'the page left no probe: {done.stderr[-2000:]}'
    return json.loads(html.unescape(left[1]))


def test_page_draws_and_filters_in_a_browser(finished, tmp_path):
    path = report.write_report(finished)
    rows = stored(finished / 'samples/evaluation_0003.parquet')
    seen = in_browser(path, tmp_path, PROBE)
    assert not seen['fault'] and not seen['wide']
    assert seen['lines'] == 3 and seen['charts'] >= 15 and seen['rows'] == 4
    final = events(finished)[-1]
    assert seen['cell'].replace('\xa0', ' ').startswith(greedy(final))
    assert seen['tiles'][0].replace('\xa0', ' ').startswith(greedy(final)) and seen['tiles'][2].startswith('0')
    assert seen['questions'] == 20 and seen['paths'] == 16 and seen['history'] == 4
    assert int(seen['wrongCount']) == sum(row['chosen'] != row['gold'] for row in rows) == len(seen['wrong'])
    assert all(seen['wrong']) and seen['kept'] and all(seen['kept']) and seen['found'] == 0 and seen['round']
