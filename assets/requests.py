"""What each stage asks of the machine it runs on: cores, memory, accelerators, and its turn.

The same request is said in the words of Kubernetes and of Ray, as tags of the step; where steps
run on this machine nobody reads them. Which executor runs the steps is the business of whoever
builds the definitions.
"""

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import Field, ValidationError, field_validator

from sae_lib.config import Config
from sae_lib.errors import BadInput, MissingFile, nearest

Stage = Literal[
    "tokens",
    "activations",
    "layer_groups",
    "saes",
    "metrics",
    "frontier",
    "explanations",
    "applications",
    "dashboards",
    "claims",
    "database",
    "study",
]

STAGES: tuple[Stage, ...] = get_args(Stage)

ON_DEVICE = ("tokens", "activations", "saes", "metrics", "explanations", "applications")
"""Stages that load the language model or SAEs on the device (for tokens: with its tokenizer)."""

FILE, THREADS, POOLS = "SAE_RESOURCES", "SAE_THREADS", "SAE_POOLS"
"""Environment variables: the file of requests, torch threads of a step, whether pools are used."""

ANY_STAGE = "default"

UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12} | {
    f"{letter}i": 1 << 10 * power for power, letter in enumerate("KMGT", start=1)
}

OF_KUBERNETES = (
    "container_config",
    "pod_template_spec_metadata",
    "pod_spec_config",
    "job_config",
    "job_metadata",
    "job_spec_config",
    "merge_behavior",
)
OF_RAY = ("runtime_env", "resources")


class Request(Config):
    """What one step of a stage asks for."""

    cpu: float = Field(default=1, gt=0)
    """Cores. Torch gets as many threads as whole cores, at least one."""

    memory: str | None = None
    """As Kubernetes writes it, such as 16Gi; unset asks for nothing."""

    gpu: int | None = Field(default=None, ge=0)
    """Accelerators; unset is 1 for stages that use the device where that is CUDA, else 0."""

    kubernetes: dict[str, Any] = Field(default_factory=dict)
    """Further keys of `dagster-k8s/config`, such as pod_spec_config: {nodeSelector: ...}."""

    ray: dict[str, Any] = Field(default_factory=dict)
    """Further keys of `dagster-ray/config`: resources and runtime_env."""

    @field_validator("memory")
    @classmethod
    def _is_quantity(cls, said: str | None) -> str | None:
        if said is not None:
            num_bytes(said)
        return said

    @field_validator("kubernetes", "ray")
    @classmethod
    def _has_known_keys(cls, said: dict[str, Any], info: Any) -> dict[str, Any]:
        known = OF_KUBERNETES if info.field_name == "kubernetes" else OF_RAY
        if unknown := sorted(set(said) - set(known)):
            raise ValueError(f"no key {unknown[0]!r} is read here; these are: {', '.join(known)}")
        return said


def num_bytes(quantity: str) -> int:
    """Bytes of a quantity as Kubernetes writes it: ``1.5Gi`` is 1610612736."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(\w*)", quantity)
    if found is None or found[2] not in UNITS:
        units = ", ".join(unit for unit in UNITS if unit)
        raise ValueError(f"write a number and one of the units {units}, such as 16Gi")
    return int(float(found[1]) * UNITS[found[2]])


def requests() -> Mapping[str, Request]:
    """What the file named by ``SAE_RESOURCES`` says for each stage; without one, one core."""
    said = os.environ.get(FILE)
    if not said:
        return {stage: Request() for stage in STAGES}
    file = Path(said)
    if not file.is_file():
        raise MissingFile(f"{FILE} names a file that is not there.", file=file)
    return _read(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _read(file: Path, stamp: int) -> Mapping[str, Request]:
    """The file's requests; ``stamp`` makes a changed file another one."""
    try:
        content = yaml.safe_load(file.read_text("utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"this is not valid YAML: {error}.", file=file) from error
    stages = STAGES
    if not isinstance(content, dict):
        raise BadInput("a file of requests maps stages to what they ask for.", file=file)
    for name, asked in content.items():
        if name not in (*stages, ANY_STAGE):
            raise BadInput(
                f"no stage is called so. Known: {ANY_STAGE}, {', '.join(stages)}."
                f"{nearest(str(name), stages)}",
                file=file,
                key=str(name),
            )
        if not isinstance(asked, dict):
            raise BadInput(
                "a request is a mapping with some of the keys "
                f"{', '.join(Request.model_fields)}, such as {{cpu: 4, memory: 16Gi}}.",
                file=file,
                key=str(name),
                value=asked,
            )
        _parse(file, str(name), asked)
    general = content.get(ANY_STAGE, {})
    return {stage: _parse(file, stage, general | content.get(stage, {})) for stage in stages}


def _parse(file: Path, stage: str, asked: Mapping[str, Any]) -> Request:
    try:
        return Request.model_validate(asked)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in (stage, *first["loc"]))
        problem = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            problem = f"nothing reads this key; these are read: {', '.join(Request.model_fields)}"
        raise BadInput(f"{problem}.", file=file, key=key, value=first["input"]) from error


def num_gpus(stage: str, device: str, asked: Request) -> int:
    """Accelerators a step of ``stage`` gets."""
    if asked.gpu is not None:
        return asked.gpu
    return int(stage in ON_DEVICE and device.startswith("cuda"))


def op_tags(stage: Stage, device: str) -> dict[str, Any]:
    """Tags of the step of ``stage`` for the executors of Kubernetes and Ray.

    Both are told how many torch threads its cores come to: on a shared node neither a container
    nor a Ray worker sees that it may not use all cores.
    """
    asked = requests()[stage]
    gpus = num_gpus(stage, device, asked)
    threads = str(max(1, int(asked.cpu)))
    env = {THREADS: threads, "OMP_NUM_THREADS": threads}
    memory = {"memory": asked.memory} if asked.memory else {}
    limits = memory | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
    resources = {"requests": {"cpu": f"{asked.cpu:g}", **memory}}
    container = {
        "resources": resources | ({"limits": limits} if limits else {}),
        "env": [{"name": name, "value": value} for name, value in env.items()],
    }
    ray: dict[str, Any] = {"num_cpus": asked.cpu, "runtime_env": {"env_vars": env}}
    if gpus:
        ray["num_gpus"] = gpus
    if asked.memory:
        ray["memory"] = num_bytes(asked.memory)
    return {
        "dagster-k8s/config": merged({"container_config": container}, asked.kubernetes),
        "dagster-ray/config": merged(ray, asked.ray),
    }


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Both mappings, at every depth; of lists both, and of anything else ``other``'s."""
    both = dict(one)
    for key, value in other.items():
        mine = both.get(key)
        if isinstance(mine, Mapping) and isinstance(value, Mapping):
            both[key] = merged(mine, value)
        elif isinstance(mine, list) and isinstance(value, list):
            both[key] = mine + value
        else:
            both[key] = value
    return both


def pools(device: str) -> dict[str, str | None]:
    """For each stage the pool in whose turn it runs: ``gpu`` where CUDA is used, ``writer`` for
    the database.

    None for all unless ``SAE_POOLS`` is 1. A run that is killed keeps its slot until a daemon
    frees it, so whoever starts a daemon sets the variable, and a command without one leaves it.
    """
    said = os.environ.get(POOLS, "0")
    if said not in ("0", "1"):
        raise BadInput("write 1 where a daemon runs, else 0.", key=POOLS, value=said)
    chosen: dict[str, str | None] = dict.fromkeys(STAGES)
    if said == "1":
        chosen["database"] = "writer"
        if device.startswith("cuda"):
            chosen.update(dict.fromkeys(ON_DEVICE, "gpu"))
    return chosen


def tags_of(stage: Stage) -> dict[str, Any]:
    """`op_tags` of ``stage`` on the device that the environment names."""
    return op_tags(stage, os.environ.get("SAE_DEVICE", "cpu"))


def pool_of(stage: Stage) -> str | None:
    """The one of `pools` that ``stage`` is in, on the device that the environment names."""
    return pools(os.environ.get("SAE_DEVICE", "cpu"))[stage]


def whole_number(variable: str) -> int | None:
    """The environment variable as a number of at least 1; None where it is unset or empty."""
    said = os.environ.get(variable)
    if not said:
        return None
    if not said.isascii() or not said.isdigit() or int(said) < 1:
        raise BadInput("write a whole number of at least 1.", key=variable, value=said)
    return int(said)


def cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_of_a_step() -> int | None:
    """Torch threads of a step in this process; None leaves them as they are.

    ``SAE_THREADS`` where it is set; where steps are processes of this machine, its cores divided
    among as many as run at once.
    """
    said = whole_number(THREADS)
    if said is None and os.environ.get("SAE_EXECUTOR") == "multiprocess":
        return max(1, cores() // (whole_number("SAE_WORKERS") or cores()))
    return said
