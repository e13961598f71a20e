"""Effective Theory of Transformers at Initialization (Dinan, Yaida and Zhang 2023, arXiv 2304.02034).

The paper's method: follow the mean squares of the signal and of its gradient from block to block at initialization, and
choose scalings in width and depth that keep them of order one. Here the theory of our own decoder (pre-norm, QK-norm,
RoPE; `experiments/init_kernel.py` derives it) is set beside the statistics of runs of one update, taken before it:

    width   the stream does not depend on width; its gradient falls as width^-1/2 (standard, ntk), as 1/width under
            maximal update, whose readout shrinks: measured exponents less these are 0
    depth   each layer adds what the theory says to the stream and to its gradient, with branches scaled by
            1/sqrt(2 x depth) (a sum that does not depend on depth) and without (a sum that grows with it)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import tensors
from experiments.transfer import base, seeds
from lab.report.findings import Claim, Finding, judge
from lab.sweep.axes import Point, axis, chain, product
from lab.sweep.experiment import Analysis, Experiment, Results, Sweep

PAPER = "Dinan, Yaida and Zhang 2023, Effective Theory of Transformers at Initialization, arXiv 2304.02034"
NAMES = {"standard": "standard", "ntk": "NTK", "mup": "maximal update"}
GRADIENT_EXPONENT = {"standard": -0.5, "ntk": -0.5, "mup": -1.0}  # of width, of the RMS of the stream's gradient
HEAD_WIDTH = 16
WIDTH_TOLERANCE, DEPTH_TOLERANCE = 0.05, 0.1
STREAM = "layers/residual"


def plain_branches(cfg: Any) -> float:
    """The multiplier that undoes the 1/sqrt(2 x depth) of the initial scale of branches."""
    return float(f"{(2 * cfg.model.depth) ** 0.5:.6g}")


def sweep(widths: Sequence[int], depths: Sequence[int], count: int, note: str, **changes: Any) -> Sweep:
    """Every parametrization at every width (at the first depth), and `standard` at every depth (at the last width)."""
    batch = 8 * changes.get("model.sequence_length", 64)
    fixed = {
        "model.head_width": HEAD_WIDTH,
        "parametrization.base_width": widths[0],
        "schedule.warmup_tokens": 0,
        "run.horizon_tokens": batch,
        "run.batch_tokens": batch,
        "evaluation.statistics": True,
        "execution.microbatch_tokens": batch,
    }

    def size(width: int, depth: int) -> Point:
        heads = width // HEAD_WIDTH
        return {"model.width": width, "model.depth": depth, "model.heads": heads, "model.kv_heads": heads}

    wide = product([size(w, depths[0]) for w in widths], axis("parametrization.name", NAMES), seeds(count))
    branches = [{}, {"parametrization.residual_multiplier": plain_branches}]
    standard = axis("parametrization.name", ["standard"])
    deep = product([size(widths[-1], d) for d in depths], standard, branches, seeds(count))
    return Sweep(base(**{**fixed, **changes}), chain(wide, deep), note)


def smoke() -> Sweep:
    """Seconds: two widths of one layer, on the synthetic corpus."""
    changes = {"model.sequence_length": 16, "data.corpus": "synthetic", "evaluation.sequences": 16}
    return sweep((32, 64), (1,), 2, "seconds on a CPU", **changes)


def tiny() -> Sweep:
    return sweep((32, 64, 128, 256), (2, 4, 8), 3, "two CPU cores, three minutes, most of them compilation")


def small() -> Sweep:
    changes = {"model.sequence_length": 256, "data.corpus": "pysource-all"}
    return sweep((64, 128, 256, 512, 1024, 2048, 4096), (4, 8, 16, 32), 4, "one accelerator, within an hour", **changes)


def paper() -> Sweep:
    """Widths and depths about those of the paper's encoder-decoder (recalled), in our decoder; sequences of 512."""
    changes = {"model.sequence_length": 512, "data.corpus": "seqio:c4", "model.vocab_size": 50304}
    return sweep(
        (256, 512, 1024, 2048, 4096, 8192), (6, 12, 24, 48), 4, "the published setting: one TPU host", **changes
    )


def signals(results: Results) -> Any:
    """One row per run and layer: mean squares of the stream after it (layer 0: the embedding), its gradient, and what
    attention mixed in the layer above."""
    import pandas

    parts = []
    for _, run in tensors.watched(results).iterrows():
        found = results.statistics(run["run"])
        found = found[found["step"] == 0].set_index(["kind", "tensor", "layer"])["rms"] ** 2
        depth = int(run["model.depth"])

        def along(kind, found=found, depth=depth):
            return [found[kind, "embedded", -1], *(found[kind, STREAM, layer] for layer in range(depth))]

        mixed = [found["activation", "layers/attention/out.in", layer] for layer in range(depth)]
        parts.append(
            pandas.DataFrame(
                {
                    "run": run["run"],
                    "parametrization": run["parametrization.name"],
                    "width": int(run["model.width"]),
                    "depth": depth,
                    "multiplier": run["parametrization.residual_multiplier"],
                    "seed": int(run["run.seed"]),
                    "layer": range(depth + 1),
                    "stream": along("activation"),
                    "gradient": along("gradient"),
                    "mixed": [*mixed, np.nan],
                }
            )
        )
    return pandas.concat(parts, ignore_index=True)


def slopes(found: Any, depth: int) -> Any:
    """Exponents of width of the RMS of the last stream and of its gradient, with 95 % Student intervals."""
    import pandas

    from lab.laws.power import fit_power_law

    last = found[(found["layer"] == depth) & (found["depth"] == depth) & (found["multiplier"] == 1.0)]
    rows = []
    for name in NAMES:
        mine = last[last["parametrization"] == name]
        for what, expected in (("stream", 0.0), ("gradient", GRADIENT_EXPONENT[name])):
            law = fit_power_law(mine["width"].to_numpy(), np.sqrt(mine[what].to_numpy()))
            low, high = law.exponent_interval()
            found_row = {"exponent": law.exponent, "low": low, "high": high, "theory": expected}
            rows.append({"parametrization": name, "signal": what, **found_row})
    return pandas.DataFrame(rows)


def growth(found: Any, length: int) -> tuple[Any, int]:
    """Per run of `standard` at the largest width: total growth of stream and gradient over the theory's; and the number
    of symbols of the theory."""
    from experiments.init_kernel import symbols_of, theory

    deep = found[(found["parametrization"] == "standard") & (found["width"] == found["width"].max())]
    symbols = symbols_of(float(deep[deep["layer"] == 0]["mixed"].mean()), length, HEAD_WIDTH)
    known = {
        key: theory(int(key[0]), length, HEAD_WIDTH, symbols, float(key[1]))
        for key in deep[["depth", "multiplier"]].drop_duplicates().itertuples(index=False, name=None)
    }
    rows = deep.copy()
    for what in ("stream", "gradient"):
        rows[f"{what}_theory"] = [
            getattr(known[row.depth, row.multiplier], what)[row.layer] for row in rows.itertuples()
        ]
    top = rows[rows["layer"] == rows["depth"]].set_index("run")["gradient"]
    bottom = rows[rows["layer"] == 0].set_index("run")["stream"]
    rows["gradient"] = rows["gradient"] / rows["run"].map(top)
    rows["stream"] = rows["stream"] / rows["run"].map(bottom)
    return rows, symbols


def ratios(rows: Any) -> dict[str, np.ndarray]:
    """Growth of the stream's variance over the theory's less 1, and the same of ln of the gradient's, one per run."""
    top = rows[rows["layer"] == rows["depth"]]
    bottom = rows[rows["layer"] == 0]
    stream = (top["stream"] - 1) / (top["stream_theory"] - 1) - 1
    gradient = np.log(bottom["gradient"]) / np.log(bottom["gradient_theory"]) - 1
    return {"stream": stream.to_numpy(), "gradient": gradient.to_numpy()}


def analyse(results: Results) -> Analysis:
    found = signals(results)
    exponents = slopes(found, int(results.table["model.depth"].min()))
    length = int(results.table["model.sequence_length"].iloc[0])
    rows, symbols = growth(found, length)
    findings = [*width_findings(exponents), *depth_findings(ratios(rows))]
    notes = [
        f"the theory takes one number from the data: {symbols} evenly drawn symbols mix in layer 0 as its tokens do",
        "intervals are Student's over runs (widths or depths, and seeds)",
    ]
    columns = ["depth", "multiplier", "seed", "layer", "stream", "stream_theory", "gradient", "gradient_theory"]
    tables = {"exponents": exponents, "layers": rows[columns]}
    subtitle = f"{results.table['data.corpus'].iloc[0]}, {len(results.table)} runs before their first update"

    def draw(stem: Path) -> Path:
        from experiments.init_figure import signal_figure

        return signal_figure(found, rows, findings, stem, subtitle)

    return Analysis(findings, tables, notes, draw)


def width_findings(exponents: Any) -> list[Finding]:
    from lab.laws.bootstrap import Interval, no_interval

    findings = []
    for row in exponents.itertuples():
        named = "the stream" if row.signal == "stream" else f"its gradient (theory {row.theory:g})"
        claim = Claim(
            f"{NAMES[row.parametrization]}: exponent of width of the RMS of {named}, less the theory's",
            f"{PAPER}, derived for our decoder",
            0.0,
            "1",
            "near_zero",
            WIDTH_TOLERANCE,
        )
        interval = Interval(row.low - row.theory, row.high - row.theory, 0.95)
        if np.isnan(row.low):
            interval = no_interval("two runs leave no scatter to judge by")
        findings.append(judge(claim, row.exponent - row.theory, interval))
    return findings


def depth_findings(found: dict[str, np.ndarray]) -> list[Finding]:
    texts = {
        "stream": "Growth of the stream's variance from the embedding to the last layer over the theory's, less 1",
        "gradient": "ln of the growth of the gradient's variance, last layer to embedding, over the theory's, less 1",
    }
    findings = []
    for what, values in found.items():
        claim = Claim(texts[what], f"{PAPER}, derived for our decoder", 0.0, "1", "near_zero", DEPTH_TOLERANCE)
        findings.append(tensors.judged(claim, values))
    return findings


EXPERIMENTS = [
    Experiment(
        id="init-theory/signal",
        paper=PAPER,
        summary="Signal and gradient at initialization against theory, over width and depth.",
        scales={make.__name__: make for make in (smoke, tiny, small, paper)},
        analyse=analyse,
    )
]
