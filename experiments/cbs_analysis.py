"""From cells to critical batch sizes, power laws, intervals and verdicts.

Per group: ln S = ln(a + b / B) by least squares in logs, B* at the overhead over linear scaling from the reference
batch, and its small-batch limit. Across groups: B* = c x^p by ordinary least squares in logs (x: parameters or tokens,
in millions). Intervals: resamples over cells and seeds carry through both fits, so they hold the error of measurement
of every B*; the Student interval of p from the scatter of the groups about the law is given beside.

The reference batch is part of the definition of B*: its floor (1 + o) B_ref flattens the law. A claim about an
exponent's value is therefore decided, when our reference is not the paper's, only where the small-batch limit gives the
same verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from experiments.cbs_cells import Cells, Replicates
from experiments.cbs_claims import DATA_NOT_SIZE, PANELS, PAPER_OVERHEAD, PAPER_REFERENCE_TOKENS, PAPER_SEQUENCE, Panel
from lab.laws import noise_scale
from lab.laws.bootstrap import Interval, no_interval, percentile_interval
from lab.laws.critical_batch import OverheadFit, OverheadFitError, critical_batch, fit_overhead, fit_overheads
from lab.laws.power import PowerLaw, PowerLawError, fit_power_law, fit_power_law_linear
from lab.report.findings import Claim, Finding, judge


@dataclass(frozen=True)
class Settings:
    """Choices of the analysis; the sensitivity table varies the first two."""

    reference_sequences: float
    overhead: float = PAPER_OVERHEAD
    level: float = 0.95
    resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class GroupResult:
    """One overhead curve. Batches in sequences; `fit` is None where the cells cannot determine it (`reason`)."""

    label: str
    parameters: float
    tokens: float
    target_loss: float
    cells: pd.DataFrame = field(repr=False)
    fit: OverheadFit | None
    critical: float
    critical_interval: Interval
    limit: float
    limit_interval: Interval
    reason: str
    samples: np.ndarray = field(repr=False)
    """ln(b / a) of every resample [R], NaN where it has none."""

    @property
    def usable(self) -> bool:
        return bool(np.isfinite(self.critical))


@dataclass(frozen=True)
class LawResult:
    """B* in sequences against x in millions, for one definition of B*."""

    definition: str
    """"reference" or "limit"."""
    law: PowerLaw | None
    linear: PowerLaw | None
    """The same from least squares on B* itself."""
    exponent_interval: Interval
    coefficient_interval: Interval
    reason: str
    observations: int
    """Measured batch sizes of the poorest group, which set the widening of the intervals."""
    samples: np.ndarray = field(repr=False)
    """(ln c, p) of every resample [R, 2]."""
    level: float

    def band(self, x_millions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pointwise interval of the law at x [P], widened as the exponent's is; NaN where there is none."""
        lines = np.exp(self.samples[:, :1] + self.samples[:, 1:] * np.log(x_millions))
        ends = [percentile_interval(line, self.level, self.observations, 2) for line in lines.T]
        return np.array([end.low for end in ends]), np.array([end.high for end in ends])

    @property
    def exponent(self) -> float:
        return self.law.exponent if self.law else float("nan")

    @property
    def coefficient(self) -> float:
        return self.law.coefficient if self.law else float("nan")


@dataclass(frozen=True)
class Analysis:
    """All of one panel."""

    panel: Panel
    settings: Settings
    sequence_length: float
    groups: tuple[GroupResult, ...]
    law: LawResult
    limit_law: LawResult
    noise: dict[str, noise_scale.NoiseScale]
    noise_law: PowerLaw | None
    sensitivity: pd.DataFrame
    """choice, exponent, coefficient: the same cells under other choices."""
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    def x(self, group: GroupResult) -> float:
        """The panel's variable, in millions."""
        return getattr(group, self.panel.variable) / 1e6


def analyse(
    cells: Cells, panel: str, settings: Settings, noise: pd.DataFrame | None = None, caveats: Sequence[str] = ()
) -> Analysis:
    """Everything that one panel's cells say.

    Args:
      panel: "chinchilla", "fixed-model" or "fixed-data".
      noise: probes of the gradient's halves, columns group, squared_difference, inner_product, half_sequences.
      caveats: sentences that belong to every verdict (data repeated, a grid extended to its limit).
    """
    kind, table = PANELS[panel], cells.table
    rng = np.random.default_rng(settings.seed)
    replicates = cells.resample(settings.resamples, rng)
    labels = list(dict.fromkeys(table["group"]))
    groups = tuple(_group(label, table[table["group"] == label], replicates[label], settings) for label in labels)
    groups = tuple(sorted(groups, key=lambda group: getattr(group, kind.variable)))
    sequence = float(table["batch_tokens"].iloc[0] / table["batch_sequences"].iloc[0])
    law = _law(groups, kind, settings, "reference", settings.reference_sequences)
    limit_law = _law(groups, kind, settings, "limit", 0.0)
    scales, noise_law = _noise(noise, groups, kind, settings)
    sensitivity = _sensitivity(groups, kind, settings)
    notes = (*cells.notes, *(f"group {g.label}: {g.reason}" for g in groups if g.reason), *_noise_notes(scales))
    caveats = (*caveats, *_caveats(groups, table))
    findings = _findings(kind, law, limit_law, groups, settings, sequence, caveats)
    return Analysis(
        kind, settings, sequence, groups, law, limit_law, scales, noise_law, sensitivity, findings, tuple(notes)
    )


def compare_panels(fixed_model: Analysis, fixed_data: Analysis) -> Finding:
    """"Data rather than size": exponent of D at fixed model minus that of N at fixed data, resamples paired at random.

    The panels count as independent; where they share runs the interval is approximate.
    """
    difference = fixed_model.law.exponent - fixed_data.law.exponent
    level, parts = fixed_model.settings.level, (fixed_model.law, fixed_data.law)
    missing = [part.exponent_interval.reason for part in parts if not part.exponent_interval.known]
    if missing:
        return judge(DATA_NOT_SIZE, difference, no_interval(missing[0], level))
    count = min(len(part.samples) for part in parts)
    samples = parts[0].samples[:count, 1] - np.random.default_rng(0).permutation(parts[1].samples[:count, 1])
    poorest = min(_degrees(analysis.groups) for analysis in (fixed_model, fixed_data))
    return judge(DATA_NOT_SIZE, difference, percentile_interval(samples, level, *poorest))


def _group(label: str, rows: pd.DataFrame, replicates: Replicates, settings: Settings) -> GroupResult:
    rows = rows[np.isfinite(rows["steps"])]
    names = ("parameters", "tokens", "target_loss")
    known = {name: float(rows[name].iloc[0]) if len(rows) else np.nan for name in names}
    nothing = no_interval("the overhead law could not be fitted", settings.level)
    empty = np.full(settings.resamples, np.nan)
    try:
        fit = fit_overhead(rows["batch_sequences"], rows["steps"], rows["censored"])
    except OverheadFitError as error:
        return GroupResult(label, **known, cells=rows, fit=None, critical=np.nan, critical_interval=nothing,
                           limit=np.nan, limit_interval=nothing, reason=str(error), samples=empty)
    theta, gradient, bound = fit_overheads(
        replicates.batch, replicates.log_steps, replicates.censored, replicates.weights
    )
    samples = np.where(gradient < 1e-6, theta[:, 1], np.nan)
    open_end = np.select([bound > 0, bound < 0], [np.inf, -np.inf], samples)
    observations = rows.loc[~rows["censored"], "batch_sequences"].nunique()
    values, intervals = [], []
    for reference in (settings.reference_sequences, 0.0):
        stars = critical_batch(open_end, settings.overhead, reference)
        intervals.append(percentile_interval(stars, settings.level, observations, 2))
        values.append(fit.critical_batch(settings.overhead, reference) if fit.identified else np.nan)
    reason = ""
    if not fit.identified:
        reason = {
            "high": "linear scaling throughout: B* lies beyond the batch sizes tried",
            "low": "no gain from larger batches: B* lies below the batch sizes tried",
            "": f"the fit did not converge (gradient {fit.gradient_norm:.1e})",
        }[fit.at_bound]
    return GroupResult(label, **known, cells=rows, fit=fit, critical=values[0], critical_interval=intervals[0],
                       limit=values[1], limit_interval=intervals[1], reason=reason, samples=open_end)


def _degrees(groups: Sequence[GroupResult]) -> tuple[int, int]:
    """Measured batch sizes of the poorest usable group, and its two parameters.

    Pooling the cells of all groups instead would widen too little: simulated coverage of 95 % intervals of the exponent
    (4 groups of 6 cells, 5 % noise, one seed) was 0.90 pooled, 0.91 so; of 90 % intervals 0.84 and 0.90.
    """
    cells = (g.cells.loc[~g.cells["censored"], "batch_sequences"].nunique() for g in groups if g.usable)
    return min(cells, default=0), 2


def _law(groups, panel: Panel, settings: Settings, definition: str, reference: float) -> LawResult:
    usable = [g for g in groups if g.usable]
    x = np.array([getattr(g, panel.variable) / 1e6 for g in usable])
    if np.unique(x).size < 2:
        reason = f"B* was measured at {np.unique(x).size} value(s) of {panel.variable}; a power law needs 2"
        nothing = no_interval(reason, settings.level)
        empty = np.full((settings.resamples, 2), np.nan)
        return LawResult(definition, None, None, nothing, nothing, reason, 0, empty, settings.level)
    stars = np.array([g.fit.critical_batch(settings.overhead, reference) for g in usable])
    sampled = critical_batch(np.stack([g.samples for g in usable], 1), settings.overhead, reference)
    log_x = np.log(x)
    centred = log_x - log_x.mean()
    with np.errstate(invalid="ignore", divide="ignore"):  # a B* that is open is infinite, two of them decide nothing
        exponents = (np.log(sampled) * centred).sum(1) / (centred**2).sum()
        log_coefficients = np.log(sampled).mean(1) - exponents * log_x.mean()
    cells, fitted = _degrees(groups)
    reason = "" if len(usable) > 2 else "two groups determine the law: only errors of measurement are in its interval"
    return LawResult(
        definition,
        fit_power_law(x, stars),
        fit_power_law_linear(x, stars),
        percentile_interval(exponents, settings.level, cells, fitted),
        percentile_interval(np.exp(log_coefficients), settings.level, cells, fitted),
        reason,
        cells,
        np.stack([log_coefficients, exponents], 1),
        settings.level,
    )


def _exponent(groups, panel: Panel, overhead: float, reference: float) -> tuple[float, float]:
    usable = [g for g in groups if g.usable]
    x = [getattr(g, panel.variable) / 1e6 for g in usable]
    try:
        law = fit_power_law(x, [g.fit.critical_batch(overhead, reference) for g in usable])
    except PowerLawError:
        return np.nan, np.nan
    return law.exponent, law.coefficient


def _sensitivity(groups, panel: Panel, settings: Settings) -> pd.DataFrame:
    """Exponent and coefficient under other overheads, reference batches, and without one group at a time."""
    base, reference = settings.overhead, settings.reference_sequences
    choices = [("as stated", groups, base, reference)]
    choices += [(f"overhead {o:.0%}", groups, o, reference) for o in (0.1, 0.2, 0.5) if o != base]
    choices += [(f"reference {r:g} sequences", groups, base, r) for r in (reference / 2, reference * 2)]
    choices += [("small-batch limit", groups, base, 0.0)]
    if len(groups) > 2:
        for group in groups:
            choices += [(f"without {group.label}", [g for g in groups if g is not group], base, reference)]
    rows = [(name, *_exponent(chosen, panel, o, r)) for name, chosen, o, r in choices]
    return pd.DataFrame(rows, columns=["choice", "exponent", "coefficient"])


def _caveats(groups, table: pd.DataFrame) -> list[str]:
    found = []
    if "lr_at_edge" in table and table["lr_at_edge"].any():
        cells = table.drop_duplicates(["group", "batch_sequences"])
        edges = int(cells["lr_at_edge"].sum())
        found.append(f"the best learning rate lies on the edge of its grid in {edges} of {len(cells)} cells")
    if table["censored"].any():
        missed = int(table["censored"].sum())
        found.append(f"{missed} of {len(table)} cells never reached their target and count as lower bounds")
    lost = [g.label for g in groups if not g.usable]
    if lost:
        found.append(f"B* is not identified for {', '.join(lost)}, left out of the law")
    return found


def _findings(panel, law, limit_law, groups, settings, sequence, caveats) -> tuple[Finding, ...]:
    notes = []
    if law.law:
        floor = (1 + settings.overhead) * settings.reference_sequences
        lowest = min(g.critical for g in groups if g.usable)
        notes.append(f"the reference batch's floor is {floor / lowest:.0%} of the smallest B* (paper: 41%)")
        low, high = law.law.exponent_interval(settings.level)
        notes.append(f"from the scatter of the groups about the law: [{low:.3f}, {high:.3f}]")
        notes.append(f"least squares on B* itself: {law.linear.coefficient:.4g} x^{law.linear.exponent:.5f}")
    if law.reason and law.law:
        caveats = (*caveats, law.reason)
    reference_tokens = settings.reference_sequences * sequence
    blocked = ""
    if abs(reference_tokens / PAPER_REFERENCE_TOKENS - 1) > 0.01 or settings.overhead != PAPER_OVERHEAD:
        blocked = (
            f"the level depends on the reference batch: ours is {reference_tokens:,.0f} tokens at "
            f"{settings.overhead:.0%}, the paper's {PAPER_REFERENCE_TOKENS:,} at {PAPER_OVERHEAD:.0%}"
        )
    to_paper = sequence / PAPER_SEQUENCE
    level = law.coefficient_interval
    in_paper = Interval(level.low * to_paper, level.high * to_paper, level.level, level.reason)
    common = {"caveats": tuple(caveats), "notes": tuple(notes)}

    def exponent(claim: Claim) -> Finding:
        found = judge(claim, law.exponent, law.exponent_interval, **common)
        other = judge(claim, limit_law.exponent, limit_law.exponent_interval)
        if not blocked or claim.kind == "sign" or found.verdict in (other.verdict, "inconclusive"):
            return found
        why = (
            f"our reference batch is not the paper's, and the verdict depends on it: {found.verdict} with ours, "
            f"{other.verdict} in the small-batch limit (exponent {limit_law.exponent:.3g})"
        )
        return judge(claim, law.exponent, law.exponent_interval, why, **common)

    return (
        exponent(panel.direction),
        exponent(panel.exponent),
        judge(panel.coefficient, law.coefficient * to_paper, in_paper, blocked, **common),
    )


def _noise(probes, groups, panel: Panel, settings: Settings):
    """Noise scale per group, and its power law where two groups or more have one."""
    if probes is None:
        return {}, None
    scales = {
        label: noise_scale.estimate(
            rows["squared_difference"], rows["inner_product"], rows["half_sequences"],
            settings.level, settings.resamples, settings.seed,
        )
        for label, rows in probes.groupby("group", sort=False)
    }
    pairs = [(getattr(g, panel.variable) / 1e6, scales[g.label].sequences) for g in groups if g.label in scales]
    pairs = [pair for pair in pairs if np.isfinite(pair[1])]
    law = fit_power_law(*zip(*pairs)) if len({x for x, _ in pairs}) > 1 else None
    return scales, law


def _noise_notes(scales) -> list[str]:
    return [f"noise scale of group {label}: {scale.reason}" for label, scale in scales.items() if scale.reason]


def group_table(analysis: Analysis) -> pd.DataFrame:
    """One row per group for display: N, D, a, b, B* in sequences with interval, the small-batch limit, noise scale."""
    rows = []
    for g in analysis.groups:
        scale = analysis.noise.get(g.label)
        rows.append(
            {
                "group": g.label,
                "parameters": g.parameters,
                "tokens": g.tokens,
                "target_loss": g.target_loss,
                "cells": len(g.cells),
                "censored": int(g.cells["censored"].sum()),
                "a_updates": g.fit.a if g.fit else np.nan,
                "b_sequences": g.fit.b if g.fit else np.nan,
                "critical_batch_sequences": g.critical,
                "critical_batch_low": g.critical_interval.low,
                "critical_batch_high": g.critical_interval.high,
                "critical_batch_tokens": g.critical * analysis.sequence_length,
                "small_batch_limit_sequences": g.limit,
                "small_batch_limit_low": g.limit_interval.low,
                "small_batch_limit_high": g.limit_interval.high,
                "noise_scale_sequences": scale.sequences if scale else np.nan,
                "noise_scale_low": scale.interval.low if scale else np.nan,
                "noise_scale_high": scale.interval.high if scale else np.nan,
                "reason": g.reason,
            }
        )
    return pd.DataFrame(rows)
