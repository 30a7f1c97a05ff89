"""What an answer is, once more: plain Python and regular expressions on whole texts, apart from the code it checks."""

import decimal
import re

from t5x_selfimprove.consolidation import AnswerFormat


def number(behind: bytes, end: int, cut: bool, stopped: bool) -> bytes:
    found = re.search(rb'(?<![A-Za-z\d.])\.\d+|\d+(?:,\d{3}(?!\d))*(?:\.\d+)?', behind)
    if not found or found.start() >= end:
        return b''
    rest = behind[found.end() :]
    if re.match(rb'[,./:^eE]\d', rest) or (cut and re.fullmatch(rb'[,./:^eE]?', rest)):
        return b''
    context = decimal.Context(prec=500)
    value = decimal.Decimal(found.group().replace(b',', b'').decode(), context).normalize(context)
    before = re.search(rb'[-$\\\xc2\xa2\xa3\xa5\xe2\x82\xac\x88\x92]*\Z', behind[: found.start()]).start()
    minus = re.compile(rb'(?<![A-Za-z\d])-|\xe2\x88\x92').search(behind, before, found.start())
    return (b'-' if minus and value else b'') + format(value, 'f').encode()


WORD = rb"[A-Za-z\d_'\x80-\xff-]"


def option(behind: bytes, end: int, cut: bool, stopped: bool) -> bytes:
    pattern = rb'(?<!%b)(?:[b-hj-zB-HJ-ZA]|[aiI](?![ \t]))(?!%b)' % (WORD, WORD)
    letter = re.search(pattern, behind)
    if not letter or letter.start() >= end or (cut and letter.end() == len(behind)):
        return b''
    return letter.group().lower()


def yes_no(behind: bytes, end: int, cut: bool, stopped: bool) -> bytes:
    word = re.search(rb'(?i)(?<!%b)(?:yes|no)(?!%b)' % (WORD, WORD), behind)
    if not word or word.start() >= end or (cut and word.end() == len(behind)):
        return b''
    return word.group().lower()


def text(behind: bytes, end: int, cut: bool, stopped: bool) -> bytes:
    if cut and not stopped:
        return b''
    said = behind[:end].lstrip(b' \t\n\v\f\r\0"\'*`:').rstrip(b' \t\n\v\f\r\0"\'*`.,;:!?').lower()
    said = re.sub(rb'\A(a|an|the)[\s\0]+', b'', said)
    return re.sub(rb'[\s\0]+', b' ', said)


PHRASES = {
    b'yes': rb'yes(?!%b)|entail' % WORD,
    b'no': rb'no(?!%b)|contradict' % WORD,
    b'unknown': rb"(?:not possible|impossible|cannot|can't|neutral|unknown|unclear|maybe)(?!%b)" % WORD,
}


def nli(behind: bytes, end: int, cut: bool, stopped: bool) -> bytes:
    found = {}
    for word, pattern in PHRASES.items():
        for phrase in re.finditer(rb'(?i)(?<!%b)(?:%b)' % (WORD, pattern), behind):
            found.setdefault(phrase.start(), (phrase.end(), word))
    if not found or min(found) >= end:
        return b''
    stop, word = found[min(found)]
    return b'' if cut and stop == len(behind) else word


def span(behind: bytes, end: int, cut: bool, stopped: bool) -> bytes:
    last = rb'(?!\Z)' if cut else b''
    end = len(behind)
    stopped = False
    for stop in re.finditer(rb'\n|[.!?](?=[\s\0]|\Z)' + last, behind):
        word = re.search(rb'[^\s\0]*\Z', behind[: stop.start()]).group()
        short = re.fullmatch(rb'[A-Z].{0,2}', word, re.DOTALL) and stop.group() == b'.'
        if not short or behind[stop.end() : stop.end() + 1] in (b'', b'\n', b'\r'):
            end, stopped = stop.start(), True
            break
    if cut and not stopped:
        return b''
    return normalised(behind[:end])


def normalised(text: bytes) -> bytes:
    """As DROP's evaluation has it, numbers in our spelling."""
    tokens = []
    for token in re.split(rb'[\s\0-]+', text.lower()):
        if not re.fullmatch(rb'\d+\.?\d*|\.\d+', token):
            token = re.sub(rb'[!-/:-@\[-`{-~]', b'', token)
        if re.fullmatch(rb'\d+\.?\d*|\.\d+', token):
            whole, _, fraction = token.partition(b'.')
            whole, fraction = whole.lstrip(b'0'), fraction.rstrip(b'0')
            token = whole + b'.' + fraction if fraction else whole or b'0'
        if token not in (b'', b'a', b'an', b'the'):
            tokens.append(token)
    return b' '.join(tokens)


READERS = {
    'number': number,
    'option': option,
    'yes_no': yes_no,
    'nli': nli,
    'text': text,
    'span': span,
}


def reference(answers: AnswerFormat, text: bytes, ended: bool) -> bytes:
    """The answer of a completion."""
    place = text.lower().rfind(answers.trigger.lower().encode())
    behind = text[place + len(answers.trigger) :]
    if place < 0 or (answers.trigger[-1].isalpha() and behind[:1].isalpha()):
        return b''
    cut = not ended or len(behind) > answers.window
    behind = behind[: answers.window]
    last = rb'(?!\Z)' if cut else b''
    stop = re.search(rb'\n|[.!?](?=[\s\0]|\Z)' + last, behind)
    end = stop.start() if stop else len(behind)
    found = READERS[answers.kind](behind, end, cut, stop is not None)
    return found if len(found) <= answers.room else b''
