"""Evaluations on a real Ray: from models and items to recovery.json, resumed, spread, and when an engine dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import commands
import mlflow
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from processes import title_of
from safetensors.torch import load_file, save_file
from tiny import picture, tiny_student, tiny_teacher

from lingu_ray import waiting
from lingu_ray.config import EvaluationConfig, RayConfig
from lingu_ray.errors import UserError
from lingu_ray.evaluate import main
from lingu_ray.evaluation import measure
from lingu_ray.evaluation.engines.engine import ScoreRequest
from lingu_ray.evaluation.item_files import stamp_of
from lingu_ray.evaluation.recovery import summarize
from lingu_ray.evaluation.recovery_json import read_recovery
from lingu_ray.evaluation.replicas import Chunk, Hardware, Replicas
from lingu_ray.evaluation.run import evaluate

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A teacher, a student with the teacher's decoder, and one with another decoder."""
    folder = tmp_path_factory.mktemp("models")
    teacher = tiny_teacher(folder=folder / "teacher")
    tiny_student(teacher, folder=folder / "distilled")
    tiny_student(tiny_teacher(seed=5), folder=folder / "adapted")
    return {name: folder / name for name in ("teacher", "adapted", "distilled")}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> EvaluationConfig:
    """Three tasks of a few items, one of each type; the one about images is asked without them, too."""
    folder = tmp_path_factory.mktemp("items")
    for number in range(2):
        (folder / f"{number}.png").write_bytes(picture(number))
    items = {
        "choice": [
            {"query": f"The {w} of", "choices": ["a list", "names", "x"], "gold": 1} for w in ("use", "end", "b")
        ],
        "text": [{"text": "Names refer to objects."}, {"text": "A class body."}],
        "image": [{"question": "Which?", "answer": "seven", "image": f"{number}.png"} for number in range(2)],
    }
    for name, records in items.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    kinds = {
        "choice": ("language", "multiple_choice"),
        "text": ("language", "perplexity"),
        "image": ("vision", "exact_match"),
    }
    tasks = [
        {"name": name, "kind": kind, "type": type, "path": str(folder / f"{name}.jsonl")}
        for name, (kind, type) in kinds.items()
    ]
    tasks[-1] |= {"max_new_tokens": 4}
    return EvaluationConfig.model_validate({"tasks": tasks, "bootstrap": 100, "engine": "transformers", "blind": True})


def test_the_copy_of_the_teacher_scores_as_the_teacher(
    models: dict[str, Path], settings: EvaluationConfig, tmp_path: Path
) -> None:
    """A student with the teacher's decoder differs by the few tokens it has more; vision leaves the teacher out."""
    tasks = evaluate(models, settings, tmp_path).tasks
    assert list(tasks["choice"].models) == list(tasks["text"].models) == ["teacher", "adapted", "distilled"]
    assert list(tasks["image"].models) == ["adapted", "distilled"]
    assert tasks["image"].blind is not None and list(tasks["image"].blind.scores) == ["adapted", "distilled"]
    assert {name: task.items for name, task in tasks.items()} == {"choice": 3, "text": 2, "image": 2}
    table = {model: pq.read_table(tmp_path / "items" / f"choice.{model}.parquet").to_pydict() for model in models}
    assert {"item", "gold", "lengths", "logliks", "tokens", "greedy"} <= set(table["teacher"])
    logliks = {model: np.array(columns["logliks"]) for model, columns in table.items()}
    assert np.allclose(logliks["distilled"], logliks["teacher"], rtol=0, atol=0.5)
    assert not np.allclose(logliks["adapted"], logliks["teacher"], rtol=0, atol=2)


def test_the_same_json_without_a_model(models: dict[str, Path], settings: EvaluationConfig, tmp_path: Path) -> None:
    """recovery.json is made again from the parquet files alone, byte for byte."""
    evaluate(models, settings, tmp_path)
    written = (tmp_path / "recovery.json").read_bytes()
    shutil.copytree(tmp_path / "items", tmp_path / "elsewhere" / "items")
    summarize(tmp_path / "elsewhere", list(models), settings)
    assert (tmp_path / "elsewhere" / "recovery.json").read_bytes() == written


def test_items_of_an_earlier_evaluation_are_not_taken(
    models: dict[str, Path], settings: EvaluationConfig, tmp_path: Path
) -> None:
    """A model that is not measured on a task any more leaves nothing of its name behind."""
    items = tmp_path / "items"
    items.mkdir()
    (items / "image.teacher.parquet").write_bytes(b"of another model")
    evaluate(models, settings, tmp_path)
    assert not (items / "image.teacher.parquet").exists()


def test_the_command(
    models: dict[str, Path], settings: EvaluationConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Writes json, items and figure, prints the verdict, and tracks each model; without models all from the items."""
    tasks = tmp_path / "tasks.yaml"
    tasks.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    out = tmp_path / "out"
    rest = [f"tasks={tasks}", f"out={out}", "tracking.system_metrics=false"]
    main([*(f"{name}={path}" for name, path in models.items()), *rest])
    written, measured = (out / "recovery.json").read_bytes(), read_recovery(out)
    assert measured is not None
    main(rest)
    first, page, compare, *again = capsys.readouterr().out.splitlines()
    assert [first, page, compare] == again and first.startswith("The claim")
    assert page.endswith(str(out / "report.html")) and compare.endswith(f"sqlite:///{out / 'mlflow.db'}")
    client = mlflow.MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    runs = {run.info.run_name: run for run in client.search_runs(["1"])}
    assert runs.keys() == {"out", *models} and len(client.search_runs(["1"])) == 4  # the second time, found again
    assert runs["out"].data.tags["verdict"] == first
    assert {artifact.path for artifact in client.list_artifacts(runs["out"].info.run_id)} >= {"report.html"}
    assert runs["out"].data.tags["environment.torch"] == json.loads((out / "environment.json").read_text())["torch"]
    for name, task in (("teacher", "choice"), ("distilled", "image")):
        score = measured.tasks[task].models[name].score.value
        assert runs[name].data.metrics[f"eval/{task}/score"] == score
        assert runs[name].data.tags[MLFLOW_PARENT_RUN_ID] == runs["out"].info.run_id
        assert runs[name].data.tags["model"] == str(models[name])
    assert (out / "recovery.json").read_bytes() == written and (out / "recovery.png").exists()
    html = (out / "report.html").read_text()
    assert "Answers side by side" in html and "data:image/jpeg" in html and "Names refer" not in html


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> EvaluationConfig:
    """One task of 600 items: five chunks."""
    path = tmp_path_factory.mktemp("many") / "many.jsonl"
    records = [{"query": f"{i} is", "choices": [f"less than {i}", "a number"], "gold": 1} for i in range(600)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    task = {"name": "many", "kind": "language", "type": "multiple_choice", "path": str(path)}
    return EvaluationConfig.model_validate({"tasks": [task], "bootstrap": 50, "engine": "transformers"})


def logliks(out_dir: Path, model: str) -> list[list[float]]:
    """What was kept of the task of many items."""
    return pq.read_table(out_dir / "items" / f"many.{model}.parquet")["logliks"].to_pylist()


def test_a_second_evaluation_asks_nothing(models: dict[str, Path], settings: EvaluationConfig, tmp_path: Path) -> None:
    """The same tasks on the same models are found; a model that has changed is measured again."""
    copies = {name: Path(shutil.copytree(path, tmp_path / name)) for name, path in models.items()}
    evaluate(copies, settings, tmp_path / "out")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "items").iterdir()}
    evaluate(copies, settings, tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    os.utime(copies["teacher"] / "model.safetensors")  # touched, and still the same model
    config = copies["adapted"] / "config.json"
    config.write_text(config.read_text() + "\n")
    evaluate(copies, settings, tmp_path / "out")
    changed = {path.name for path in kept if path.stat().st_mtime_ns != kept[path]}
    assert changed == {f"{name}.adapted.parquet" for name in (*(task.name for task in settings.tasks), "image@blind")}


def test_all_models_are_measured_by_one_engine(
    models: dict[str, Path], settings: EvaluationConfig, tmp_path: Path
) -> None:
    """`auto` ends what Transformers began with Transformers, though vLLM is here and could serve the others."""
    evaluate({name: models[name] for name in ("teacher", "adapted")}, settings, tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "items").iterdir()}
    evaluate(models, settings.model_copy(update={"engine": "auto"}), tmp_path)
    files = [path for path in (tmp_path / "items").iterdir() if path.suffix == ".parquet"]
    stamps = {path: stamp_of(path) for path in files}
    assert {stamp.engine for stamp in stamps.values() if stamp} == {"transformers, fp32"} and len(files) == 10
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_replicas_and_models_side_by_side(models: dict[str, Path], many: EvaluationConfig, tmp_path: Path) -> None:
    """Two replicas of one model, and two models at once, give what one after the other gives."""
    two = {name: models[name] for name in ("teacher", "adapted")}
    evaluate(two, many, tmp_path / "one")
    evaluate(two, many.model_copy(update={"replicas": 2}), tmp_path / "replicas")
    evaluate(two, many.model_copy(update={"models_at_once": 2}), tmp_path / "side")
    for name in two:
        expected = np.array(logliks(tmp_path / "one", name))
        for other in ("replicas", "side"):
            np.testing.assert_allclose(logliks(tmp_path / other, name), expected, rtol=0, atol=1e-4)


def test_what_the_cluster_never_holds_is_refused(
    models: dict[str, Path], many: EvaluationConfig, tmp_path: Path
) -> None:
    """Instead of waiting for ever."""
    with pytest.raises(UserError, match=r"evaluation\.replicas=3 .* needs 3 × \(1 CPU\), .* has room for 2: ask"):
        evaluate({"teacher": models["teacher"]}, many.model_copy(update={"replicas": 3}), tmp_path)


def test_a_model_that_no_engine_can_load_is_named(
    models: dict[str, Path], many: EvaluationConfig, tmp_path: Path
) -> None:
    """What fails in an engine comes back as the user's error, with the model's name."""
    broken = Path(shutil.copytree(models["teacher"], tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")  # not seen before an engine reads it
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model teacher: .*broken: model\.norm\.weight holds NaN"):
        evaluate({"teacher": broken}, many, tmp_path / "out")


def engines() -> list[psutil.Process]:
    """Processes of this Ray that hold an engine."""
    found = psutil.Process().children(recursive=True)
    return [process for process in found if "_EngineActor" in title_of(process)]


def chunks(deaths: int) -> Iterator[Chunk]:
    """Three chunks; while the second is made, and each time that it is made again, the engine is killed."""
    requests = [ScoreRequest("The use of", f" {word}") for word in ("a list", "names")]

    def kill() -> None:
        while not (there := engines()):
            time.sleep(0.05)
        for process in there:
            process.send_signal(signal.SIGKILL)

    for begin in range(3):
        if begin == 1 and deaths:
            kill()
        yield Chunk(begin, lambda: requests)


def test_an_engine_that_dies_is_replaced(models: dict[str, Path], many: EvaluationConfig) -> None:
    """Its chunks are asked again, and the answers are those of an engine that lives."""
    with Replicas("transformers", many, Hardware.of(many, RayConfig())) as replicas:
        replicas.serve("teacher", models["teacher"])
        undisturbed = dict((chunk.begin, answers) for chunk, answers in replicas.answers(chunks(deaths=0)))
        disturbed = dict((chunk.begin, answers) for chunk, answers in replicas.answers(chunks(deaths=1)))
    assert set(undisturbed) == {0, 1, 2} and disturbed == undisturbed


def test_an_engine_that_hangs_is_told(
    models: dict[str, Path], many: EvaluationConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its process is there, and stopped: a line names model and engines, and once it runs again all is answered."""
    monkeypatch.setattr(waiting, "FIRST_WORD_S", 1.0)
    monkeypatch.setattr(waiting, "_known", {})

    def resume() -> None:
        while "waiting for answers of model teacher since" not in caplog.text:
            time.sleep(0.05)
        for process in engines():
            process.resume()

    def hanging() -> Iterator[Chunk]:
        for chunk in chunks(deaths=0):
            if chunk.begin == 2:
                for process in engines():
                    process.suspend()
                caplog.clear()  # that it started slowly, maybe
                resuming.start()
            yield chunk

    resuming = Thread(target=resume)
    with Replicas("transformers", many, Hardware.of(many, RayConfig())) as replicas:
        replicas.serve("teacher", models["teacher"])
        assert {chunk.begin for chunk, _ in replicas.answers(hanging())} == {0, 1, 2}
        resuming.join()
    assert "its transformers engines (1, ray::_EngineActor) compute, load the model, or hang" in caplog.text


class Deadly(ScoreRequest):
    """A request that ends the process that takes it, as one does that no memory holds."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[int]]:
        return os._exit, (1,)


def test_an_engine_that_dies_again_and_again_is_given_up(models: dict[str, Path], many: EvaluationConfig) -> None:
    """The error names the model, the items and the cure."""
    with Replicas("transformers", many, Hardware.of(many, RayConfig())) as replicas:
        replicas.serve("teacher", models["teacher"])
        with pytest.raises(UserError, match=r"model teacher .* died 2 times at the items from 6 on"):
            list(replicas.answers([Chunk(5, lambda: [Deadly("a", " b")])]))


def words(models: dict[str, Path], tasks: Path, out: Path) -> list[str]:
    """The command's arguments."""
    return [*(f"{name}={models[name]}" for name in ("teacher", "adapted")), f"tasks={tasks}", f"out={out}"]


def test_a_killed_evaluation_goes_on(
    ray_cluster: str, models: dict[str, Path], many: EvaluationConfig, tmp_path: Path
) -> None:
    """After Ctrl-C, then SIGKILL, what was kept is not asked again, and the scores are those of an undisturbed one."""
    tasks, out = tmp_path / "tasks.yaml", tmp_path / "out"
    tasks.write_text(yaml.safe_dump(many.model_dump(mode="json") | {"tokens_per_batch": 64}))
    parts = out / "items" / "many.teacher.parts"
    given = words(models, tasks, out)
    with commands.start_warm("lingu_ray.evaluate", *given) as command:
        command.wait_for(lambda: list(parts.glob("*.parquet")))
        command.process.send_signal(signal.SIGINT)
        printed = command.finish(130)
    assert "the same command resumes" in printed and "Traceback" not in printed
    interrupted = len(list(parts.glob("*.parquet")))
    with commands.start_warm("lingu_ray.evaluate", *given) as command:
        command.wait_for(lambda: len(list(parts.glob("*.parquet"))) > interrupted)
        command.kill()
    kept = len(list(parts.glob("*.parquet")))
    printed = commands.run("lingu_ray.evaluate", *given, env={"RAY_ADDRESS": ray_cluster}, warm=True)
    left = 600 - kept * measure.CHUNK
    assert 1 <= interrupted < kept < 5
    assert f"teacher: many: {left} items" in printed and "adapted: many: 600 items" in printed
    evaluate({name: models[name] for name in ("teacher", "adapted")}, many, tmp_path / "undisturbed")
    for name in ("teacher", "adapted"):
        expected = logliks(tmp_path / "undisturbed", name)
        np.testing.assert_allclose(logliks(out, name), expected, rtol=0, atol=1e-4)
