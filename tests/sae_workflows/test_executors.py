"""Where steps run is a setting: which are read, what they come to, and the same rows from each."""

import importlib
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import torch
import yaml

from assets.requests import (
    POOLS,
    STAGES,
    cores,
    num_bytes,
    op_tags,
    pool_of,
    pools,
    requests,
    tags_of,
    threads_of_a_step,
)
from sae_lib.errors import BadInput, MissingFile
from sae_lib.models.threads import use_threads
from sae_workflows import executors
from sae_workflows.executors import executor

ROOT = Path(__file__).parents[2]
KUBERNETES, RAY = "dagster-k8s/config", "dagster-ray/config"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in os.environ if name.startswith("SAE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a file of requests and names it by the variable."""

    def write(text: str) -> Path:
        file = tmp_path / "resources.yaml"
        file.write_text(text)
        monkeypatch.setenv("SAE_RESOURCES", str(file))
        return file

    return write


def test_without_a_setting_steps_run_in_this_process():
    assert executor() is dg.in_process_executor


@pytest.mark.parametrize("said", ["", "in_process"])
def test_in_process_may_be_said(said: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SAE_EXECUTOR", said)
    assert executor() is dg.in_process_executor


def test_multiprocess_is_another_executor(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SAE_EXECUTOR", "multiprocess")
    monkeypatch.setenv("SAE_WORKERS", "3")
    assert executor().name == "multiprocess"


def test_an_unknown_executor_is_named_with_those_there_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SAE_EXECUTOR", "multiproces")
    with pytest.raises(BadInput) as error:
        executor()
    assert error.value.key == "SAE_EXECUTOR"
    assert error.value.value == "multiproces"
    for part in ("in_process, multiprocess, ray, k8s", "Did you mean 'multiprocess'?"):
        assert part in str(error.value)


@pytest.mark.parametrize(("name", "package"), [("ray", "dagster-ray"), ("k8s", "dagster-k8s")])
def test_a_missing_package_comes_with_the_line_that_installs_it(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SAE_EXECUTOR", name)
    monkeypatch.setattr(executors, "find_spec", lambda module: None)
    with pytest.raises(BadInput) as error:
        executor()
    assert package in str(error.value)
    assert f"pip install 'sae-workflows[{name}]'" in str(error.value)


@pytest.mark.parametrize("said", ["0", "-1", "two", "1.5", "²"])
def test_numbers_of_workers_are_at_least_one(said: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SAE_EXECUTOR", "multiprocess")
    monkeypatch.setenv("SAE_WORKERS", said)
    with pytest.raises(BadInput, match="whole number") as error:
        executor()
    assert (error.value.key, error.value.value) == ("SAE_WORKERS", said)


def test_threads_are_divided_among_steps_that_run_at_once(monkeypatch: pytest.MonkeyPatch):
    assert threads_of_a_step() is None
    monkeypatch.setattr("assets.requests.cores", lambda: 8)
    monkeypatch.setenv("SAE_EXECUTOR", "multiprocess")
    assert threads_of_a_step() == 1  # as many steps as cores
    monkeypatch.setenv("SAE_WORKERS", "3")
    assert threads_of_a_step() == 2
    monkeypatch.setenv("SAE_WORKERS", "16")
    assert threads_of_a_step() == 1
    monkeypatch.setenv("SAE_THREADS", "5")
    assert threads_of_a_step() == 5


def test_torch_takes_the_number_of_threads():
    before = torch.get_num_threads()
    try:
        use_threads(before + 1)
        assert torch.get_num_threads() == before + 1
        use_threads(None)
        assert torch.get_num_threads() == before + 1
    finally:
        use_threads(before)


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [("7", 7), ("2k", 2000), ("1.5Gi", 3 * 2**29), ("16Gi", 2**34), ("3M", 3_000_000)],
)
def test_quantities_are_those_of_kubernetes(quantity: str, expected: int):
    assert num_bytes(quantity) == expected


def test_a_step_asks_for_one_core_unless_told_otherwise():
    tags = op_tags("saes", "cpu")
    container = tags[KUBERNETES]["container_config"]
    assert container["resources"] == {"requests": {"cpu": "1"}}
    assert {"name": "SAE_THREADS", "value": "1"} in container["env"]
    assert tags[RAY]["num_cpus"] == 1
    assert "num_gpus" not in tags[RAY]


def test_a_step_asks_for_what_the_file_says(ask):
    ask(
        "default: {cpu: 0.5, memory: 2Gi}\n"
        "saes:\n  cpu: 8\n  memory: 64Gi\n"
        "  kubernetes: {pod_spec_config: {nodeSelector: {accelerator: h100}},\n"
        "    container_config: {env: [{name: A, value: b}]}}\n"
        "  ray: {resources: {h100: 1}}\n"
        "claims: {gpu: 0}\n"
    )
    tags = op_tags("saes", "cuda")
    assert tags[RAY] == {
        "num_cpus": 8.0,
        "num_gpus": 1,
        "memory": 64 * 2**30,
        "resources": {"h100": 1},
        "runtime_env": {"env_vars": {"SAE_THREADS": "8", "OMP_NUM_THREADS": "8"}},
    }
    asked = tags[KUBERNETES]
    assert asked["pod_spec_config"] == {"nodeSelector": {"accelerator": "h100"}}
    assert asked["container_config"]["resources"] == {
        "requests": {"cpu": "8", "memory": "64Gi"},
        "limits": {"memory": "64Gi", "nvidia.com/gpu": "1"},
    }
    names = [one["name"] for one in asked["container_config"]["env"]]
    assert names == ["SAE_THREADS", "OMP_NUM_THREADS", "A"]
    general = op_tags("claims", "cuda")
    assert general[RAY]["num_cpus"] == 0.5
    assert general[RAY]["runtime_env"]["env_vars"]["SAE_THREADS"] == "1"
    assert "num_gpus" not in general[RAY]


def test_a_changed_file_is_read_again(ask):
    file = ask("saes: {cpu: 2}\n")
    assert requests()["saes"].cpu == 2
    file.write_text("saes: {cpu: 3}\n")
    os.utime(file, (1, 1))
    assert requests()["saes"].cpu == 3


@pytest.mark.parametrize(
    ("text", "key", "part"),
    [
        ("sae: {cpu: 1}\n", "sae", "Did you mean 'saes'?"),
        ("saes: {cores: 1}\n", "saes.cores", "cpu, memory, gpu"),
        ("saes: {cpu: 0}\n", "saes.cpu", "greater than 0"),
        ("saes: {memory: 16GB}\n", "saes.memory", "such as 16Gi"),
        ("saes: {gpu: -1}\n", "saes.gpu", "greater than or equal to 0"),
        ("saes: {gpu: 0.5}\n", "saes.gpu", "integer"),
        ("saes: {ray: {num_cpus: 2}}\n", "saes.ray", "resources"),
        ("saes: {kubernetes: {pod_spec: {}}}\n", "saes.kubernetes", "pod_spec_config"),
        ("saes: 4\n", "saes", "mapping"),
        ("- saes\n", None, "maps stages"),
        ("saes: {\n", None, "YAML"),
    ],
)
def test_a_wrong_file_is_told_what_is_wrong_and_where(text, key, part, ask):
    file = ask(text)
    with pytest.raises(BadInput) as error:
        requests()
    assert (error.value.file, error.value.key) == (file, key)
    assert part in str(error.value)


def test_a_file_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("SAE_RESOURCES", str(tmp_path / "none.yaml"))
    with pytest.raises(MissingFile, match=r"none\.yaml"):
        requests()


def test_there_are_turns_only_where_a_daemon_frees_them(monkeypatch: pytest.MonkeyPatch):
    assert set(pools("cuda").values()) == {None}
    monkeypatch.setenv(POOLS, "1")
    on_cpu, on_gpu = pools("cpu"), pools("cuda:1")
    assert {stage for stage, pool in on_cpu.items() if pool} == {"database"}
    assert on_cpu["database"] == on_gpu["database"] == "writer"
    assert on_gpu["saes"] == on_gpu["metrics"] == "gpu"
    assert on_gpu["frontier"] is None
    monkeypatch.setenv(POOLS, "yes")
    with pytest.raises(BadInput, match=POOLS):
        pools("cpu")


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_asked_are_arguments_of_an_asset(stage):
    @dg.asset(op_tags=tags_of(stage), pool=pool_of(stage))
    def one() -> None: ...

    made: Any = one
    tags = made.op.tags  # values are text in the orchestrator's own form
    assert json.loads(tags[RAY])["num_cpus"] == 1


@pytest.mark.skipif(find_spec("dagster_k8s") is None, reason="dagster-k8s is not installed")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_kubernetes_takes_the_tags_of_every_stage(device: str, ask):
    from dagster_k8s.job import (
        DagsterK8sJobConfig,
        construct_dagster_k8s_job,
        get_user_defined_k8s_config,
    )

    ask((ROOT / "docs" / "k8s" / "resources.yaml").read_text())
    job = DagsterK8sJobConfig(job_image="example.org/sae:1", dagster_home="/opt/dagster/home")
    for stage in STAGES:
        config = get_user_defined_k8s_config(
            {KUBERNETES: json.dumps(op_tags(stage, device)[KUBERNETES])}
        )
        # raises where a key is not one of the API's
        made = construct_dagster_k8s_job(job, ["dagster"], "step", config).to_dict()
        (container,) = made["spec"]["template"]["spec"]["containers"]
        limits = container["resources"].get("limits") or {}
        has_gpu = device == "cuda" and stage in ("tokens", "saes", "metrics")
        assert not has_gpu or limits["nvidia.com/gpu"] == "1"


@pytest.mark.skipif(find_spec("dagster_k8s") is None, reason="dagster-k8s is not installed")
def test_the_executor_of_kubernetes_takes_its_settings(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SAE_EXECUTOR", "k8s")
    monkeypatch.setenv("SAE_K8S_NAMESPACE", "sae")
    monkeypatch.setenv("SAE_K8S_IMAGE", "example.org/sae:1")
    monkeypatch.setenv("SAE_WORKERS", "4")
    assert executor().name == "k8s"


@pytest.mark.skipif(find_spec("dagster_ray") is None, reason="dagster-ray is not installed")
def test_ray_wants_the_address_of_its_job_server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SAE_EXECUTOR", "ray")
    assert executor().name == "ray"
    monkeypatch.setenv("SAE_RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(BadInput, match="job server") as error:
        executor()
    assert error.value.key == "SAE_RAY_ADDRESS"


K8S = ROOT / "docs" / "k8s"


def _values():
    return yaml.safe_load((K8S / "values.yaml").read_text())


def test_the_values_for_the_chart_name_settings_that_are_read():
    (deployment,) = _values()["dagster-user-deployments"]["deployments"]
    names = {one["name"] for one in deployment["env"]}
    source = "".join(
        file.read_text()
        for package in ("assets", "sae_lib", "sae_workflows")
        for file in (ROOT / package).rglob("*.py")
    )
    assert all(f'"{name}"' in source for name in names), names
    options = next(one for one in deployment["env"] if one["name"] == "SAE_REMOTE_OPTIONS")
    given = json.loads(options["value"])
    assert given["key"].startswith("env:")
    assert given["secret"].startswith("env:")
    assert deployment["dagsterApiGrpcArgs"][-1] == "sae_workflows.definitions"
    assert {one["name"]: one for one in deployment["env"]}["SAE_EXECUTOR"]["value"] == "k8s"


def test_no_secret_is_written_out():
    text = (K8S / "values.yaml").read_text()
    assert "postgresqlPassword" not in text
    assert "valueFrom" not in text  # secrets come whole, by the name of the secret
    assert _values()["generatePostgresqlPasswordSecret"] is False


def test_the_image_has_everything_the_package_needs():
    lines = (K8S / "Dockerfile").read_text()
    for name in ("pyproject.toml", "constraints.txt", "sae_lib", "assets", "sae_workflows"):
        assert name in lines
        assert (ROOT / name).exists()


@pytest.mark.skipif(find_spec("dagster_k8s") is None, reason="dagster-k8s is not installed")
def test_pods_get_what_the_values_give_the_deployment():
    from dagster_k8s.container_context import K8sContainerContext
    from dagster_k8s.job import DagsterK8sJobConfig, construct_dagster_k8s_job

    (given,) = _values()["dagster-user-deployments"]["deployments"]
    run = _values()["runLauncher"]["config"]["k8sRunLauncher"]
    container = K8sContainerContext.create_from_config(
        {
            "k8s": {
                "env": given["env"],
                "env_secrets": [one["name"] for one in given["envSecrets"]],
                "volumes": given["volumes"],
                "volume_mounts": given["volumeMounts"],
                "image_pull_policy": run["imagePullPolicy"],
                "run_k8s_config": {"container_config": run["runK8sConfig"]["containerConfig"]},
            }
        }
    )
    config = DagsterK8sJobConfig(job_image="example.org/sae:1", dagster_home="/opt/dagster")
    job = construct_dagster_k8s_job(config, ["dagster"], "run", container.run_k8s_config)
    spec = job.to_dict()["spec"]["template"]["spec"]
    (made,) = spec["containers"]
    assert {one["name"]: one["value"] for one in made["env"]}["SAE_EXECUTOR"] == "k8s"
    assert made["env_from"][0]["secret_ref"]["name"] == "sae-store"
    assert made["volume_mounts"][0]["mount_path"] == "/sae"
    assert spec["volumes"][0]["persistent_volume_claim"]["claim_name"] == "sae-home"
    assert made["resources"]["limits"] == {"memory": "2Gi"}


MODULE = """
import os
import dagster as dg
from assets.requests import tags_of, threads_of_a_step
from assets.store import Store
from sae_lib.models.threads import use_threads
from sae_workflows.executors import executor

def rows(seed):
    import torch
    use_threads(threads_of_a_step())
    torch.manual_seed(seed)
    return {
        "process": os.getpid(),
        "threads": torch.get_num_threads(),
        "rows": torch.randn(64, 32).matmul(torch.randn(32, 8)).sum(1).tolist(),
    }

@dg.asset(op_tags=tags_of("saes"))
def one() -> dg.MaterializeResult:
    return dg.MaterializeResult(metadata=rows(0))

@dg.asset(deps=[one], op_tags=tags_of("metrics"))
def two() -> dg.MaterializeResult:
    return dg.MaterializeResult(metadata=rows(1))

def job():
    made = dg.Definitions(
        assets=[one, two], jobs=[dg.define_asset_job("both")], executor=executor()
    )
    return made.resolve_job_def("both")

def found(result):
    return [
        {key: value.value for key, value in one.materialization.metadata.items()}
        for one in result.get_asset_materialization_events()
    ]

if __name__ == "__main__":
    import json, tempfile
    from two_steps import job
    with tempfile.TemporaryDirectory() as home:
        with dg.DagsterInstance.local_temp(home) as instance:
            with dg.execute_job(dg.reconstructable(job), instance=instance) as result:
                kind = dg.DagsterEventType.ASSET_MATERIALIZATION
                logs = instance.all_logs(result.run_id, of_type=kind)  # steps elsewhere write there
            print(json.dumps([
                {key: value.value for key, value in one.asset_materialization.metadata.items()}
                for one in logs
            ]))
"""


@pytest.fixture
def two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The folder of a module with two steps, and what they find in this process."""
    (tmp_path / "two_steps.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SAE_THREADS", "1")
    before = torch.get_num_threads()
    module = importlib.import_module("two_steps")
    try:
        yield tmp_path, module.found(module.job().execute_in_process())
    finally:
        use_threads(before)
        del sys.modules["two_steps"]


def by_an_executor(folder: Path, **settings: str):
    """What the two steps find by the executor of ``settings``, from a process of its own."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("SAE_")}
    env |= {
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "DAGSTER_DISABLE_TELEMETRY": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "two_steps"],
        env=env | settings,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_processes_of_their_own_share_the_cores_and_find_the_same(two_steps):
    folder, alone = two_steps
    apart = by_an_executor(folder, SAE_EXECUTOR="multiprocess", SAE_WORKERS=str(cores()))
    assert {step["process"] for step in alone} == {os.getpid()}
    assert len({os.getpid(), *(step["process"] for step in apart)}) == 3
    assert [step["threads"] for step in apart] == [1, 1]
    assert [step["rows"] for step in apart] == [step["rows"] for step in alone]


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("ray") is None or find_spec("dagster_ray") is None,
    reason="ray and dagster-ray are not installed: pip install 'sae-workflows[ray]'",
)
def test_steps_on_a_local_ray_find_the_same(two_steps):
    from benchmarks.ray_agreement import local_ray

    folder, alone = two_steps
    # steps are children of the cluster, and import what it can import
    with local_ray(1, PYTHONPATH=os.pathsep.join([str(folder), str(ROOT)])) as env:
        apart = by_an_executor(folder, **env)
    assert len({os.getpid(), *(step["process"] for step in apart)}) == 3
    assert [step["threads"] for step in apart] == [1, 1]
    assert [step["rows"] for step in apart] == [step["rows"] for step in alone]
