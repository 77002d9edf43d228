"""A fake of the edge that asks torch and the drivers: nodes with GPUs that this machine does not have."""

from dataclasses import dataclass, field
from types import SimpleNamespace

GIB = 2**30
H100 = SimpleNamespace(name="NVIDIA H100 80GB HBM3", total_memory=80 * GIB, major=9, minor=0)
RTX_3060 = SimpleNamespace(name="NVIDIA GeForce RTX 3060", total_memory=12 * GIB, major=8, minor=6)
RTX_4090 = SimpleNamespace(name="NVIDIA GeForce RTX 4090", total_memory=24 * GIB, major=8, minor=9)
MI300X = SimpleNamespace(
    name="AMD Instinct MI300X", total_memory=192 * GIB, gcnArchName="gfx942:sramecc+:xnack-", major=9, minor=4
)
STRIX_HALO = SimpleNamespace(name="AMD Radeon 8060S", total_memory=96 * GIB, gcnArchName="gfx1151", major=11, minor=5)


@dataclass(kw_only=True)
class FakeEdge:
    """A node and its GPUs, in the form in which torch reports them."""

    gpus: list = field(default_factory=list)
    rocm: bool = False
    present: frozenset = frozenset()
    error: str = ""

    def torch_build(self):
        return "2.13.0 (ROCm 7.0)" if self.rocm else "2.13.0 (CUDA 12.8)"

    def is_rocm(self):
        return self.rocm

    def count(self):
        if self.error:
            raise RuntimeError(self.error)
        return len(self.gpus)

    def properties(self, index):
        return self.gpus[index]

    def driver(self):
        return "580.65"

    def vendors(self):
        return self.present


NODES = {
    "h100": FakeEdge(gpus=[H100], present=frozenset({"nvidia"})),
    "rtx4090": FakeEdge(gpus=[RTX_4090], present=frozenset({"nvidia"})),
    "mi300x": FakeEdge(gpus=[MI300X], rocm=True, present=frozenset({"amd"})),
    "gfx1151": FakeEdge(gpus=[STRIX_HALO], rocm=True, present=frozenset({"amd"})),
    "cpu": FakeEdge(),
    "broken driver": FakeEdge(error="NVML: Driver/library version mismatch", present=frozenset({"nvidia"})),
    "12gb": FakeEdge(gpus=[RTX_3060], present=frozenset({"nvidia"})),
    "rtx4090 and h100": FakeEdge(gpus=[RTX_4090, H100], present=frozenset({"nvidia"})),
    "amd without rocm": FakeEdge(present=frozenset({"amd"})),
    "both vendors": FakeEdge(gpus=[MI300X], rocm=True, present=frozenset({"amd", "nvidia"})),
}
