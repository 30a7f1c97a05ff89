"""The folder that the configurations of these tests are in."""

import pytest

from tests.config.toys import GOOD, write


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with good.gin in it."""
    monkeypatch.chdir(tmp_path)
    write(good=GOOD)
    return tmp_path
