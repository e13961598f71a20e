"""The experiments on low precision and on the signal at initialization: theory, analyses, smoke scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from experiments import init_kernel, init_theory, tensors, umup_fp8, unit_scaling
from lab.errors import ResultsError
from lab.models.units import activation_rms
from lab.sweep import reproduce
from lab.sweep.experiment import Results
from lab.train.store import RunStore

EXPERIMENTS = {e.id: e for module in (init_theory, umup_fp8, unit_scaling) for e in module.EXPERIMENTS}


# Theory


def test_hermite_coefficients_have_the_moments_of_the_activation():
    a = init_kernel.hermite(init_kernel.gelu)
    np.testing.assert_allclose((a**2).sum(), activation_rms("gelu") ** 2, rtol=1e-4)
    np.testing.assert_allclose(a[0], 1 / (2 * np.sqrt(np.pi)), rtol=0.02)  # of the exact gelu
    z = np.linspace(-12, 12, 48001)
    slope = np.gradient(init_kernel.gelu(z), z) ** 2 * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose((np.arange(len(a)) * a**2).sum(), np.trapezoid(slope, z), rtol=3e-3)


def test_one_token_has_a_closed_form():
    """Nothing to mix: a layer adds (1 + E gelu^2) m^2/(2L) to the stream, and each branch its share to the gradient."""
    depth, m = 3, 1.7
    share = m**2 / (2 * depth)
    value, slope = (float((init_kernel.hermite(init_kernel.gelu) ** 2 * w).sum()) for w in (1, np.arange(16)))
    k, stream, factor, gradient = 1.0, [1.0], [], [1.0]
    for _ in range(depth):
        after = k + share
        factor.append((1 + share * slope / after) * (1 + share / k))
        k = after + share * value
        stream.append(k)
    for growth in reversed(factor):
        gradient.append(gradient[-1] * growth)
    found = init_kernel.theory(depth, 1, 8, 5, m, sequences=1, heads=40000)
    np.testing.assert_allclose(found.stream, stream, rtol=1e-9)
    np.testing.assert_allclose(found.gradient, gradient[::-1], rtol=0.02)  # heads are drawn
    np.testing.assert_allclose(found.mixed, np.ones(depth), rtol=1e-9)


def test_gradient_of_a_head_is_that_of_automatic_differentiation():
    """One head over one sequence: the Gram matrices of its draws' gradients, of queries, keys and values."""
    rng = np.random.default_rng(3)
    heads = init_kernel.Heads(np.eye(5) * 0.6 + 0.4, 1, 6, rng)
    cotangent = init_kernel.draws(np.eye(5), np.random.default_rng(4), 1, 6)
    heads.rng = np.random.default_rng(4)
    found = heads.gradient(np.eye(5))

    def turned(x):
        angle = np.arange(5)[:, None] * 10000.0 ** (-np.arange(3) / 3)
        first, second = x[:, :3], x[:, 3:]
        pairs = first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)
        return jnp.concatenate(pairs, -1)

    def head(q, k, v):
        q, k = (turned(x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True))) for x in (q, k))
        scores = jnp.where(np.tri(5, dtype=bool), q @ k.T / np.sqrt(6), -jnp.inf)
        return jax.nn.softmax(scores, -1) @ v

    raw = [(unit * rms)[0] for unit, rms in zip(heads.unit, heads.rms)]
    _, pull = jax.vjp(head, *(jnp.asarray(x, jnp.float32) for x in (*raw, heads.v[0])))
    expected = sum(np.asarray(d) @ np.asarray(d).T for d in pull(jnp.asarray(cotangent[0], jnp.float32))) / 6
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_number_of_symbols_is_found_again():
    mixed = init_kernel.theory(1, 16, 8, 7, sequences=200, seed=5).mixed[0]
    assert abs(init_kernel.symbols_of(mixed, 16, 8) - 7) <= 1
    independent, equal = (init_kernel.theory(1, 16, 8, n, sequences=4).mixed[0] for n in (10**9, 1))
    assert equal == pytest.approx(1) and independent < 0.5


# Analyses


def losses(**factors):
    """A results table: reference losses of two seeds at three rates, best at 0.02, and those times a factor."""
    rows = []
    for precision, factor in {"none": 1.0, **factors}.items():
        for name in ("standard", "unit"):
            for seed in (0, 1, 2):
                for rate, loss in ((0.01, 2.1), (0.02, 2.0), (0.04, 2.2)):
                    changed = factor if not isinstance(factor, dict) else factor[name]
                    noise = 1 + 1e-4 * seed * (precision != "none")
                    rows.append((name, precision, seed, rate, (loss + 0.01 * seed) * changed * noise))
    columns = ["parametrization.name", "model.precision", "run.seed", tensors.RATE, "loss"]
    frame = pd.DataFrame(rows, columns=columns)
    finite = np.isfinite(frame["loss"])
    frame["loss"] = frame["loss"].where(finite)
    return frame.assign(status=np.where(finite, "finished", "diverged"), **{"evaluation.statistics": False})


@pytest.mark.parametrize(
    "factor, verdict", [(1.001, "holds"), (1.03, "contradicted"), (0.98, "contradicted"), (np.inf, "inconclusive")]
)
def test_low_precision_is_judged_at_the_reference_s_best_rate(factor, verdict):
    found = tensors.relative(losses(fp8=factor), ["parametrization.name"], "none", "fp8")
    assert set(found.loc[found["best"], tensors.RATE]) == {0.02} and found["best"].sum() == 6
    finding = tensors.judged(unit_scaling.WHY["fp8"], unit_scaling.of(found, "unit"))
    assert finding.verdict == verdict
    assert tensors.edge_notes(found, ["parametrization.name"]) == []
    worse = losses(fp8={"standard": 1.05, "unit": 1.001})
    found = tensors.relative(worse, ["parametrization.name"], "none", "fp8")
    assert unit_scaling.baseline(found).verdict == "holds"


def test_an_edge_of_the_rates_is_said():
    table = losses(fp8=1.0)
    found = tensors.relative(table[table[tensors.RATE] < 0.03], ["parametrization.name"], "none", "fp8")
    assert len(tensors.edge_notes(found, ["parametrization.name"])) == 2


def frame_of(*rows):
    return pd.DataFrame(rows, columns=["kind", "tensor", "layer", "rms"])


def test_operands_are_what_a_policy_casts():
    names = ["layers/mlp/up", "layers/mlp_norm/gain", "readout", "embedding"]
    weights = [("weight", name, 0 if name.startswith("layers") else -1, 1.0) for name in names]
    taps = [
        (kind, f"{name}{end}", 0 if name.startswith("layers") else -1, 1.0)
        for kind in ("activation", "gradient")
        for name in ("layers/mlp/up", "readout")
        for end in (".in", ".out")
    ]
    found = tensors.operands(frame_of(*weights, *taps, ("activation", "layers/residual", 0, 1.0)))
    assert list(found[["kind", "tensor"]].itertuples(index=False, name=None)) == [
        ("weight", "layers/mlp/up"),
        ("activation", "layers/mlp/up.in"),
        ("gradient", "layers/mlp/up.out"),
    ]


def test_margin_is_in_bits_to_the_nearer_end_of_the_normal_range():
    inside = [("weight", "a", 0, 1.0), ("activation", "a.in", 0, 2.0), ("gradient", "a.out", 0, 1.0)]
    assert tensors.margin(frame_of(*inside)) == pytest.approx(6)  # E4M3's least normal number is 2^-6
    assert tensors.margin(frame_of(*inside, ("gradient", "b.out", 0, 2.0**-15))) == pytest.approx(-1)
    assert tensors.margin(frame_of(*inside, ("weight", "b", 0, 896.0))) == pytest.approx(-1)


# At smoke scale


class Silent:
    def __getattr__(self, name):
        return lambda *arguments: None


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """(results, analysis, report, directory) of each experiment, trained in this process on one root.

    Packs of two, so that those of one shape are one program, whichever experiment they belong to.
    """
    packs = {"execution.mesh.run": 1, "execution.pack_runs": 2}
    jax.config.update("jax_disable_most_optimizations", True)
    store, found = RunStore(tmp_path_factory.mktemp("root")), {}
    for name, experiment in EXPERIMENTS.items():
        study = reproduce.open_study(experiment, "smoke", packs, store)
        corpus = reproduce.open_corpus(study.sweep.base.data, store, Silent())
        runs = reproduce.train_study(study, corpus, Silent())
        results = reproduce.results(study, runs)
        analysis = experiment.analyse(results)
        found[name] = results, analysis, reproduce.report(study, analysis, runs, corpus), study.directory
    jax.config.update("jax_disable_most_optimizations", False)
    return found


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_at_smoke_scale_every_claim_has_a_verdict_and_the_figure_is_drawn(reports, name):
    results, analysis, report, directory = reports[name]
    assert set(results.table["status"]) == {"finished"}
    assert len(report["verdicts"]) == {"init-theory/signal": 8, "umup/fp8": 4, "unit-scaling/low-precision": 4}[name]
    assert all(np.isfinite(verdict["ours"]) and verdict["reason"] for verdict in report["verdicts"])
    for file in (report["figure"], report["figure"].replace("png", "svg"), *report["tables"].values()):
        assert (directory / file).stat().st_size > 100


def test_smoke_signal_is_the_theory_s_within_what_so_narrow_a_model_can_show(reports):
    """Width 64 is far from infinite: 15 % of the growth, where the theory's own parts would be off by half."""
    _, analysis, _, _ = reports["init-theory/signal"]
    layers = analysis.tables["layers"]
    top = layers[layers["layer"] == layers["depth"]]
    np.testing.assert_allclose(top["stream"] - 1, top["stream_theory"] - 1, rtol=0.15)
    bottom = layers[layers["layer"] == 0]
    np.testing.assert_allclose(np.log(bottom["gradient"]), np.log(bottom["gradient_theory"]), rtol=0.15)
    assert sorted(set(layers["multiplier"])) == pytest.approx([1.0, 2**0.5], rel=1e-5)


def test_smoke_tensors_of_unit_scaling_are_of_order_one_and_u_mup_saturates_nowhere(reports):
    """But for scaled queries, which carry the scale of their scores: 1/4 at head width 16."""
    results, analysis, _, _ = reports["unit-scaling/low-precision"]
    begun = unit_scaling.initial(results).query("parametrization == 'unit' and kind in ('weight', 'activation')")
    assert set(begun.loc[~begun["rms"].between(0.3, 3), "tensor"]) == {"layers/attention/scaled_query"}
    initial = analysis.tables["initial"].set_index(["parametrization", "kind"])
    assert initial.loc[("standard", "gradient"), "RMS median"] < 0.3 < initial.loc[("unit", "gradient"), "RMS median"]
    assert reports["umup/fp8"][1].findings[3].verdict == "holds"


def test_without_a_single_finished_statistics_run_there_is_no_analysis(reports):
    results = reports["umup/fp8"][0]
    failed = results.table.assign(status=np.where(results.table["evaluation.statistics"], "failed", "finished"))
    with pytest.raises(ResultsError, match="statistics"):
        umup_fp8.analyse(Results(failed, results.evaluations, results.settings, results.statistics))
