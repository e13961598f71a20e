"""Laws of experts, precision, fine-tuning, sampling and benchmarks: limits and printed numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats
from scipy.integrate import quad

from lab.laws.catalogue.experts import at_experts, effective_parameters, saturated
from lab.laws.catalogue.loss_to_loss import paired
from lab.laws.catalogue.observational import impute, principal
from lab.laws.catalogue.precision import effective_share
from lab.laws.catalogue.sampling import fit_problems, log_pochhammer, pass_at_k, pass_rate
from lab.laws.catalogue.sparse import average_parameters
from lab.laws.errors import TableError
from lab.laws.fit import fit, predict
from lab.laws.law import law
from lab.laws.simulate import Simulation
from tests.laws.simulated import experts, tasks

SIMULATED = {simulation.name: simulation for simulation in (*experts.SIMULATIONS, *tasks.SIMULATIONS)}


def values(name: str, p: dict, **columns) -> np.ndarray:
    """The target of a law at constants p; float columns are broadcast."""
    shape = np.broadcast_shapes(*(np.shape(c) for c in columns.values()), (1,))
    chosen = law(name)
    return predict(chosen, np.array(chosen.search(p)), {k: np.broadcast_to(c, shape) for k, c in columns.items()})


def printed(name: str, which: int = 0) -> dict:
    return dict(law(name).published[which].values)


@pytest.mark.parametrize("name", SIMULATED)
def test_published_constants_and_units_are_those_of_the_law(name):
    chosen = law(name)
    assert set(SIMULATED[name].constants) == set(chosen.names)
    assert chosen.target.unit or chosen.target.name in ("PU", "coverage", "accuracy", "PC")
    for source in chosen.published:
        assert set(source.values) == set(chosen.names) and source.source
        assert np.isfinite(chosen.search(source.values)).all()


# Mixtures of experts


def test_experts_saturate_at_both_ends():
    number = np.array([1.0, 2.0, 8.0, 64.0, 512.0])
    assert saturated(number, 1.0, 1e12) == pytest.approx(number, rel=1e-8)
    assert saturated(1.0, 1.847, 314.478) == pytest.approx(1.847, rel=1e-12)
    assert saturated(1e12, 1.847, 314.478) == pytest.approx(314.478, rel=1e-8)
    assert (np.diff(saturated(number, 1.847, 314.478)) > 0).all()


def test_routed_with_one_expert_is_a_power_law_in_size():
    p, N = printed("routed"), np.geomspace(1e7, 1e9, 5)
    start = np.log10(p["E_start"])
    power = {"c": 10 ** (p["d"] + p["b"] * start), "p": p["a"] + p["c"] * start}
    assert values("routed", p, N=N, E=1.0) == pytest.approx(values("power", power, x=N), rel=1e-12)


def test_the_printed_constants_of_routing_say_what_the_paper_says():
    """Clark et al. 2022, section 5: 5M parameters with 128 experts are worth some 55M dense ones (S-BASE)."""
    p = printed("routed")
    assert effective_parameters(p, 5e6, 1.0) == pytest.approx(5e6, rel=1e-6)
    worth = float(effective_parameters(p, 5e6, 128.0))
    assert worth == pytest.approx(55e6, rel=0.15)  # constants are printed to three digits
    assert values("routed", p, N=worth, E=1.0) == pytest.approx(values("routed", p, N=5e6, E=128.0), rel=1e-6)
    cutoff = 10 ** (-p["b"] / p["c"])
    assert values("routed", p, N=cutoff, E=1.0) == pytest.approx(values("routed", p, N=cutoff, E=256.0), rel=1e-10)


TABLE_4 = {  # of Ludziejewski et al. 2025: their law at a number of experts, as they print it
    1: (30.3640, -0.1817, 53.9838, -0.1965),
    2: (27.7982, -0.1780, 66.8401, -0.2065),
    4: (24.8462, -0.1731, 87.7022, -0.2192),
    8: (21.8330, -0.1676, 119.9126, -0.2338),
    16: (19.0159, -0.1617, 167.5073, -0.2494),
    32: (16.5424, -0.1557, 234.6726, -0.2652),
}


@pytest.mark.parametrize("number", TABLE_4)
def test_the_joint_law_at_fixed_experts_is_its_papers_table_4(number):
    """To rounding with E_start 2.083; the 2.0732 that table 3 prints is 0.3 % off in both coefficients."""
    p = printed("joint-moe")
    m, mu, n, nu = TABLE_4[number]
    at = {name: float(value) for name, value in at_experts(p | {"E_start": 2.083}, float(number)).items()}
    assert (at["m"], at["n"]) == pytest.approx((m, n), rel=4e-4)
    at = {name: float(value) for name, value in at_experts(p, float(number)).items()}
    assert (at["m"], at["n"]) == pytest.approx((m, n), rel=3e-3)
    assert (at["mu"], at["nu"]) == pytest.approx((mu, nu), abs=2.5e-4)
    plain = {"E": at["c"], "A": at["m"], "B": at["n"], "alpha": -at["mu"], "beta": -at["nu"]}
    N, D = np.geomspace(1e8, 3e9, 4), np.geomspace(5e8, 3e10, 4)
    joint = values("joint-moe", p, N_act=N, D=D, E=float(number))
    assert joint == pytest.approx(values("hoffmann", plain, N=N, D=D), rel=1e-6)


OPTIMA = ((1e20, 1, 1.7e9), (1e20, 8, 990e6), (1e20, 32, 669e6), (1e22, 1, 18.8e9), (1e22, 32, 12.2e9))


@pytest.mark.parametrize(("budget", "number", "expected"), OPTIMA)
def test_the_joint_laws_optima_are_those_of_its_papers_table_1(budget, number, expected):
    N = np.geomspace(1e8, 1e11, 4001)
    loss = values("joint-moe", printed("joint-moe"), N_act=N, D=budget / 6 / N, E=float(number))
    assert N[loss.argmin()] == pytest.approx(expected, rel=0.03)


def test_fine_grained_experts_of_one_granularity_are_hoffmanns():
    p = printed("fine-grained-moe")
    plain = {"E": p["c"], "A": p["g"] + p["a"], "B": p["b"], "alpha": p["alpha"], "beta": p["beta"]}
    N, D = np.geomspace(1e8, 3e9, 5), np.geomspace(1e10, 1e11, 5)
    assert values("fine-grained-moe", p, N=N, D=D, G=1.0) == pytest.approx(values("hoffmann", plain, N=N, D=D))
    finer = values("fine-grained-moe", p, N=1e9, D=1e11, G=np.array([1.0, 2, 8, 64]))
    assert (np.diff(finer) < 0).all()


def test_upcycling_without_interaction_is_a_product_of_powers():
    p = {"A": 30.0, "alpha1": 0.1, "alpha2": 0.15, "alpha3": 0.0, "E": 1.5}
    D1, D2 = np.geomspace(1e9, 1e11, 5), np.geomspace(1e11, 1e9, 5)
    product = {"A": 30.0, "alpha": 0.1, "beta": 0.15, "E": 1.5}
    assert values("upcycling", p, D1=D1, D2=D2) == pytest.approx(values("fine-tuning", product, X=D1, D_f=D2))
    p |= {"alpha2": 0.5, "alpha3": 0.5 / np.log(1e11)}  # after 1e11 dense tokens, further ones do nothing
    assert np.ptp(values("upcycling", p, D1=1e11, D2=D2)) < 1e-12
    assert np.ptp(values("upcycling", p, D1=1e10, D2=D2)) > 0.01


def test_a_model_that_is_never_pruned_has_its_own_size():
    assert average_parameters(1e7, 1e8, 0.0, 0.25, 0.75) == pytest.approx(1.1e8)
    assert average_parameters(1e7, 1e8, 0.5, 1.0, 1.0) == pytest.approx(1.1e8)
    p = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}
    assert values("sparse-average", p, N_average=1e8, D=2e9) == values("hoffmann", p, N=1e8, D=2e9)


@pytest.mark.parametrize(("start", "end", "power"), [(0.25, 0.75, 3.0), (0.0, 1.0, 1.0), (0.1, 0.1, 3.0)])
def test_the_average_is_the_integral_of_the_pruning_schedule(start, end, power):
    def count(t):
        ramp = 0.0 if t < start else 1.0 if t >= end else 1 - (1 - (t - start) / (end - start)) ** power
        return 2e7 + 1e8 * (1 - 0.8 * ramp)

    inside = quad(count, 0, start)[0] + quad(count, start, end)[0] + quad(count, end, 1)[0]
    assert average_parameters(2e7, 1e8, 0.8, start, end, power) == pytest.approx(inside, rel=1e-9)


# Losses from losses


def test_two_compute_optimal_frontiers_make_a_shifted_power_law():
    """L = E + F C^-g on two data sets, paired by C: kappa is the ratio of the exponents, the shifts are the E."""
    C = np.geomspace(1e18, 1e22, 9)
    (E0, F0, g0), (E1, F1, g1) = (1.7, 1500.0, 0.16), (0.8, 700.0, 0.144)
    p = {"K": F1 * F0 ** (-g1 / g0), "kappa": g1 / g0, "E0": E0, "E1": E1}
    assert values("loss-to-loss", p, L0=E0 + F0 * C**-g0) == pytest.approx(E1 + F1 * C**-g1, rel=1e-12)


def test_irreducible_losses_can_come_from_laws_of_each_data_set():
    """As in the paper: E0 and E1 held, K and kappa fitted; what is held wrong is paid for in kappa."""
    simulation = SIMULATED["loss-to-loss"]
    still = Simulation("loss-to-loss", simulation.constants, simulation.columns, 0.0)
    found = fit(still.law, still.rows(0), fixed={"E0": 1.7, "E1": 0.8})
    assert found.values == pytest.approx(simulation.constants, rel=1e-9)
    wrong = fit(still.law, still.rows(0), fixed={"E0": 1.5, "E1": 0.8})
    assert wrong.values["E0"] == pytest.approx(1.5) and wrong.values["kappa"] > 0.9


def test_runs_are_paired_by_size_and_tokens():
    import pandas

    runs = pandas.DataFrame({"N": [1e8, 1e9, 1e9], "D": [1e9, 1e9, 1e10], "train": [3.0, 2.8, 2.5], "c4": [4, 3.5, 3]})
    other = runs[::-1].assign(train=lambda f: f["train"] - 1)[:2]
    found = paired(runs, other, "train", "train")
    assert found["L0"].tolist() == [2.8, 2.5] and found["L1"].tolist() == pytest.approx([1.8, 1.5])
    assert paired(runs, runs, "train", "c4")["L1"].tolist() == [4, 3.5, 3]
    with pytest.raises(TableError, match="no column 'loss'"):
        paired(runs, other, "train", "loss")
    with pytest.raises(TableError, match="one each"):
        paired(pandas.concat([runs, runs]), other, "train", "train")
    with pytest.raises(TableError, match="pairs"):
        paired(runs, other.assign(N=other["N"] / 1e6), "train", "train")


# Fine-tuning


def test_the_rectified_law_in_its_two_forms_and_its_limits():
    p = {"B": 365.0, "D_l": 166.0, "beta": 0.6, "E": 0.8}
    D = np.geomspace(1, 1e7, 8)
    A, b = p["E"] + p["B"] / p["D_l"], -np.log(p["D_l"])
    assert values("rectified", p, D=D) == pytest.approx((A - p["E"]) / (1 + np.exp(b) * D ** p["beta"]) + p["E"])
    turn = p["D_l"] ** (1 / p["beta"])
    assert values("rectified", p, D=turn) == pytest.approx(p["E"] + (A - p["E"]) / 2)
    p["D_l"] = 1e-6
    offset = {"c": p["B"], "p": -p["beta"], "e": p["E"]}
    assert values("rectified", p, D=D) == pytest.approx(offset["e"] + offset["c"] * D ** offset["p"], rel=1e-6)


# Precision


def test_many_bits_leave_every_parameter_in_effect():
    p = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}
    bits = {"gamma_w": 2.67, "gamma_a": 2.21, "gamma_kv": 0.96}
    N, D = np.geomspace(3e7, 2e9, 5), np.geomspace(1e9, 3e10, 5)
    full = values("precision", p | bits, N=N, D=D, P_w=1e3, P_a=1e3, P_kv=1e3)
    assert full == pytest.approx(values("hoffmann", p, N=N, D=D), rel=1e-12)
    few = values("precision", p | bits, N=1e8, D=1e10, P_w=np.array([3.0, 4, 8, 16]), P_a=16.0, P_kv=16.0)
    assert (np.diff(few) < 0).all()


def test_parts_take_their_share_of_parameters_independently():
    p = {"gamma_w": 2.0, "gamma_a": 4.0, "gamma_kv": 1.0}
    share = effective_share(p, {"P_w": 2.0, "P_a": 4.0, "P_kv": 1e3})
    assert float(share) == pytest.approx((1 - np.exp(-1)) ** 2)


def test_rounding_a_model_costs_more_the_more_tokens_it_saw():
    p, D = printed("post-training-quantization"), np.geomspace(1e9, 1e11, 4)
    cost = values("post-training-quantization", p, N=1e8, D=D, P_post=4.0)
    assert np.diff(np.log(cost)) / np.diff(np.log(D)) == pytest.approx(p["gamma_D"])
    one_bit_less = values("post-training-quantization", p, N=1e8, D=D, P_post=3.0)
    assert one_bit_less / cost == pytest.approx(np.exp(1 / p["gamma_post"]))


# Repeated sampling


def test_coverage_of_one_sample_and_of_many():
    assert values("pass-at-k", {"a": -1.2, "b": -0.3}, k=1.0) == pytest.approx(np.exp(-1.2))
    assert values("pass-at-k", {"a": -1.2, "b": -0.3}, k=1e30) == pytest.approx(1.0, abs=1e-8)
    p, k = {"alpha": 0.4, "beta": 3.0}, np.array([1.0, 2, 10, 1000])
    mean = [quad(lambda x: (1 - (1 - x) ** n) * stats.beta.pdf(x, 0.4, 3.0), 0, 1, limit=500)[0] for n in k]  # noqa: B023
    assert values("pass-at-k-beta", p, k=k) == pytest.approx(mean, rel=1e-6)
    tail = 1 - values("pass-at-k-beta", p, k=np.array([1e5, 1e6]))
    assert np.log10(tail[0] / tail[1]) == pytest.approx(0.4, abs=1e-4)


def test_the_log_pochhammer_and_its_derivatives_are_scipys():
    with jax.enable_x64(True):
        x = jnp.geomspace(1e-6, 1e8, 100)
        assert np.asarray(log_pochhammer(x, 1.0)) == pytest.approx(np.log(x), rel=1e-13, abs=1e-14)
        assert np.asarray(log_pochhammer(x, 2.0)) == pytest.approx(np.log(x) + np.log1p(x), rel=1e-13, abs=1e-14)
        x = x[x < 1e3]
        slope = np.asarray(jax.vmap(jax.grad(lambda a, x: log_pochhammer(x, a)), (None, 0))(0.3, x))
        assert slope == pytest.approx(special.digamma(x + 0.3), rel=1e-11, abs=1e-12)
        bend = np.asarray(jax.vmap(jax.grad(jax.grad(log_pochhammer)), (0, None))(x, 0.3))
        assert bend == pytest.approx(special.polygamma(1, x + 0.3) - special.polygamma(1, x), rel=1e-8)


def test_pass_at_k_counts_subsets_without_a_right_sample():
    samples, solved = np.array([10, 10, 10, 5]), np.array([0, 3, 10, 1])
    for k in (1, 2, 4, 5):
        expected = 1 - stats.hypergeom.pmf(0, samples, solved, k)
        assert pass_at_k(samples, solved, k) == pytest.approx(expected, abs=1e-12)
    with pytest.raises(TableError, match="k = 6"):
        pass_at_k(samples, solved, 6)
    with pytest.raises(TableError, match="0 <= solved"):
        pass_at_k([5], [6], 1)


def test_sampling_until_it_passes_gives_the_rate_without_bias():
    p, r = 0.05, 3
    draws = r + np.arange(20_000)  # of r passes: r + failures
    weight = stats.nbinom.pmf(np.arange(20_000), r, p)
    assert (weight * pass_rate(r, draws)).sum() == pytest.approx(p, rel=1e-9)
    assert (weight * r / draws).sum() > 1.2 * p  # what the paper takes


def test_pass_rates_of_problems_are_found_from_counts():
    rng = np.random.default_rng(5)
    p = rng.beta(0.4, 3.0, 4000)
    n = rng.integers(20, 200, 4000)
    c = rng.binomial(n, p)
    found = fit_problems(n, c)
    errors = np.sqrt(np.diag(found.covariance))
    assert abs(np.log(found.alpha / 0.4)) < 3 * errors[0] < 0.2
    assert abs(np.log(found.beta / 3.0)) < 3 * errors[1] < 0.3
    best = stats.betabinom.logpmf(c, n, found.alpha, found.beta).sum()
    for step in ((1e-2, 0), (-1e-2, 0), (0, 1e-2), (0, -1e-2), (1e-2, 1e-2)):
        a, b = found.alpha * np.exp(step[0]), found.beta * np.exp(step[1])
        assert stats.betabinom.logpmf(c, n, a, b).sum() < best
    assert found.coverage([1, 10]) == pytest.approx([p.mean(), (1 - (1 - p) ** 10).mean()], abs=0.02)
    with pytest.raises(TableError, match="3 or more"):
        fit_problems([10, 10, 10], [0, 0, 0])


def test_errors_of_a_distribution_of_pass_rates_hold_the_truth():
    held = np.zeros(2)
    for seed in range(100):
        rng = np.random.default_rng(seed)
        found = fit_problems(np.full(100, 50), rng.binomial(50, rng.beta(0.4, 3.0, 100)))
        off = np.abs(np.log([found.alpha / 0.4, found.beta / 3.0]))
        held += off <= stats.norm.ppf(0.95) * np.sqrt(np.diag(found.covariance))
    assert (80 <= held).all() and (held <= 98).all()


# Benchmarks


def low_rank(rank: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((60, rank)) @ rng.uniform(0.3, 1.0, (rank, 7)) * 0.08 + rng.uniform(0.3, 0.7, 7)
    return np.clip(table, 0.01, 0.99)


def test_components_are_those_of_the_covariance():
    table = low_rank(3) + 0.01 * np.random.default_rng(1).standard_normal((60, 7))
    basis = principal(table, 3)
    strengths, axes = np.linalg.eigh(np.cov(table.T))
    assert basis.shares == pytest.approx(strengths[::-1][:3] / strengths.sum())
    assert np.abs(basis.axes @ axes[:, ::-1][:, :3]) == pytest.approx(np.eye(3), abs=1e-8)
    assert (basis.axes.sum(1) > 0).all()
    assert np.cov(basis.scores(table).T) == pytest.approx(np.diag(strengths[::-1][:3]), abs=1e-12)
    with pytest.raises(TableError, match="impute first"):
        principal(np.where(np.eye(60, 7) > 0, np.nan, table), 2)


@pytest.mark.parametrize("rank", [1, 2])
def test_missing_scores_of_a_table_of_low_rank_are_found(rank):
    table = low_rank(rank)
    holes = np.random.default_rng(2).random(table.shape) < 0.15
    holes[np.arange(7), np.arange(7)] = False
    gaps = np.where(holes, np.nan, table)
    filled, basis = impute(gaps, rank)
    assert filled == pytest.approx(table, abs=1e-4)
    assert (filled[~holes] == table[~holes]).all()
    assert basis.fill(gaps[:5]) == pytest.approx(filled[:5], abs=1e-6)  # as held-out models are
    with pytest.raises(TableError, match="no score at all"):
        impute(np.where(np.arange(7) == 3, np.nan, table))


def test_capability_and_floor():
    """One family: PC1 is linear in ln C; of great capability a task is solved, of none chance (1 - h) is left."""
    assert values("capability", {"theta": 0.1, "nu": -5.0}, C=np.exp(60.0)) == pytest.approx(1.0)
    p = {"alpha": 0.0, "beta_1": 5.0, "beta_2": 0.0, "beta_3": 0.0, "h": 0.9}
    ends = values("observational", p, PC1=np.array([-50.0, 0.0, 50.0]), PC2=1.0, PC3=1.0)
    assert ends == pytest.approx([0.1, 0.55, 1.0], abs=1e-8)
