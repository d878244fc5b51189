"""What facts about nodes mean for a run: each check's finding, from made-up nodes; and whether a folder is shared."""

from dataclasses import replace
from pathlib import Path

import pytest
import ray
from tinyrun import config

from lingu_ray.config import Config
from lingu_ray.doctor import read_arguments, shown
from lingu_ray.errors import UserError
from lingu_ray.runtime.doctor import gpu
from lingu_ray.runtime.doctor.checks import check_nodes
from lingu_ray.runtime.doctor.cluster import examine
from lingu_ray.runtime.doctor.finding import Finding
from lingu_ray.runtime.doctor.gpu import Gpu, GpuFacts, gpu_facts, torch_error, without_code
from lingu_ray.runtime.doctor.node import NodeFacts, output_error, put_marker, remove_marker
from lingu_ray.runtime.doctor.paths import is_here, needed_paths

VERSIONS = {"lingu_ray": "0.1.0", "python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0", "transformers": "5.19.0"}
H100 = Gpu("NVIDIA H100 80GB HBM3", "570.86.15", "Default")
GPU = GpuFacts([H100], smi_error=None, cuda="12.8", driver_cuda="12.8", torch_error=None, mps=True)
WELL = NodeFacts(
    node="a",
    is_driver=True,
    versions=VERSIONS,
    gpu=GPU,
    shared_memory=8 * 2**30,
    variables={
        "RAY_free_objects_batch_size": "1",
        "RAY_JOB_STOP_WAIT_TIME_S": "120",
        "PYTORCH_ALLOC_CONF": None,
        "PYTORCH_CUDA_ALLOC_CONF": None,
    },
    token=True,
    output_error=None,
    missing=[],
    attentions=["flash_attention_2"],
)


OTHER = replace(WELL, node="b", is_driver=False)


def findings(nodes: list[NodeFacts], settings: Config, joined: bool = True, grows: bool = False) -> dict[str, Finding]:
    """The findings by check."""
    return {one.check: one for one in check_nodes(nodes, settings, joined, grows)}


def changed(settings: Config, section: str, **values: object) -> Config:
    """The run with other values in a section."""
    return settings.model_copy(update={section: getattr(settings, section).model_copy(update=values)})


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run with a teacher in an actor."""
    folder = tmp_path_factory.mktemp("doctor")
    return config(folder, folder / "runs")


def test_a_healthy_cluster_has_nothing_to_cure(settings: Config) -> None:
    """Every check is ok, and says what it saw."""
    found = findings([WELL, replace(WELL, node="b")], settings)
    assert {one.level for one in found.values()} == {"ok"} and not any(one.cure for one in found.values())
    assert found["versions"].message.startswith("lingu_ray 0.1.0, python 3.11.7")
    assert found["gpu"].message == (
        "a: 1 × NVIDIA H100 80GB HBM3, driver 570.86.15; b: 1 × NVIDIA H100 80GB HBM3, driver 570.86.15"
    )


@pytest.mark.parametrize(
    ("change", "check", "level", "says", "cure"),
    [
        ({"versions": VERSIONS | {"torch": "2.12.0"}}, "versions", "error", "b has torch 2.12.0, a has 2.13.0", "same"),
        (
            {"output_error": "it cannot be written: no space"},
            "output",
            "error",
            "b: it cannot be written",
            "every node",
        ),
        ({"shared_memory": 64 * 2**20}, "/dev/shm", "warning", "b has 64 MiB", "--shm-size"),
        ({"token": False}, "token", "error", "runs any code on b", "RAY_AUTH_MODE=token"),
        (
            {"variables": WELL.variables | {"RAY_free_objects_batch_size": None}},
            *("environment", "warning", "on b", "RAY_free_objects_batch_size=1"),
        ),
        (
            {"variables": WELL.variables | {"RAY_JOB_STOP_WAIT_TIME_S": "3"}},
            *("stopping", "warning", "below 120: b", "RAY_JOB_STOP_WAIT_TIME_S=120"),
        ),
    ],
)
def test_one_node_that_differs_is_named(
    settings: Config, change: dict[str, object], check: str, level: str, says: str, cure: str
) -> None:
    """With what to do; all other checks stay ok."""
    found = findings([WELL, replace(OTHER, **change)], settings)
    assert [one.check for one in found.values() if one.level != "ok"] == [check]
    assert found[check].level == level and says in found[check].message and cure in found[check].cure


@pytest.mark.parametrize(
    ("change", "check", "level", "says", "cure"),
    [
        ({"cuda": None}, "gpu", "error", "built without CUDA: b: torch 2.13.0", "torch for CUDA"),
        ({"cuda": "13.0"}, "gpu", "error", "b: torch is built for CUDA 13.0, driver 570.86.15 serves 12.8", "update"),
        ({"torch_error": "No CUDA GPUs"}, "gpu", "error", "torch cannot use; b: No CUDA GPUs", "docker run --gpus all"),
        ({"gpus": [replace(H100, compute_mode="Prohibited")]}, "compute mode", "error", "no process", "-c DEFAULT"),
        ({"mps": False}, "MPS", "warning", "student and teacher take turns on a GPU", "nvidia-cuda-mps-control -d"),
        ({"mps": False}, "MPS", "warning", "not running on b", "teacher.placement=in_process"),
    ],
)
def test_a_gpu_that_differs_is_named(
    settings: Config, change: dict[str, object], check: str, level: str, says: str, cure: str
) -> None:
    """With what to do; all other checks stay ok."""
    found = findings([WELL, replace(WELL, node="b", gpu=replace(GPU, **change))], settings)
    assert [one.check for one in found.values() if one.level != "ok"] == [check]
    assert found[check].level == level and says in found[check].message and cure in found[check].cure


def test_a_gpu_node_without_the_attention_is_named(settings: Config) -> None:
    """Flash attention that the run asks for must be on every node that has a GPU, and is asked of no other."""
    tree = settings.model_dump()
    tree["train"]["attention"] = "flash_attention_2"
    flash = Config.model_validate(tree)
    nodes = [WELL, replace(WELL, node="b", gpu=replace(GPU, gpus=[]), attentions=[])]
    assert findings(nodes, flash)["attention"].level == "ok"
    without = [*nodes, replace(WELL, node="c", attentions=["flash_attention_3"])]
    found = findings(without, flash)["attention"]
    assert found.level == "error" and "c has no package flash-attn" in found.message and "install" in found.cure
    assert findings(without, settings)["attention"].level == "ok"


SHARE = "start MPS there (nvidia-cuda-mps-control -d), or nvidia-smi -c DEFAULT there"


@pytest.mark.parametrize(
    ("changes", "mps", "cure"),
    [
        ({}, True, ""),
        ({}, False, f"{SHARE}, or set teacher.placement=in_process"),
        ({"teacher.placement": "in_process"}, False, ""),
        ({"ray.gpus_per_worker": 2}, False, ""),
        ({"ray.use_gpu": False}, False, ""),
        ({"distill.policy": "none"}, False, ""),
        ({"ray.gpus_per_worker": 0.5, "ray.num_workers": 2}, False, SHARE),
    ],
    ids=str,
)
def test_an_exclusive_gpu_takes_one_process_or_mps(
    settings: Config, changes: dict[str, object], mps: bool, cure: str
) -> None:
    """Exclusive_Process, as batch systems set it, is refused where a GPU is shared and MPS does not run; the cure is
    one that helps: a teacher in the worker does not where workers share."""
    tree = settings.model_dump()
    for name, value in changes.items():
        section, key = name.split(".")
        tree[section][key] = value
    exclusive = replace(WELL, gpu=replace(GPU, gpus=[replace(H100, compute_mode="Exclusive_Process")], mps=mps))
    found = findings([exclusive], Config.model_validate(tree))["compute mode"]
    assert (found.level, found.cure) == ("error" if cure else "ok", cure)


@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_expandable_segments_are_a_matter_of_cuda_ipc(settings: Config, name: str) -> None:
    """A warning that names node, variable and cure where the teacher is to open the worker's memory, only there."""
    node = replace(WELL, variables=WELL.variables | {name: "max_split_size_mb:64,expandable_segments:True"})

    def by(transport: str) -> Config:
        return settings.model_copy(update={"teacher": settings.teacher.model_copy(update={"transport": transport})})

    for transport in ("auto", "cuda_ipc"):
        found = findings([node], by(transport))["cuda_ipc"]
        assert found.level == "warning" and f"a has {name}=" in found.message and "object_store" in found.cure
        assert findings([WELL], by(transport))["cuda_ipc"].level == "ok"
    assert findings([node], by("object_store"))["cuda_ipc"].level == "ok"


SMI = """#!/bin/sh
case "$*" in
*query*) echo "NVIDIA H100 80GB HBM3, 570.86.15, Exclusive_Process" ;;
*) echo "| NVIDIA-SMI 570.86.15    Driver Version: 570.86.15    CUDA Version: 12.8 |" ;;
esac
"""


def test_gpus_are_read_from_what_nvidia_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name, driver, mode and CUDA from stand-ins for NVIDIA's commands; MPS runs where its control answers, and not
    where that fails or is missing; a machine without the commands has no GPU."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    control = tmp_path / "nvidia-cuda-mps-control"
    for name, text in (("nvidia-smi", SMI), (control.name, "#!/bin/sh\ncat >/dev/null\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    found = gpu_facts()
    assert found.gpus == [replace(H100, compute_mode="Exclusive_Process")] and found.driver_cuda == "12.8"
    assert found.mps
    control.write_text("#!/bin/sh\ncat >/dev/null\necho 'Cannot find MPS control daemon process'\nexit 1\n")
    assert not gpu_facts().mps
    (tmp_path / "nvidia-smi").unlink()
    without = gpu_facts()
    assert (without.gpus, without.smi_error, without.driver_cuda, without.mps) == ([], None, None, False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "echo 'Failed to initialize NVML'; echo 'version: 535'; exit 18",
            "Failed to initialize NVML version: 535 (exit",
        ),
        ("echo 'cannot talk to the driver' >&2; exit 9", "cannot talk to the driver (exit code 9)"),
        ("echo 'No devices were found'", "No devices were found (exit code 0)"),
        ("exit 1", "nothing (exit code 1)"),
    ],
)
def test_what_nvidia_smi_says_where_it_fails_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    """Whichever way it says it, where there is a device; an image for GPUs has the command on other machines, too."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{text}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setattr(gpu, "has_device", lambda: True)
    found = gpu_facts()
    assert found.gpus == [] and found.smi_error is not None and found.smi_error.startswith(said)
    monkeypatch.setattr(gpu, "has_device", lambda: False)
    assert (gpu_facts().gpus, gpu_facts().smi_error) == ([], None)


@pytest.mark.parametrize(
    ("devices", "there"),
    [
        ({"0": ("0x8086", "0x060000"), "1": ("0x10de", "0x030200")}, True),
        ({"0": ("0x10de", "0x0c0330"), "1": ("0x1af4", "0x030000")}, False),
        ({}, False),
    ],
)
def test_a_device_is_looked_for_on_the_bus(tmp_path: Path, devices: dict[str, tuple[str, str]], there: bool) -> None:
    """One of NVIDIA for graphics or computing; where Linux does not tell, as in some containers, there may be one."""
    bus = tmp_path / "devices"
    assert gpu.has_device(bus)
    bus.mkdir()
    for name, (vendor, kind) in devices.items():
        (bus / name).mkdir()
        (bus / name / "vendor").write_text(f"{vendor}\n")
        (bus / name / "class").write_text(f"{kind}\n")
    assert gpu.has_device(bus) is there


@pytest.mark.slow
def test_what_torch_says_without_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that sees no GPU says why, in one line."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    said = torch_error()
    assert said is not None and "CUDA" in said and "Error: " in said and "\n" not in said


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((7, 0), ["sm_75", "sm_80", "sm_90", "compute_90"], False),  # a V100, of which CUDA 13 knows nothing
        ((7, 5), ["sm_75", "sm_80"], True),
        ((8, 9), ["sm_75", "sm_86"], True),
        ((8, 0), ["sm_75", "sm_86"], False),
        ((12, 1), ["sm_90a", "sm_120"], True),
        ((12, 0), ["sm_90", "compute_90"], True),
        ((9, 4), [], True),  # of AMD's GPUs torch says other things
    ],
)
def test_a_gpu_that_torch_was_not_built_for_is_named(capability: tuple[int, int], built: list[str], runs: bool) -> None:
    """torch sees it, and its first kernel fails: code is for later GPUs of one generation, or compiled when loaded."""
    said = without_code([("Some GPU", capability)], built)
    assert (said is None) is runs
    assert runs or f"a Some GPU has compute capability {capability[0]}.{capability[1]}" in str(said)


@pytest.mark.parametrize(("capability", "said"), [((7, 0), "built for sm_75, sm_90"), ((9, 0), None)])
def test_a_process_looks_at_what_torch_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], said: str | None
) -> None:
    """Of a torch with a GPU, which a file of its name stands for."""
    lines = [
        "class cuda:",
        "    is_available = init = lambda *_: True",
        "    device_count = lambda: 1",
        "    get_device_name = lambda i: 'Some GPU'",
        f"    get_device_capability = lambda i: {capability}",
        "    get_arch_list = lambda: ['sm_75', 'sm_90']",
        "class version:",
        "    cuda = '13.0'",
    ]
    (tmp_path / "torch.py").write_text("\n".join(lines))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = torch_error()
    assert found is None if said is None else said in str(found)


def test_what_is_wrong_depends_on_the_run(settings: Config) -> None:
    """A GPU for one process does for a run whose teacher is in the worker; what only clusters need is not asked of a
    Ray that the run starts itself."""
    exclusive = replace(WELL, gpu=replace(GPU, gpus=[replace(H100, compute_mode="Exclusive_Process")], mps=False))
    inside = settings.model_copy(update={"teacher": settings.teacher.model_copy(update={"placement": "in_process"})})
    assert findings([exclusive], inside)["compute mode"].level == "ok"
    assert not {"environment", "stopping"} & findings([WELL], settings, joined=False).keys()


NO_GPU = GpuFacts([], smi_error=None, cuda=None, driver_cuda=None, torch_error=None, mps=False)


def test_no_gpu_is_well_unless_the_run_wants_one(settings: Config) -> None:
    """Then it is an error, with what to do; where an autoscaler may still start one, a warning."""
    without = replace(WELL, gpu=NO_GPU)
    wanted = changed(settings, "ray", use_gpu=True)
    assert findings([without], settings)["gpu"].level == findings([without, OTHER], wanted)["gpu"].level == "ok"
    found = findings([without], wanted)["gpu"]
    assert found.level == "error" and "ray.use_gpu=false" in found.cure
    found = findings([without], wanted, grows=True)["gpu"]
    assert found.level == "warning" and "not up yet" in found.message and "autoscaler" in found.cure


@pytest.mark.parametrize(("use_gpu", "level"), [(None, "error"), (True, "error"), (False, "warning")])
def test_a_broken_driver_is_no_missing_gpu(settings: Config, use_gpu: bool | None, level: str) -> None:
    """What nvidia-smi says is told, with its node; a run on CPUs alone is only warned, and not told to be one."""
    broken = replace(OTHER, gpu=replace(NO_GPU, smi_error="Failed to initialize NVML: version mismatch (exit code 18)"))
    found = findings([WELL, broken], changed(settings, "ray", use_gpu=use_gpu))["gpu"]
    assert found.level == level and "nvidia-smi fails; b: Failed to initialize NVML: version" in found.message
    assert "restart the machine" in found.cure and ("ray.use_gpu=false" in found.cure) == (use_gpu is not False)


def test_files_that_are_missing_are_named_with_their_setting(settings: Config) -> None:
    """One that no node has is an error, and so is one that some lack; what the driver alone lacks is a warning."""
    path = settings.teacher.path

    def data(*lacking: NodeFacts) -> tuple[str, str, str]:
        third = replace(OTHER, node="c")
        nodes = [replace(node, missing=[path]) if node in lacking else node for node in (WELL, OTHER, third)]
        found = findings(nodes, settings)["data"]
        return found.level, found.message, found.cure

    level, message, cure = data(OTHER)
    assert (level, message) == ("error", f"b has no {path} (teacher.path)") and "storage that every node" in cure
    assert data(WELL, OTHER)[:2] == ("error", f"b has no {path} (teacher.path)")
    level, message, cure = data(WELL, OTHER, replace(OTHER, node="c"))
    assert (level, message) == ("error", f"no node has {path} (teacher.path)") and "correct the setting" in cure
    level, message, _ = data(WELL)
    assert level == "warning" and f"started here, on a, does not find what the other nodes have: {path}" in message
    assert data()[0] == "ok"


def test_needed_are_all_local_paths_of_a_run_and_no_ids(tmp_path: Path) -> None:
    """Models, data, folders of images and tasks' files, absolute or patterns; ids of the hub, buckets, tasks of
    lm-evaluation-harness, and sources that are not trained on are left out; the demo makes what it needs."""
    sources = [
        {"name": "one", "format": "llava", "path": f"{tmp_path}/*.json", "image_root": f"{tmp_path}/images"},
        {
            "name": "two",
            "format": "llava",
            "path": "org/data",
            "image_root": "s3://mine/images",
            "language_heavy": True,
        },
    ]
    tasks = ["lm_eval/gsm8k", "arc_easy", {"name": "own", "kind": "language", "type": "perplexity", "path": "/x.jsonl"}]
    run = config(
        tmp_path, tmp_path, student={"path": "org/model"}, corpus={"sources": sources}, evaluation={"tasks": tasks}
    )
    assert needed_paths(run) == {
        "teacher.path": f"{tmp_path}/teacher",
        "corpus.sources.one.path": f"{tmp_path}/*.json",
        "corpus.sources.one.image_root": f"{tmp_path}/images",
        "evaluation.tasks.own.path": "/x.jsonl",
    }
    assert "corpus.sources.one.path" not in needed_paths(changed(run, "distill", policy="language_only"))
    assert needed_paths(read_arguments([])[0]) == {}


def test_a_pattern_is_here_where_it_matches(tmp_path: Path) -> None:
    """In folders below, too; a name that reads like a pattern is a name where it exists."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "[1].json").touch()
    assert is_here(f"{tmp_path}/a") and is_here(f"{tmp_path}/**/*.json") and is_here(f"{tmp_path}/a/b/[1].json")
    assert not (is_here(f"{tmp_path}/*.json") or is_here(f"{tmp_path}/c") or is_here(f"{tmp_path}/a/b/[2].json"))


def test_a_folder_is_written_as_other_nodes_see_it(tmp_path: Path) -> None:
    """One that a marker was put in is well, and clean afterwards; another folder of that name, or a file, is not."""
    shared, own = str(tmp_path / "runs with space"), tmp_path / "own"
    put_marker(shared, ".marker")
    assert output_error(shared, ".marker") is None
    remove_marker(shared, ".marker")
    remove_marker(shared, ".marker")
    assert not list(Path(shared).iterdir())
    assert "not the folder that this command sees" in str(output_error(str(own), ".marker"))
    put_marker(str(own), ".marker")
    own.joinpath(".marker").rename(tmp_path / "kept")
    with pytest.raises(OSError):
        put_marker(str(tmp_path / "kept"), ".marker")


@pytest.mark.parametrize("words", [["--address", "h:6379"], ["--address=h:6379"], ["ray.address=h:6379"]])
def test_an_address_is_given_as_to_ray_or_as_a_setting(words: list[str]) -> None:
    """All three are the setting; recipe, other settings and `--json` stand beside it."""
    read, as_json = read_arguments(["demo", *words, "train.steps=3", "--json"])
    assert (read.ray.address, read.train.steps, as_json) == ("h:6379", 3, True)
    with pytest.raises(UserError, match="more than one recipe or file: demo, paper"):
        read_arguments(["demo", "paper"])


def test_findings_are_a_table_with_their_cures() -> None:
    """A line each, its cure below it, and how many there are of what is to do."""
    found = [Finding("ray", "ok", "2 nodes"), Finding("token", "error", "off", "RAY_AUTH_MODE=token")]
    assert shown(found).splitlines() == [
        "ok       ray           2 nodes",
        "error    token         off",
        "                       → RAY_AUTH_MODE=token",
        "1 error, 0 warnings",
    ]


def test_a_store_and_a_cluster_are_told_with_one_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What says how to mend itself gets no second cure, such as a server to start where the store is a file."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # another test has started one in this process
    store, dashboard = {"uri": "sqlite:elsewhere.db"}, {"address": "http://127.0.0.1:8265"}
    found = examine(config(tmp_path, tmp_path, tracking=store, ray=dashboard))
    assert [(one.check, one.level, one.cure) for one in found] == [("tracking", "error", ""), ("ray", "error", "")]
    assert "a SQLite store is a file" in found[0].message and "is for `ray job submit`" in found[1].message
