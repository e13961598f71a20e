"""IsoFLOP sweeps of Marin on three corpora (Open-Athena, scaling-law-analysis): do approaches 2 and 3 agree?

Seven budgets C, 3e18 to 3e20 FLOPs, five to fifteen sizes each, on Common Pile, DCLM and Nemotron (there also 1.8e18,
whose three sizes make no valley). No constants were published with these runs, so the claims are about estimators: the
exponent a of N* ~ C^a from the lowest point of each budget (approach 2: Akima, parabola, a valley with saturating
sides) against that of one law E + A / N^alpha + B / D^beta for all losses (approach 3, Hoffmann et al. 2022), averaged
over the corpora.

C is not 6 N D here: 6 N D / C grows with N from 0.74 to 1.07, as attention and the head are counted. Along a budget D
falls by less than N rises, and beta / (alpha + beta) is not the exponent of that optimum. So approach 3 is read off the
fitted surface along each budget's own D(N) (ln D quadratic in ln N); the closed form is given beside it.

Errors are the jackknife's: one budget is left out at a time, for both approaches the same, so that differences of
exponents are paired. Leaving out the largest budget also gives the test by prediction: its N* from the others.

Noise of approach 2's optima: the standard deviation of the losses about the fitted surface, which holds the law's own
misfit as well (at the smallest and the largest budget residuals are mostly of one sign). It is ten times the seed noise
that Porian et al. assume, and tells whether an estimator that interpolates (Akima) is of use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.isoflop_estimators import approach_3, jackknife_error, student_interval
from experiments.published_figure import png_of, sheet
from lab.sweep.experiment import Analysis, Experiment

SOURCE = "Open-Athena scaling-law-analysis, marin_202603"
CORPORA = {"comma": "Common Pile", "dclm": "DCLM", "nemotron": "Nemotron"}
VALLEYS = {  # approach 2: (method, sizes kept about the lowest loss)
    "Akima": ("akima", None),
    "parabola, all sizes": ("parabola", None),
    "parabola, 7 nearest sizes": ("parabola", 7),
    "saturating valley": ("saturating", None),
}
ALONG, CLOSED = "approach 3", "approach 3, as if C = 6 N D"
COMPARED = ("Akima", "parabola, all sizes", "saturating valley")
AGREEMENT = 0.05  # of exponents; three decades beyond the last budget that is a factor of 1.4 in N*
POINTS = 40  # of a fitted valley


@dataclass(frozen=True)
class Located:
    """Where an estimator finds the optima.

    Attributes:
      flops, log_n: of every budget, [B]; NaN where it finds none.
      left_out: row k holds ln N* of all budgets with budget k left out, [B, B].
      weights: of the budgets in the law N* ~ C^a, [B].
      valleys: fitted valleys, for the figure.
    """

    flops: np.ndarray
    log_n: np.ndarray
    left_out: np.ndarray = field(repr=False)
    weights: np.ndarray = field(repr=False)
    valleys: tuple[Any, ...] = field(default=(), repr=False)

    def law(self, k: int | None = None) -> np.ndarray:
        """(a, ln G) of ln N* = ln G + a ln C, with budget k left out."""
        log_n = self.log_n if k is None else self.left_out[k]
        kept = np.isfinite(log_n) & (np.arange(len(log_n)) != k)
        return np.polyfit(np.log(self.flops[kept]), log_n[kept], 1, w=np.sqrt(self.weights[kept]))

    @property
    def exponents(self) -> np.ndarray:
        """a without each budget in turn, [B]."""
        return np.array([self.law(k)[0] for k in range(len(self.flops))])

    @property
    def missed(self) -> float:
        """ln of N* at the largest budget as the others predict it, over N* as found there."""
        return float(np.polyval(self.law(len(self.flops) - 1), np.log(self.flops[-1])) - self.log_n[-1])


def analyse(load: Any, corpora: Sequence[str] = tuple(CORPORA)) -> Analysis:
    import pandas as pd

    from lab.laws.isoflop import FEWEST_SIZES

    runs = load("marin_isoflop")
    sizes = runs.groupby(["dataset", "budget"])["params"].transform("nunique")
    runs = runs[sizes >= FEWEST_SIZES].reset_index(drop=True)
    surfaces, found = {}, {}
    for corpus in corpora:
        surfaces[corpus], found[corpus] = estimates(runs, (runs["dataset"] == corpus).to_numpy())
    findings = verdicts(found)
    tables = {
        "published-against-ours": pd.concat([_compared(corpus, located) for corpus, located in found.items()]),
        "estimators": _estimators(surfaces, found),
        "optima": _optima(found),
        "approach-3": _constants(surfaces),
    }
    return Analysis(findings, tables, _notes(tables), lambda stem: figure(runs, found, findings, stem))


def estimates(runs: Any, mine: Any) -> tuple[Any, dict[str, Located]]:
    """Approach 3's surface of the runs that are `mine` (bool [K]), and where every estimator finds the optima."""
    from lab.laws.isoflop import Noise, budgets_of

    surface = approach_3({"N": runs["params"], "D": runs["tokens"]}, runs["loss"], runs["budget"], mine)
    rows = runs[mine]
    budgets = budgets_of(rows["budget"], rows["params"], rows["loss"], rows["tokens"])
    noise = Noise(residual_deviation(surface.fit))
    found = {name: approach_2(budgets, method, sizes, noise) for name, (method, sizes) in VALLEYS.items()}
    return surface, {**found, ALONG: along(budgets, surface)}


def residual_deviation(fit: Any) -> float:
    """Standard deviation of the losses about the fitted law, nats."""
    off = (fit.predict(fit.rows.columns) - fit.rows.target)[fit.rows.weights > 0]
    return float(np.sqrt((off**2).sum() / fit.degrees_of_freedom))


def approach_2(budgets: list[Any], method: str, sizes: int | None, noise: Any) -> Located:
    """Valleys by one method, weighted by the noise of their optima."""
    from lab.laws.isoflop import METHODS, nearest, optima

    budgets = budgets if sizes is None else nearest(budgets, sizes)
    whole = optima(budgets, method, noise)
    left_out = np.full((len(budgets), len(budgets)), np.nan)
    for k in range(len(budgets)):
        others = [i for i in range(len(budgets)) if i != k]
        left_out[k, others] = METHODS[method]([budgets[i] for i in others], [budgets[i].loss[None] for i in others])[0][
            :, 0
        ]
    return Located(whole.flops, whole.log_n, left_out, whole.log_std**-2)


def along(budgets: list[Any], surface: Any) -> Located:
    """The lowest loss of approach 3's surface along each budget's D(N), for all data and without each budget."""
    import dataclasses

    from lab.laws.fit import predict
    from lab.laws.isoflop import METHODS

    constants = np.concatenate([surface.fit.theta[None], surface.left_out])
    valleys, losses = [], []
    for budget in budgets:
        log_n = np.linspace(budget.log_n[0], budget.log_n[-1], POINTS)
        log_d = np.polyval(np.polyfit(budget.log_n, budget.log_d, 2), log_n)
        losses.append(predict(surface.fit.law, constants, {"N": np.exp(log_n), "D": np.exp(log_d)}))
        valleys.append(dataclasses.replace(budget, log_n=log_n, loss=losses[-1][0], log_d=log_d))
    log_n = METHODS["akima"](valleys, losses)[0]
    flops = np.array([budget.flops for budget in budgets])
    return Located(flops, log_n[:, 0], log_n[:, 1:].T, np.ones(len(flops)), tuple(valleys))


def interval(values: np.ndarray, value: float) -> Any:
    """Student's 95 % interval of a value from values without each budget."""
    return student_interval(value, jackknife_error(values), len(values) - 1)


def verdicts(found: dict[str, dict[str, Located]]) -> list[Any]:
    """Whether exponents of approach 2 agree with those of approach 3, on average over the corpora.

    The corpora were swept alike, so one budget is left out of all of them at a time.
    """
    from lab.report.findings import Claim, judge

    findings = []
    for name in COMPARED:
        pairs = [(results[name], results[ALONG]) for results in found.values()]
        apart = float(np.mean([second.law()[0] - third.law()[0] for second, third in pairs]))
        without = np.mean([second.exponents - third.exponents for second, third in pairs], axis=0)
        text = f"{name} (approach 2) and approach 3 give one exponent"
        claim = Claim(text, SOURCE, 0.0, "difference of exponents", "near_zero", AGREEMENT)
        each = [f"{CORPORA[c]} {r[name].law()[0]:.3f} against {r[ALONG].law()[0]:.3f}" for c, r in found.items()]
        note = f"{name} and approach 3: {'; '.join(each)}"
        findings.append(judge(claim, apart, interval(without, apart), notes=(note,)))
    return findings


def _compared(corpus: str, found: dict[str, Located]) -> Any:
    from lab.laws.compare import published_against_ours

    third = found[ALONG]
    reason = {"a": "no constants were published with these runs"}
    ours, errors = {"a": float(third.law()[0])}, {"a": jackknife_error(third.exponents)}
    return published_against_ours({"a": np.nan}, ours, errors, reason, data=CORPORA[corpus], estimator=ALONG)


def _estimators(surfaces: dict[str, Any], found: dict[str, dict[str, Located]]) -> Any:
    """A row per corpus and estimator: exponent with interval, N* at the largest budget, error of predicting it."""
    import pandas as pd

    rows = []
    for corpus, results in found.items():
        for name, located in results.items():
            ends = interval(located.exponents, located.law()[0])
            row = {"data": CORPORA[corpus], "estimator": name, "exponent": located.law()[0]}
            row |= {"standard_error": jackknife_error(located.exponents), "low": ends.low, "high": ends.high}
            rows.append(row | {"N_at_largest_budget": np.exp(located.log_n[-1]), "held_out": located.missed})
        closed = surfaces[corpus]
        row = {"data": CORPORA[corpus], "estimator": CLOSED, "exponent": closed.exponent}
        ends = closed.interval()
        rows.append(row | {"standard_error": closed.error, "low": ends.low, "high": ends.high})
    return pd.DataFrame(rows)


def _optima(found: dict[str, dict[str, Located]]) -> Any:
    """N* of every budget by estimator."""
    import pandas as pd

    tables = []
    for corpus, results in found.items():
        columns = {name: np.exp(located.log_n) for name, located in results.items()}
        tables.append(pd.DataFrame({"data": CORPORA[corpus], "flops": results[ALONG].flops, **columns}))
    return pd.concat(tables)


def _constants(surfaces: dict[str, Any]) -> Any:
    """Approach 3's constants, what the losses scatter about them, and how the fit ended."""
    import pandas as pd

    rows = []
    for corpus, surface in surfaces.items():
        fit = surface.fit
        row = {"data": CORPORA[corpus], "rows": int(fit.rows.weights.sum()), **fit.values}
        row |= {"residual_nats": residual_deviation(fit), "gradient": fit.certificate.gradient}
        rows.append({**row, "warnings": "; ".join(fit.certificate.warnings)})
    return pd.DataFrame(rows)


def _notes(tables: dict[str, Any]) -> list[str]:
    table, noise = tables["estimators"], tables["approach-3"]["residual_nats"]
    spread = table.groupby("estimator", sort=False)["exponent"].agg(["min", "max"])
    ranges = "; ".join(f"{name} {low:.3f} to {high:.3f}" for name, low, high in spread.itertuples())
    wrong = table.groupby("estimator", sort=False)["held_out"].agg(lambda x: (x**2).mean() ** 0.5).dropna()
    misses = "; ".join(f"{name} {100 * miss:.0f} %" for name, miss in wrong.items())
    return [
        f"Exponents over {table['data'].nunique()} corpora: {ranges}.",
        f"N* at the largest budget, predicted from the others, missed by (root mean square): {misses}.",
        f"Losses scatter about the fitted surface by {noise.min():.3f} to {noise.max():.3f} nats; that is the noise "
        f"given to approach 2.",
    ]


def figure(runs: Any, found: dict[str, dict[str, Located]], findings: list[Any], stem: Path) -> Path:
    """Valleys of one corpus with both approaches' optima, and the exponents of all."""
    from lab.report import figure as draw

    corpus = next(iter(found))
    with sheet(stem, "IsoFLOP optima: do approaches 2 and 3 agree?", SOURCE, findings) as (left, right):
        third, second = found[corpus][ALONG], found[corpus]["saturating valley"]
        for k, colour in enumerate(draw.sequence_of_colours(len(third.flops))):
            rows = runs[(runs["dataset"] == corpus) & (runs["budget"] == third.flops[k])]
            left.plot(rows["params"], rows["loss"], "o", color=colour, markersize=3, label=f"{third.flops[k]:.1e}")
            valley = third.valleys[k]
            draw.curve(left, np.exp(valley.log_n), valley.loss, colour)
            for located, mark, face in ((third, "D", colour), (second, "s", "none")):
                loss = np.interp(located.log_n[k], valley.log_n, valley.loss)
                left.plot(
                    np.exp(located.log_n[k]), loss, mark, markerfacecolor=face, markeredgecolor=colour, markersize=7
                )
        left.set(xscale="log", xlabel="Parameters N", ylabel="Loss, nats per token")
        left.set_title(f"{CORPORA[corpus]}; optima: diamonds approach 3, squares 2", size=9)
        left.legend(title="Budget C, FLOPs", ncols=2)
        names = list(found[corpus])
        for k, (label, results) in enumerate(found.items()):
            ends = [interval(results[name].exponents, results[name].law()[0]) for name in names]
            values = np.array([results[name].law()[0] for name in names])
            bars = np.array([[v - e.low, e.high - v] for v, e in zip(values, ends)]).T
            at = np.arange(len(names)) + 0.2 * (k - 1)
            colour = draw.sequence_of_colours(len(found))[k]
            right.errorbar(
                values, at, xerr=bars, fmt="o", color=colour, markersize=5, label=CORPORA[label], elinewidth=1
            )
        right.set_yticks(range(len(names)), names, fontsize=7)
        right.invert_yaxis()
        right.set(xlabel="Exponent a of N* ~ C^a, 95 % intervals", title="Exponents")
        right.legend(loc="lower right")
        right.figure.subplots_adjust(wspace=0.45)
    return png_of(stem)


EXPERIMENTS = [
    Experiment(
        id="marin/isoflop",
        paper="Open-Athena, scaling-law-analysis: IsoFLOP sweeps of Marin on three corpora (2026)",
        summary="Do the valleys of equal budgets and one parametric law give the same compute-optimal size?",
        measurements=analyse,
    )
]
