"""Runs side by side: which settings are shown, whose scores, and where from."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from lingu_ray.config.command_line import load_config, to_yaml
from lingu_ray.config.flat import flat
from lingu_ray.errors import UserError
from lingu_ray.evaluation.recovery_json import write_recovery
from lingu_ray.evaluation.results import Estimate, Interval, Kind, Means, ModelScore, Recovery, TaskScores, Verdict
from lingu_ray.evaluation.roles import OF_THE_PAPER, OF_THE_TEACHER, trained_role
from lingu_ray.evaluation.tracking import log_scores, log_verdict
from lingu_ray.runtime.controls import control_config
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.tracking.store import open_store
from lingu_ray.runtime.tracking.store_uri import STORE, tracking_uri
from lingu_ray.runtime.tracking.tracker import Tracker
from lingu_ray.train import track
from tuning import compare
from tuning.curves import curve_panels
from tuning.differences import differing_settings

pytestmark = pytest.mark.slow  # real stores, and plots

TASKS: dict[str, tuple[Kind, float]] = {"cloze": ("language", 0.5), "digits": ("vision", 0.9)}


def estimate(value: float) -> Estimate:
    """A value that is certain."""
    return Estimate(value, Interval(value, value))


def result(**models: float) -> Recovery:
    """Every model scores the task's level times its factor, which is its mean recovery too; items have fingerprints."""
    tasks: dict[str, TaskScores] = {}
    for name, (kind, level) in TASKS.items():
        scores = {model: ModelScore(estimate(level * factor), {}, None) for model, factor in models.items()}
        tasks[name] = TaskScores(kind, "acc", True, True, 100, 100, scores, None, "not measured: teacher", asked="1")
        tasks[name] = replace(tasks[name], engine="vllm, fp32")
    means = {model: Means(estimate(factor), None) for model, factor in models.items()}
    verdict = Verdict(None, "The claim is not decided: no vision.")
    return Recovery(tasks, means["distilled"], means, {}, {}, OF_THE_TEACHER, verdict)


@pytest.fixture
def run(empty_store: Path, tmp_path: Path) -> RunFolder:
    """A run with its control, evaluated, in folders and in MLflow."""
    shutil.copy(empty_store, tmp_path / STORE)
    config = load_config(["demo", f"output_dir={tmp_path}", "tracking.system_metrics=false"])
    measured = result(distilled=1.0, plain_ce=0.5)
    for one, model in ((config, "distilled"), (control_config(config, "plain_ce"), "plain_ce")):
        folder = RunFolder(one.run_dir)
        folder.root.mkdir(parents=True, exist_ok=True)
        folder.config.write_text(to_yaml(one))
        with Tracker(one, folder) as tracked:
            log_scores(tracked, measured, model)
            if model == "distilled":
                log_verdict(tracked, measured.verdict)
    folder = RunFolder(config.run_dir)
    folder.report.mkdir()
    write_recovery(measured, folder.report)
    return folder


def test_folders_and_mlflow_tell_the_same(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scores of run and control, from the report's JSON and from MLflow; of the settings the policy alone."""
    control = run.root / "controls" / "plain_ce"
    uri = tracking_uri(load_config(["demo", f"output_dir={tmp_path}"]))
    by_folder = compare.read_runs([str(run.root), str(control)], compare.CompareConfig())
    stored = compare.CompareConfig(uri=uri, experiment="lingu_ray")
    by_name = {r.name: r for r in compare.read_runs([], stored)}
    assert by_name.keys() == {"demo", "demo/plain_ce"}
    for folder, tracked in zip(by_folder, (by_name["demo"], by_name["demo/plain_ce"]), strict=True):
        assert folder.metrics == tracked.metrics and folder.metrics["eval/cloze/score"] in (0.5, 0.25)
        assert folder.settings == tracked.settings and folder.verdict == tracked.verdict
        assert folder.asked == tracked.asked == {"cloze": "1", "digits": "1"}
        assert folder.formulas == tracked.formulas == {"recovery": f"{OF_THE_TEACHER.formulas['recovery']} over cloze"}
        assert folder.engines == tracked.engines == dict.fromkeys(TASKS, "vllm, fp32")
    assert [row.keys for row in differing_settings([r.settings for r in by_folder])] == [("distill.policy",)]
    compare.main([str(run.root), str(control), f"out={tmp_path / 'compared'}"])
    printed, page = capsys.readouterr().out, (tmp_path / "compared" / "compare.html").read_text()
    for text in (printed, page):
        words = ("cloze", "25.0% [25.0, 25.0]", "digits", "recovery", "100.0% [", "distill.policy", "selective")
        assert all(word in text for word in words)
        assert text.count("The claim is not decided: no vision.") == 1
        assert "eval/" not in text and "output_dir" not in text and "different" not in text and "in one way" not in text


def test_scores_of_many_tasks_are_logged(empty_store: Path, tmp_path: Path) -> None:
    """More than MLflow takes tags of at a time, as the subjects of MMLU are."""
    shutil.copy(empty_store, tmp_path / STORE)
    config, measured = (
        load_config(["demo", f"output_dir={tmp_path}", "tracking.system_metrics=false"]),
        result(distilled=1),
    )
    many = replace(measured, tasks={f"mmlu_{number}": measured.tasks["cloze"] for number in range(57)})
    with Tracker(config, RunFolder(config.run_dir)) as tracked:
        log_scores(tracked, many, "distilled")
    (found,) = compare.read_runs([], compare.CompareConfig(uri=tracking_uri(config), experiment="lingu_ray"))
    assert found.asked.keys() == found.engines.keys() == many.tasks.keys()


def test_scores_of_an_earlier_evaluation_are_none_in_mlflow(run: RunFolder, tmp_path: Path) -> None:
    """Measured again on other tasks, and with no mean recovery, a run has no score, mean or formula of before there."""
    config = load_config(["demo", f"output_dir={tmp_path}", "tracking.system_metrics=false"])
    again = result(distilled=0.8)
    again = replace(again, tasks={"new": again.tasks["cloze"]}, models={"distilled": Means(None, None)})
    for _ in range(2):
        with Tracker(config, run) as tracked:
            log_scores(tracked, again, "distilled")
        read = compare.read_runs([], compare.CompareConfig(uri=tracking_uri(config), experiment="lingu_ray"))
        (found,) = (one for one in read if one.name == "demo")
        assert found.metrics == {"eval/new/score": 0.4} and found.asked == {"new": "1"}
        assert found.engines.keys() == {"new"} and found.formulas == {}


def test_a_trial_without_a_teacher_has_its_own_scores(empty_store: Path, tmp_path: Path) -> None:
    """Beside a reference of its role, which another run trained: in its folder's report and in MLflow."""
    shutil.copy(empty_store, tmp_path / STORE)
    of_trial = ("tracking.system_metrics=false", "distill.policy=none", "student.role=original_vlm")
    config = load_config(["demo", f"output_dir={tmp_path}", *of_trial])
    folder, measured = RunFolder(config.run_dir), result(original_vlm=1.0, fine_tuned=0.5, distilled=0.25)
    folder.report.mkdir(parents=True)
    folder.config.write_text(to_yaml(config))
    write_recovery(measured, folder.report)
    track(config, measured)
    assert trained_role(config) == "fine_tuned"
    stored = compare.CompareConfig(uri=tracking_uri(config), experiment="lingu_ray")
    for (found,) in (compare.read_runs([str(folder.root)], compare.CompareConfig()), compare.read_runs([], stored)):
        assert (found.metrics["eval/cloze/score"], found.metrics["recovery"]) == (0.125, 0.25)


def test_scores_on_other_items_are_said_not_to_compare(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A task whose data changed between the runs is named, on terminal and page; of what is not known nothing is."""
    measured = result(distilled=1.0)
    asked = {"cloze": "2", "digits": None}
    changed = {name: replace(task, asked=asked[name]) for name, task in measured.tasks.items()}
    later = Path(shutil.copytree(run.root, tmp_path / "later"))
    write_recovery(replace(measured, tasks=changed), later / "report")
    compare.main([str(run.root), str(later), f"out={tmp_path / 'compared'}"])
    for text in (capsys.readouterr().out, (tmp_path / "compared" / "compare.html").read_text()):
        assert f"cloze was measured on different items ({run.root.name} | later): its scores do not compare" in text
        assert text.count("different items") == 1


def test_scores_of_a_run_that_trains_further_are_said_to_be_old(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Resumed to more steps and stopped on the way, or still at it, it has the scores of its end of before; the page
    says so, and at which step it is. Of one that has come to its end nothing is said.
    """
    config = load_config(["demo", f"output_dir={tmp_path}", "tracking.system_metrics=false", "train.steps=16"])
    run.config.write_text(to_yaml(config))
    names = compare.CompareConfig(uri=tracking_uri(config), experiment="lingu_ray")
    for step, old in ((12, True), (16, False)):
        lines = ({"step": at, "time": 1.0, "loss": 2.0, "ce": 2.0, "kd": 0.0} for at in (1, step))
        run.metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        compare.main([str(run.root), f"out={tmp_path / 'compared'}"])
        for text in (capsys.readouterr().out, (tmp_path / "compared" / "compare.html").read_text()):
            assert ("its scores are of an earlier model, for it is at step 12 of 16" in text) is old
        with Tracker(config, run) as tracked:
            tracked.catch_up()
        (stored,) = (one for one in compare.read_runs([], names) if one.name == "demo")
        assert stored.metrics["step"] == step and bool(compare.not_of_the_end([stored])) is old


def test_engines_that_differ_are_said(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tasks that other engines measured share a line; of what is not known nothing is said."""
    measured = result(distilled=1.0)
    later, earlier = (Path(shutil.copytree(run.root, tmp_path / name)) for name in ("later", "earlier"))
    for folder, engine in ((later, "transformers, fp32"), (earlier, None)):
        tasks = {name: replace(task, engine=engine) for name, task in measured.tasks.items()}
        write_recovery(replace(measured, tasks=tasks), folder / "report")
    compare.main([str(run.root), str(later), str(earlier), f"out={tmp_path / 'compared'}"])
    for text in (capsys.readouterr().out, (tmp_path / "compared" / "compare.html").read_text()):
        assert "cloze, digits: measured by different engines" in text
        assert f"({run.root.name}: vllm, fp32 | later: transformers, fp32)" in text
        assert text.count("different engines") == 1


def test_means_of_another_kind_are_said(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other references, other tasks, or nats; a mean without a value has no formula."""
    measured = result(distilled=1.0)
    more = {**measured.tasks, "story": measured.tasks["cloze"]}
    others = {
        "paper": replace(measured, references=OF_THE_PAPER),
        "more": replace(measured, tasks=more),
        "nats": replace(measured, recovery_in="nats"),
    }
    own, of_paper = (references.formulas["recovery"] for references in (OF_THE_TEACHER, OF_THE_PAPER))
    found = {
        "paper": f"{of_paper} over cloze",
        "more": f"{own} over cloze, story",
        "nats": f"{own} over cloze, in nats",
    }
    for name, other in others.items():
        folder = Path(shutil.copytree(run.root, tmp_path / name))
        write_recovery(other, folder / "report")
        compare.main([str(run.root), str(folder), f"out={tmp_path / 'compared'}"])
        said = f"recovery is not computed in one way ({run.root.name}: {own} over cloze | {name}: {found[name]})"
        assert said in capsys.readouterr().out
        assert "retention is not" not in (tmp_path / "compared" / "compare.html").read_text()


def test_runs_without_a_model_take_no_place(run: RunFolder, tmp_path: Path) -> None:
    """`limit` counts those that are shown, whatever newer runs, as of sweeps, the experiment has."""
    uri = tracking_uri(load_config(["demo", f"output_dir={tmp_path}"]))
    client = open_store(uri)
    experiment = client.get_experiment_by_name("lingu_ray")
    assert experiment is not None
    for _ in range(2):
        client.create_run(experiment.experiment_id)
    for limit, wanted in ((1, {"demo/plain_ce"}), (2, {"demo", "demo/plain_ce"}), (9, {"demo", "demo/plain_ce"})):
        found = compare.read_runs([], compare.CompareConfig(uri=uri, experiment="lingu_ray", limit=limit))
        assert {one.name for one in found} == wanted


def test_versions_that_differ_are_told(run: RunFolder, tmp_path: Path) -> None:
    """Of runs of one setting that another PyTorch made, by folder and by MLflow; not the machine's memory, nor commits
    that leave the package as it is."""
    config = load_config(["demo", f"output_dir={tmp_path}", "tracking.system_metrics=false"])
    control = RunFolder(run.root / "controls" / "plain_ce")
    shutil.copy(run.config, control.config)
    for folder, torch in ((run, "2.12.0"), (control, "2.13.0")):
        made = {"lingu_ray": "0.1.0", "torch": torch, "memory": f"{torch} GiB"}
        made |= {"git.commit": f"commit with {torch}", "git.tree": "3f2a", "git.dirty": "false"}
        folder.environment.write_text(json.dumps(made))
        with Tracker(config, folder) as tracked:
            tracked.log_environment(made)
    stored = compare.CompareConfig(uri=tracking_uri(config), experiment="lingu_ray")
    by_folder = compare.read_runs([str(run.root), str(control.root)], compare.CompareConfig())
    by_name = {found.name: found for found in compare.read_runs([], stored)}
    (row,) = differing_settings([found.settings for found in by_folder])
    assert row.keys == ("environment.torch",) and row.values == ("2.12.0", "2.13.0")
    assert by_name["demo"].settings == by_folder[0].settings
    assert by_name["demo/plain_ce"].settings["environment.torch"] == "2.13.0"


def test_settings_that_this_version_has_not_are_compared(run: RunFolder, tmp_path: Path) -> None:
    """Those of a run that another version recorded, wherever they stand; where all have the same, nothing is shown."""
    text = run.config.read_text()
    others = [Path(shutil.copytree(run.root, tmp_path / name)) / "config.yaml" for name in ("one", "two")]
    for path in others:
        path.write_text(f"wobble: {{a: 1, b: [2]}}\n{text}".replace("train:\n", "train:\n  shake: no\n"))
    both = compare.read_runs([str(path.parent) for path in others], compare.CompareConfig())
    assert not differing_settings([one.settings for one in both])
    beside = compare.read_runs([str(run.root), str(others[0].parent)], compare.CompareConfig())
    rows = differing_settings([one.settings for one in beside])
    shown = {key: row.values for row in rows for key in row.keys}
    assert shown == {"wobble.a": ("–", "1"), "wobble.b": ("–", "[2]"), "train.shake": ("–", "no")}


def test_a_resumed_run_shows_its_newest_settings(run: RunFolder, tmp_path: Path) -> None:
    """Steps that were added later, by config.yaml and by MLflow, whose parameters cannot change."""
    config = load_config(["demo", f"output_dir={tmp_path}", "tracking.system_metrics=false", "train.steps=4321"])
    run.config.write_text(to_yaml(config))
    with Tracker(config, run):
        pass
    stored = compare.CompareConfig(uri=tracking_uri(config), experiment="lingu_ray")
    (by_folder,) = compare.read_runs([str(run.root)], compare.CompareConfig())
    tracked = next(r for r in compare.read_runs([], stored) if r.name == "demo")
    assert by_folder.settings["train.steps"] == tracked.settings["train.steps"] == "4321"
    assert by_folder.settings == tracked.settings


def test_settings_that_say_the_same_share_a_line() -> None:
    """Two keys with the same values are one row; tasks and sources are one each, with what differs in them."""
    kind = "kind: language, type: perplexity"
    tasks = f"[{{name: a.b, {kind}, path: /x}}, {{name: c, {kind}, path: /y}}]"
    one = [f"evaluation.tasks={tasks}", "train.learning_rates.vision=1.0", "train.learning_rates.projector=1.0"]
    two = [f"evaluation.tasks={tasks.replace('path: /y', 'path: /z, limit: 5')}", "train.learning_rates.vision=2.0"]
    two += ["train.learning_rates.projector=2.0", "distill.temperature={start: 4, end: 1}", "train.lora.rank=4"]
    first, second = (flat(load_config(["demo", *arguments])) for arguments in (one, two))
    assert {row.keys: row.values for row in differing_settings([first, second])} == {
        ("distill.temperature",): (first["distill.temperature"], "4 → 1 (linear)"),
        ("train.learning_rates.vision", "train.learning_rates.projector"): ("1.0", "2.0"),
        ("evaluation",): ("tasks=a.b, c (path=/y, limit=null)", "tasks=a.b, c (path=/z, limit=5)"),
        ("train.lora",): ("null", "rank=4, alpha=32.0, dropout=0.0, targets=[]"),
    }
    assert differing_settings([first, first]) == []


def test_runs_of_one_name_are_told_apart_and_many_have_a_line_each() -> None:
    """A few runs are columns, many are lines, with what only one has in one column; equal names are numbered."""
    runs = [compare.Compared("demo", {"a": str(i), "b": str(i == 5)}, {"loss": float(i)}) for i in range(6)]
    few, many = (compare.told_apart(some) for some in (runs[:2], runs))
    assert compare.settings_table(few) == compare.Matrix(["demo #1", "demo #2"], [["a", "0", "1"]])
    table = compare.training_table(many)
    assert table.titles == ["loss"] and table.lines[5] == ["demo #6", "5"]
    table = compare.settings_table([*many, compare.Compared("evaluated", {}, {"eval/x/score": 1.0})])
    assert table.titles == ["a", "only here"]
    assert table.lines[4:] == [["demo #5", "4", "–"], ["demo #6", "5", "b = True"]]


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["/runs/a", "/runs/a/controls/same_ce"], ["a", "a/controls/same_ce"]),
        (["s3://bucket/a #1", "s3://bucket/a #2"], ["a #1", "a #2"]),
        (["s3://bucket/runs/a", "/runs/a", "a"], ["s3://bucket/runs/a", "/runs/a", "a"]),
        (["/runs/a"], ["a"]),
    ],
)
def test_shown_names_leave_out_what_all_share(names: list[str], short: list[str]) -> None:
    """The folders that all runs lie in; runs by other names keep theirs."""
    assert [run.name for run in compare.in_short([compare.Compared(name, {}, {}) for name in names])] == short


def test_many_answers_that_were_cut_off_are_named() -> None:
    """With every run's share, where one has more than a twentieth; a score alone does not show why it is low."""
    shares = {"a": 0.125, "b": 0.01, "c": 0.0}
    runs = [
        compare.Compared(name, {}, {"eval/x/score": 0.5, "eval/x/cut_off": share, "eval/y/score": 0.5})
        for name, share in shares.items()
    ]
    assert compare.cut_off_answers(runs) == [
        "x: answers that ended at max_new_tokens, which costs points: 12.5% of a, 1.0% of b"
    ]
    assert compare.cut_off_answers(runs[1:]) == []


def test_a_folder_that_is_not_there_is_no_run_id(tmp_path: Path) -> None:
    """It is told as a folder, not looked up in a store."""
    with pytest.raises(UserError, match="nowhere: no such folder; a run is named by its folder or its MLflow id"):
        compare.read_runs([f"{tmp_path}/nowhere"], compare.CompareConfig())


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        ([], {}, r"^nothing to compare: name runs by folder or MLflow id, or give experiment="),
        (["mine"], {"uri": "sqlite:///none.db"}, r"no such MLflow store, in which mine would be; a folder is named by"),
        ([], {"uri": "sqlite:///none.db", "experiment": "x"}, r"no such MLflow store, in which experiment=x would be"),
        ([], {"experiment": "x"}, r"^experiment=x: sqlite:///.* has Default$"),
        (["mine"], {}, r"^uri=sqlite:///.*Run with id=mine not found"),
    ],
    ids=["nothing", "no store", "no store of an experiment", "no experiment", "no run"],
)
def test_what_is_in_no_store_is_told(
    names: list[str], settings: dict[str, str], message: str, empty_store: Path, tmp_path: Path
) -> None:
    """With what was sought, and where; an experiment with those that there are."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    options = compare.CompareConfig.model_validate({"uri": f"sqlite:///{tmp_path}/mlflow.db"} | settings)
    with pytest.raises(UserError, match=message):
        compare.read_runs(names, options)


def test_all_that_lies_in_a_folder_of_runs(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`runs/*` has MLflow's store and pages, too, which are left out; a sweep is told with where its runs are."""
    (tmp_path / "inspect").mkdir()
    names = [str(tmp_path / name) for name in ("mlflow.db", "inspect", run.root.name)]
    (found,) = compare.read_runs(names, compare.CompareConfig())
    assert found.name == str(run.root)
    assert capsys.readouterr().out == f"left out, as no run: {names[0]}, {names[1]}\n"
    (tmp_path / "swept" / "trials").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"a sweep does, whose runs are {tmp_path}/swept/trials/\*$"):
        compare.read_runs([*names, str(tmp_path / "swept")], compare.CompareConfig())


def test_a_page_that_cannot_be_written_is_told_at_once(run: RunFolder, tmp_path: Path) -> None:
    """A file in place of its folder, before any table is printed."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"out: .*file/compare.html cannot be written: .*; name another one"):
        compare.main([str(run.root), f"out={tmp_path / 'file'}"])


def test_large_numbers_are_whole() -> None:
    """MME's scores, tokens per second and perplexities are read; what a diverged model has is short."""
    metrics = {"tokens_per_s": 123456.7, "eval/mme/score": 1523.4, "loss": 2.34567, "eval/text/score": 1.5e304}
    run = compare.Compared("run", {}, metrics)
    cells = dict(cell for table in (compare.scores_table([run]), compare.training_table([run])) for cell in table.lines)
    assert cells == {"tokens_per_s": "123,457", "mme": "1,523", "loss": "2.346", "text": "1.5e+304"}


def test_scores_are_written_for_a_paper(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As CSV with all digits, and as a LaTeX table of what is shown, whatever a run's name has; scores come first."""
    measured = result(distilled=0.123456)
    other = Path(shutil.copytree(run.root, tmp_path / "a&b_c"))
    write_recovery(measured, other / "report")
    compare.main([str(run.root), str(other), f"out={tmp_path / 'compared'}"])
    assert f"scores   {tmp_path}/compared/compare.csv {tmp_path}/compared/compare.tex" in capsys.readouterr().out
    first, second = csv.DictReader((tmp_path / "compared" / "compare.csv").open(encoding="utf-8"))
    assert (first["cloze"], first["recovery"], "retention" in first) == ("0.5", "1.0", False)
    assert second["run"] == str(other) and float(second["cloze"]) == float(second["cloze low"]) == 0.5 * 0.123456
    table = (tmp_path / "compared" / "compare.tex").read_text(encoding="utf-8").splitlines()
    assert table[1:4] == [r"\begin{tabular}{lrr}", r"\toprule", rf" & {run.root.name} & a\&b\_c \\"]
    assert r"cloze & 50.0\% [50.0, 50.0] & 6.2\% [6.2, 6.2] \\" in table
    page = (tmp_path / "compared" / "compare.html").read_text(encoding="utf-8")
    assert page.index("<h2>Scores") < page.index("<h2>Verdicts") < page.index("<h2>Settings that differ")


def test_scores_of_other_runs_do_not_stay_beside_a_page(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where runs that have none are compared in the same folder, few or many; nor is a file of their names written."""
    out = tmp_path / "compare"
    bare = [tmp_path / f"bare-{i}" for i in range(5)]
    for path in bare:
        path.mkdir()
        shutil.copy(run.config, path / "config.yaml")
    for some in (bare[:2], bare):
        compare.main([str(run.root), f"out={out}"])
        assert (out / "compare.csv").exists() and "scores   " in capsys.readouterr().out
        compare.main([*map(str, some), f"out={out}"])
        assert "scores   " not in capsys.readouterr().out
        assert [path.name for path in out.iterdir()] == ["compare.html"]


def test_what_mlflow_does_not_tell_is_taken_from_folders(run: RunFolder, tmp_path: Path) -> None:
    """Beside a run's folder, the same run of MLflow has its scores in per cent too, without intervals."""
    uri = tracking_uri(load_config(["demo", f"output_dir={tmp_path}"]))
    stored = compare.CompareConfig(uri=uri, experiment="lingu_ray", limit=1)
    folder, tracked = compare.read_runs([str(run.root)], stored)
    lines = {label: cells for label, *cells in compare.scores_table([folder, tracked]).lines}
    assert lines["digits"] == ["90.0% [90.0, 90.0]", "45.0%"]  # the newest is the control
    assert lines["recovery"] == ["100.0% [100.0, 100.0]", "50.0%"]


def test_curves_of_close_values_are_read() -> None:
    """Ticks are whole steps and the values themselves, not what is added to one; the legend takes no panel's height."""
    runs = [(name, {"validation_ce": ([6], [value])}) for name, value in {"a": 6.96876, "b": 6.96831}.items()]
    panel, legend = curve_panels(runs)
    step, *values = re.findall(r">([+\d.]+)</text>", panel.svg())
    assert step == "6" and values and all(value.startswith("6.968") for value in values)
    assert legend.size[1] < panel.size[1] / 2


def test_a_run_that_diverged_leaves_the_others_their_curves() -> None:
    """On an axis of powers; where all are of one size, on a plain one."""
    curves = {name: {"loss": ([1, 2], [3.0, last])} for name, last in {"good": 2.0, "better": 1.9, "lost": 1e6}.items()}
    scales = []
    for names in (("good", "better"), ("good", "better", "lost")):
        panel, _ = curve_panels([(name, curves[name]) for name in names])
        axis = Figure(panel.size).subplots()
        panel.draw(axis)
        scales.append(axis.get_yscale())
    assert scales == ["linear", "log"] and "$" not in panel.svg()


@pytest.mark.timeout(100)  # MLflow asks for minutes of itself
@pytest.mark.parametrize("uri", ["sqlite:///notes.txt", "http://127.0.0.1:9"])
def test_a_store_that_cannot_be_read_is_told_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    """A file of another kind, and a server that does not answer: it is not asked for minutes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("no database" * 100)
    with pytest.raises(UserError, match=f"uri={uri[:7]}"):
        compare.read_runs(["3f2a"], compare.CompareConfig(uri=uri))
