"""What a run shows: plain lines elsewhere, a live line on a terminal, tables, and numbers in words."""

import io
import re

import pytest
from rich.console import Console

from t5x_selfimprove.display import Display, clock, number_of_bytes, percent


def plain(width: int = 80) -> tuple[Display, io.StringIO]:
    file = io.StringIO()
    return Display(Console(file=file, highlight=False, soft_wrap=True, width=width)), file


def terminal(width: int = 80) -> tuple[Display, io.StringIO]:
    file = io.StringIO()
    return Display(Console(file=file, force_terminal=True, highlight=False, soft_wrap=True, width=width)), file


def without_controls(text: str) -> str:
    return re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', text)


def test_plain_lines_have_the_time_and_no_controls():
    display, file = plain()
    with display.phase('round', 'round 1 of 2', after=3.0):
        display.say('inside')
    display.say('x' * 200)
    first, second = file.getvalue().splitlines()
    assert re.fullmatch(r'\[ +0\.\d s\] inside', first)
    assert second.endswith('s] ' + 'x' * 200)  # not broken at the width


@pytest.mark.parametrize('make', [plain, terminal])
def test_text_is_shown_as_it_is(make):
    """What a model or a user wrote is no markup: brackets stay, and no word between colons becomes a picture."""
    text = 'Add [red]3[/red] and [/b] [1, 2]: is it :cat: or :x:?'
    display, file = make(200)
    display.say(text)
    display.facts({'question': text})
    display.table(text, ['answer', text], [[text, '1']])
    assert without_controls(file.getvalue()).count(text) == 5


def test_terminal_shows_the_phase_and_what_is_said_stays():
    display, file = terminal(120)
    display.seconds['round'] = 100.0
    with display.phase('round', 'round [1] of 2: sampling', after=65.0):
        display.say('said inside')
    display.say('said after')
    raw, text = file.getvalue(), without_controls(file.getvalue())
    assert raw != text
    assert 'round [1] of 2: sampling' in text and 's left (run: 2:' in text
    assert text.rstrip().endswith('said after') and 'said inside' in text
    assert not re.search(r'\[ +0\.\d s\]', text)  # the live line shows the time


def test_a_phase_is_remembered_only_when_it_was_finished():
    for make in (plain, terminal):
        display, _ = make()
        with display.phase('evaluate', 'evaluating'):
            pass
        assert set(display.seconds) == {'evaluate'} and 0 <= display.seconds['evaluate'] < 5
        with pytest.raises(ZeroDivisionError), display.phase('round', 'round 1'):
            raise ZeroDivisionError
        assert set(display.seconds) == {'evaluate'}


COLUMNS = ['round', 'greedy accuracy', 'majority accuracy', 'answered', 'calibration error', 'kept paths', 'seconds']
ROW = ['0', '54.6 [51.5, 57.6]', '59.9 [56.8, 62.9]', '98.7 [97.8, 99.2]', '9.9 [7.3, 12.8]', '12,345', '61.0']


def test_table_in_plain_output_is_not_squeezed():
    display, file = plain()
    display.table('A title of the table', COLUMNS, [ROW])
    text = file.getvalue()
    assert '\x1b' not in text and all(word in text for word in ('A title of the table', *COLUMNS, *ROW))


@pytest.mark.parametrize('width', [80, 160])
def test_table_loses_nothing_on_a_terminal(width: int):
    display, file = terminal(width)
    display.table('A title of the table', COLUMNS, [ROW])
    text = without_controls(file.getvalue())
    assert '…' not in text and max(map(len, text.splitlines())) <= width
    assert all(word in text for cell in ROW for word in cell.split())
    display.table('One column', ['answer'], [['x' * 300]])
    assert file.getvalue().count('x') == 300


def test_facts_are_aligned():
    display, file = plain()
    display.facts({'mesh': 'data 1', 'parameters': '6,096'})
    assert file.getvalue() == '  mesh        data 1\n  parameters  6,096\n'


@pytest.mark.parametrize(
    'seconds, text',
    [(0, '0 s'), (59.4, '59 s'), (59.6, '1:00 min'), (61, '1:01 min'), (3599.7, '1 h 00 min'), (7380, '2 h 03 min')],
)
def test_clock(seconds: float, text: str):
    assert clock(seconds) == text


def test_percent():
    assert percent(None) == '-'
    assert percent(0.5) == '50.0' and percent(1 / 3, 0) == '33' and percent(1, 2) == '100.00'
    assert percent({'value': 0.5, 'low': 0.4216, 'high': 1.0}) == '50.0 [42.2, 100.0]'


@pytest.mark.parametrize(
    'count, text',
    [(0, '0 B'), (1023, '1023 B'), (1024, '1.0 KiB'), (73172, '71.5 KiB'), (5 << 30, '5.0 GiB'), (1 << 52, '4096.0 TiB')],  # noqa: E501
)
def test_number_of_bytes(count: int, text: str):
    assert number_of_bytes(count) == text
