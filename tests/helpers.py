"""Jobs for executors, a model factory and modules without annotation checks."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from shiftscope.errors import InputError


def as_users_import_it(module: ModuleType) -> ModuleType:
    """Return a module without the annotation checks that the tests add, so that its own checks answer."""
    name = f"plain_{module.__name__.replace('.', '_')}"
    loader = SourceFileLoader(name, str(module.__file__))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    plain = importlib.util.module_from_spec(spec)
    sys.modules[name] = plain
    loader.exec_module(plain)
    return plain


def square(job: int, report: Callable[[object], None]) -> int:
    """Report two events and return the job squared."""
    report(("half", job))
    report(("whole", job))
    return job * job


def who_and_how(job: int, report: Callable[[object], None]) -> tuple[int, int]:
    """Return the process and its number of threads."""
    time.sleep(0.5)
    return os.getpid(), torch.get_num_threads()


def many_tensors(job: int, report: Callable[[object], None]) -> dict[str, torch.Tensor]:
    """Return as many tensors as a run's record holds."""
    return {f"t{number}": torch.full((3,), float(number + job)) for number in range(60)}


def die_once(job: tuple[str, int], report: Callable[[object], None]) -> int:
    """Die at the first try of job 1."""
    mark = Path(job[0]) / f"tried{job[1]}"
    if job[1] == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return job[1]


def visible_gpu(job: tuple[str, int], report: Callable[[object], None]) -> tuple[str, int]:
    """Return the GPU that the process sees, and the process, which dies at the first try of job 1."""
    die_once(job, report)
    time.sleep(0.2)
    return os.environ["CUDA_VISIBLE_DEVICES"], os.getpid()


def die(job: int, report: Callable[[object], None]) -> int:
    """Die at every try."""
    os.kill(os.getpid(), signal.SIGKILL)
    return job


def fail(job: str, report: Callable[[object], None]) -> None:
    """Fail in the way that the job says."""
    raise {"input": InputError("do otherwise"), "disk": OSError(28, "No space left on device")}.get(job, ZeroDivisionError(job))


def sleep(job: str, report: Callable[[object], None]) -> None:
    """Report the process, then run for ten minutes."""
    report(os.getpid())
    time.sleep(600)


def network() -> nn.Module:
    """Return a small model for images of 20x20 (a factory)."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9 * 9, 10))


def measure_in_group(rank: int, meeting: str, images: torch.Tensor, seed: int, results: str) -> None:
    """Measure a process's share of the images by two metrics, and write what they compute over both processes."""
    import zoo

    zoo.importable("torchmetrics", "torchmetrics")
    from shiftscope.integrations import MeanCosineSimilarityUnderShift, ShiftConsistency

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    metrics = MeanCosineSimilarityUnderShift(max_shift=3, seed=seed), ShiftConsistency(max_shift=3, seed=seed)
    for metric in metrics:
        for batch in images[rank::2].split(9):
            metric.update(network(), batch)
    torch.save([float(metric.compute()) for metric in metrics], f"{results}{rank}")
    torch.distributed.destroy_process_group()
