"""The Ray cluster that replicas run on: one that there is, or one of this machine alone."""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import shutil
import tempfile
from typing import Any

from tallow.errors import UsageError

OBJECT_STORE_BYTES = 256 << 20


def is_own_cluster() -> bool:
    """Whether Ray is to be started here, because RAY_ADDRESS names no cluster."""
    return "RAY_ADDRESS" not in os.environ


def start_ray(replicas: int) -> None:
    """Join the cluster that RAY_ADDRESS names, or start one of this machine, which obeys this process alone.

    Args:
        replicas: For so many it has room, whatever the number of its processors.

    Raises:
        UsageError: There is no such cluster, or no Ray.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {}
    if is_own_cluster():
        # whoever reaches Ray's ports, not all of which can be kept to this machine, could run programs here
        os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})
        directory = tempfile.mkdtemp(prefix="tallow-ray-")
        atexit.register(shutil.rmtree, directory, ignore_errors=True)  # Ray's own exit, registered later, comes before
        options = {
            "_temp_dir": directory,
            "num_cpus": max(replicas, os.cpu_count() or 1),
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
        }
    try:
        import ray  # which reads the environment now
        from ray import serve  # noqa: F401
    except ImportError as error:
        raise UsageError(f"replicas need Ray Serve: {error}", "pip install 'tallow[cluster]'") from error
    address = os.environ.get("RAY_ADDRESS", "local")
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(f"Ray cannot be reached at {address}: {error}", "correct RAY_ADDRESS") from error
