"""A parametrization in width made one in depth too: branches multiplied by depth^-alpha.

With l the number of layers over the base model's, and u = l^(alpha - 1) the change of a weight of a branch at which
the sum of l branches, each multiplied by l^-alpha, changes as much at every depth (Yang et al. 2023, arXiv:2310.02244,
section 3; Dey et al. 2025, arXiv:2505.01618, table 1), weights of the stack get these factors beside those in width:

    branch     learning rate: adam, lamb    sgd             weight decay                    epsilon
    l^-alpha   l^(alpha - 1)                l^(2 alpha - 1) 1 over learning rate (lamb: 1)  l^-alpha

sgd's follows from its gradient, which the branch multiplies by l^-alpha. Initial scales are those of the base depth:
they do not shrink as the stack grows, the branch multiplier does that.
"""

from __future__ import annotations

import dataclasses

from lab.parametrization.scales import Context, Parametrization, Subject, WeightScale


def in_depth(inner: Parametrization, alpha: float) -> Parametrization:
    """`inner` with the rules of the table above on top."""

    def rule(of_role):
        def scaled(subject: Subject) -> WeightScale:
            found, ratio = of_role(subject), subject.r_depth
            rate = ratio ** (2 * alpha - 1 if subject.family == "sgd" else alpha - 1)
            return dataclasses.replace(
                found,
                learning_rate=found.learning_rate * rate,
                weight_decay=found.weight_decay / (1 if subject.family == "lamb" else rate),
                epsilon=found.epsilon * ratio**-alpha,
            )

        return scaled

    def multipliers(context: Context) -> dict:
        found = inner.multipliers(context)
        branch = found["residual"]["branch"] * (context.model.depth / context.base.depth) ** -alpha
        return found | {"residual": {**found["residual"], "branch": branch}}

    rules = {role: rule(of_role) for role, of_role in inner.rules.items()}
    return Parametrization(rules, multipliers, (*inner.base, "depth"), inner.exponents)
