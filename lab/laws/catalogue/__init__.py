"""The laws of the field, one module a family; importing this registers them all."""

from lab.laws.catalogue import (  # noqa: F401
    critical_batch,
    data_constrained,
    experts,
    fine_tuning,
    hoffmann,
    hyperparameters,
    isoflop,
    kaplan,
    loss_to_loss,
    observational,
    overtraining,
    power,
    precision,
    sampling,
    schedules,
    shape,
    sparse,
    upcycling,
    vocabulary,
)
