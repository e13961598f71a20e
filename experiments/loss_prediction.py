"""Research without Re-search: muP Yields Accurate Loss Prediction across Scales (Yao and Wang 2023, arXiv 2304.06875).

The paper's method. Tune at the smallest width, use what was found at every width, fit L = a N^-b + c to the small
models and predict the large one before it is trained. Under muP all widths then lie in one basin and the fit holds;
under the standard parametrization a rate tuned at one width is wrong at the next, and the losses follow no law.

Here the learning rate is tuned. Stage one trains the smallest width at a grid of rates, stage two the small widths at
the best of them, stage three the largest width. N is without embeddings. Rows of a fit are means over seeds (the same
at every width, so that their luck goes into c); its prediction interval is Student's, from their scatter about the law
and the covariance of its constants.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments import mup_transfer, transfer
from lab.errors import ResultsError
from lab.report.findings import Claim, judge
from lab.sweep.axes import Point, axis, product
from lab.sweep.experiment import Analysis, Experiment, Results, Sweep

PAPER = (
    "Yao and Wang 2023, Research without Re-search: Maximal Update Parametrization Yields Accurate Loss Prediction "
    "across Scales, arXiv 2304.06875"
)
NAMES = ("standard", "mup")
N, NAME, WIDTH = "parameters.non_embedding", "parametrization.name", "model.width"
CONSTANTS = 3
WITHIN = 0.01  # of the loss; our threshold, the paper's figure names none

CLAIMS = {
    "mup": Claim(
        "muP: the law of the small widths predicts the largest width's loss (within 1 %)", PAPER, 0.0,
        "ln loss, measured less predicted", "near_zero", WITHIN,
    ),
    "standard": Claim(
        "Standard: the largest width's loss lies above what the law of the small widths predicts", PAPER, 1.0,
        "ln loss, measured less predicted", "sign", recalled=True,
    ),
    "scatter": Claim(
        "Standard: losses scatter more about their best law than muP's do", PAPER, 1.0,
        "ln of the ratio of residual deviations", "sign", recalled=True,
    ),
}  # fmt: skip


def sweep(widths: Sweep, between: Sequence[int]) -> Sweep:
    """The narrowest model of a sweep of `mup-transfer/width`, whose runs it shares; the rest follows, see `extend`.

    `between`: further widths.
    """
    every = sorted({point[WIDTH] for point in widths.points} | set(between))
    points = [point for point in widths.points if point[WIDTH] == every[0]]
    settings = {"widths": tuple(every), "seeds": len({point["run.seed"] for point in points})}
    return Sweep(widths.base, points, f"{widths.note}, as mup-transfer/width, of which it shares runs", settings, 5)


def smoke() -> Sweep:
    return sweep(mup_transfer.width_smoke(), (12, 20, 24))


def tiny() -> Sweep:
    return sweep(mup_transfer.width_tiny(), (48, 80, 96, 112, 160, 192))


def small() -> Sweep:
    return sweep(mup_transfer.width_small(), (96, 192, 384, 768, 1536))


def paper() -> Sweep:
    """The widths of Tensor Programs V: the paper's own ladder, to 3.4 billion parameters (recalled), is not at hand."""
    return sweep(mup_transfer.width_paper(), (192, 384, 768, 1536, 3072, 6144))


def extend(results: Results) -> list[Point]:
    """What the results so far allow: further rates, or the small widths at the tuned rate, or the largest width."""
    runs, settings = transfer.ended(results.table), results.settings
    *small, largest = settings["widths"]
    points = []
    for name in NAMES:
        at = at_tuned_rate(runs, name, small[0])
        if at is None:
            continue
        widths = [largest] if set(small) <= set(at[WIDTH]) else small
        fixed = [{NAME: name, transfer.RATE: at[transfer.RATE].iloc[0]}]
        points += transfer.family(product(axis(WIDTH, widths), fixed), [{}], settings["seeds"])
    proxy = dataclasses.replace(results, table=runs[runs[WIDTH] == small[0]])
    return [*transfer.extend(proxy, (NAME, WIDTH)), *points]


def tuned(runs: Any) -> float | None:
    """The rate of the grid next to the best one, of runs of one size; None where that lies on an edge."""
    row = transfer.optima(runs, [NAME, N]).iloc[0]
    if not np.isfinite(row["best"]):
        return None
    tried = runs[transfer.RATE].unique()
    return float(tried[np.argmin(np.abs(np.log(tried / row["best"])))])


def at_tuned_rate(runs: Any, name: str, proxy: int) -> Any:
    """The runs of a parametrization at the rate that is best at width `proxy`; None where that lies on an edge."""
    mine = runs[runs[NAME] == name]
    rate = tuned(mine[mine[WIDTH] == proxy])
    return None if rate is None else mine[mine[transfer.RATE] == rate]


@dataclasses.dataclass(frozen=True)
class Curve:
    """L = c + a (x / centre)^-b, fitted to mean losses by least squares of their logarithms.

    `residuals` [K]: ln measured less ln fitted.
    """

    fit: Any
    centre: float

    def __call__(self, x: Any) -> np.ndarray:
        return self.fit.predict(self._columns(x))

    def _columns(self, x: Any) -> dict[str, np.ndarray]:
        return {"x": np.atleast_1d(np.asarray(x, float)) / self.centre}

    @property
    def freedom(self) -> int:
        return self.fit.degrees_of_freedom

    @property
    def residuals(self) -> np.ndarray:
        return -self.fit.residuals

    @property
    def spread(self) -> float:
        """Deviation of ln loss about the law, CONSTANTS degrees of freedom spent."""
        return float(np.sqrt(np.square(self.residuals).sum() / self.freedom))

    def reach(self, x: Any, level: float = transfer.LEVEL) -> np.ndarray:
        """Half-width of the prediction interval of ln loss at x: Student's, of the constants and of a further row."""
        from scipy.special import stdtrit

        from lab.laws.design import noise_variance, prediction_variance

        variance = prediction_variance(self.fit, self._columns(x)) + noise_variance(self.fit)
        return stdtrit(self.freedom, 0.5 + level / 2) * np.sqrt(variance)


def curve_through(x: Any, loss: Any) -> Curve:
    """The law through mean losses [K] at sizes x [K].

    Raises:
      ResultsError: rows too few for its constants and a scatter.
    """
    from lab.laws.fit import fit
    from lab.laws.law import law
    from lab.laws.solve import Rows

    x, loss = np.asarray(x, float), np.asarray(loss, float)
    if len(x) <= CONSTANTS:
        raise ResultsError(f"found {len(x)} sizes with a loss, expected more than the {CONSTANTS} constants of the law")
    centre = float(np.exp(np.log(x).mean()))
    return Curve(
        fit(law("power-offset"), Rows({"x": x / centre}, loss, np.ones(len(x)), np.zeros(len(x), bool))), centre
    )


def ratio_of_spreads(above: Curve, below: Curve) -> transfer.Statistic:
    """ln of the ratio of two residual deviations, with the interval of Fisher's F; rows count as independent."""
    from scipy.special import fdtri

    from lab.laws.bootstrap import Interval, no_interval

    if min(above.spread, below.spread) < 1e-9:
        return transfer.Statistic(np.nan, no_interval("a law meets every row: there is no scatter", transfer.LEVEL))
    value = float(np.log(above.spread / below.spread))
    share = 0.5 + transfer.LEVEL / 2
    low = value - 0.5 * np.log(fdtri(above.freedom, below.freedom, share))
    high = value + 0.5 * np.log(fdtri(below.freedom, above.freedom, share))
    return transfer.Statistic(value, Interval(float(low), float(high), transfer.LEVEL))


def means(runs: Any, by: Sequence[str]) -> Any:
    """A row per group of runs: `loss`, the mean over seeds; `seeds`, how many; `diverged`, how many of these.

    A diverged run has the loss of a uniform guess, ln of the vocabulary: it knows no more than that.
    """
    import pandas

    rows = []
    for group, mine in runs.groupby(list(by)):
        losses = np.minimum(mine["loss"].to_numpy(float), np.log(mine["model.vocab_size"].to_numpy(float)))
        diverged = int((mine["status"] == "diverged").sum())
        rows.append({**dict(zip(by, group)), "loss": losses.mean(), "seeds": len(mine), "diverged": diverged})
    return pandas.DataFrame(rows)


class Prediction(NamedTuple):
    """One parametrization: its widths' mean losses, the law of all but the largest, what it says of that one.

    `error`: ln loss of the largest width, measured less predicted, with the prediction interval; `whole`: the law of
    all widths.
    """

    name: str
    rate: float
    rows: Any
    curve: Curve
    predicted: float
    error: transfer.Statistic
    whole: Curve


def predict(runs: Any, name: str, widths: Sequence[int]) -> Prediction:
    """Fits the small widths and predicts the largest; its own loss enters only the comparison.

    Widths at which a run diverged are no rows of a law.

    Raises:
      ResultsError: no tuned rate, too few small widths, or no run of the largest.
    """
    from lab.laws.bootstrap import Interval

    at = at_tuned_rate(runs, name, widths[0])
    if at is None:
        raise ResultsError(f"{name}: the best learning rate of width {widths[0]} lies on the edge of what was tried")
    rows = means(at, [WIDTH, N])
    whole, last = rows[rows["diverged"] == 0], rows[rows[WIDTH] == widths[-1]]
    small = whole[whole[WIDTH] < widths[-1]]
    curve = curve_through(small[N], small["loss"])
    if last.empty:
        raise ResultsError(f"{name}: width {widths[-1]} has no run at the tuned rate yet")
    predicted, reach = float(curve(last[N])[0]), float(curve.reach(last[N])[0])
    error = float(np.log(last["loss"].iloc[0] / predicted))
    interval = Interval(error - reach, error + reach, transfer.LEVEL)
    return Prediction(
        name, float(at[transfer.RATE].iloc[0]), rows, curve, predicted, transfer.Statistic(error, interval),
        curve_through(whole[N], whole["loss"]),
    )  # fmt: skip


def analyse(results: Results) -> Analysis:
    """The two predictions, how far the largest width lies from them, and the scatter about both laws."""
    import pandas

    from lab.laws.bootstrap import no_interval

    runs, widths = transfer.ended(results.table), results.settings["widths"]
    found, reasons = {}, {}
    for name in NAMES:
        try:
            found[name] = predict(runs, name, widths)
        except ResultsError as error:
            reasons[name] = str(error)
    why = "; ".join(reasons.values())
    unknown = transfer.Statistic(np.nan, no_interval(why or "unknown", transfer.LEVEL))
    statistics = {name: found[name].error if name in found else unknown for name in NAMES}
    both = len(found) == 2
    statistics["scatter"] = ratio_of_spreads(found["standard"].whole, found["mup"].whole) if both else unknown
    seeds = f"means of {results.settings['seeds']} seeds"
    findings = [
        judge(claim, *statistics[key], blocked=reasons.get(key, why if key == "scatter" else ""), caveats=(seeds,))
        for key, claim in CLAIMS.items()
    ]
    tables = {}
    if found:
        tables["predictions"] = pandas.DataFrame([prediction_row(each) for each in found.values()])
        tables["widths"] = pandas.concat([width_rows(each) for each in found.values()])
    notes = [*reasons.values(), *(said for each in found.values() for said in warnings(each))]

    def draw(stem):
        from experiments import prediction_figure

        return prediction_figure.predictions(list(found.values()), findings, stem)

    return Analysis(findings, tables, notes, draw)


def prediction_row(found: Prediction) -> dict[str, Any]:
    """A line of the report: what was predicted, what came."""
    last = found.rows.iloc[-1]
    reach = (found.error.interval.high - found.error.interval.low) / 2
    return {
        "parametrization": found.name,
        "learning rate": found.rate,
        "width": last[WIDTH],
        "predicted": found.predicted,
        "predicted_low": found.predicted * np.exp(-reach),
        "predicted_high": found.predicted * np.exp(reach),
        "measured": last["loss"],
        "error %": 100 * found.error.value,
        "scatter %": 100 * found.whole.spread,
        **{name: value for name, value in found.curve.fit.values.items()},
    }


def width_rows(found: Prediction) -> Any:
    """A row per width, with what the law of the small ones says there."""
    law = found.curve(found.rows[N])
    return found.rows.assign(
        **{"parametrization": found.name, "law": law, "residual %": 100 * np.log(found.rows["loss"] / law)}
    )


def warnings(found: Prediction) -> list[str]:
    """What a reader must know of one parametrization."""
    said = [f"{found.name}: {warning}" for warning in found.curve.fit.certificate.warnings]
    lost = found.rows[found.rows["diverged"] > 0]
    said += [
        f"{found.name}: {int(row['diverged'])} of {int(row['seeds'])} runs of width {int(row[WIDTH])} diverged and "
        "count as a uniform guess; the width is no row of a law"
        for _, row in lost.iterrows()
    ]
    return said


EXPERIMENTS = [
    Experiment(
        "loss-prediction/mup",
        PAPER,
        "The largest width's loss, predicted from the small ones before it is trained.",
        {make.__name__: make for make in (smoke, tiny, small, paper)},
        analyse,
        extend,
    )
]
