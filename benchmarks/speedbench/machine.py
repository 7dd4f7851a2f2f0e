"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any


def describe() -> dict[str, Any]:
    """Processor, its vector units, cores, memory, load at the start, versions, date."""
    import torch

    processor, vectors = _processor()
    return {
        "processor": f"{processor} ({vectors})",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": f"{available_memory() / 2**30:.0f} GiB free",
        "load": f"{os.getloadavg()[0]:.1f} at the start",
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def available_memory() -> int:
    """Bytes that can be taken without swapping."""
    info = Path("/proc/meminfo")
    if info.exists():
        line = next(line for line in info.read_text().splitlines() if line.startswith("MemAvailable:"))
        return 1024 * int(line.split()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _processor() -> tuple[str, str]:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine(), "vector units unknown"
    fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
    content = {key.strip(): value.strip() for key, value in fields.items()}
    flags = content.get("flags", "").split()
    vectors = next((name for name in ("avx512f", "avx2") if name in flags), "no AVX2")
    return content.get("model name", platform.machine()), vectors
