"""Loss curves under schedules: histories, metrics, and the two laws on the published curves."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from experiments import annealing_law, loss_curves, multi_power_law
from experiments.parametric import objective_at
from lab.laws.bootstrap import Interval
from lab.laws.errors import TableError
from lab.laws.fit import fit
from lab.laws.law import law

FEWER = 16  # the default tests' fits read every so-manieth row of a curve


@pytest.fixture(scope="module", params=loss_curves.SIZES)
def measured(request, published):
    return request.param, loss_curves.curves(published(f"mpl_curves_{request.param}"))


def test_histories_are_the_stated_schedules():
    cosine = loss_curves.history("cosine_24000", 24_000)
    assert cosine[0] == 0 and cosine[2160] == pytest.approx(3e-4) and cosine[-1] == pytest.approx(3e-5, rel=1e-6)
    assert cosine[13_080] == pytest.approx((3e-4 + 3e-5) / 2)
    exponential, linear = (loss_curves.history(f"{kind}_20000_24000", 24_000) for kind in ("wsd", "wsdld"))
    assert exponential[22_000] == pytest.approx(np.sqrt(3e-4 * 3e-5)) and linear[22_000] == pytest.approx(1.65e-4)
    assert (exponential[2160:20_000] == 3e-4).all()
    dropped = loss_curves.history("wsdcon_9", 16_000)
    assert dropped[7_999] == 3e-4 and dropped[8_000] == pytest.approx(9e-5)


def test_a_curve_of_another_schedule_is_refused():
    rows = [{"curve": name, "step": 3000, "lr": 1e-4, "loss": 3.0} for name in loss_curves.TRAIN]
    with pytest.raises(TableError, match="off the stated schedule"):
        loss_curves.curves(pd.DataFrame(rows))


def test_metrics_of_a_curve_by_hand():
    found = loss_curves.metrics(np.array([4.0, 2.0]), np.array([4.2, 2.1]))
    expected = (1 - 0.05 / 2, 0.15, np.sqrt(0.025), 0.05, 0.05)
    assert list(found.values()) == pytest.approx(expected)


def test_published_constants_give_the_published_metrics(measured):
    size, data = measured
    form, values = law("multi-power"), multi_power_law.published(size)
    means = loss_curves.held_out(form, values, data)[list(loss_curves.METRICS)].mean()
    printed = multi_power_law.PRINTED[size]
    assert means["R2"] == pytest.approx(printed["R2"], abs=1e-4)
    for metric in loss_curves.METRICS[1:]:
        assert means[metric] == pytest.approx(printed[metric], abs=1.1e-5)


def test_the_authors_procedure_gives_the_authors_constants(measured):
    """200 updates of AdamW end where theirs did, to four digits; their log has the objective one update before."""
    size, data = measured
    rows = loss_curves.rows_of(data, loss_curves.TRAIN)
    lr = np.concatenate([data[name]["lr"] for name in loss_curves.TRAIN])
    constants, logged, start = multi_power_law.early_stopped(rows, lr)
    assert constants == pytest.approx(multi_power_law.published(size), rel=1e-3)
    assert logged == pytest.approx(multi_power_law.LOGGED[size], rel=5e-4)
    assert constants["B"] == pytest.approx(start["B"], rel=0.05)  # where it began, less a few hundredths


def test_full_minimisation_fits_better_and_predicts_worse(measured):
    """On every sixteenth point as on all: the objective falls by a factor, held-out R2 falls as well."""
    size, data = measured
    form, rows = law("multi-power"), loss_curves.rows_of(data, loss_curves.TRAIN, FEWER)
    found = fit(form, rows, starts=[multi_power_law.published(size)])
    stopped = objective_at(form, rows, form.objective, multi_power_law.published(size))
    assert found.certificate.converged
    assert found.objective_value == pytest.approx(objective_at(form, rows, form.objective, found.values), rel=1e-6)
    assert found.objective_value < stopped / 1.5
    r2 = loss_curves.held_out(form, found.values, data)["R2"].mean()
    assert 0.99 < r2 < multi_power_law.PRINTED[size]["R2"]


def errors(relative, ratio):
    """Test curves of two sizes: the annealing law's mean relative errors, and its RMSE over the multi-power law's."""
    rng, rows = np.random.default_rng(0), []
    for size in loss_curves.SIZES:
        for curve in loss_curves.TEST:
            wiggle = np.exp(rng.normal(0, 0.05))
            for name, rmse in (("annealing", 0.01 * ratio * wiggle), ("multi-power", 0.01)):
                mean = relative * wiggle
                rows.append({"size": size, "curve": curve, "law": name, "RMSE": rmse, loss_curves.METRICS[3]: mean})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    "relative, ratio, expected",
    [(0.001, 2.0, "holds"), (0.01, 0.5, "contradicted"), (0.005, 1.0, "inconclusive")],
)
def test_verdicts_on_the_annealing_law_go_both_ways(relative, ratio, expected):
    findings = annealing_law._findings(errors(relative, ratio))
    assert [finding.verdict for finding in findings] == [expected] * 2


@pytest.mark.parametrize(
    "r2, beta, spread, expected",
    [(0.9988, 0.58, 0.02, "holds"), (0.9, 1.5, 0.02, "contradicted"), (0.9988, 0.58, 0.5, "inconclusive")],
)
def test_verdicts_on_the_multi_power_law_go_both_ways(r2, beta, spread, expected):
    nine = SimpleNamespace(values={"beta": beta, "gamma": beta + 0.06})
    intervals = {name: Interval(value - spread, value + spread, 0.95) for name, value in nine.values.items()}
    curves = r2 + 0.02 * spread * np.array([-1, 1, -0.5, 0.5, 0.0, 0.1])
    means = {"published": {"R2": 0.9988}}
    findings = multi_power_law._findings("25M", nine, means, curves, intervals)
    assert [finding.verdict for finding in findings] == [expected] * 3


def test_reasons_name_the_numbers_that_they_rest_on():
    values = multi_power_law.published("25M")
    metrics = dict.fromkeys(loss_curves.METRICS, 0.5)
    found = []
    for minimum in (1e-4, 1e-5):
        full = SimpleNamespace(values=values, objective_value=minimum)
        objectives, means = {"published": 3e-4}, {"published": metrics, "full": metrics, "early stopped": metrics}
        found.append(multi_power_law._compared("25M", full, values, 3e-4, values, objectives, means))
    stopped, lower = (frame[frame["constants"] == "full"]["reason"] for frame in found)
    assert stopped.str.contains("3.00 times lower").all() and lower.str.contains("30.00 times lower").all()


def test_annealing_law_on_the_same_curves(published, tmp_path):
    found = annealing_law.analyse(published, sizes=("100M",), decays=(0.999,), every=FEWER)
    choices = found.tables["choices"].set_index("changes counted")
    assert choices.loc["after warm-up", "objective"] > 0
    test = found.tables["test-curves"].groupby("law")["RMSE"].mean()
    assert test["multi-power"] < test["annealing"]
    compared = found.tables["published-against-ours"].set_index("law")["published"]
    assert compared["annealing"].isna().all() and compared["multi-power"].notna().all()
    assert found.draw(tmp_path / "figure").stat().st_size > 10_000


@pytest.mark.long
def test_multi_power_law_whole(published, tmp_path):
    found = multi_power_law.analyse(published, sizes=("100M",), every=32, resamples=64)
    table = found.tables["objective-and-test"].set_index("constants")
    assert table.loc["full", "objective"] < table.loc["published", "objective"] / 10
    assert table.loc["full", "R2"] < table.loc["published", "R2"]
    assert found.draw(tmp_path / "figure").stat().st_size > 10_000
