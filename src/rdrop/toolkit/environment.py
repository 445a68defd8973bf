"""Where a comparison runs: versions, processor, accelerators. Only the last of these imports torch."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "rdrop",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "timm",
    "torchvision",
    "triton",
    "numpy",
    "scipy",
    "scikit-learn",
    "safetensors",
    "pydantic",
)


def versions() -> dict[str, str]:
    """Version of Python and of every installed package that can change a result.

    Returns:
        Name to version, in a fixed order; packages that are not installed are left out.

    >>> list(versions())[:2]
    ['python', 'rdrop']
    """
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def usable_cores() -> int:
    """Cores that this process may use: its affinity, cut by the quota of a container.

    >>> usable_cores() >= 1
    True
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _first_line("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.strip().isdigit():
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def accelerators() -> list[str]:
    """Names of the accelerators that torch can use, with the memory of each; none on a plain CPU."""
    import torch

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return [f"{device.name}, {device.total_memory / 2**30:.0f} GiB" for device in devices]
    return ["Apple GPU (mps)"] if torch.backends.mps.is_available() else []


def machine() -> str:
    """Accelerators, processor, cores and memory in one line, as the record of a comparison has it."""
    cores = usable_cores()
    parts = [*accelerators(), processor(), f"{cores} core" if cores == 1 else f"{cores} cores"]
    size = memory_gib()
    return ", ".join(parts if size is None else [*parts, f"{size:.0f} GiB memory"])


def processor() -> str:
    """Model of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models and models[0] else platform.processor() or platform.machine()


def memory_gib() -> float | None:
    """Memory of the machine in GiB; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, OSError, ValueError):
        return None


def description() -> dict[str, str]:
    """What a bug report needs: versions, system, devices, and which kernels this machine has.

    Returns:
        Heading to text, in the order of printing.
    """
    import torch

    from rdrop import kernels

    size = memory_gib()
    return {
        **versions(),
        "cuda": torch.version.cuda or "not in this build of torch",
        "system": platform.platform(),
        "processor": processor(),
        "cores": str(usable_cores()),
        "memory": "unknown" if size is None else f"{size:.1f} GiB",
        "accelerators": "; ".join(accelerators()) or "none",
        **{f"kernel {name}": text for name, text in kernels.available().items()},
    }


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").partition("\n")[0]
    except (OSError, ValueError):
        return ""
