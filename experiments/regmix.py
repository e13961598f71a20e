"""Liu et al. 2024 (RegMix): do losses predicted from the mixtures of 1M models rank the mixtures of 1B models?

A regression from the 17 mixture weights to the loss on Pile-CC is fitted to 512 runs of 1M parameters and tried on
unseen mixtures: 256 runs of 1M, 256 of 60M, 64 of 1B parameters. Judged by rank (Spearman's correlation of predicted
and true loss), as losses of other sizes lie elsewhere.

    linear      ordinary least squares on the weights: the paper's first model
    quadratic   ridge on the square roots of the weights and their pairwise products. It stands for the paper's gradient
                boosting (LightGBM), which this project does not depend on; the penalty is the one of least error in
                ten-fold cross-validation on the 512 runs alone

The interval of a rank correlation comes from drawing the tested mixtures with replacement.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lab.report.findings import Claim, judge
from lab.sweep.experiment import Analysis, Experiment

PAPER = "Liu et al. 2024, RegMix: Data Mixture as Regression for Language Model Pre-training, arXiv 2407.01492"
TARGET = "metric/the_pile_pile_cc_val_loss"
SPLITS = {"1M": "test_1m", "60M": "test_60m", "1B": "test_1B"}
PUBLISHED = {
    "linear": {"1M": 0.9008, "60M": 0.8926, "1B": 0.8801},
    "quadratic": {"1M": 0.9845, "60M": 0.9864, "1B": 0.9712},
}
ANOTHER = "ours is a quadratic ridge, theirs gradient boosting"
LINEAR_CLAIM = Claim(
    "Linear regression on 1M runs ranks 1B runs with a correlation of 0.88",
    PAPER, PUBLISHED["linear"]["1B"], "rank correlation", "equals", 0.1, recalled=True,
)  # fmt: skip
PENALTIES = tuple(10.0**k for k in range(-6, 2))  # times the number of runs; features have variance 1
FOLDS, RESAMPLES, SEED, LEVEL = 10, 4000, 0, 0.95


def linear(weights: np.ndarray) -> np.ndarray:
    """[n, 17] as they are."""
    return weights


def quadratic(weights: np.ndarray) -> np.ndarray:
    """Square roots of the weights and all their products, [n, 17 + 153]."""
    roots = np.sqrt(weights)
    i, j = np.triu_indices(weights.shape[1])
    return np.hstack([roots, roots[:, i] * roots[:, j]])


FEATURES = {"linear": linear, "quadratic": quadratic}


def ridges(features: np.ndarray, losses: np.ndarray, penalties: Sequence[float]) -> Any:
    """Ridge regressions of losses [n, T] on standardised features [n, p], the intercept free: [m, p] -> [P, m, T].

    Directions without variance (the weights sum to one) are left out, so that a penalty of 0 is least squares.
    """
    mean, spread = features.mean(0), features.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    U, s, Vt = np.linalg.svd((features - mean) / spread, full_matrices=False)
    kept = s > 1e-10 * s[0]
    shrunk = np.where(kept, s / (s**2 + np.outer(penalties, np.full(len(s), len(losses))) + ~kept), 0.0)  # [P, k]
    along = U.T @ (losses - losses.mean(0))  # [k, T]

    def predict(other):
        scores = ((other - mean) / spread) @ Vt.T
        return losses.mean(0) + np.stack([(scores * row) @ along for row in shrunk])

    return predict


def cross_validated(features: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """For each of the losses [n, T] the penalty of least squared error over ten folds, [T]."""
    fold = np.random.default_rng(SEED).permutation(len(losses)) % FOLDS
    off = np.empty((len(PENALTIES), *losses.shape))
    for k in range(FOLDS):
        out = fold == k
        off[:, out] = ridges(features[~out], losses[~out], PENALTIES)(features[out]) - losses[out]
    return np.array(PENALTIES)[np.argmin((off**2).mean(1), axis=0)]


def fitted(kind: str, weights: np.ndarray, losses: np.ndarray) -> tuple[Any, np.ndarray]:
    """Mixture weights [m, 17] -> losses [m, T], from runs of losses [n, T]; and the penalties [T]."""
    features = FEATURES[kind]
    penalties = np.zeros(losses.shape[1]) if kind == "linear" else cross_validated(features(weights), losses)
    model = ridges(features(weights), losses, penalties)
    return lambda other: np.einsum("tmt->mt", model(features(other))), penalties


def rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's, along the last axis."""
    from scipy.stats import rankdata

    x, y = (rankdata(values, axis=-1) for values in (a, b))
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    return (x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1))


def analyse(load: Any) -> Analysis:
    import pandas

    from lab.laws.bootstrap import percentile_interval
    from lab.laws.compare import published_against_ours

    table = load("regmix_pile")
    names = [name for name in table if name.startswith("train_the_pile")]
    targets = [name for name in table if name.startswith("metric/")]
    train = table[table["split"] == "train_1m"]
    tests = {size: table[table["split"] == split] for size, split in SPLITS.items()}
    domains = pandas.DataFrame({"validation set": [_domain(target) for target in targets]})
    this = targets.index(TARGET)
    findings, compared, rows, notes, shown, resampled = [], [], [], [], {}, {}
    for kind in FEATURES:
        model, penalties = fitted(kind, train[names].to_numpy(float), train[targets].to_numpy(float))
        ours, errors = {}, {}
        for size, test in tests.items():
            every, measured = model(test[names].to_numpy(float)), test[targets].to_numpy(float)
            domains[f"{kind} {size}"] = rank_correlation(every.T, measured.T)
            predicted, true = every[:, this], measured[:, this]
            drawn = np.random.default_rng(SEED).integers(0, len(true), (RESAMPLES, len(true)))
            samples = rank_correlation(predicted[drawn], true[drawn])
            rho = float(rank_correlation(predicted, true))
            interval = percentile_interval(samples, LEVEL, len(true))
            ours[size], errors[size] = rho, float(samples.std(ddof=1))
            regret = float(true[np.argmin(predicted)] - true.min())
            ends = {"rank correlation_low": interval.low, "rank correlation_high": interval.high}
            row = {"model": kind, "size": size, "mixtures": len(true), "rank correlation": rho, **ends}
            rows.append({**row, "regret of the mixture ranked first": regret, "range of losses": np.ptp(true)})
            if size == "1B":
                shown[kind], resampled[kind] = (predicted, true), samples
                if kind == "linear":
                    findings.append(judge(LINEAR_CLAIM, rho, interval))
        model = "same model and runs" if kind == "linear" else "another model, ridge for boosting"
        reasons = {
            size: f"{model}; recalled; {ours[size] - PUBLISHED[kind][size]:+.4f} apart where drawing other mixtures "
            f"moves it by {errors[size]:.4f}"
            for size in SPLITS
        }
        compared.append(published_against_ours(PUBLISHED[kind], ours, errors, reasons, model=kind))
        notes.append(f"{kind}: ridge penalty {penalties[this]:.1g} times the number of runs, features of variance 1")
    findings.append(_better(shown, resampled))
    notes.append(f"over all {len(targets)} validation sets the quadratic model's rank correlation at 1B is "
                 f"{domains['quadratic 1B'].min():.3f} to {domains['quadratic 1B'].max():.3f}")  # fmt: skip
    direct = _sizes(table)
    tables = {
        "published-against-ours": pandas.concat(compared, ignore_index=True),
        "ranking": pandas.DataFrame(rows),
        "validation-sets": domains,
    }
    notes.append(f"the published correlation of {PUBLISHED['quadratic']['1B']} at 1B is no claim here: {ANOTHER}")
    notes += direct
    return Analysis(findings, tables, notes, lambda stem: _draw(stem, shown, tables, findings))


def _better(shown: dict, resampled: dict) -> Any:
    """Whether products of weights help at 1B, the same mixtures drawn for both models."""
    from lab.laws.bootstrap import percentile_interval

    gain = PUBLISHED["quadratic"]["1B"] - PUBLISHED["linear"]["1B"]
    text = "A regression that is not linear in the weights ranks 1B runs better than a linear one"
    claim = Claim(text, PAPER, gain, "difference of rank correlations", "sign", recalled=True)
    found = float(rank_correlation(*shown["quadratic"]) - rank_correlation(*shown["linear"]))
    interval = percentile_interval(resampled["quadratic"] - resampled["linear"], LEVEL, len(shown["linear"][0]))
    return judge(claim, found, interval, caveats=(ANOTHER,))


def _domain(target: str) -> str:
    """The validation set that a column has the losses of."""
    return target.removeprefix("metric/the_pile_").removesuffix("_val_loss")


def _sizes(table: Any) -> list[str]:
    """How far the losses of one size alone rank those of another, where both trained the same mixtures."""
    small, middle = (table[table["split"] == split].set_index("index")[TARGET] for split in ("test_1m", "test_60m"))
    both = small.index.intersection(middle.index)
    weights = [name for name in table if name.startswith("train_the_pile")]
    mixtures = [table[table["split"] == s].set_index("index").loc[both, weights] for s in ("test_1m", "test_60m")]
    same = np.abs(mixtures[0].to_numpy() - mixtures[1].to_numpy()).max(1) < 1e-3
    if not same.any():
        return []
    rho = rank_correlation(small[both][same].to_numpy(), middle[both][same].to_numpy())
    return [f"measured losses of the {same.sum()} mixtures trained at 1M and 60M alike correlate in rank by {rho:.3f}"]


def _draw(stem: Path, shown: dict, tables: Any, findings: Any) -> Path:
    from experiments.published_figure import png_of, sheet
    from lab.report import figure as draw

    with sheet(stem, "Mixtures of 1B models ranked by runs of 1M", PAPER, findings) as (left, right):
        colours = {"linear": draw.FAINT, "quadratic": draw.OURS}
        for kind, (predicted, true) in shown.items():
            draw.points(left, predicted, true, colour=colours[kind], label=kind)
        left.set(xlabel="Predicted Pile-CC loss at 1M", ylabel="Pile-CC loss of the 1B model, nats per token")
        left.set_title("64 unseen mixtures")
        left.legend()
        table = tables["ranking"]
        sizes = list(SPLITS)
        for kind, colour in colours.items():
            rows = table[table["model"] == kind].set_index("size").loc[sizes]
            low, high = rows["rank correlation_low"], rows["rank correlation_high"]
            at = np.arange(3) + (-0.05 if kind == "linear" else 0.05)
            draw.points(right, at, rows["rank correlation"], low, high, colour, f"ours: {kind}")
            label = "published (recalled): linear, gradient boosting" if kind == "linear" else None
            published = [PUBLISHED[kind][size] for size in sizes]
            right.plot(at, published, "_", color=draw.PUBLISHED, markersize=18, label=label)
        right.set_xticks(range(3), [f"{size} models" for size in sizes])
        right.set(ylabel="Rank correlation of predicted and true loss", title="By size of the tested models")
        right.legend(loc="lower left")
    return png_of(stem)


EXPERIMENTS = [
    Experiment(
        id="regmix/ranking",
        paper=PAPER,
        summary="Rank correlation of losses predicted from 1M runs with those of 1M, 60M and 1B runs.",
        measurements=analyse,
    )
]
