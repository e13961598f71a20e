"""The import contract of pyproject.toml, run by import-linter on this tree and on copies that break it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("lab", "experiments", "kernels_pallas", "launch")


def lint(directory: Path) -> subprocess.CompletedProcess:
    """`lint-imports` of the tree in `directory`."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    environment = {**os.environ, "PYTHONPATH": str(directory), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [*command, "--no-cache"], cwd=directory, env=environment, capture_output=True, text=True, timeout=120
    )


def test_imports_go_one_way():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tree")
    shutil.copy(ROOT / "pyproject.toml", directory)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, directory / package, ignore=shutil.ignore_patterns("__pycache__", "results"))
    return directory


@pytest.mark.parametrize(
    "module, statement",
    [
        ("lab/laws/power.py", "import lab.errors"),
        ("lab/laws/power.py", "import flax"),
        ("lab/models/norm.py", "import lab.train.step"),
        ("lab/train/loop.py", "import lab.sweep.plan"),
        ("lab/data/order.py", "import lab.optim.timeline"),
        ("lab/sweep/run.py", "import experiments.critical_batch_size"),
        ("kernels_pallas/__init__.py", "import lab.errors"),
        ("experiments/critical_batch_size.py", "import lab.train.step"),
        ("lab/newcomer.py", "import lab.errors"),
    ],
)
def test_a_wrong_import_breaks_the_contract(copy, module, statement):
    path = copy / module
    before = path.read_bytes() if path.exists() else None
    path.write_bytes((before or b"") + f"\n{statement}\n".encode())
    try:
        done = lint(copy)
    finally:
        path.write_bytes(before) if before is not None else path.unlink()
    assert done.returncode != 0, f"{statement} in {module} went unnoticed"
    assert "BROKEN" in done.stdout or "newcomer" in done.stdout + done.stderr


def test_laws_and_configs_load_without_training():
    """At run time too: neither of them, nor `lab list`, loads jax, TensorFlow or pandas."""
    code = (
        "import sys, contextlib, io\n"
        "import lab.config, lab.laws.power, lab.laws.critical_batch, lab.cli\n"
        "with contextlib.redirect_stdout(io.StringIO()): assert lab.cli.main(['list']) == 0\n"
        "print(sorted({'jax', 'flax', 'optax', 'tensorflow', 'seqio', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
