"""What the command and `evaluate` refuse before anything is loaded."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny import picture, tiny_teacher, tiny_tokenizer
from transformers import BloomConfig, BloomForCausalLM

from lingu_ray.config import EvaluationConfig, TaskConfig
from lingu_ray.config.command_line import load_config
from lingu_ray.content import model_identity
from lingu_ray.errors import UserError
from lingu_ray.evaluate import evaluate_help, main, read_arguments
from lingu_ray.evaluation.engines.load import identity_of, load_model_files, takes_images
from lingu_ray.evaluation.engines.transformers_engine import TransformersEngine
from lingu_ray.evaluation.recovery import summarize
from lingu_ray.evaluation.roles import given_models
from lingu_ray.evaluation.run import check_engine, evaluate
from lingu_ray.paths import at_revision
from lingu_ray.report.evaluate_command import evaluate_command
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.storage import local_copy

CHOICE = {"name": "choice", "kind": "language", "type": "multiple_choice"}


def test_bad_items_stop_before_a_model_is_loaded(tmp_path: Path) -> None:
    """The error is about the items although the model is missing too."""
    broken = TaskConfig.model_validate({**CHOICE, "path": str(tmp_path / "none.jsonl")})
    with pytest.raises(UserError, match=r"choice: no such file or folder: .*none\.jsonl"):
        evaluate({"teacher": tmp_path / "missing"}, EvaluationConfig(tasks=(broken,)), tmp_path)


def test_a_missing_model_is_named_before_anything_starts(tmp_path: Path) -> None:
    """Its configuration is looked for before Ray is."""
    (tmp_path / "items.jsonl").write_text('{"query": "a", "choices": ["b", "c"], "gold": 0}\n')
    task = TaskConfig.model_validate({**CHOICE, "path": str(tmp_path / "items.jsonl")})
    with pytest.raises(UserError, match=r"^model: no such file or folder: .*missing"):
        evaluate({"teacher": tmp_path / "missing"}, EvaluationConfig(tasks=(task,)), tmp_path)


def test_a_task_that_no_model_can_take_is_told_before_the_others_are_measured(tmp_path: Path) -> None:
    """A text-only model alone, a task without and one with images; and kept answers, judged by a task beside theirs."""
    tiny_teacher(folder=tmp_path / "lm")
    (tmp_path / "items.jsonl").write_text('{"query": "a", "choices": ["b", "c"], "gold": 0}\n')
    (tmp_path / "seen.jsonl").write_text('{"question": "a", "image": "a.png", "answer": "b"}\n')
    (tmp_path / "a.png").write_bytes(picture(0))
    choice = TaskConfig.model_validate({**CHOICE, "path": str(tmp_path / "items.jsonl")})
    seen = TaskConfig(name="seen", kind="vision", type="exact_match", path=str(tmp_path / "seen.jsonl"))
    for tasks in ((choice, seen), (seen,)):
        with pytest.raises(UserError, match=r"seen: measured on none of lm: name a model that takes images"):
            evaluate({"lm": tmp_path / "lm"}, EvaluationConfig(tasks=tasks), tmp_path / "out")
    with pytest.raises(UserError, match=r"choice: measured on none of lm: name the models, or leave the task out"):
        summarize(tmp_path / "out", ["lm"], EvaluationConfig(tasks=(choice,)))


def test_a_model_that_does_not_say_its_context_is_refused(tmp_path: Path) -> None:
    """Before Ray is started; with the number in its configuration it is taken."""
    BloomForCausalLM(BloomConfig(vocab_size=320, hidden_size=32, n_layer=2, n_head=2)).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "items.jsonl").write_text('{"query": "a", "choices": ["b", "c"], "gold": 0}\n')
    task = TaskConfig.model_validate({**CHOICE, "path": str(tmp_path / "items.jsonl")})
    with pytest.raises(UserError, match=rf"model {re.escape(str(tmp_path))}: its configuration does not say how long"):
        evaluate({"teacher": tmp_path}, EvaluationConfig(tasks=(task,)), tmp_path / "out")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 128}))
    assert load_model_files(tmp_path).max_length == 128


def test_a_model_that_is_not_what_its_files_say_is_refused(tmp_path: Path) -> None:
    """Before Ray is started, for vLLM too, which reports no weights that are missing; and by the engine itself."""
    tiny_teacher(folder=tmp_path / "model")
    (tmp_path / "items.jsonl").write_text('{"query": "a", "choices": ["b", "c"], "gold": 0}\n')
    task = TaskConfig.model_validate({**CHOICE, "path": str(tmp_path / "items.jsonl")})
    settings = EvaluationConfig(tasks=(task,))
    file = tmp_path / "model" / "model.safetensors"
    save_file({f"base_model.model.{k}": v for k, v in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"model .*: its weights are not those(?s:.*)left over: base_model(?s:.*)peft"):
        evaluate({"teacher": tmp_path / "model"}, settings, tmp_path)
    with pytest.raises(UserError, match=r"model .*: its weights are not those(?s:.*)left over: base_model(?s:.*)peft"):
        TransformersEngine(tmp_path / "model", 100)
    (tmp_path / "model" / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    with pytest.raises(UserError, match=r"model: .* holds an adapter of some/base"):
        evaluate({"teacher": tmp_path / "model"}, settings, tmp_path)


def test_a_run_s_models_are_measured_in_the_revisions_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its teacher and student of the hub, not what main is by now; so does the command that a report gives."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("lm", "vlm"):
        for revision in ("main", "v1"):
            refs, snapshot = (tmp_path / f"models--owner--{name}" / part for part in ("refs", f"snapshots/{revision}0"))
            refs.mkdir(parents=True, exist_ok=True)
            (refs / revision).write_text(snapshot.name)
            tiny_teacher(folder=snapshot)
    student, teacher = ({"path": f"owner/{name}", "revision": "v1"} for name in ("vlm", "lm"))
    config = load_config(["demo", f"student={json.dumps(student)}", f"teacher={json.dumps(teacher)}"])
    models, _ = read_arguments([*shlex.split(evaluate_command(config, RunFolder(tmp_path)))[3:-2], "tasks=piqa"])
    assert {name: str(model) for name, model in models.items() if name != "distilled"} == given_models(config)
    for role, name in (("teacher", "lm"), ("adapted", "vlm")):
        folder = tmp_path / f"models--owner--{name}" / "snapshots" / "v10"
        assert load_model_files(models[role]).path == local_copy(models[role]) == str(folder)
    assert local_copy(at_revision("owner/lm/x.gguf", "v1")) == str(tmp_path / "models--owner--lm/snapshots/v10/x.gguf")
    with pytest.raises(UserError, match=r"owner/lm: revision v2 cannot be had of the Hugging Face hub"):
        load_model_files("owner/lm@v2")


def test_results_do_not_go_into_a_model(tmp_path: Path) -> None:
    """Its files are what tells whether it was measured, and are published."""
    tiny_teacher(folder=tmp_path)
    with pytest.raises(UserError, match=rf"out={tmp_path}: a model lies there"):
        main([f"teacher={tmp_path}", "tasks=arc_easy", f"out={tmp_path}"])
    assert not (tmp_path / "mlflow.json").exists()


def test_a_hub_model_that_moved_on_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a branch the commit counts that was loaded: answers of the one before are not taken for it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cache, identities = tmp_path / "models--owner--lm", []
    (cache / "refs").mkdir(parents=True)
    for commit in ("a", "b", "a"):
        tiny_teacher(folder=cache / "snapshots" / commit)
        (cache / "refs" / "main").write_text(commit)
        assert not takes_images("owner/lm")
        identities.append(identity_of("owner/lm"))
    assert identities == ["owner/lm@a", "owner/lm@b", "owner/lm@a"]
    folder = cache / "snapshots" / "a"
    assert identity_of(folder) == model_identity(str(folder))


def test_an_engine_that_cannot_serve_a_model_is_told_before_training() -> None:
    """As far as that is known without vLLM, which changes the process that imports it."""
    task = TaskConfig.model_validate({**CHOICE, "path": "-"})
    with pytest.raises(UserError, match=r"evaluation.engine=vllm cannot serve x.gguf: .*; set evaluation.engine"):
        check_engine(EvaluationConfig(tasks=(task,), engine="vllm"), ["x.gguf"])
    check_engine(EvaluationConfig(tasks=(task,)), ["x.gguf"])
    check_engine(EvaluationConfig(engine="vllm"), ["x.gguf"])


def test_nothing_to_evaluate_and_bad_names(tmp_path: Path) -> None:
    """No task, no model, or a name that is no file name."""
    task = TaskConfig.model_validate({**CHOICE, "path": "-"})
    with pytest.raises(UserError, match="nothing to evaluate"):
        evaluate({"teacher": tmp_path}, EvaluationConfig(), tmp_path)
    with pytest.raises(UserError, match="model's name"):
        evaluate({"../teacher": tmp_path}, EvaluationConfig(tasks=(task,)), tmp_path)
    with pytest.raises(UserError, match=rf"out={tmp_path}/new: no answers to these tasks are kept there; name models"):
        main(["tasks=arc_easy", f"out={tmp_path}/new"])


def test_arguments() -> None:
    """Models with and without a name, tasks of the catalog, settings of the evaluation and of Ray."""
    models, config = read_arguments(
        ["runs/a/export", "teacher=lm.gguf", "tasks=arc_easy,piqa", "engine=vllm", "ray.cpus_per_worker=2"]
    )
    assert models == {"export": Path("runs/a/export").absolute(), "teacher": Path("lm.gguf").absolute()}
    assert [task.name for task in config.tasks] == ["arc_easy", "piqa"]
    assert (config.engine, config.ray.cpus_per_worker) == ("vllm", 2)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("lm.gguf", "lm"),
        ("org/SmolLM2-1.7B", "SmolLM2-1-7B"),
        ("runs/a (2)/", "a-2"),
        ("m.Q4_1.gguf", "m-Q4_1"),
    ],
)
def test_a_model_without_a_name_gets_one_that_is_taken(given: str, name: str) -> None:
    """Dots and blanks of a folder, a file or a hub id are no letters of a name."""
    models, _ = read_arguments([given, "tasks=piqa"])
    assert list(models) == [name]
    with pytest.raises(
        UserError, match=r"模型: a model's name is of letters A to Z, .*: give it one, as vlm=runs/模型"
    ):
        read_arguments(["runs/模型", "tasks=piqa"])


@pytest.mark.parametrize("tasks", ["arc_easy,piqa", "arc_easy, piqa", "arc_easy,piqa,", "[arc_easy, piqa]"])
def test_tasks_are_named_with_commas_or_as_a_list(tasks: str) -> None:
    """Blanks and a comma at the end say nothing; other values of the command line are YAML, and this one may be."""
    assert [task.name for task in read_arguments(["m", f"tasks={tasks}"])[1].tasks] == ["arc_easy", "piqa"]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("engin=vllm", "engine=vllm"),
        ("task=piqa", "tasks=piqa"),
        ("limit=100", "tasks.TASK.limit=100"),
        ("evaluation.blind=true", "blind=true"),
        ("evaluation.tasks.piqa.limit=3", "tasks.piqa.limit=3"),
    ],
)
def test_a_setting_that_there_is_not_is_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, meant: str
) -> None:
    """It is told at once with the one that is meant, before any data; where a model lies there it is one."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=re.escape(f"{given}: no such setting, and no model lies there; did you mean {meant}?")
    ):
        read_arguments(["teacher=org/model", given, "tasks=piqa"])
    (tmp_path / given.partition("=")[2]).mkdir()
    assert given.partition("=")[0] in read_arguments([given, "tasks=piqa"])[0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            "tasks.lm_eval/gsm8k.limit=5",
            "'tasks.lm_eval/gsm8k.limit=5' is no key=value.* a task by what follows lm_eval/",
        ),
        ("distilled=", "distilled=: no model is named"),
    ],
)
def test_what_cannot_be_a_model_is_refused(given: str, words: str) -> None:
    """A setting with a key that settings have not, and what an empty variable of the shell leaves."""
    with pytest.raises(UserError, match=words):
        read_arguments(["vlm", "tasks=lm_eval/gsm8k", given])


def test_a_task_named_on_the_command_line_can_be_changed_there() -> None:
    """Dotted settings find tasks by name, though the list holds bare names; the others stay as they are."""
    _, config = read_arguments(
        ["x", "tasks.arc_easy.limit=5", "tasks=arc_easy,piqa,lm_eval/gsm8k", "tasks.gsm8k.limit=7"]
    )
    assert [(task.name, task.limit) for task in config.tasks] == [("arc_easy", 5), ("piqa", None), ("gsm8k", 7)]
    assert config.tasks[0].type == "multiple_choice"


def test_help_teaches_settings_and_catalog() -> None:
    """The short page names settings, sections and tasks; `catalog` says where each task's data lies."""
    text = evaluate_help().text([])
    assert all(name in text for name in ("models_at_once", "hellaswag", "textvqa", "lm_eval/NAME", "ray  ", "tasks  "))
    assert "Rowan/hellaswag" in evaluate_help().text(["catalog"])
    assert "ray.cpus_per_worker = 1.0" in evaluate_help().text(["ray"])


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    """No tasks, an option, two models of one name, and settings that are none, are the user's errors."""
    tasks = tmp_path / "tasks.yaml"
    tasks.write_text("task: []")
    with pytest.raises(UserError, match="name the tasks"):
        main(["teacher=x"])
    with pytest.raises(UserError, match="unknown option --tasks"):
        main(["x", "--tasks"])
    with pytest.raises(UserError, match="two models have one name"):
        main(["a/export", "b/export", "tasks=arc_easy"])
    with pytest.raises(UserError, match=r"tasks= is given twice, .*: give all in one list"):
        main(["a/export", "tasks=arc_easy", "tasks=piqa", "tasks.piqa.limit=5"])
    with pytest.raises(UserError, match=r"name ce_only is plain_ce .* or same_ce .* now"):
        main(["teacher=x", "ce_only=y", "tasks=arc_easy"])
    with pytest.raises(UserError, match=r"did you mean tasks\?.*tasks\.yaml:1"):
        main(["x", f"tasks={tasks}"])
    tasks.write_text("name: mine\nevaluation: {tasks: [arc_easy]}")
    with pytest.raises(UserError, match=r"tasks\.yaml: .*as a file of its own, without that key"):
        main(["x", f"tasks={tasks}"])
    with pytest.raises(UserError, match=r"name the tasks"):
        main(["x", "tasks="])
    with pytest.raises(UserError, match=r"no task 'arc_eesy' .* did you mean arc_easy"):
        main(["x", "tasks=arc_eesy"])


def test_a_file_of_tasks_may_lie_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every shell writes `~` out behind `tasks=`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("tasks: [piqa]")
    _, settings = read_arguments([str(tmp_path), "tasks=~/mine.yaml"])
    assert [task.name for task in settings.tasks] == ["piqa"]
