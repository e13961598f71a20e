"""Cerebras-GPT: Open Compute-Optimal Language Models (Dey et al. 2023, arXiv 2304.03208).

The paper's method. A ladder of models, each trained on 20 tokens a parameter, in the standard parametrization with a
learning rate that was lowered in two steps as models grew, and in muP with one rate tuned on a small proxy. One law of
loss in compute is fitted to each ladder; muP's models lie closer to theirs (0.04 % against 0.66 % of loss) and the loss
is lower (0.43 %).

Here the smallest rung is the proxy: its rate is tuned over a grid under muP, which is the standard parametrization
there, and muP keeps it. The standard ladder lowers it as the published one did: a model of r times the smallest's size
takes the share that the published model nearest to r times its smallest had. Depth grows along the ladder and neither
side has a rule for it, as in the paper. The law is L = a C^-b + c in training FLOPs C (attention counted), through
means over seeds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from experiments import transfer
from experiments.loss_prediction import NAME, NAMES, Curve, N, curve_through, means, ratio_of_spreads, tuned
from lab.config import override
from lab.errors import ResultsError
from lab.models import counts
from lab.report.findings import Claim, judge
from lab.sweep.axes import Point, product
from lab.sweep.experiment import Analysis, Experiment, Results, Sweep

PAPER = "Dey et al. 2023, Cerebras-GPT: Open Compute-Optimal Language Models, arXiv 2304.03208"
TOKENS_PER_PARAMETER = 20
PUBLISHED_RATES = {1.11e8: 6e-4, 2.56e8: 6e-4, 5.9e8: 2e-4, 1.3e9: 2e-4, 2.7e9: 2e-4, 6.7e9: 1.2e-4, 1.3e10: 1.2e-4}
PUBLISHED_SPREAD = {"standard": 0.66, "mup": 0.04}  # residual deviation, % of loss; recalled
PUBLISHED_GAIN = 0.0043  # recalled
PROXY_RATE = 6e-3  # of the muP ladder, tuned by them on 40M parameters of width 256; recalled

CLAIMS = {
    "spread": Claim(
        "Standard models scatter more about their scaling law than muP models (published: 0.66 % against 0.04 %)",
        PAPER,
        float(np.log(PUBLISHED_SPREAD["standard"] / PUBLISHED_SPREAD["mup"])),
        "ln of the ratio of residual deviations", "sign", recalled=True,
    ),
    "gain": Claim(
        "muP's loss is lower at the largest model (published: by 0.43 %)", PAPER, PUBLISHED_GAIN,
        "ln loss, standard less muP", "sign", recalled=True,
    ),
}  # fmt: skip

Size = tuple[int, int]  # width, depth


def sizes(values: Sequence[Size], head_width: int) -> list[Point]:
    """One point per model, smallest first; heads of one width."""
    rest = {"model.head_width": head_width}
    heads = [(w, d, w // head_width) for w, d in values]
    return [{"model.width": w, "model.depth": d, **rest, "model.heads": h, "model.kv_heads": h} for w, d, h in heads]


def non_embedding(cfg: Any) -> int:
    return counts.parameters(override(cfg, {"model.vocab_size": cfg.model.vocab_size or 1}).model)["non_embedding"]


def whole_batches(share: float, cfg: Any) -> int:
    """Tokens of a share of 20 per parameter, in whole batches."""
    return (
        max(1, round(share * TOKENS_PER_PARAMETER * non_embedding(cfg) / cfg.run.batch_tokens)) * cfg.run.batch_tokens
    )


def share(times: float) -> float:
    """The published rate of the standard model nearest to `times` the smallest one, over the smallest one's."""
    smallest, first = next(iter(PUBLISHED_RATES.items()))
    near = min(PUBLISHED_RATES, key=lambda size: abs(np.log(size / smallest / times)))
    return PUBLISHED_RATES[near] / first


def lowered(rate: float, smallest: Point, cfg: Any) -> float:
    """The standard ladder's rate for a config, from that of the smallest model."""
    times = non_embedding(cfg) / non_embedding(override(cfg, smallest))
    return float(f"{rate * share(times):.4g}")


def rungs(models: Sequence[Point], rates: dict[str, float], seeds: int, warmup: float) -> list[Point]:
    """The ladders of the parametrizations in `rates`, from the rate of each at the smallest model."""
    chosen = {"standard": lambda rate: partial(lowered, rate, models[0]), "mup": lambda rate: rate}
    points = [{NAME: name, **model, transfer.RATE: chosen[name](r)} for name, r in rates.items() for model in models]
    return product(points, duration(warmup), transfer.seeds(seeds))


def duration(warmup: float) -> list[Point]:
    """20 tokens a parameter, of which a share is warm-up."""
    horizon, rising = partial(whole_batches, 1.0), partial(whole_batches, warmup)
    return [{"run.horizon_tokens": horizon, "schedule.warmup_tokens": rising}]


def sweep(cfg: Any, models: list[Point], grid: Sequence[Point], seeds: int, note: str, warmup: float = 0.05) -> Sweep:
    """The proxy at every rate of the grid; the ladders follow from its best, see `extend`."""
    base_width = {"parametrization.base_width": models[0]["model.width"]}
    points = product([{NAME: "mup", **models[0]}], duration(warmup), transfer.seeds(seeds), grid)
    settings = {"models": models, "seeds": seeds, "warmup": warmup, "rates": None}
    return Sweep(override(cfg, base_width), points, note, settings, extensions=3)


def smoke() -> Sweep:
    """Seconds: checks the path, decides nothing."""
    models = sizes([(8, 1), (12, 1), (16, 1), (20, 1)], 4)
    return sweep(transfer.smoke_base(), models, transfer.rates(6e-2, 1, 1), 2, "seconds on a CPU")


def tiny() -> Sweep:
    """Two CPU cores: 6,000 to 110,000 parameters."""
    models = sizes([(16, 2), (24, 2), (32, 2), (32, 3), (40, 3), (48, 3), (56, 3)], 8)
    return sweep(transfer.base(), models, transfer.rates(3.2e-2, 3, 3), 2, "two CPU cores, six minutes")


def small() -> Sweep:
    """One accelerator, within an hour: 0.6 to 14 million parameters."""
    cfg = transfer.base(
        **{
            "model.sequence_length": 256,
            "model.compute_dtype": "bfloat16",
            "data.corpus": "pysource-all",
            "run.batch_tokens": 16384,
            "evaluation.sequences": 512,
            "execution.microbatch_tokens": 16384,
        }
    )
    models = sizes([(128, 3), (160, 4), (192, 5), (256, 6), (320, 7), (384, 8)], 32)
    return sweep(cfg, models, transfer.rates(1e-2, 3, 3), 2, "one accelerator, within an hour")


def paper() -> Sweep:
    """The published ladders, 111M to 13B, muP to 2.7B, at the published rates; shapes, batches and rates are recalled.

    The 2.7B model has 20 heads of 128 here in place of 32 of 80: the base width of 256 is no whole number of those.
    """
    cfg = transfer.base(
        **{
            "model.sequence_length": 2048,
            "model.vocab_size": 50257,
            "model.compute_dtype": "bfloat16",
            "model.norm": "layer",
            "model.qk_norm": False,
            "parametrization.base_width": 256,
            "optimizer.weight_decay": 0.1,
            "optimizer.clip_norm": 1.0,
            "schedule.final_fraction": 0.1,
            "data.corpus": "seqio:the_pile",
            "evaluation.sequences": 4096,
        }
    )
    shapes = ((768, 10, 64, 120), (1088, 14, 64, 264), (1536, 18, 128, 264), (2048, 24, 128, 528), (2560, 32, 128, 528))
    shapes += ((4096, 32, 128, 1040), (5120, 40, 128, 1080))  # width, depth, head width, sequences of a batch
    models = [
        {**sizes([(w, d)], h)[0], "run.batch_tokens": 2048 * b, "execution.microbatch_tokens": 256 * b}
        for w, d, h, b in shapes
    ]
    rates = {"standard": PUBLISHED_RATES[1.11e8], "mup": PROXY_RATE}
    points = rungs(models, {"standard": rates["standard"]}, 1, 0.05)
    points += rungs(models[:5], {"mup": rates["mup"]}, 1, 0.05)
    settings = {"models": models, "seeds": 1, "warmup": 0.05, "rates": rates}
    return Sweep(cfg, points, "the published setting: a TPU pod", settings)


def proxy_runs(runs: Any) -> Any:
    """The runs of the smallest model under muP."""
    return runs[(runs[NAME] == "mup") & (runs[N] == runs[N].min())]


def proxy_rates(results: Results) -> dict[str, float] | None:
    """The rate of each ladder at its smallest model; None where the proxy's best lies on the edge of its grid."""
    if results.settings["rates"]:
        return results.settings["rates"]
    rate = tuned(proxy_runs(transfer.ended(results.table)))
    return None if rate is None else dict.fromkeys(NAMES, rate)


def extend(results: Results) -> list[Point]:
    """Further rates of the proxy where its best lies on an edge, else the ladders."""
    rates, settings = proxy_rates(results), results.settings
    if rates is None:
        proxy = dataclasses.replace(results, table=proxy_runs(transfer.ended(results.table)))
        return transfer.extend(proxy, (NAME, N))
    return rungs(settings["models"], rates, settings["seeds"], settings["warmup"])


class Ladder(NamedTuple):
    """One parametrization: a row per rung (means over seeds; `flops`, `loss`), its law, and its runs."""

    name: str
    rows: Any
    curve: Curve
    runs: Any


def climb(runs: Any, name: str, rate: float) -> Ladder:
    """The ladder of a parametrization whose smallest model has the rate `rate`. Rungs with a diverged run have no row.

    Raises:
      ResultsError: rungs too few for the law.
    """
    smallest = runs[N].min()
    mine = runs[runs[NAME] == name]
    part = np.array([share(n / smallest) if name == "standard" else 1.0 for n in mine[N]])
    mine = mine[np.isclose(mine[transfer.RATE], rate * part, rtol=1e-3)]
    mine = mine.assign(flops=mine["flops_per_token.with_attention"] * mine["tokens"])
    whole = mine.groupby(N)["status"].transform(lambda status: (status == "finished").all())
    if not whole.any():
        raise ResultsError(f"{name}: no rung has finished")
    rows = means(mine[whole], [N, "tokens", "flops", transfer.RATE])
    try:
        return Ladder(name, rows, curve_through(rows["flops"], rows["loss"]), mine)
    except ResultsError as error:
        raise ResultsError(f"{name}: {error}") from None


def gain(standard: Ladder, mup: Ladder) -> transfer.Statistic:
    """ln loss, standard less muP, at the largest model that both have, paired by seed.

    The interval is Student's, from the scatter of the pairs of all rungs about their rung's mean.
    """
    from scipy.special import stdtrit

    from lab.laws.bootstrap import Interval, no_interval

    keys = [N, "run.seed"]
    pairs = standard.runs[[*keys, "loss"]].merge(mup.runs[[*keys, "loss"]], on=keys, suffixes=("_s", "_m"))
    pairs = pairs[np.isfinite(pairs["loss_s"]) & np.isfinite(pairs["loss_m"])]
    if pairs.empty:
        return transfer.Statistic(np.nan, no_interval("no model was trained in both", transfer.LEVEL))
    difference = np.log(pairs["loss_s"] / pairs["loss_m"])
    rung = difference.groupby(pairs[N])
    freedom = len(pairs) - rung.ngroups
    value, count = float(rung.mean().iloc[-1]), int(rung.count().iloc[-1])
    if not freedom:
        return transfer.Statistic(value, no_interval("one seed a model leaves no scatter to judge by", transfer.LEVEL))
    variance = np.square(difference - rung.transform("mean")).sum() / freedom / count
    reach = float(stdtrit(freedom, 0.5 + transfer.LEVEL / 2) * np.sqrt(variance))
    return transfer.Statistic(value, Interval(value - reach, value + reach, transfer.LEVEL))


def analyse(results: Results) -> Analysis:
    """Both ladders, their laws, the ratio of the scatter about them, and the gain at the top."""
    import pandas

    from lab.laws.bootstrap import no_interval

    runs, rates, found, reasons = transfer.ended(results.table), proxy_rates(results), {}, []
    if rates is None:
        reasons += [f"the proxy: {reason}" for reason in transfer.optima(proxy_runs(runs), [NAME, N])["reason"]]
    for name in NAMES if rates else ():
        try:
            found[name] = climb(runs, name, rates[name])
        except ResultsError as error:
            reasons.append(str(error))
    blocked = "; ".join(reasons)
    statistics = dict.fromkeys(CLAIMS, transfer.Statistic(np.nan, no_interval(blocked or "unknown", transfer.LEVEL)))
    if not blocked:
        statistics = {
            "spread": ratio_of_spreads(found["standard"].curve, found["mup"].curve),
            "gain": gain(found["standard"], found["mup"]),
        }
    caveats = {"spread": ("rungs count as independent",), "gain": ()}
    findings = [judge(CLAIMS[key], *statistics[key], blocked=blocked, caveats=caveats[key]) for key in CLAIMS]
    tables = {}
    if found:
        tables["ladder"] = pandas.concat([rung_rows(each) for each in found.values()])
        tables["laws"] = pandas.DataFrame([law_row(each) for each in found.values()])
    epochs = results.table["epochs"].max()
    notes = [*reasons, *(said for each in found.values() for said in lost(each))]
    notes += [f"the longest run passes over the corpus {epochs:.1f} times"] if epochs > 1 else []

    def draw(stem):
        from experiments import prediction_figure

        return prediction_figure.ladder(list(found.values()), PUBLISHED_SPREAD, findings, stem)

    return Analysis(findings, tables, notes, draw)


def rung_rows(ladder: Ladder) -> Any:
    """A row per rung as a table of a report shows it."""
    return ladder.rows.assign(
        parametrization=ladder.name,
        law=ladder.curve(ladder.rows["flops"]),
        **{"residual %": 100 * ladder.curve.residuals},
    )


def law_row(ladder: Ladder) -> dict[str, Any]:
    """The law's constants, C in units of its centre, and the scatter beside the published one."""
    values = {"parametrization": ladder.name, **ladder.curve.fit.values, "centre FLOPs": ladder.curve.centre}
    return values | {"scatter %": 100 * ladder.curve.spread, "published %": PUBLISHED_SPREAD[ladder.name]}


def lost(ladder: Ladder) -> list[str]:
    """A sentence for each rung that has a diverged run, and what its law warns of."""
    gone = ladder.runs[ladder.runs["status"] == "diverged"].groupby(N).size()
    said = [
        f"{ladder.name}: {count} runs of N = {size} diverged; the rung is no row of the law"
        for size, count in gone.items()
    ]
    return said + [f"{ladder.name}: {warning}" for warning in ladder.curve.fit.certificate.warnings]


EXPERIMENTS = [
    Experiment(
        "cerebras/ladder",
        PAPER,
        "A ladder at 20 tokens a parameter: residuals from the fitted law, standard against muP.",
        {make.__name__: make for make in (smoke, tiny, small, paper)},
        analyse,
        extend,
    )
]
