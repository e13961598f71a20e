"""The table of block sizes: obeyed, overruled by the user, and made by compiling. Static estimates, no TPU."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from kernels_pallas import blocks, report, tune
from kernels_pallas.cases import OPERATIONS, Tuned
from kernels_pallas.chips import CHIPS
from kernels_pallas.delta_rule import delta_rule
from kernels_pallas.diagonal_recurrence import diagonal_recurrence
from kernels_pallas.flash_attention import flash_attention
from kernels_pallas.gated_linear_attention import gated_linear_attention
from kernels_pallas.selective_scan import selective_scan
from kernels_pallas.selective_scan.cases import case as selective_case


def shape(*axes, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(axes, dtype)


HEADS = shape(1, 1024, 4, 64)
GATE = shape(1, 1024, 4, dtype=jnp.float32)
TOKENS = shape(1, 1024, 512)
COLUMNS = shape(1, 1024, 16)
STATES = shape(512, 16, dtype=jnp.float32)
# (the public function, its arguments, its line of the table and sizes there, the user's, and the grids that they make)
OBEYED = {
    "flash_attention": (
        lambda q, **options: flash_attention(q, q, q, **options),
        (HEADS,),
        ("forward", 64, {"queries": 512, "keys": 256}, (1, 4, 1, 1, 8)),
        ({"keys": 512}, (1, 4, 1, 1, 4)),
    ),
    "gated_linear_attention": (
        lambda q, g, **options: gated_linear_attention(q, q, q, g, **options),
        (HEADS, GATE),
        ("scalar", 64, {"chunk": 256, "heads": 1}, (1, 4, 4)),
        ({"heads": 2}, (1, 2, 4)),
    ),
    "delta_rule": (
        lambda q, beta, **options: delta_rule(q, q, q, beta, **options),
        (HEADS, GATE),
        ("forward", 64, {"heads": 1}, (1, 4, 8)),
        ({"heads": 2}, (1, 2, 8)),
    ),
    "diagonal_recurrence": (
        diagonal_recurrence,
        (TOKENS, TOKENS),
        ("both", 512, {"rows": 256, "width": 128}, (1, 4, 4)),
        ({"rows": 512}, (1, 4, 2)),
    ),
    "selective_scan": (
        selective_scan,
        (TOKENS, TOKENS, STATES, COLUMNS, COLUMNS),
        ("both", 512, {"rows": 256, "width": 256}, (1, 2, 4)),
        ({"width": 128}, (1, 4, 4)),
    ),
}


def grids(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call" and "triton" not in str(equation.params.get("backend")):
            yield equation.params["grid_mapping"].grid
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from grids(inner)


@pytest.fixture
def made_up(monkeypatch, tmp_path):
    """Puts a table in the place of the committed one."""

    def put(name, rows):
        (tmp_path / "blocks.json").write_text(json.dumps({name: rows}))
        monkeypatch.setattr(blocks, "TABLE", tmp_path / "blocks.json")
        blocks.table.cache_clear()

    yield put
    monkeypatch.undo()
    blocks.table.cache_clear()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_table_is_obeyed_and_the_user_goes_before_it(made_up, operation):
    function, arguments, (direction, width, sizes, grid), (asked, users) = OBEYED[operation]
    made_up(f"{operation}/{direction}", [{"chip": "v5e", "dtype": "bfloat16", "width": width, "blocks": sizes}])
    found = list(grids(jax.make_jaxpr(function)(*arguments).jaxpr))
    assert grid in found
    overruled = list(grids(jax.make_jaxpr(lambda *x: function(*x, block_sizes=asked))(*arguments).jaxpr))
    assert users in overruled and grid not in overruled


def test_a_row_serves_its_chip_its_dtype_and_no_wider_head(made_up):
    row = {"chip": "v6e", "dtype": "bfloat16", "blocks": {"keys": 1}}
    made_up("x/forward", [row | {"width": 128}, row | {"width": 64, "blocks": {"keys": 2}}])
    default = {"keys": 3, "queries": 4}

    def keys(chip, dtype, width):
        found = blocks.pick("x", "forward", jnp.dtype(dtype), width, default, CHIPS[chip])
        assert found["queries"] == 4
        return found["keys"]

    assert [keys("v6e", "bfloat16", width) for width in (32, 64, 96, 128, 192)] == [2, 2, 1, 1, 3]
    assert keys("v5e", "bfloat16", 64) == keys("v6e", "float32", 64) == 3


def tiny(candidates):
    def of(sizes):
        return [selective_case("forward", jnp.float32, batch=1, length=256, width=256, sizes=sizes)]

    return Tuned("selective_scan", "both", "float32", 256, lambda chip: candidates, of, "selective_scan")


def test_the_candidate_that_takes_least_is_chosen_and_written(compile_for, made_up):
    slow, fast = ({"rows": 128, "width": width} for width in (128, 256))
    times = [compile_for("v5e", c.function, *c.arguments).kernels[0].run.bundles for c in tiny([]).cases(slow)]
    found = tune.best(tiny([slow, fast]), CHIPS["v5e"])
    assert found["blocks"] == fast and found["cycles"] < 0.99 * found["cycles_of_first"] == 0.99 * times[0]
    assert tune.best(tiny([fast, slow]), CHIPS["v5e"])["blocks"] == fast
    made_up("other/both", [found])
    tune.write_table("selective_scan", "both", [found])
    document = json.loads(blocks.TABLE.read_text())
    assert document["selective_scan/both"] == [found] == document["other/both"]
    assert document["versions"] == report.versions()


@pytest.mark.parametrize(
    "times, chosen", [((100, 99.5, 120), 0), ((100, 98, 97), 2), ((None, 98, 97), 2), ((None,) * 3, None)]
)
def test_the_first_stays_unless_another_gains_a_hundredth(monkeypatch, times, chosen):
    """And what does not fit is not chosen."""
    candidates = [{"rows": i} for i in range(3)]
    row = dataclasses.replace(tiny([]), candidates=lambda chip: candidates, cases=lambda sizes: [sizes["rows"]])
    monkeypatch.setattr(tune, "static_cycles", lambda case, chip, kernel: times[case])
    found = tune.best(row, CHIPS["v5e"])
    assert found is None if chosen is None else found["blocks"] == {"rows": chosen}


def test_a_block_beyond_the_limit_of_vmem_does_not_fit(compile_for):
    case = selective_case("forward", jnp.float32, length=8192, sizes={"rows": 4096, "width": 2048})
    assert tune.static_cycles(case, CHIPS["v5e"], "selective_scan") is None
