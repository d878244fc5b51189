"""`lingu-ray export`: the checkpoint that is asked for, as the run's own export would write it, or a clear refusal."""

from __future__ import annotations

import filecmp
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved import save_checkpoint
from tinyrun import NEW_STUDENT, config, write_pair_and_data
from transformers import PreTrainedModel

from lingu_ray import export
from lingu_ray.atomic import write_json, write_text
from lingu_ray.config import Config
from lingu_ray.config.command_line import to_yaml
from lingu_ray.distill.student import Student
from lingu_ray.errors import UserError
from lingu_ray.runtime.alignment.stage import load_alignment
from lingu_ray.runtime.checkpoints.checkpoint import CheckpointState
from lingu_ray.runtime.models.export import export_model
from lingu_ray.runtime.models.load import load_processor, load_student, prepare_student
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.training.optimizer import make_optimizer, trained_parameters
from lingu_ray.runtime.training.prepare import prepare

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny pair."""
    folder = tmp_path_factory.mktemp("pair")
    write_pair_and_data(folder)
    return folder


def stopped(pair: Path, runs: Path, layout: Any = "whole", **settings: Any) -> tuple[Config, PreTrainedModel]:
    """A run of 8 steps as it lies there after Ctrl-C: checkpoints of steps 2, 4 (the best) and 6; and its model."""
    run = config(pair, runs, **settings)
    folder = RunFolder(run.run_dir)
    prepare_student(run, folder.initial_model)
    write_text(folder.config, to_yaml(run))
    start = run.student if run.student.path else run.student.model_copy(update={"path": str(folder.initial_model)})
    student = Student(load_student(start))
    prepare(student, run.train, CPU, run.seed)
    optimizer = make_optimizer(student, run.train)
    for step, ce in ((2, 3.0), (4, 1.0), (6, 2.0)):
        with torch.no_grad():
            for parameter in trained_parameters(optimizer):
                parameter += step * 1e-3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
        save_checkpoint(folder.checkpoints, student.model, optimizer, CheckpointState(step, ce), 3, layout)
    return run, student.model


@pytest.mark.slow
def test_frozen_weights_are_those_that_the_run_had(pair: Path, tmp_path: Path) -> None:
    """A checkpoint leaves them out: of an aligned tower that is frozen they are the alignment's, and without its file,
    or with another student in its place, the export is refused."""
    run = config(pair, tmp_path, train={"learning_rates": {"vision": 0}, "lora": {"rank": 4}})
    folder = RunFolder(run.run_dir)
    prepare_student(run, folder.initial_model)
    write_text(folder.config, to_yaml(run))
    model = load_student(run.student)
    name, weight = next((n, p) for n, p in model.named_parameters() if "vision_model" in n and p.ndim == 2)
    folder.aligned_weights.parent.mkdir()
    save_file({name: weight.detach() + 1}, folder.aligned_weights)
    load_alignment(model, folder.aligned_weights)
    student = Student(model)
    prepare(student, run.train, CPU, run.seed)
    save_checkpoint(folder.checkpoints, model, make_optimizer(student, run.train), CheckpointState(2, None), 1)
    found = load_file(export.export(run.run_dir) / "model.safetensors")
    assert found[name].equal(weight) and not found[name].equal(load_student(run.student).state_dict()[name])
    folder.aligned_weights.unlink()
    with pytest.raises(UserError, match=rf"what was frozen is not what the student has now, such as {name}: "):
        export.export(run.run_dir, out=tmp_path / "again")


def same_files(ours: Path, theirs: Path) -> bool:
    """Whether two exports are equal to the bit, in all but the model card."""
    names = [path.name for path in theirs.iterdir()]
    same, _, _ = filecmp.cmpfiles(ours, theirs, names, shallow=False)
    return sorted(same) == sorted(names) and {path.name for path in ours.iterdir()} - {"README.md"} == set(names)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "settings"),
    [("whole", {}), ("sharded", {"train": {"lora": {"rank": 4}}}), ("whole", {"student": NEW_STUDENT})],
    ids=["whole", "sharded adapters", "new student"],
)
def test_the_newest_is_what_the_run_would_export(pair: Path, tmp_path: Path, layout: str, settings: Any) -> None:
    """To the bit, by the run's recorded settings alone: adapters merged, a new student from its initial model."""
    run, model = stopped(pair, tmp_path, layout, **settings)
    where = export.export(run.run_dir)
    assert where == run.run_dir / "export-step-6"
    start = (
        run.student if run.student.path else run.student.model_copy(update={"path": str(run.run_dir / "initial_model")})
    )
    export_model(model, load_processor(start), torch.float32, tmp_path / "own", run.train.lora)
    assert same_files(run.run_dir / "export-step-6", tmp_path / "own")


@pytest.mark.slow
def test_any_checkpoint_that_is_kept(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By number or the best, into a folder of one's own; a damaged newest one is passed over, and told."""
    run, _ = stopped(pair, tmp_path / "runs")
    corpus = tmp_path / "corpus"
    counts = {"read": 9, "accepted": 9, "rejected": {}, "truncated": 0, "validation": 1, "used": 8}
    write_json(corpus / "manifest.json", {"rows": 48, "sources": {"text": counts, "pictures": counts}})
    write_json(RunFolder(run.run_dir).corpus, {"path": str(corpus)})
    export.main([str(run.run_dir), str(tmp_path / "best"), "step=best"])
    export.main([str(run.run_dir), str(tmp_path / "four"), "step=4"])
    assert f"wrote {tmp_path / 'best'}\nwrote {tmp_path / 'four'}\n" in capsys.readouterr().out
    assert filecmp.cmp(tmp_path / "best" / "model.safetensors", tmp_path / "four" / "model.safetensors", shallow=False)
    card = (tmp_path / "four" / "README.md").read_text()
    assert "Exported from a checkpoint, after step 4 of 8" in card and "training read 24" in card
    weights = run.run_dir / "checkpoints" / "step-00000006" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-9] ^= 1
    weights.write_bytes(content)
    capsys.readouterr()
    assert export.export(run.run_dir) == run.run_dir / "export-step-4"
    said = "newest checkpoint step-00000006 is damaged, or not complete; step-00000004 is exported"
    assert said in capsys.readouterr().err
    with pytest.raises(UserError, match=r"weights of step-00000006 are damaged.* those of step 2, 4, 6"):
        export.export(run.run_dir, 6)


def test_code_of_a_run_is_run_where_the_command_says_so(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's settings alone, which somebody else may have written, have none run."""
    run, _ = stopped(pair, tmp_path / "runs")
    folder, ran = RunFolder(run.run_dir), tmp_path / "ran"
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    code = f"""
from pathlib import Path
from transformers import Idefics3Processor

Path({str(ran)!r}).touch()


class Own(Idefics3Processor):
    pass
"""
    (folder.initial_model / "own.py").write_text(code)
    path = folder.initial_model / "processor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoProcessor": "own.Own"}}))
    trusted = run.student.model_copy(update={"trust_remote_code": True})
    write_text(folder.config, to_yaml(run.model_copy(update={"student": trusted})))
    with pytest.raises(UserError, match=r"code .* comes with its student .*: add trust_remote_code=true if you trust"):
        export.main([str(run.run_dir)])
    assert not ran.exists()
    export.main([str(run.run_dir), "trust_remote_code=true"])
    assert ran.exists() and (run.run_dir / "export-step-6" / "config.json").exists()


@pytest.mark.parametrize("left", [True, False])
def test_a_run_without_its_processor(pair: Path, tmp_path: Path, left: bool) -> None:
    """As of a copy that has checkpoints and settings alone: it is told what is missing, and what writes it."""
    run, _ = stopped(pair, tmp_path)
    folder = RunFolder(run.run_dir).initial_model
    shutil.rmtree(folder)
    if left:
        folder.mkdir()
    with pytest.raises(UserError, match=f"{folder} is gone or damaged .* the command that trains the run writes it"):
        export.export(run.run_dir)


def test_a_run_whose_student_lies_elsewhere(tmp_path: Path) -> None:
    """As of a run that was copied from another machine: the cure is where the run has the path, and works."""
    write_pair_and_data(tmp_path / "pair")
    run, _ = stopped(tmp_path / "pair", tmp_path / "runs")
    path, settings = Path(str(run.student.path)), RunFolder(run.run_dir).config
    moved = path.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=f"{path}, which the run was started from, is not there: .* into {settings}"):
        export.export(run.run_dir)
    settings.write_text(settings.read_text().replace(f"path: {path}\n", f"path: {moved}\n"))
    assert export.export(run.run_dir) == run.run_dir / "export-step-6"


def test_storage_that_fails_for_a_moment_chooses_no_other_checkpoint(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest is not taken for damaged, and the one before not for the newest; the same command exports it."""
    run, _ = stopped(pair, tmp_path)

    def fail(path: Path) -> str:
        raise OSError(5, "Input/output error", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(export, "file_identity", fail)
        with pytest.raises(UserError, match=r"cannot be read now: .*model.safetensors.* run the same command again"):
            export.export(run.run_dir)
    assert export.export(run.run_dir) == run.run_dir / "export-step-6"


def test_what_cannot_be_exported_is_told(pair: Path, tmp_path: Path) -> None:
    """Each with the cure, and nothing is left behind."""
    run, _ = stopped(pair, tmp_path / "runs")
    folder = RunFolder(run.run_dir)

    def refused(said: str, *words: str) -> None:
        with pytest.raises(UserError, match=said):
            export.main([*words])

    refused("name a run", "step=2")
    refused("no such run: .*runs/tinyy; did you mean .*runs/tiny", str(tmp_path / "runs" / "tinyy"))
    refused("no run lies there", str(pair))
    refused("no checkpoint of step 5 is kept; there are those of step 2, 4, 6", str(run.run_dir), "step=5")
    refused("export is where the run exports its model", str(run.run_dir), str(folder.export))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    refused("full exists; name another", str(run.run_dir), str(tmp_path / "full"))
    before = sorted(path.name for path in run.run_dir.iterdir())

    newer = {**json.loads((folder.checkpoints / "step-00000006" / "state.json").read_text()), "of_tomorrow": 1}
    write_json(folder.checkpoints / "step-00000006" / "state.json", newer)
    write_json(folder.environment, {"lingu_ray": "99.0"})
    refused("was made by lingu_ray 99.0, and this is .*: use version 99.0", str(run.run_dir))
    folder.environment.unlink()
    for path in folder.checkpoints.iterdir():
        (path / "state.json").unlink()
    refused(r"no checkpoint is whole: files of .* are missing.* Put them back from a copy", str(run.run_dir))
    shutil.rmtree(folder.checkpoints)
    before.remove("checkpoints")
    refused("no checkpoint: the first one comes after train.checkpoint_every=4 steps", str(run.run_dir))
    assert sorted(path.name for path in run.run_dir.iterdir()) == before
