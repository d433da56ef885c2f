"""What this machine can do: hardware, versions, disk, hub, speed, and what is slow, why, and how to mend it."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith import environment, words

CPU_FLAGS = {
    "amx_bf16": "AMX bf16",
    "amx_int8": "AMX int8",
    "avx512_bf16": "AVX-512 bf16",
    "avx512_vnni": "AVX-512 VNNI (int8)",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
}
LEAST_FREE_DISK = 5e9  # bytes: a small model, its checkpoints and a cache
LEAST_MEMORY = 4e9  # bytes: full training of a model of some 100 M parameters
HUB_SECONDS = 2.0
PROBE_SIZE = {"cpu": 512, "cuda": 4096}  # side of the square products
PROBE_REPEATS = 8
PROBE_SECONDS = 0.2
LARGE_TENSOR = 16 * 2**20  # numbers: 64 MB in fp32, more than glibc keeps of itself
DEAR_MEMORY = 2.0
CLEARLY_SLOWER = 0.9  # bf16 over fp32: single timings on a shared machine differ by some 10 %


@dataclass(frozen=True)
class Finding:
    """Something that is slow or in the way. ``level`` is ``info``, ``warning`` or ``error``."""

    level: str
    what: str
    why: str
    fix: str


@dataclass(frozen=True)
class Diagnosis:
    """Facts by section, and what follows from them."""

    sections: dict[str, dict[str, Any]]
    findings: list[Finding]

    def as_dict(self) -> dict[str, Any]:
        """Facts and findings as ``tunesmith doctor --json`` prints them."""
        return {**self.sections, "findings": [asdict(finding) for finding in self.findings]}


def examine() -> Diagnosis:
    """Look at everything; takes a few seconds, most of them for importing torch and asking the hub."""
    sections = {
        "hardware": hardware(),
        "versions": environment.versions(),
        "disk": disk(),
        "hub": hub(),
        "speed": speed(),
    }
    return Diagnosis(sections, [*_about_speed(sections), *_about_room(sections)])


def hardware() -> dict[str, Any]:
    """Processor, memory and accelerators, as far as this process may use them."""
    import psutil
    import torch

    from tunesmith.models.precision import cpu_flags

    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "system": environment.system(),
        "processor": environment.processor(),
        "cores": environment.usable_cores(),
        "instructions": ", ".join(title for flag, title in CPU_FLAGS.items() if flag in cpu_flags()) or "unknown",
        "memory_bytes": environment.usable_memory(),
        "memory_free_bytes": min(psutil.virtual_memory().available, environment.usable_memory()),
        "gpus": [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in gpus],
    }


def disk() -> dict[str, Any]:
    """Free bytes here, where runs are written, and in the cache folder."""
    cache = cache_folder()
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    return {
        "here": str(Path.cwd()),
        "here_free_bytes": shutil.disk_usage(Path.cwd()).free,
        "cache": str(cache),
        "cache_free_bytes": shutil.disk_usage(existing).free,
        "cache_writable": os.access(existing, os.W_OK),
    }


def cache_folder() -> Path:
    """Where the catalog keeps what it fetched."""
    from tunesmith.catalog import cache

    return cache.root()


def hub(seconds: float = HUB_SECONDS) -> dict[str, Any]:
    """Whether the model hub answers; the address is the one that huggingface_hub would use."""
    from huggingface_hub import constants

    from tunesmith.catalog.hub import problem_of

    if constants.HF_HUB_OFFLINE:
        return {"reachable": False, "why": "HF_HUB_OFFLINE is set"}
    started = time.monotonic()
    problem = problem_of(lambda: _ask(constants.ENDPOINT, seconds), seconds)
    if problem is not None:
        return {"reachable": False, "why": str(getattr(problem, "reason", problem))}
    return {"reachable": True, "seconds": round(time.monotonic() - started, 3)}


def _ask(address: str, seconds: float) -> None:
    """Raises what stands in the way of an answer, with whatever status."""
    with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(address, timeout=seconds):
        pass


def speed() -> dict[str, Any]:
    """Billions of floating-point operations a second of a square product, and the precision that follows."""
    import torch

    from tunesmith.allocator import keep_freed_memory
    from tunesmith.models.precision import choose_dtype, default_device

    device = default_device()
    rates = {name: _product_rate(device, dtype) for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
    kept = keep_freed_memory()
    return {
        "device": device.type,
        "threads": torch.get_num_threads(),
        "fp32_gflops": round(rates["fp32"]),
        "bf16_gflops": round(rates["bf16"]),
        "bf16_over_fp32": round(rates["bf16"] / rates["fp32"], 2),
        "fresh_over_kept_memory": round(_fresh_over_kept(), 1),
        "allocator_tuned": kept,
        "precision": "bf16" if choose_dtype("auto", device) is torch.bfloat16 else "fp32",
    }


def _product_rate(device: Any, dtype: Any) -> float:
    import torch

    size = PROBE_SIZE[device.type]
    left = torch.randn(size, size, device=device).to(dtype)
    right = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / best_seconds(lambda: left @ right, device) / 1e9


def best_seconds(work: Callable[[], object], device: Any, *, threads: int | None = None) -> float:
    """The best of many short timings: other work on the machine only ever makes one slower.

    On a busy processor not even the best is undisturbed, so the processors' time counts where it is less. That is the
    mean over all timings: some kernels book what other threads did only every few milliseconds.

    Args:
        work: What to time.
        device: Where it runs.
        threads: How many threads share the work; default: all.
    """
    import torch

    wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    best, times = float("inf"), 0
    begun, used = time.perf_counter(), time.process_time()
    while not times or time.perf_counter() - begun < PROBE_SECONDS:
        wait()
        started = time.perf_counter()
        work()
        wait()
        best = min(best, time.perf_counter() - started)
        times += 1
    if device.type == "cuda":
        return best
    return min(best, max(1e-9, time.process_time() - used) / times / (threads or torch.get_num_threads()))


def _fresh_over_kept() -> float:
    """How much longer it takes to fill a new large tensor than one that is there already."""
    import torch

    def seconds(make: Callable[[], Any]) -> float:
        found = []
        for _ in range(PROBE_REPEATS):
            started = time.perf_counter()
            make()
            found.append(time.perf_counter() - started)
        return min(found)

    kept = torch.zeros(LARGE_TENSOR)
    return seconds(lambda: torch.empty(LARGE_TENSOR).zero_()) / seconds(kept.zero_)


def _about_speed(sections: dict[str, dict[str, Any]]) -> Iterator[Finding]:
    machine, rates = sections["hardware"], sections["speed"]
    measured = f"bf16 {rates['bf16_gflops']}, fp32 {rates['fp32_gflops']} GFLOP/s"
    if rates["precision"] == "bf16" and rates["bf16_over_fp32"] < CLEARLY_SLOWER:
        yield Finding(
            "warning",
            f"`precision: auto` takes bf16, but it is slower here ({measured})",
            "the hardware says that it multiplies bf16, but this build of torch makes no use of it",
            "set `precision: fp32`, or install a newer torch",
        )
    if rates["precision"] == "fp32" and rates["bf16_over_fp32"] < CLEARLY_SLOWER:
        yield Finding(
            "info",
            f"bf16 is slower than fp32 here ({measured})",
            "this hardware has no instructions that multiply bf16",
            "nothing to do: `precision: auto` takes fp32; do not set `precision: bf16`",
        )
    if rates["device"] == "cpu" and rates["threads"] < machine["cores"] and not _hyperthreads(machine["cores"]):
        yield Finding(
            "warning",
            f"torch uses {rates['threads']} threads, but {machine['cores']} cores are free to use",
            "OMP_NUM_THREADS or an affinity set before the start limits it",
            f"unset OMP_NUM_THREADS, or set it to {machine['cores']}",
        )
    if rates["device"] == "cpu" and rates["threads"] > machine["cores"]:
        yield Finding(
            "warning",
            f"torch uses {rates['threads']} threads on {machine['cores']} cores",
            "threads that wait for one another on the same core make every product slower",
            f"set OMP_NUM_THREADS={machine['cores']} before the start",
        )
    if rates["device"] == "cpu" and rates["fresh_over_kept_memory"] > DEAR_MEMORY:
        yield Finding(
            "warning",
            f"filling new memory takes {rates['fresh_over_kept_memory']} times as long as filling kept memory",
            "the C library gives large blocks back when they are freed, and each step faults them in again",
            "with glibc, set GLIBC_TUNABLES=glibc.malloc.mmap_threshold=8589934592:"
            "glibc.malloc.trim_threshold=17179869184; elsewhere take an allocator that keeps memory",
        )
    if not machine["gpus"] and shutil.which("nvidia-smi"):
        yield Finding(
            "warning",
            "there is an NVIDIA driver, but torch sees no GPU",
            "torch was installed without CUDA, or CUDA_VISIBLE_DEVICES hides the GPUs",
            "install the CUDA build of torch, or unset CUDA_VISIBLE_DEVICES",
        )


def _about_room(sections: dict[str, dict[str, Any]]) -> Iterator[Finding]:
    machine, room, net = sections["hardware"], sections["disk"], sections["hub"]
    if machine["memory_free_bytes"] < LEAST_MEMORY:
        yield Finding(
            "warning",
            f"only {words.size(machine['memory_free_bytes'])} of memory are free",
            "weights, gradients and optimizer state of full training take 16 bytes a parameter in fp32",
            "use `method: peft` or a smaller model; `tunesmith plan` says what fits",
        )
    for place in ("here", "cache"):
        if room[f"{place}_free_bytes"] < LEAST_FREE_DISK:
            yield Finding(
                "warning",
                f"only {words.size(room[f'{place}_free_bytes'])} of disk are free in {room[place]}",
                "checkpoints hold the weights and twice as much optimizer state",
                "free some space, give --run-dir on another disk, or set TUNESMITH_CACHE",
            )
    if not room["cache_writable"]:
        yield Finding(
            "error",
            f"the cache folder {room['cache']} cannot be written",
            "its owner or its permissions do not let this user write",
            "set TUNESMITH_CACHE to a folder of your own",
        )
    if not net["reachable"]:
        yield Finding(
            "info",
            "the model hub does not answer",
            str(net["why"]),
            "use a folder, a `.gguf` file, or a name of `tunesmith catalog`, which needs only the package index",
        )


def _hyperthreads(cores: int) -> bool:
    """Whether the usable cores are two threads of each physical core: torch rightly takes one thread each."""
    import psutil

    physical = psutil.cpu_count(logical=False)
    return physical is not None and cores > physical
