"""Truth comes back from rows without noise, of every law; published numbers and closed forms of the first families."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from lab.laws.errors import LawError
from lab.laws.fit import fit, predict
from lab.laws.law import law, laws
from lab.laws.simulate import Simulation
from tests.laws.simulated import batch, loss, simulations

SIMULATED = {simulation.name: simulation for simulation in (*loss.SIMULATIONS, *batch.SIMULATIONS)}
BY_DEFAULT = (
    *("power", "power-offset", "kaplan", "hoffmann", "isoflop", "critical-batch", "vocabulary"),
    *("routed", "upcycling", "sparse-average", "post-training-quantization", "rectified", "fine-tuning"),
    *("loss-to-loss", "pass-at-k", "passuntil", "observational", "capability"),
)


def at(name: str, constants: dict[str, float], **columns) -> np.ndarray:
    """A law's prediction at columns."""
    chosen = law(name)
    columns = {key: np.atleast_1d(np.asarray(value, float)) for key, value in columns.items()}
    return predict(chosen, np.array(chosen.search(constants)), columns)


def published(name: str, source: str) -> dict[str, float]:
    """Constants that a source prints, without the derived quantities."""
    values = next(each.values for each in law(name).published if source in each.source)
    return {key: value for key, value in values.items() if key in law(name).names}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name not in BY_DEFAULT)) for name in simulations()]
)
def test_rows_without_noise_give_the_constants_back(name):
    simulation = simulations()[name]
    still = Simulation(name, simulation.constants, simulation.columns, 0.0)
    found = fit(still.law, still.rows(0))
    assert {**found.values, **found.derived} == pytest.approx(still.truth, rel=1e-9)


@pytest.mark.parametrize("name", SIMULATED)
def test_published_constants_are_constants_of_the_law(name):
    known = {*law(name).names, *(derived.name for derived in law(name).derived)}
    for source in law(name).published:
        assert set(source.values) <= known and source.source


def test_every_name_is_registered():
    assert set(SIMULATED) <= set(laws())
    with pytest.raises(LawError, match="did you mean 'hoffmann'"):
        law("hofmann")


def test_the_compute_optimal_frontier_is_where_the_loss_is_least():
    """Against a search over N along C = 6 N D, at the constants that Hoffmann et al. print."""
    chosen, constants = law("hoffmann"), published("hoffmann", "Hoffmann")
    derived = {each.name: float(each.value(constants)) for each in chosen.derived}
    assert derived["a"] == pytest.approx(0.4565, abs=5e-5)
    best = {}
    for budget in (1e21, 5.76e23):

        def along(log_n, budget=budget):
            return at("hoffmann", constants, N=np.exp(log_n), D=budget / 6 / np.exp(log_n))[0]

        best[budget] = np.exp(minimize_scalar(along, bounds=(15, 32), method="bounded", options={"xatol": 1e-9}).x)
        assert derived[f"D/N at {budget:g}"] == pytest.approx(budget / 6 / best[budget] ** 2, rel=1e-5)
        assert derived["G"] * (budget / 6) ** derived["a"] == pytest.approx(best[budget], rel=1e-5)


def test_chinchilla_at_its_own_constants():
    """The rounded law of Hoffmann et al. gives 70B parameters after 1.4T tokens 0.083 + 0.163 + 1.69 nats."""
    rounded = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
    assert at("hoffmann", rounded, N=70e9, D=1.4e12) == pytest.approx(1.936, abs=1e-3)


def test_a_shared_exponent_needs_the_same_tokens_per_parameter_at_every_budget():
    chosen, constants = law("hoffmann-shared"), published("hoffmann-shared", "Muennighoff")
    ratio = float(next(each for each in chosen.derived if each.name == "D/N").value(constants))
    split = {**constants, "beta": constants["alpha"]}
    for derived in law("hoffmann").derived:
        if derived.name.startswith("D/N"):
            assert float(derived.value(split)) == pytest.approx(ratio, rel=1e-12)


def test_kaplan_joint_law_has_the_single_laws_as_its_limits():
    constants = published("kaplan", "Kaplan")
    wide = at("kaplan", constants, N=1e8, D=1e30)
    assert wide == pytest.approx(at("kaplan-n", {"N_c": 6.4e13, "alpha_N": 0.076}, N=1e8), rel=1e-6)
    long = at("kaplan", constants, N=1e40, D=1e9)
    assert long == pytest.approx(at("kaplan-d", {"D_c": 1.8e13, "alpha_D": 0.103}, D=1e9), rel=1e-6)


def test_over_training_is_a_shared_exponent_in_other_variables():
    """eta = alpha / 2, a = 6^eta A', b = 6^eta B' with N = (C / 6M)^0.5, D = (C M / 6)^0.5."""
    A, B, alpha = 520.8, 1487.7, 0.35266
    C, M = np.meshgrid(np.geomspace(1e18, 1e23, 5), np.array([5.0, 20, 640]))
    C, M = C.ravel(), M.ravel()
    same = {"E": 1.87, "a": A * 6 ** (alpha / 2), "b": B * 6 ** (alpha / 2), "eta": alpha / 2}
    shared = at(
        "hoffmann-shared", {"E": 1.87, "A": A, "B": B, "alpha": alpha}, N=(C / 6 / M) ** 0.5, D=(C * M / 6) ** 0.5
    )
    np.testing.assert_allclose(at("over-training", same, C=C, M=M), shared, rtol=1e-12)


def test_unrepeated_data_obey_the_plain_law():
    constants = published("data-constrained", "Muennighoff")
    plain = {name: constants[name] for name in ("E", "A", "B", "alpha")}
    N, D = np.array([1e8, 1e9]), np.array([1e10, 4e10])
    np.testing.assert_allclose(
        at("data-constrained", constants, N=N, D=D, U=D), at("hoffmann-shared", plain, N=N, D=D), rtol=1e-12
    )


def test_repeats_are_worth_what_muennighoff_say():
    """A token repeated R_D* times is worth 1 - 1/e of that many fresh ones; many repeats are worth R_D* at most."""
    from lab.laws.catalogue.data_constrained import effective

    assert float(effective(1.0, 1.0 + 15.4, 15.4)) == pytest.approx(1 + 15.4 * (1 - np.exp(-1)), rel=1e-6)
    assert float(effective(1.0, 1e9, 15.4)) == pytest.approx(16.4, rel=1e-6)
    assert float(effective(1.0, 2.0, 15.4)) == pytest.approx(1.97, abs=0.005)


def test_the_hyperbola_of_steps_and_examples():
    constants = {"S_min": 2000.0, "E_min": 1e7}
    B = np.geomspace(10, 1e6, 7)
    S = at("mccandlish", constants, B=B)
    np.testing.assert_allclose((S / 2000 - 1) * (B * S / 1e7 - 1), 1, rtol=1e-9)


@pytest.mark.parametrize("size", ["85M", "151M", "302M", "604M", "1.2B"])
def test_critical_batches_that_zhang_et_al_print_follow_from_their_a_and_b(size):
    source = next(each for each in law("critical-batch").published if size in each.source)
    derived = next(each for each in law("critical-batch").derived if each.name == "B* from 256")
    assert float(derived.value(source.values)) == pytest.approx(source.values["B* from 256"], rel=1e-4)


def test_the_lr_surface_is_least_at_its_stated_optimum():
    truth = SIMULATED["lr-surface"].truth
    N, D = 3e8, 2e10
    lr = truth["c"] * N ** truth["alpha"] * D ** truth["beta"]
    batch_size = truth["d"] * D ** truth["gamma"]
    constants = dict(SIMULATED["lr-surface"].constants)
    least = at("lr-surface", constants, lr=lr, B=batch_size, N=N, D=D)
    for u, v in ((0.1, 0), (-0.1, 0), (0, 0.1), (0, -0.1), (0.1, 0.1), (0.1, -0.1)):
        assert at("lr-surface", constants, lr=lr * np.exp(u), B=batch_size * np.exp(v), N=N, D=D) > least


def test_isoflop_parabolas_have_their_minimum_on_the_power_law():
    constants = SIMULATED["isoflop"].constants
    for C in (1e18, 1e21):
        N = 0.2 * C**0.49 * np.exp(np.array([-0.2, 0.0, 0.2]))
        low, least, high = at("isoflop", constants, C=np.full(3, C), N=N)
        assert low == pytest.approx(high, rel=1e-9) and least < low
        floor = at("isoflop-loss", {name: constants[name] for name in ("E", "F", "gamma")}, C=C)
        assert least == pytest.approx(floor, rel=1e-9)


def test_a_design_that_lacks_a_column_is_refused():
    with pytest.raises(LawError, match="lacks D"):
        Simulation("hoffmann", loss.HOFFMANN, {"N": np.ones(3)}, 0.01)
    with pytest.raises(LawError, match="noise"):
        Simulation("power", {"c": 1.0, "p": 1.0}, {"x": np.ones(3)}, -1.0)


def test_noise_is_of_the_objectives_space_and_repeatable():
    simulation = SIMULATED["hoffmann"]
    rows = simulation.rows(3)
    three_errors = 3 / np.sqrt(2 * len(rows))
    assert np.std(np.log(rows.target / simulation.target)) == pytest.approx(simulation.noise, rel=three_errors)
    np.testing.assert_array_equal(rows.target, simulation.rows(3).target)
    linear = SIMULATED["downstream-exponential"]
    three_errors = 3 / np.sqrt(2 * len(linear.target))
    assert np.std(linear.rows(3).target - linear.target) == pytest.approx(linear.noise, rel=three_errors)
