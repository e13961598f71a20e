"""A synthetic corpus that the tests of reading share, and the marker of those that prepare text."""

import pytest
from small_corpora import settings

from lab import data


def pytest_configure(config):
    config.addinivalue_line("markers", "tensorflow: prepares text, which loads TensorFlow in a process of its own")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return data.prepare(settings(), tmp_path_factory.mktemp("cache"))
