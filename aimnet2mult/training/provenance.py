"""Where a file comes from: versions, git revision, time."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

import aimnet2mult


def git_revision() -> str:
    """Revision of the checkout that this package runs from, or ``unknown`` outside of one."""
    folder = Path(aimnet2mult.__file__).parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 and done.stdout.strip() else "unknown"


def provenance() -> dict[str, str]:
    """Version of the package and of torch, git revision and time (UTC)."""
    return {
        "aimnet2mult": aimnet2mult.__version__,
        "torch": str(torch.__version__),  # a class of its own, which weights_only loading would refuse
        "git_revision": git_revision(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
