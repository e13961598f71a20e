"""muP in width, and branches multiplied by 1/sqrt(depth): Bordelon et al. 2023 (arXiv:2309.16620), Yang et al. 2023
(Tensor Programs VI, arXiv:2310.02244).

The table is `mup`'s, with those of `lab.parametrization.depth` at alpha = 1/2 for weights of the stack: at l times the
base depth a branch is multiplied by 1/sqrt(l), Adam's learning rate too, sgd's stays.
"""

from __future__ import annotations

from lab.parametrization.depth import in_depth
from lab.parametrization.scales import find, register

register("depth-mup", in_depth(find("mup"), 0.5))
