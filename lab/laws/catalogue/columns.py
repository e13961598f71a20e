"""Columns that several laws read."""

from __future__ import annotations

from lab.laws.law import Column

N = Column("N", "parameters", "model size; state the counting convention")
D = Column("D", "tokens", "training tokens")
C = Column("C", "FLOPs", "training compute; state the convention")
B = Column("B", "tokens or sequences", "batch size; constants are in the same unit")
LOSS = Column("loss", "nats per token")
