"""Commands run in this process, each test with a root of its own."""

import pytest

from lab import cli
from lab.laws import law as lawbook


@pytest.fixture(scope="module", autouse=True)
def compilation_cache_of_this_module():
    """The command line turns on jax's compilation cache; other tests get the process back without it."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(autouse=True)
def root(monkeypatch, tmp_path):
    """The root where none is given."""
    monkeypatch.setenv("WINDTUNNEL_ROOT", str(tmp_path / "default"))
    return tmp_path / "default"


@pytest.fixture
def lab(capfd, monkeypatch):
    """Runs a command: exit code, standard output, standard error. Laws of a `--law-file` are forgotten afterwards."""
    monkeypatch.setattr(lawbook, "_LAWS", lawbook.laws())
    monkeypatch.setenv("COLUMNS", "120")  # tables are split to the width of the terminal

    def run(*argv):
        capfd.readouterr()
        code = cli.main([str(word) for word in argv])
        return code, *capfd.readouterr()

    return run
