"""The command line: what it takes, and what it says to what it does not."""

import pytest

from t5x_selfimprove import config


def test_arguments():
    parse = config.parse_arguments
    got = parse(
        ['improve', '--gin_file=a.gin', '--gin.A=/x=y', '--gin_file', 'b.gin', '--gin.train.Improve.seed', '-3']
    )
    assert got == config.Arguments('improve', ('a.gin', 'b.gin'), ('A=/x=y', 'train.Improve.seed=-3'))
    assert parse(['report', 'runs/x']) == config.Arguments('report', words=('runs/x',))
    assert parse(['--help']).help and parse(['improve', '-h']).help


BAD_ARGUMENTS = {
    ('imporve',): 'did you mean improve?',
    (): 'which command?',
    ('improve', '--ginfile=a.gin'): 'did you mean --gin_file?',
    ('improve', '--gin_bindings=A=3'): 'did you mean --gin.NAME=...?',
    ('improve', '--STEPS=3'): 'did you mean --gin.STEPS=...?',
    ('improve', 'a.gin'): 'did you mean --gin_file=a.gin?',
    ('improve', 'STEPS=3'): 'did you mean --gin.STEPS=3?',
    ('improve', '--gin_file'): '--gin_file has no value',
    ('improve', '--gin.STEPS', '--gin_file=a.gin'): '--gin.STEPS has no value',
    ('report', '--gin.STEPS=3'): 'report takes no flag --gin.STEPS',
}


@pytest.mark.parametrize('argv', BAD_ARGUMENTS)
def test_bad_arguments(argv):
    with pytest.raises(config.ConfigError, match='problem') as caught:
        config.parse_arguments(argv)
    assert BAD_ARGUMENTS[argv] in str(caught.value)
