"""Loss curves under schedules: histories, metrics, and the two laws on the published curves."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from experiments import annealing_law, loss_curves, multi_power_law
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
    stopped = loss_curves.objective_at(form, multi_power_law.published(size), rows)
    assert found.certificate.converged
    assert found.objective_value == pytest.approx(loss_curves.objective_at(form, found.values, rows), rel=1e-6)
    assert found.objective_value < stopped / 1.5
    r2 = loss_curves.held_out(form, found.values, data)["R2"].mean()
    assert 0.99 < r2 < multi_power_law.PRINTED[size]["R2"]


def test_annealing_law_on_the_same_curves(published, tmp_path):
    found = annealing_law.analyse(published, sizes=("100M",), decays=(0.999,), every=FEWER)
    choices = found.tables["choices"].set_index("changes counted")
    assert choices.loc["after warm-up", "objective"] > 0
    test = found.tables["test-curves"].groupby("law")["RMSE"].mean()
    assert test["multi-power"] < test["annealing"]
    assert found.draw(tmp_path / "figure").stat().st_size > 10_000


@pytest.mark.long
def test_multi_power_law_whole(published, tmp_path):
    found = multi_power_law.analyse(published, sizes=("100M",), every=32, resamples=64)
    table = found.tables["objective-and-test"].set_index("constants")
    assert table.loc["full", "objective"] < table.loc["published", "objective"] / 10
    assert table.loc["full", "R2"] < table.loc["published", "R2"]
    assert found.draw(tmp_path / "figure").stat().st_size > 10_000
