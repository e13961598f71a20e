"""What Zhang et al. 2024 (arXiv 2410.21676) claim, panel by panel. N non-embedding and D in tokens, both in millions.

The chinchilla constants follow from their released table. Those of the other panels are recalled: their runs are not
released, and that D counts millions of tokens is presumed from the level (17.75 D^0.47 is then 2,100 sequences at 25B).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lab.report.findings import Claim

SOURCE = "Zhang et al. 2024, arXiv 2410.21676"
PAPER_OVERHEAD = 0.2
PAPER_REFERENCE_TOKENS = 256 * 512
PAPER_SEQUENCE = 512


@dataclass(frozen=True)
class PublishedLaw:
    """B* = coefficient * x ** exponent, B* in sequences of 512 tokens, x in millions (of parameters or tokens)."""

    coefficient: float
    exponent: float
    recalled: bool

    def tokens(self, x_millions: np.ndarray) -> np.ndarray:
        """B* in tokens."""
        return PAPER_SEQUENCE * self.coefficient * np.asarray(x_millions, float) ** self.exponent


@dataclass(frozen=True)
class Panel:
    """One panel of the paper's figure: the variable on its x axis and its claims."""

    name: str
    variable: str
    """Column of the cells that varies: "parameters" or "tokens"."""
    title: str
    law: PublishedLaw
    direction: Claim
    exponent: Claim
    coefficient: Claim


_EXPONENT_RULE = 0.15
"""Half-width that tells 0.47 from 0.62, which the same data give with another reference batch."""


def _coefficient_claim(text: str, law: PublishedLaw) -> Claim:
    """Decided to within half of it, which tells 93.2 from the 192 and 29.2 that other reference batches give.

    A coefficient is the law extrapolated to x = 1 million, far below the sizes measured, hence poorly determined.
    """
    rule = {"kind": "equals", "tolerance": 0.5 * law.coefficient, "recalled": law.recalled}
    return Claim(text, SOURCE, law.coefficient, "sequences of 512 tokens", **rule)


_CHINCHILLA = PublishedLaw(93.197, 0.46828, recalled=False)
_FIXED_MODEL = PublishedLaw(17.75, 0.47, recalled=True)
_FIXED_DATA = PublishedLaw(621.3, 0.087, recalled=True)

PANELS = {
    "chinchilla": Panel(
        "chinchilla",
        "parameters",
        "Model and data scaled together",
        _CHINCHILLA,
        Claim(
            "The critical batch size grows with size when model and data are scaled together",
            SOURCE, _CHINCHILLA.exponent, "exponent of N", "sign",
        ),
        Claim(
            "Along Chinchilla, B* ~ N^0.468",
            SOURCE, _CHINCHILLA.exponent, "exponent of N", "equals", _EXPONENT_RULE,
        ),
        _coefficient_claim("Along Chinchilla, B* = 93.20 sequences at N = 1 million", _CHINCHILLA),
    ),
    "fixed-model": Panel(
        "fixed-model",
        "tokens",
        "One model, more data",
        _FIXED_MODEL,
        Claim(
            "The critical batch size grows with training tokens at fixed model size",
            SOURCE, _FIXED_MODEL.exponent, "exponent of D", "sign", recalled=True,
        ),
        Claim(
            "At fixed model size, B* ~ D^0.47",
            SOURCE, _FIXED_MODEL.exponent, "exponent of D", "equals", _EXPONENT_RULE, recalled=True,
        ),
        _coefficient_claim("At fixed model size, B* = 17.75 sequences at D = 1 million tokens", _FIXED_MODEL),
    ),
    "fixed-data": Panel(
        "fixed-data",
        "parameters",
        "One amount of data, larger models",
        _FIXED_DATA,
        Claim(
            "The critical batch size is nearly flat in model size at fixed data (less than half of 0.47)",
            SOURCE, _FIXED_DATA.exponent, "exponent of N", "near_zero", 0.235, recalled=True,
        ),
        Claim(
            "At fixed data, B* ~ N^0.087",
            SOURCE, _FIXED_DATA.exponent, "exponent of N", "equals", _EXPONENT_RULE, recalled=True,
        ),
        _coefficient_claim("At fixed data, B* = 621.3 sequences at N = 1 million", _FIXED_DATA),
    ),
}

DATA_NOT_SIZE = Claim(
    "The critical batch size scales with data rather than with model size (exponent of D minus exponent of N)",
    SOURCE, _FIXED_MODEL.exponent - _FIXED_DATA.exponent, "difference of exponents", "sign", recalled=True,
)
