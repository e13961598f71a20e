"""What the kernels and their static estimates know of each chip, and which chip a program is traced for."""

from __future__ import annotations

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as XLA sees it: on v4 and tpu7x half a chip.

    Attributes:
      topology: name under which the TPU compiler makes such a device without one.
      flops_per_cycle: of bfloat16 matrix products, from the static cycle estimates of large products.
      hertz: published bfloat16 peak over `flops_per_cycle`.
      hbm_bytes_per_second: published.
      vmem_bytes: the compiler's own limit for one kernel unless another is asked for.
      vmem_most_bytes: the limit up to which another may be asked for.
      mxu: rows and columns of one matrix unit.
    """

    name: str
    kind: str
    topology: str
    flops_per_cycle: int
    hertz: float
    hbm_bytes_per_second: float
    vmem_bytes: int
    vmem_most_bytes: int
    mxu: int
    cores: int = 1

    @property
    def hbm_bytes_per_cycle(self) -> float:
        return self.hbm_bytes_per_second / self.hertz


MIB = 1 << 20
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "TPU v4", "v4:2x2x1", 131_072, 1.05e9, 614e9, 16 * MIB, 16 * MIB, 128),
        Chip("v5e", "TPU v5 lite", "v5e:1x1", 131_072, 1.5e9, 819e9, 16 * MIB, 128 * MIB, 128),
        Chip("v5p", "TPU v5", "v5p:1x1x1", 262_144, 1.75e9, 2765e9, 16 * MIB, 64 * MIB, 128, cores=2),
        Chip("v6e", "TPU v6 lite", "v6e:1x1", 524_288, 1.75e9, 1640e9, 32 * MIB, 128 * MIB, 256),
        Chip("tpu7x", "TPU7x", "tpu7x:1x1x1", 524_288, 2.2e9, 3690e9, 32 * MIB, 64 * MIB, 256),
    )
}
DEFAULT = "v5e"  # where no TPU is in sight: its limits are the tightest of the chips that are rented today


def current() -> Chip:
    """The chip that is being traced for.

    An abstract device in the mesh context (compiling ahead of time) goes before the process's own devices; where
    neither is a known TPU, v5e.
    """
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    if device is None and jax.default_backend() == "tpu":
        device = jax.devices()[0]
    kinds = {chip.kind: chip for chip in CHIPS.values()}
    return kinds.get(getattr(device, "device_kind", None), CHIPS[DEFAULT])
