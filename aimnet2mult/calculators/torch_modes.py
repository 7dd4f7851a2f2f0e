"""PyTorch around loaded potentials: untouched by, and not touching, its global state; and what errors say."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from ase.calculators.calculator import CalculationFailed

from aimnet2mult.torch_threads import one_thread

_IMPORTED_IN = os.getpid()
STOPPED = (RuntimeError, ValueError, torch.jit.Error)  # what a potential, eager or scripted, may raise


@contextmanager
def own_settings(device: torch.device, gradients: bool) -> Iterator[None]:
    """The modes of PyTorch that potentials run in, whatever those of the caller are."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(gradients))
        stack.enter_context(torch.autocast(device.type, enabled=False))
        # TorchScript's profiling executor recompiles during the first calls and when gradients are switched on or off,
        # 0.1 s or more each time, and gains nothing measurable afterwards: the time is spent in a few large
        # operations. Run as written, every call takes the same time, and an energy is the same bits with and without
        # forces. The setting belongs to the calling thread.
        stack.enter_context(torch.jit.optimized_execution(False))
        stack.enter_context(one_thread_if_forked())
        yield


@contextmanager
def one_thread_if_forked() -> Iterator[None]:
    """In a forked process, run on one thread: the thread pool of OpenMP does not survive a fork."""
    if os.getpid() == _IMPORTED_IN:
        yield
        return
    # a parallel region in the child would wait for ever
    with one_thread():
        yield


def stopped(error: BaseException) -> CalculationFailed:
    """What a potential said when it stopped, without what TorchScript writes around it."""
    lines = str(error).strip().splitlines()
    said = re.sub(r"^'?builtins\.\w+: |'$", "", lines[-1]) if lines else repr(error)
    return CalculationFailed(f"the potential stopped: {said}")
