"""Which executor runs the steps of the graph, by ``SAE_EXECUTOR`` and nothing else.

=================== ============================================================================
``SAE_EXECUTOR``    in_process (default), multiprocess, ray, k8s
``SAE_WORKERS``     steps at once: of multiprocess (default: one per core) and of one k8s run
``SAE_RAY_ADDRESS`` Ray's job server (default http://127.0.0.1:8265)
``SAE_K8S_NAMESPACE`` namespace of step jobs (default: that of the run's own pod)
``SAE_K8S_IMAGE``   image of step jobs (default: that of the run)
=================== ============================================================================

What a step asks of the machine it gets (cores, memory, GPUs) is in `assets.requests`.
"""

import os
from importlib.util import find_spec
from typing import Any

import dagster as dg

from assets.requests import cores, whole_number
from sae_lib.errors import BadInput, nearest

VARIABLE = "SAE_EXECUTOR"
CHOICES = ("in_process", "multiprocess", "ray", "k8s")

PRELOADED = ("torch", "transformers", "sae_workflows.definitions")
"""Imported once by the process that every step of ``multiprocess`` is forked from."""

PASSED_ON = (
    "SAE_HOME",
    "SAE_DEVICE",
    "SAE_REMOTE",
    "SAE_REMOTE_OPTIONS",
    "SAE_REMOTE_KINDS",
    "SAE_RESOURCES",
    "SAE_EXECUTOR",
    "SAE_RAY_ADDRESS",
)
"""Settings that steps on Ray are given. Ray shows them to whoever sees its dashboard, so secrets
are not among them: `SAE_REMOTE_OPTIONS` names variables, which the nodes have to have."""

LOCAL_RAY = "http://127.0.0.1:8265"


def executor_name() -> str:
    """Which executor the environment asks for."""
    name = os.environ.get(VARIABLE) or "in_process"
    if name not in CHOICES:
        raise BadInput(
            f"no executor is called so. Known: {', '.join(CHOICES)}.{nearest(name, CHOICES)}",
            key=VARIABLE,
            value=name,
        )
    return name


def executor() -> dg.ExecutorDefinition:
    """The executor that the environment asks for, with its options."""
    match executor_name():
        case "multiprocess":
            start = {"forkserver": {"preload_modules": list(PRELOADED)}}
            workers = whole_number("SAE_WORKERS") or cores()
            return dg.multiprocess_executor.configured(
                {"max_concurrent": workers, "start_method": start}
            )
        case "ray":
            _check_installed("ray", "ray", "dagster_ray")
            from dagster_ray import ray_executor  # pyright: ignore[reportMissingImports]

            address = os.environ.get("SAE_RAY_ADDRESS") or LOCAL_RAY
            if not address.startswith(("http://", "https://")):
                raise BadInput(
                    f"write the URL of Ray's job server, such as {LOCAL_RAY}; the ports of its "
                    "client (ray://) and of its head do not take jobs.",
                    key="SAE_RAY_ADDRESS",
                    value=address,
                )
            return ray_executor.configured(
                {"ray": {"address": address, "env_vars": list(PASSED_ON)}}
            )
        case "k8s":
            _check_installed("k8s", "dagster_k8s")
            from dagster_k8s import k8s_job_executor  # pyright: ignore[reportMissingImports]

            options: dict[str, Any] = {
                "job_namespace": os.environ.get("SAE_K8S_NAMESPACE"),
                "job_image": os.environ.get("SAE_K8S_IMAGE"),
                "max_concurrent": whole_number("SAE_WORKERS"),
            }
            return k8s_job_executor.configured({key: one for key, one in options.items() if one})
        case _:
            return dg.in_process_executor


def _check_installed(extra: str, *modules: str) -> None:
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise BadInput(
            f"this executor needs {' and '.join(missing).replace('_', '-')}, not installed here. "
            f"Install with: pip install 'sae-workflows[{extra}]'",
            key=VARIABLE,
            value=os.environ.get(VARIABLE),
        )
