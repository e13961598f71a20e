"""Tables of runs: what a law reads of them, and one line for each thing that can be wrong."""

from __future__ import annotations

import numpy as np
import pandas
import pytest

from lab.laws.errors import TableError
from lab.laws.law import law
from lab.laws.objective import Objective
from lab.laws.schedules import columns
from lab.laws.source import read
from lab.laws.tables import doubts, filtered, read_table, rows

N, D = np.geomspace(1e7, 1e9, 8), np.geomspace(1e9, 1e11, 8)[::-1]
LOSS = 1.7 + 400 / N**0.34 + 410 / D**0.28


def runs(**changes) -> pandas.DataFrame:
    """Eight runs with the columns that `hoffmann` reads."""
    return pandas.DataFrame({"N": N, "D": D, "loss": LOSS}).assign(**changes)


def refused(frame, *words, name="hoffmann", **options):
    """`rows` refuses the frame in one line that has all the words."""
    with pytest.raises(TableError) as error:
        rows(law(name), frame, **options)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def changed(column, row, value):
    frame = runs().astype({column: object})
    frame.loc[row, column] = value
    return frame


def test_columns_of_the_laws_own_names_are_taken_as_they_are():
    found = rows(law("hoffmann"), runs())
    assert (found.columns["N"] == N).all() and (found.columns["D"] == D).all() and (found.target == LOSS).all()
    assert (found.weights == 1).all() and not found.censored.any()
    assert all(array.dtype == np.float64 for array in (*found.columns.values(), found.target, found.weights))


def test_columns_are_mapped_by_name_and_by_expression():
    frame = pandas.DataFrame({"params": N, "train flops": 6 * N * D, "final_loss": LOSS})
    mapping = {"N": "params", "D": "`train flops` / (6 * params)", "loss": "final_loss"}
    found = rows(law("hoffmann"), frame, mapping)
    np.testing.assert_allclose(found.columns["D"], D, rtol=1e-14)
    assert rows(law("power"), frame, {"x": "train flops", "y": "final_loss"}).columns["x"][0] == 6 * N[0] * D[0]
    logs = frame.assign(ppl=np.exp(LOSS))
    np.testing.assert_allclose(rows(law("hoffmann"), logs, mapping | {"loss": "log(ppl)"}).target, LOSS, rtol=1e-14)


def test_units_are_taken_at_their_word():
    frame = runs(N=N / 1e6, D=D / 2048, loss=LOSS / np.log(2))
    found = rows(law("hoffmann"), frame, units={"N": "millions", "D": "2048", "loss": "bits"})
    for ours, truth in ((found.columns["N"], N), (found.columns["D"], D), (found.target, LOSS)):
        np.testing.assert_allclose(ours, truth, rtol=1e-14)
    small = rows(law("hoffmann"), frame, units={"N": "ones", "D": "ones"})
    assert (small.columns["N"] == N / 1e6).all()


def test_weights_and_censoring():
    frame = runs(times=[1, 0, 2, 1, 1, 1, 1, 1], bound=["true", "False", 0, 1, False, True, "0", "1"])
    found = rows(law("hoffmann"), frame, weights_column="times", censored_column="bound")
    assert found.weights.tolist() == [1, 0, 2, 1, 1, 1, 1, 1]
    assert found.censored.tolist() == [True, False, False, True, False, True, False, True]
    refused(runs(times=-1.0), "--weights times", "found -1", "0 or more", weights_column="times")
    refused(runs(), "--weights tmes", "found columns N, D, loss", weights_column="tmes")
    refused(runs(bound="maybe"), "--censored bound", "'maybe'", "true and false", censored_column="bound")


def test_a_missing_column_is_named_with_what_it_could_be():
    frame = runs().rename(columns={"N": "params"})
    refused(frame, "hoffmann reads column N", "parameters", "found params, D, loss", "did you mean --map N=params?")
    refused(runs().rename(columns={"loss": "validation_loss"}), "did you mean --map loss=validation_loss?")
    refused(runs().rename(columns={"D": "q"}), "column D", "tokens", "say which with --map D=COLUMN")
    refused(runs(), "law data-constrained reads column U", "unique", name="data-constrained")


def test_a_map_that_cannot_be_meant():
    refused(runs(), "--map D=flops / 6", "flops", "found columns N, D, loss", mapping={"D": "flops / 6"})
    refused(runs(), "--map N=loss +", "found columns", mapping={"N": "loss +"})
    refused(runs(), "--map D=[1,2]", "found columns", mapping={"D": "[1,2]"})


def test_what_is_no_number_is_named_with_its_line():
    refused(changed("loss", 5, "diverged"), "column loss", "'diverged'", "in 1 row (first: line 7 of the file)")
    refused(changed("N", 0, None), "column N", "NaN", "line 2 of the file", "--where 'N == N'")
    refused(changed("D", 3, np.inf), "column D", "infinity", "expected numbers")
    kept = filtered(changed("loss", 5, np.nan).astype(float), "loss == loss")
    assert len(rows(law("hoffmann"), kept).target) == 7


def test_lines_count_from_the_file_after_rows_were_left_out():
    frame = filtered(changed("loss", 5, -1.0).astype(float), "N > 5e7")
    assert len(frame) == 5
    refused(frame, "line 7 of the file")


def test_zero_and_less_have_no_logarithm():
    refused(changed("N", 2, 0.0), "column N", "found 0", "above 0", "--where 'N > 0'")
    refused(changed("loss", 2, -0.5), "column loss", "found -0.5", "logarithms")
    frame = changed("loss", 2, -0.5).astype(float)
    assert rows(law("hoffmann"), frame, objective=Objective("huber", space="linear")).target[2] == -0.5


def test_too_few_rows_and_axes_of_one_value():
    refused(runs().head(4), "found 4 rows, expected at least 5", "E, A, B, alpha, beta")
    refused(runs().head(3), "found 3 rows, expected at least 4", "E, A, B, beta", fixed=("alpha",))
    assert len(rows(law("hoffmann"), runs().head(4), fixed=("alpha",))) == 4
    refused(runs(N=1e8), "column N: found one value (1e+08) in all 8 rows", "differ in N")
    refused(runs(N=1e8, D=1e10, loss=3.0), "found 8 copies of one row")


def test_filters():
    assert len(filtered(runs(), "loss < 3.2 and N > 1e8")) == ((LOSS < 3.2) & (N > 1e8)).sum() > 0
    for expression, words in {
        "loss < 0": "found no row of 8",
        "los < 3": "did you mean 'loss'",
        "loss + 1": "expected a condition",
        "loss <": "--where",
    }.items():
        with pytest.raises(TableError, match=words):
            filtered(runs(), expression)


def test_values_in_another_unit_are_seen_where_they_show():
    refused(runs(N=N / 1e6), "column N: found 10 to 1000, expected parameters", "--unit N=millions")
    refused(runs(D=D / 1e9), "column D: found 1 to 100, expected tokens", "--unit D=billions")
    refused(runs(D=D / 1e6), "column D: found 1000 to 100000", "--unit D=millions", "--unit D=ones")
    assert rows(law("hoffmann"), runs(D=D / 1e4)).columns["D"].max() == pytest.approx(1e7)
    refused(runs(N=np.where(N < 1e8, N / 1e6, N)), "column N", "as if in two units")
    refused(runs(loss=np.exp(LOSS) * 5), "of a perplexity take the logarithm", "--map 'loss=log(loss)'")
    frame = runs(bits_per_token=LOSS / np.log(2))
    refused(frame, "bits_per_token looks like bits", "--unit loss=bits", mapping={"loss": "bits_per_token"})
    both = pandas.concat([runs(), runs(loss=LOSS / np.log(2))], ignore_index=True)
    refused(both, "nats and bits in one column")


def test_an_unknown_unit():
    refused(runs(), "--unit N=milions", "did you mean 'millions'", units={"N": "milions"})
    refused(runs(), "--unit N=-1", "a number above 0", units={"N": "-1"})


def test_a_unit_or_a_map_of_no_column(tmp_path):
    runs().to_csv(tmp_path / "runs.csv")
    with pytest.raises(TableError, match="--unit Q=bits: expected one of D, N, loss"):
        read(str(tmp_path / "runs.csv"), [law("hoffmann")], units={"Q": "bits"})
    with pytest.raises(TableError, match="--map Q=N: hoffmann read D, N, loss, not Q"):
        read(str(tmp_path / "runs.csv"), [law("hoffmann")], {"Q": "N"})


def test_rows_that_repeat_are_told_and_kept():
    twice = pandas.concat([runs(), runs().head(3)], ignore_index=True)
    found = rows(law("hoffmann"), twice)
    assert len(found) == 11
    assert doubts(law("hoffmann"), found) == [
        "3 of 11 rows repeat another row exactly; each counts as a measurement of its own"
    ]
    assert doubts(law("hoffmann"), rows(law("hoffmann"), runs())) == []


@pytest.mark.parametrize("name", ["runs.csv", "runs.csv.gz", "runs.tsv", "runs.parquet", "runs.jsonl"])
def test_files_of_every_kind_hold_the_same_numbers(name, tmp_path):
    path = tmp_path / name
    if name.endswith("parquet"):
        runs().to_parquet(path)
    elif name.endswith("jsonl"):
        runs().to_json(path, orient="records", lines=True, double_precision=15)
    else:
        runs().to_csv(path, index=False, sep="\t" if name.endswith("tsv") else ",")
    found = read_table(path)
    np.testing.assert_allclose(found[["N", "D", "loss"]], runs(), rtol=1e-14)
    source = read(str(path), [law("hoffmann")], where="N > 5e7")
    assert len(source.sha256) == 64 and source.rows_in_file == 8 and len(source.rows(law("hoffmann"))) == 5


def test_files_that_cannot_be_read(tmp_path):
    for name, content, words in (
        ("empty.csv", b"", "cannot be read"),
        ("header.csv", b"N,D,loss\n", "no rows"),
        ("binary.parquet", b"\x00\x01", "cannot be read"),
        ("runs.xlsx", b"x", "expected .csv"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TableError, match=words):
            read_table(tmp_path / name)
    with pytest.raises(TableError, match="found no file"):
        read_table(tmp_path / "none.csv")


def test_loss_curves_give_the_columns_of_their_schedules(tmp_path):
    """Logged every 10 updates after the warm-up, of a cosine and of a constant, shuffled: as from the whole history."""
    peak, warmup, last = 3e-4, 200, 2000
    t = np.arange(last + 1)
    rise = peak * np.minimum(t / warmup, 1)
    histories = {"cosine": np.where(t < warmup, rise, peak * (0.55 + 0.45 * np.cos(np.pi * (t - warmup) / 1800)))}
    histories["constant"] = rise
    logs = np.arange(warmup, last + 1, 10)
    parts = [pandas.DataFrame({"run": name, "step": logs, "lr": lr[logs]}) for name, lr in histories.items()]
    frame = pandas.concat(parts).sample(frac=1, random_state=0).assign(loss=3.0)
    frame["loss"] += np.arange(len(frame)) / 1e3
    frame.to_csv(tmp_path / "curves.csv", index=False)
    laws = [law("annealing"), law("multi-power")]
    source = read(str(tmp_path / "curves.csv"), laws, where="step > 600")
    kept = frame[frame["step"] > 600]
    found = source.rows(law("annealing")).columns
    for name, lr in histories.items():
        mine = (kept["run"] == name).to_numpy()
        truth = columns(lr, kept["step"].to_numpy()[mine], since=warmup)
        np.testing.assert_allclose(found["S1"][mine], truth["S1"], rtol=1e-5)
        np.testing.assert_allclose(found["S2"][mine], truth["S2"], rtol=1e-3, atol=1e-12)
    drops = source.rows(law("multi-power")).columns
    assert drops["drop"].shape == drops["drop_sum"].shape == (len(kept), drops["drop"].shape[1])
    np.testing.assert_allclose(drops["drop"].sum(1), -kept["lr"], atol=1e-10)  # from 0
    with pytest.raises(TableError, match="twice in one run; .* --run COLUMN"):
        frame.rename(columns={"run": "label"}).to_csv(tmp_path / "curves.csv", index=False)
        read(str(tmp_path / "curves.csv"), laws)
    with pytest.raises(TableError, match="--map lr=COLUMN"):
        frame.drop(columns="lr").to_csv(tmp_path / "curves.csv", index=False)
        read(str(tmp_path / "curves.csv"), laws)
