"""From runs, or from the authors' table, to cells: one row per (group, batch size, seed) with its steps to target.

Columns: `group` (label), `parameters` (non-embedding N), `tokens` (horizon D), `target_loss` (nats per token),
`batch_sequences`, `batch_tokens`, `seed`, `steps` (updates; a lower bound where `censored`), `censored`, and from runs
also `learning_rate` and `lr_at_edge` (the best rate is an end of the grid that was tried).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lab.errors import PublishedDataError, ResultsError
from lab.laws.bootstrap import hierarchical_weights
from lab.laws.crossing import Curve, monotone_curve

NO_STEPS = -1.0  # ln of the steps of a run without a finite evaluation, which is no bound at all
PUBLISHED_COLUMNS = (
    "model",
    "params_millions",
    "target_loss",
    "batch_size",
    "context_length",
    "steps_to_target_used_in_fit",
    "chinchilla_steps_at_bs256",
)


@dataclass(frozen=True)
class Group:
    """One overhead curve: a model size and a horizon D in tokens, at which the reference batch sets the target."""

    label: str
    parameters: float
    tokens: float
    runs: tuple[str, ...] | None = None
    """Run ids to use; None: every run of this model size."""


@dataclass(frozen=True)
class Replicates:
    """Resampled cells of one group: batch [K] in sequences; log_steps, censored [R or 1, K]; weights [R, K]."""

    batch: np.ndarray
    log_steps: np.ndarray
    censored: np.ndarray
    weights: np.ndarray


Resample = Callable[[int, np.random.Generator], dict[str, Replicates]]


@dataclass(frozen=True)
class Cells:
    """The table of cells, how to resample it, and what was left out and why."""

    table: pd.DataFrame
    resample: Resample
    notes: tuple[str, ...] = ()


def cells_from_table(table: pd.DataFrame) -> Cells:
    """Cells that are given: resamples reweight batch sizes, then seeds; targets and learning rates stay as chosen."""

    def resample(count: int, rng: np.random.Generator) -> dict[str, Replicates]:
        found = {}
        for label, rows in table.groupby("group", sort=False):
            rows = rows[np.isfinite(rows["steps"])]
            batch = rows["batch_sequences"].to_numpy(float)
            found[label] = Replicates(
                batch,
                np.log(rows["steps"].to_numpy(float))[None],
                rows["censored"].to_numpy(bool)[None],
                hierarchical_weights(batch, count, rng),
            )
        return found

    return Cells(table, resample)


def read_published(path: str | Path) -> Cells:
    """The authors' 45 steps to target (Zhang et al. 2024, `plots/chinchilla.ipynb`) as cells.

    N in parameters (their column is in millions), D = their Chinchilla steps at batch 256 in tokens, steps as used in
    their fit (five differ from their logs by up to 6.5 %). Two cells of the 85M model are equal (8,192 and 16,384): no
    evaluation between; as the authors did, they are taken at face value.

    Raises PublishedDataError: missing file or columns, cells that are not positive numbers, no rows.
    """
    path = Path(path)
    if not path.is_file():
        raise PublishedDataError(f"found no file {path}; expected the authors' table: check --published")
    try:
        raw = pd.read_csv(path)
    except (ValueError, OSError) as error:
        why = str(error).split("\n", 1)[0]
        raise PublishedDataError(f"{path} is not a readable CSV table ({why}): check --published") from None
    missing = [name for name in PUBLISHED_COLUMNS if name not in raw.columns]
    if missing:
        had = ", ".join(map(str, raw.columns))
        raise PublishedDataError(f"{path} lacks the column(s) {', '.join(missing)}; it has {had}: check --published")
    if raw.empty:
        raise PublishedDataError(f"{path} has no rows; expected one per model size and batch size: check --published")
    for name in PUBLISHED_COLUMNS[1:]:
        numbers = pd.to_numeric(raw[name], errors="coerce").to_numpy(float)
        bad = np.flatnonzero(~(np.isfinite(numbers) & (numbers > 0)))
        if bad.size:
            found = f"{path} line {bad[0] + 2} has {name} = {str(raw[name].iloc[bad[0]])!r}"
            raise PublishedDataError(f"{found}; expected a positive number: mend the file")
        raw[name] = numbers
    table = pd.DataFrame(
        {
            "group": raw["model"].astype(str),
            "parameters": raw["params_millions"] * 1e6,
            "tokens": raw["chinchilla_steps_at_bs256"] * 256 * raw["context_length"],
            "target_loss": raw["target_loss"],
            "batch_sequences": raw["batch_size"],
            "batch_tokens": raw["batch_size"] * raw["context_length"],
            "seed": 0,
            "steps": raw["steps_to_target_used_in_fit"],
            "censored": False,
        }
    )
    return cells_from_table(table)


def cells_from_runs(
    runs: pd.DataFrame,
    evaluations: Callable[[str], pd.DataFrame],
    groups: Sequence[Group],
    reference_batch_tokens: int,
) -> Cells:
    """Cells as the paper sets them up.

    Target: the loss that the reference batch reaches at horizon D with its best learning rate (lowest mean over seeds).
    Each seed has its own: the paper's procedure, once per seed. Runs of one seed start from the same weights and read
    the same data, so that what is peculiar to a seed moves its target and its steps together, and no B*.
    For every batch size the learning rate with the fewest steps to that target (mean over seeds of ln steps; a rate
    that misses the target with some seed comes after those that never do).

    Args:
      runs: columns run, parameters, run.batch_tokens, optimizer.learning_rate, run.seed, run.horizon_tokens, status
        (finished, diverged or failed), sequence_length. Failed runs are left out; a diverged run counts up to its last
        finite evaluation. Of runs that differ in nothing else, the one with the longest horizon is used.
      evaluations: run id -> table with step, tokens and loss (nats per token, of the averaged weights), by step.

    Resampling weighs batch sizes and seeds; target and choice of learning rate are repeated inside each
    resample with those weights. Groups that share runs (horizons of one model) share the weights as well.

    Raises ResultsError when no group has a target.
    """
    runs = runs[runs["status"] != "failed"]
    prepared, notes = [], []
    for group in groups:
        chosen = runs[np.isclose(runs["parameters"], group.parameters)]
        if group.runs is not None:
            chosen = chosen[chosen["run"].isin(group.runs)]
        chosen = chosen.sort_values("run.horizon_tokens", kind="stable")
        same = ["run.batch_tokens", "optimizer.learning_rate", "run.seed"]
        chosen = chosen.drop_duplicates(same, keep="last").reset_index(drop=True)
        curves = [_curve(evaluations(run)) for run in chosen["run"]]
        found = _GroupRuns(group, chosen, curves, reference_batch_tokens)
        if np.isfinite(found.targets(np.ones((1, len(chosen))))).all():
            prepared.append(found)
        else:
            why = f"no finished run at the reference batch of {reference_batch_tokens} tokens reaches its horizon"
            notes.append(f"group {group.label} left out: {why}")
    if not prepared:
        raise ResultsError(
            f"found no run at the reference batch of {reference_batch_tokens} tokens that reaches its horizon; "
            "expected one per group: finish the sweep or choose another reference batch"
        )
    table = pd.concat([group.table() for group in prepared], ignore_index=True)

    def resample(count: int, rng: np.random.Generator) -> dict[str, Replicates]:
        return {g.group.label: g.replicates(*w) for g, w in zip(prepared, _shared_weights(prepared, count, rng))}

    return Cells(table, resample, tuple(notes))


class _GroupRuns:
    """Runs of one group arranged for repeated choice of target and learning rate."""

    def __init__(self, group: Group, runs: pd.DataFrame, curves: list[Curve], reference: int):
        self.group, self.runs, self.curves = group, runs, curves
        self.batch = runs["run.batch_tokens"].to_numpy(float)
        self.rate = runs["optimizer.learning_rate"].to_numpy(float)
        self.seed = runs["run.seed"].to_numpy()
        self.sequence = float(runs["sequence_length"].iloc[0]) if len(runs) else float("nan")
        self.reference = np.flatnonzero(self.batch == reference)
        horizon = group.tokens / reference
        self.horizon_losses = np.array([_loss_at_horizon(curves[i], horizon) for i in self.reference])
        self.seeds = np.unique(self.seed)
        self.cells = [(b, np.flatnonzero(self.batch == b)) for b in np.unique(self.batch)]

    def targets(self, seed_weights: np.ndarray) -> np.ndarray:
        """Target losses [R, seeds] from weights [R, runs]: what the reference batch's best rate reaches with each seed.

        The best rate is that of the lowest weighted mean over seeds; NaN if none got there with every seed. A seed that
        the reference batch lacks has the mean as its target.
        """
        means, losses = [np.full(len(seed_weights), np.inf)], [np.full(len(self.seeds), np.nan)]
        for rate in np.unique(self.rate[self.reference]):
            at = self.rate[self.reference] == rate
            weights = seed_weights[:, self.reference[at]]
            mean = (weights * self.horizon_losses[at]).sum(1) / weights.sum(1)
            means.append(np.where(np.isfinite(mean), mean, np.inf))
            found = dict(zip(self.seed[self.reference[at]], self.horizon_losses[at]))
            losses.append(np.array([found.get(seed, np.nan) for seed in self.seeds]))
        best = np.argmin(means, axis=0)
        lowest = np.min(means, axis=0)[:, None]
        targets = np.where(np.isnan(np.stack(losses)[best]), lowest, np.stack(losses)[best])
        return np.where(np.isfinite(lowest), targets, np.nan)

    def choose(self, seed_weights: np.ndarray) -> tuple[np.ndarray, list[tuple]]:
        """Targets [R, seeds]; per batch size (batch, seeds [S], ln steps [R, S], censored [R, S], rate [R], rates)."""
        targets, cells = self.targets(seed_weights), []
        for batch, members in self.cells:
            seeds, rates = np.unique(self.seed[members]), np.unique(self.rate[members])
            score, logs, missed = [], [], []
            for rate in rates:
                log_steps = np.full((len(targets), len(seeds)), np.nan)
                censored = np.zeros(log_steps.shape, bool)
                weights, ends = np.zeros(log_steps.shape), np.zeros(log_steps.shape)
                for i in members[self.rate[members] == rate]:
                    slot = int(np.searchsorted(seeds, self.seed[i]))
                    target = targets[:, np.searchsorted(self.seeds, self.seed[i])]
                    steps, censored[:, slot] = self.curves[i].crossings(target)
                    log_steps[:, slot] = np.maximum(np.log(np.maximum(steps, 1e-9)), NO_STEPS)
                    weights[:, slot] = seed_weights[:, i]
                    ends[:, slot] = np.nan_to_num(self.curves[i].loss_at(self.curves[i].last_step), nan=1e3)
                total = weights.sum(1)
                mean = (weights * np.nan_to_num(log_steps)).sum(1) / total
                missing = (weights * censored).sum(1) / total
                # Of rates that miss with every seed, the largest bound comes first; of equal bounds, the lowest loss.
                end = (weights * ends).sum(1) / total
                score.append(np.where(missing < 1, mean + 1e6 * missing, 2e6 - mean + 1e-3 * end))
                logs.append(log_steps)
                missed.append(censored)
            best = np.argmin(score, axis=0)
            pick = (best, np.arange(len(targets)))
            cells.append((batch, seeds, np.stack(logs)[pick], np.stack(missed)[pick], rates[best], rates))
        return targets, cells

    def table(self) -> pd.DataFrame:
        targets, cells = self.choose(np.ones((1, len(self.runs))))
        rows = []
        for batch, seeds, log_steps, censored, rate, rates in cells:
            for slot, seed in enumerate(seeds):
                if log_steps[0, slot] > NO_STEPS:
                    rows.append(
                        {
                            "group": self.group.label,
                            "parameters": float(self.group.parameters),
                            "tokens": float(self.group.tokens),
                            "target_loss": float(targets[0, np.searchsorted(self.seeds, seed)]),
                            "batch_sequences": batch / self.sequence,
                            "batch_tokens": batch,
                            "seed": seed,
                            "steps": float(np.exp(log_steps[0, slot])),
                            "censored": bool(censored[0, slot]),
                            "learning_rate": float(rate[0]),
                            "lr_at_edge": bool(rate[0] in (rates[0], rates[-1])),
                        }
                    )
        return pd.DataFrame(rows)

    def replicates(self, cell_weights: np.ndarray, seed_weights: np.ndarray) -> Replicates:
        """cell_weights, seed_weights: [R, runs], the run's batch size's and its seed's."""
        _, cells = self.choose(seed_weights)
        batch, logs, missed, weights = [], [], [], []
        for size, seeds, log_steps, censored, _, _ in cells:
            members = np.flatnonzero(self.batch == size)
            for slot, seed in enumerate(seeds):
                run = members[np.argmax(self.seed[members] == seed)]
                present = log_steps[:, slot] > NO_STEPS
                batch.append(size / self.sequence)
                logs.append(np.where(present, log_steps[:, slot], 0.0))
                missed.append(censored[:, slot])
                weights.append(np.where(present, cell_weights[:, run] * seed_weights[:, run], 0.0))
        return Replicates(np.array(batch), np.stack(logs, 1), np.stack(missed, 1), np.stack(weights, 1))


def _shared_weights(groups: list[_GroupRuns], count: int, rng: np.random.Generator):
    """(cell, seed) weights [R, runs] per group: one for each (model size, batch size), one for each (size, seed).

    Seeds are crossed with batch sizes: runs of one seed start from the same weights and read the same data, so that a
    seed that is slow at one batch size is slow at all, which moves no B*.
    """
    keys = sorted({(float(g.group.parameters), float(b)) for g in groups for b in g.batch})
    cell = {}
    for size in sorted({k[0] for k in keys}):
        batches = [k for k in keys if k[0] == size]
        drawn = hierarchical_weights(np.arange(len(batches)), count, rng)
        cell.update({key: drawn[:, j] for j, key in enumerate(batches)})
    seeds = {}
    for size in sorted({k[0] for k in keys}):
        found = sorted({s for g in groups if g.group.parameters == size for s in g.seed})
        drawn = hierarchical_weights(np.zeros(len(found)), count, rng)
        seeds.update({(size, s): drawn[:, j] for j, s in enumerate(found)})
    for g in groups:
        size = float(g.group.parameters)
        yield (
            np.stack([cell[size, float(b)] for b in g.batch], 1),
            np.stack([seeds[size, s] for s in g.seed], 1),
        )


def _curve(evaluations: pd.DataFrame) -> Curve:
    return monotone_curve(evaluations["step"].to_numpy(float), evaluations["loss"].to_numpy(float))


def _loss_at_horizon(curve: Curve, step: float) -> float:
    """Monotone loss at the horizon; a run that ends within 1 % of it counts; NaN if it ends before."""
    if curve.last_step < 0.99 * step:
        return float("nan")
    return curve.loss_at(min(step, curve.last_step))
