"""Recipes for clusters: scripts are valid shell, manifests have the fields that run them."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from jaxllm.cli import make_parser

PAGE = (Path(__file__).parents[1] / "docs" / "clusters.md").read_text()
FILES = dict(re.findall(r"```\w+ file=(\S+)\n(.*?)```", PAGE, re.DOTALL))
SCRIPTS = [name for name in FILES if name.endswith((".sh", ".sbatch"))]
MANIFESTS = [name for name in FILES if name.endswith(".yaml")]


def test_the_page_has_the_recipes():
    assert set(FILES) == {"train.sbatch", "jobset-tpu.yaml", "job-gpu.yaml", "tpu-vm.sh"}


def pod_specs(manifest: dict) -> list[dict]:
    """Returns the specs of the pods that a manifest starts."""
    if manifest["kind"] == "JobSet":
        jobs = [job["template"] for job in manifest["spec"]["replicatedJobs"]]
    else:
        jobs = [manifest] if manifest["kind"] == "Job" else []
    return [job["spec"]["template"]["spec"] for job in jobs]


def shell_of(name: str) -> list[str]:
    """Returns the shell scripts of a recipe."""
    if name in SCRIPTS:
        return [FILES[name]]
    specs = [spec for each in yaml.safe_load_all(FILES[name]) for spec in pod_specs(each)]
    return ["\n".join(c["args"]) for spec in specs for c in spec["containers"]]


@pytest.mark.parametrize("name", FILES)
def test_shell_is_valid(name):
    for script in shell_of(name):
        done = subprocess.run(
            ["bash", "-n"], input=script, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_a_job_may_restart_all_its_pods_ten_times():
    """Where one process fails, the others end as well, and each pod counts."""
    manifests = yaml.safe_load_all(FILES["job-gpu.yaml"])
    [job] = [manifest["spec"] for manifest in manifests if manifest["kind"] == "Job"]
    assert job["backoffLimit"] == 10 * job["completions"]


@pytest.mark.parametrize("name", FILES)
def test_commands_exist_and_a_restart_resumes(name):
    run = "run.yaml --mesh.fsdp 32"
    commands = [
        command
        for script in shell_of(name)
        for command in re.findall(r"jaxllm (doctor|train|runs) (.*)", script)
    ]
    assert {"doctor", "train"} <= {command for command, _ in commands}
    known = make_parser()._subparsers._group_actions[0].choices
    for command, rest in commands:
        assert command in known
        if command == "train":
            assert "--resume" in rest
        words = rest.replace('"${run[@]}"', run).partition("|")[0].rstrip('" ')
        options = [text for text in words.split() if text.startswith("--") and "." not in text]
        own = known[command]._option_string_actions
        assert [o for o in options if o not in (*own, "--output")] == []


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_have_what_kubernetes_requires(name):
    manifests = list(yaml.safe_load_all(FILES[name]))
    for manifest in manifests:
        assert {"apiVersion", "kind", "metadata", "spec"} <= manifest.keys()
        assert re.fullmatch(r"[a-z0-9-]+", manifest["metadata"]["name"])
        for spec in pod_specs(manifest):
            assert spec["restartPolicy"] in ("Never", "OnFailure")
            assert spec["terminationGracePeriodSeconds"] >= 60  # to save a checkpoint
            mounted = {m["name"] for c in spec["containers"] for m in c.get("volumeMounts", ())}
            assert mounted == {volume["name"] for volume in spec.get("volumes", ())}
            for container in spec["containers"]:
                assert container["command"] == ["bash", "-c"]
                assert len(container["args"]) == 1
                assert container["resources"]["limits"]


def test_a_slice_has_a_pod_for_each_host_and_the_mesh_all_chips():
    [manifest] = yaml.safe_load_all(FILES["jobset-tpu.yaml"])
    assert manifest["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    [job] = manifest["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    [pod] = pod_specs(manifest)
    x, y, z = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    [container] = pod["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert spec["parallelism"] == spec["completions"] == x * y * z // chips
    assert f"--mesh.fsdp {x * y * z} " in container["args"][0]


def test_the_pods_of_a_job_meet_at_the_first():
    service, job = yaml.safe_load_all(FILES["job-gpu.yaml"])
    [pod] = pod_specs(job)
    spec, name = job["spec"], job["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    [container] = pod["containers"]
    [script] = container["args"]
    assert f"ADDRESS={name}-0.{pod['subdomain']}:8476" in script
    assert f"JAX_NUM_PROCESSES={spec['parallelism']} " in script
    assert spec["completionMode"] == "Indexed"
    gpus = container["resources"]["limits"]["nvidia.com/gpu"] * spec["parallelism"]
    assert f"--mesh.fsdp {gpus} " in script


def test_the_slurm_job_has_one_task_per_node_and_a_mesh_of_all_gpus():
    given = dict(re.findall(r"#SBATCH --([\w-]+)=(\S+)", FILES["train.sbatch"]))
    assert given["ntasks-per-node"] == "1"
    gpus = int(given["nodes"]) * int(given["gpus-per-node"])
    assert f"--mesh.fsdp {gpus} " in FILES["train.sbatch"]
