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


def ridges(features: np.ndarray, loss: np.ndarray, penalties: Sequence[float]) -> Any:
    """Ridge regressions on standardised features [n, p], the intercept free. Gives features [m, p] -> loss [P, m].

    Directions without variance (the weights sum to one) are left out, so that a penalty of 0 is least squares.
    """
    mean, spread = features.mean(0), features.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    U, s, Vt = np.linalg.svd((features - mean) / spread, full_matrices=False)
    kept = s > 1e-10 * s[0]
    shrunk = np.where(kept, s / (s**2 + np.outer(penalties, np.full(len(s), len(loss))) + ~kept), 0.0)  # [P, k]
    slopes = (shrunk * (U.T @ (loss - loss.mean()))) @ Vt
    return lambda other: loss.mean() + slopes @ ((other - mean) / spread).T


def cross_validated(features: np.ndarray, loss: np.ndarray) -> float:
    """The penalty of least squared error over ten folds."""
    fold = np.random.default_rng(SEED).permutation(len(loss)) % FOLDS
    off = np.empty((len(PENALTIES), len(loss)))
    for k in range(FOLDS):
        out = fold == k
        off[:, out] = ridges(features[~out], loss[~out], PENALTIES)(features[out]) - loss[out]
    return PENALTIES[int(np.argmin((off**2).mean(1)))]


def fitted(kind: str, weights: np.ndarray, loss: np.ndarray) -> tuple[Any, float]:
    """Mixture weights [n, 17] -> loss [n], and the penalty."""
    features = FEATURES[kind]
    penalty = 0.0 if kind == "linear" else cross_validated(features(weights), loss)
    model = ridges(features(weights), loss, [penalty])
    return lambda other: model(features(other))[0], penalty


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
    weights = train[names].to_numpy(float)
    findings, compared, rows, notes, shown = [], [], [], [], {}
    for kind in FEATURES:
        model, penalty = fitted(kind, weights, train[TARGET].to_numpy(float))
        ours, errors = {}, {}
        for size, split in SPLITS.items():
            test = table[table["split"] == split]
            predicted, true = model(test[names].to_numpy(float)), test[TARGET].to_numpy(float)
            drawn = np.random.default_rng(SEED).integers(0, len(true), (RESAMPLES, len(true)))
            samples = rank_correlation(predicted[drawn], true[drawn])
            rho = float(rank_correlation(predicted, true))
            interval = percentile_interval(samples, LEVEL)
            ours[size], errors[size] = rho, float(samples.std(ddof=1))
            regret = float(true[np.argmin(predicted)] - true.min())
            ends = {"rank correlation_low": interval.low, "rank correlation_high": interval.high}
            row = {"model": kind, "size": size, "mixtures": len(true), "rank correlation": rho, **ends}
            rows.append({**row, "regret of the mixture ranked first": regret, "range of losses": np.ptp(true)})
            if size == "1B":
                shown[kind] = (predicted, true)
                findings.append(judge(_claim(kind), rho, interval, blocked=_another(kind)))
        reason = {
            "linear": "the same model and runs; published values recalled",
            "quadratic": "another model: quadratic ridge where the paper has gradient boosting",
        }[kind]
        compared.append(published_against_ours(PUBLISHED[kind], ours, errors, dict.fromkeys(ours, reason), model=kind))
        if penalty:
            notes.append(
                f"{kind}: ridge penalty {penalty:.1g} (features of variance 1) by cross-validation on the 1M runs"
            )
    domains = pandas.DataFrame([_domain(table, names, target, weights, train) for target in targets])
    notes.append(f"over all {len(targets)} validation sets the quadratic model's rank correlation at 1B is "
                 f"{domains['quadratic 1B'].min():.3f} to {domains['quadratic 1B'].max():.3f}")  # fmt: skip
    direct = _sizes(table)
    tables = {
        "published-against-ours": pandas.concat(compared, ignore_index=True),
        "ranking": pandas.DataFrame(rows),
        "validation-sets": domains,
    }
    notes += direct
    return Analysis(findings, tables, notes, lambda stem: _draw(stem, shown, tables, findings))


def _claim(kind: str) -> Claim:
    rule = {"kind": "equals", "recalled": True}
    if kind == "linear":
        text = "Linear regression on 1M runs ranks 1B runs with a correlation of 0.88"
        return Claim(text, PAPER, PUBLISHED[kind]["1B"], "rank correlation", tolerance=0.1, **rule)
    text = "A regression on 1M runs ranks 1B runs with a correlation of 0.97"
    return Claim(text, PAPER, PUBLISHED[kind]["1B"], "rank correlation", tolerance=0.03, **rule)


def _another(kind: str) -> str:
    """Why a rank correlation cannot be judged by the published one."""
    return "ours is a quadratic ridge, theirs gradient boosting" if kind == "quadratic" else ""


def _domain(table: Any, names: list[str], target: str, weights: np.ndarray, train: Any) -> dict[str, Any]:
    """Rank correlations for one validation set."""
    row: dict[str, Any] = {"validation set": target.removeprefix("metric/the_pile_").removesuffix("_val_loss")}
    for kind in FEATURES:
        model, _ = fitted(kind, weights, train[target].to_numpy(float))
        for size, split in SPLITS.items():
            test = table[table["split"] == split]
            row[f"{kind} {size}"] = float(rank_correlation(model(test[names].to_numpy(float)), test[target].to_numpy()))
    return row


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
            draw.points(right, range(3), rows["rank correlation"], low, high, colour, f"ours: {kind}")
            label = "published (recalled): linear, gradient boosting" if kind == "linear" else None
            published = [PUBLISHED[kind][size] for size in sizes]
            right.plot(range(3), published, "_", color=draw.PUBLISHED, markersize=18, label=label)
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
