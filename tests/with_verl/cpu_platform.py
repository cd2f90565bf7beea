"""verl on a machine without a GPU: a platform that is the CPU, with gloo between processes.

Every process of a run imports it by ``VERL_USE_EXTERNAL_MODULES``, and ``VERL_PLATFORM=cpu`` chooses it.
verl counts devices as Ray's resource "GPU"; the tests tell Ray that it has some.
"""

from __future__ import annotations

import importlib
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import torch
import torch.distributed
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry


def _nothing(*args, **kwargs) -> int:
    return 0


_QUIET = (
    "device_count empty_cache ipc_collect manual_seed manual_seed_all max_memory_allocated "
    "max_memory_reserved memory_allocated memory_reserved reset_peak_memory_stats set_device synchronize"
)
DEVICE_MODULE = SimpleNamespace(
    **dict.fromkeys(_QUIET.split(), _nothing),
    current_device=lambda: "cpu",
    device=lambda *args: nullcontext(),
    get_device_name=lambda *args: "cpu",
    get_rng_state=lambda *args: torch.get_rng_state(),
    is_available=lambda: False,
    mem_get_info=lambda *args: (2**33, 2**34),
    set_rng_state=lambda state, *args: torch.set_rng_state(state),
)
"""Stands where ``torch.cuda`` does."""


@PlatformRegistry.register(platform="cpu")
class CpuPlatform(PlatformBase):
    device_name = "cpu"
    vendor_name = "cpu"
    device_module = DEVICE_MODULE
    empty_cache = profiler_start = profiler_stop = staticmethod(_nothing)
    set_device = set_allocator_settings = synchronize = staticmethod(_nothing)

    def is_available(self):
        return True

    def current_device(self):
        return torch.device("cpu")

    def device_count(self):
        return 1

    def manual_seed(self, seed):
        torch.manual_seed(seed)

    def manual_seed_all(self, seed):
        torch.manual_seed(seed)

    def get_device_capability(self, device_index=0):
        return None, None

    def communication_backend_name(self):
        # A worker asks before it builds its model; verl imports the external_lib of a critic elsewhere.
        importlib.import_module("cpu_engine")
        return "gloo"

    def visible_devices_envvar(self):
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg):
        yield

    def ray_resource_name(self):
        return "GPU"

    def ray_noset_envvars(self):
        return []

    def is_ipc_supported(self):
        return False

    def cudart(self):
        return None


def _one_backend_is_enough() -> None:
    """verl asks for a backend for the CPU and one for the device; here they are the same."""
    start = torch.distributed.init_process_group

    def init_process_group(backend=None, *args, **kwargs):
        if backend == "cpu:gloo,cpu:gloo":
            backend = "gloo"
        return start(backend, *args, **kwargs)

    torch.distributed.init_process_group = init_process_group


_one_backend_is_enough()
