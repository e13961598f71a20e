"""Batch size: updates to a target loss, and the critical batch as runs grow.

`critical-batch` (Zhang et al. 2024, arXiv 2410.21676) and `mccandlish` (McCandlish et al. 2018, arXiv 1812.06162) are
one curve with two sets of names. With E = B S examples the hyperbola (S / S_min - 1)(E / E_min - 1) = 1 is

    S = S_min + E_min / B

It is fitted in that form: B is what was set and S what was measured, whereas E would carry the error of S on both
sides. B*: where steps exceed linear scaling by 20 %, in the limit of a small reference batch and from the
256 sequences that Zhang et al. take, which adds a floor of 1.2 x 256 (see `lab.laws.critical_batch`).
"""

from __future__ import annotations

from lab.laws.catalogue.columns import B, D, N
from lab.laws.catalogue.power import LINE, power_law
from lab.laws.law import Column, Derived, Law, Published, positive, register

ZHANG = "Zhang et al. 2024, arXiv 2410.21676"
FAMILY = "critical batch size"
S = Column("S", "steps", "updates to the target loss")
OVERHEAD = 0.2
REFERENCE = 256  # sequences
MILLION = 1e6
SEQUENCES = "B in sequences of 512; printed for N in millions"


def _steps(name: str, few: str, many: str, source: str, formula: str, derived, published=()) -> Law:
    return register(
        Law(
            name=name,
            family=FAMILY,
            formula=formula,
            source=source,
            columns=(B,),
            target=S,
            parameters=(
                positive(few, "steps", meaning="in the limit of large batches"),
                positive(many, "examples", meaning="in the limit of small batches; in the unit of B"),
            ),
            predict=lambda p, x: p[few] + p[many] / x["B"],
            linear=(few, many),
            objective=LINE,
            derived=derived,
            published=published,
        )
    )


def _zhang(size: str, a: float, b: float, critical: float) -> Published:
    return Published(f"{ZHANG}, {size}", {"a": a, "b": b, f"B* from {REFERENCE}": critical})


CRITICAL_BATCH = _steps(
    "critical-batch",
    "a",
    "b",
    ZHANG,
    "ln S = ln(a + b / B)",
    (
        Derived("B*", "as B", lambda p: OVERHEAD * p["b"] / p["a"], "20 % over linear scaling", log=True),
        Derived(
            f"B* from {REFERENCE}",
            "sequences",
            lambda p: (1 + OVERHEAD) * REFERENCE + OVERHEAD * p["b"] / p["a"],
            f"20 % over linear scaling from {REFERENCE} sequences; only where B is in sequences",
            log=True,
        ),
    ),
    (
        _zhang("85M", 1293.83, 2834258, 745.3),
        _zhang("151M", 1752.42, 5677479, 955.2),
        _zhang("302M", 2095.35, 11383270, 1393.7),
        _zhang("604M", 2459.93, 19449689, 1888.5),
        _zhang("1.2B", 3897.31, 43381130, 2533.4),
    ),
)

MCCANDLISH = _steps(
    "mccandlish",
    "S_min",
    "E_min",
    "McCandlish et al. 2018, arXiv 1812.06162, equation 2.11",
    "(S / S_min - 1)(E / E_min - 1) = 1, E = B S",
    (Derived("B_crit", "as B", lambda p: p["E_min"] / p["S_min"], "twice the least steps and examples", log=True),),
)

CRITICAL_BATCH_PARAMETERS = power_law(
    "critical-batch-parameters",
    N,
    B,
    family=FAMILY,
    source=ZHANG,
    published=(
        Published(f"{ZHANG}, along Chinchilla", {"c": 93.197 * MILLION**-0.46828, "p": 0.46828}, SEQUENCES),
        Published(f"{ZHANG}, at fixed data", {"c": 621.3 * MILLION**-0.087, "p": 0.087}, SEQUENCES, recalled=True),
    ),
)

CRITICAL_BATCH_TOKENS = power_law(
    "critical-batch-tokens",
    D,
    B,
    family=FAMILY,
    source=ZHANG,
    published=(
        Published(f"{ZHANG}, at fixed size", {"c": 17.75, "p": 0.47}, "B in sequences of 512", recalled=True),
        Published(
            "Bergsma et al. 2025, arXiv 2505.13738, B_crit", {"c": 0.0471, "p": 0.462}, "B in sequences", recalled=True
        ),
    ),
)
