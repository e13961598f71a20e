"""CompleteP: muP in width, and branches multiplied by 1/depth (Dey et al. 2025, arXiv:2505.01618, table 1).

The table is `mup`'s, with those of `lab.parametrization.depth` at alpha = 1 for weights of the stack: at l times the
base depth a branch is multiplied by 1/l, Adam's learning rate stays and its epsilon is multiplied by 1/l, sgd's
learning rate by l. At alpha = 1 a layer does not linearise as depth grows, at 1/2 it does.
"""

from __future__ import annotations

from lab.parametrization.depth import in_depth
from lab.parametrization.scales import find, register

register("completep", in_depth(find("mup"), 1.0))
