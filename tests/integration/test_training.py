"""Real runs on a real Ray: the whole path from corpus to export, and what must not depend on how it is run."""

import json
import math
from importlib.metadata import version
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from reference_method import Objective, distillation_loss, teacher_logits
from reference_pairs import ByTransformers
from reference_runs import example
from safetensors.torch import load_file, save_file
from tinyrun import NEW_STUDENT, actors_started, config, workers_started
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from lingu_ray import export as export_command
from lingu_ray.atomic import read_json, write_json
from lingu_ray.commands import guide_path
from lingu_ray.config import CONTROLS, Config
from lingu_ray.config.command_line import load_yaml
from lingu_ray.config.flat import flat
from lingu_ray.corpus.encode import Encoder
from lingu_ray.corpus.store import Corpus
from lingu_ray.errors import UserError
from lingu_ray.runtime import trainer
from lingu_ray.runtime.controls import control_config
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.run_folder.lease import lease_on
from lingu_ray.runtime.run_folder.records import read_records
from lingu_ray.runtime.tracking.environment import PRECISION, read_environment
from lingu_ray.runtime.tracking.mlflow_run import newest_settings
from lingu_ray.runtime.tracking.store_uri import tracking_uri
from lingu_ray.runtime.training.optimizer import lr_factor

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Where all runs of this file lie, so that they share corpora and MLflow store."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def finished(ray_cluster, data, output):
    """A finished run with a teacher actor: its settings and its folder."""
    settings = config(data, output)
    trainer.run(settings)
    return settings


def weights(settings: Config):
    """The exported weights."""
    return load_file(settings.run_dir / "export" / "model.safetensors")


def test_export_is_the_students_architecture(finished, data):
    """The export loads as the student's own class with exactly its parameters, and answers about an image."""
    student = AutoModelForImageTextToText.from_pretrained(data / "student")
    export = AutoModelForImageTextToText.from_pretrained(finished.run_dir / "export")
    assert type(export) is type(student)
    shapes = lambda model: {name: tuple(p.shape) for name, p in model.named_parameters()}  # noqa: E731
    assert shapes(export) == shapes(student) and export.num_parameters() == student.num_parameters()
    assert export.config.to_diff_dict() == student.config.to_diff_dict()
    assert any(not torch.equal(a, b) for a, b in zip(export.parameters(), student.parameters(), strict=True))
    processor = AutoProcessor.from_pretrained(finished.run_dir / "export")
    question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Even?"}]}]
    prompt = processor.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    image = torch.randint(0, 255, (3, 32, 32), dtype=torch.uint8).numpy()
    output = export.generate(**processor(text=prompt, images=[image], return_tensors="pt"), max_new_tokens=3)
    assert output.shape[1] > 4


def test_the_last_checkpoint_is_exported_as_the_run_did(finished, tmp_path):
    """The command writes what the run wrote, file by file, to the bit; an earlier checkpoint has other weights."""
    export_command.main([str(finished.run_dir), str(tmp_path / "last")])
    own = finished.run_dir / "export"
    for path in own.iterdir():
        assert path.name == "README.md" or (tmp_path / "last" / path.name).read_bytes() == path.read_bytes()
    export_command.main([str(finished.run_dir), str(tmp_path / "four"), "step=4"])
    assert (tmp_path / "four" / "model.safetensors").read_bytes() != (own / "model.safetensors").read_bytes()
    assert "after step 4 of 8" in (tmp_path / "four" / "README.md").read_text()


def test_the_guide_names_every_metric(finished):
    """What a line of metrics.jsonl has, but for step and time, stands in the guide."""
    guide = guide_path().read_text("utf-8")
    names = {name for record in read_records(finished.run_dir / "metrics.jsonl") for name in record}
    assert not [name for name in names - {"step", "time", "validation"} if f"`{name}`" not in guide]


def test_metrics_tell_the_whole_story(finished):
    """Every step once, the loss falls, validation by source, samples, and MLflow has the same figures and settings."""
    records = read_records(finished.run_dir / "metrics.jsonl")
    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 9))
    validations = [record for record in records if "validation" in record]
    assert [record["step"] for record in validations] == [4, 8]
    assert set(validations[0]["validation"]) == {"text", "pictures"}
    assert validations[1]["validation_ce"] < validations[0]["validation_ce"]
    assert steps[0]["kd"] == pytest.approx(0, abs=1e-6)  # the first texts are judged by an equal decoder
    assert steps[-1]["kd"] > 0
    samples = read_records(finished.run_dir / "samples.jsonl")
    assert {sample["source"] for sample in samples} == {"text", "pictures"} and len(samples) == 4

    client = mlflow.MlflowClient(tracking_uri(finished))
    run = client.get_run(json.loads((finished.run_dir / "mlflow.json").read_text())["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["distill.policy"] == "selective" and run.data.params["corpus.sources.text.weight"] == "0.6"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(r["step"], r["loss"]) for r in steps]
    assert {a.path for a in client.list_artifacts(run.info.run_id)} >= {"config.yaml", "manifest.json"}
    environment = json.loads((finished.run_dir / "environment.json").read_text())
    assert environment["torch"] == version("torch") and environment["nodes"].startswith("1 × (")
    assert {f"environment.{key}": value for key, value in environment.items()}.items() <= run.data.tags.items()
    assert run.info.artifact_uri.startswith((finished.output_dir.resolve() / "mlartifacts").as_uri())


def test_a_run_is_a_plain_loop_of_the_method(finished, data):
    """Every step's figures, and the weights after the last, are those of a loop in float64 with the reference's loss,
    PyTorch's AdamW and clipping, over the same rows.
    """
    settings, rates = finished.train, finished.train.learning_rates
    vlm = AutoModelForImageTextToText.from_pretrained(data / "student", dtype=torch.float64)
    pair = ByTransformers(vlm, AutoModelForCausalLM.from_pretrained(data / "teacher", dtype=torch.float64))
    seeing = [p for name, p in vlm.named_parameters() if ".vision_model." in name]
    others = [p for name, p in vlm.named_parameters() if ".vision_model." not in name]
    groups = [{"params": seeing, "lr": rates.vision}, {"params": others, "lr": rates.decoder}]
    optimizer = torch.optim.AdamW(groups, betas=settings.betas, weight_decay=0.0)
    after_warmup = lambda step: max(step - 1, 0) / 6  # noqa: E731  the first step is the warm-up
    decay = lambda step: 0.1 + 0.9 * (1 + math.cos(math.pi * after_warmup(step))) / 2  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, decay)
    encoder = Encoder(AutoProcessor.from_pretrained(data / "student"), finished.corpus.max_length)
    corpus = Corpus(Path(read_json(finished.run_dir / "corpus.json")["path"]))
    records = [record for record in read_records(finished.run_dir / "metrics.jsonl") if "loss" in record]
    for step, record in enumerate(records):
        rows = corpus.rows(range(step * settings.rows_per_step, (step + 1) * settings.rows_per_step))
        examples = [example(encoder.encode(row), weights={}) for row in rows]
        students = [pair.student(one) for one in examples]
        said = [
            teacher_logits(pair, one, memory, Objective()) for one, (_, memory) in zip(examples, students, strict=True)
        ]
        found = distillation_loss(examples, [logits for logits, _ in students], said, Objective())
        optimizer.zero_grad()
        found.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(vlm.parameters(), settings.grad_clip)
        ce, kd = (sum(terms).item() / len(terms) for terms in (found.ce, found.kd))
        figures = {"loss": found.loss.item(), "ce": ce, "kd": kd, "grad_norm": norm.item()}
        figures |= {"tokens": len(found.ce), "lr": schedule.get_last_lr()[1]}
        assert {name: record[name] for name in figures} == pytest.approx(figures, rel=1e-3, abs=1e-6)
        optimizer.step()
        schedule.step()
    expected = vlm.state_dict()
    for name, tensor in weights(finished).items():
        torch.testing.assert_close(tensor, expected[name].float(), rtol=1e-3, atol=1e-5, msg=name)


def test_in_process_gives_the_same_weights_to_the_bit(finished, data, output):
    """Actor and in-process teacher give equal exports, to the bit."""
    other = config(data, output, name="in-process", teacher={"placement": "in_process"})
    trainer.run(other)
    ours, theirs = weights(finished), weights(other)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_two_workers_give_the_same_weights(finished, data, output):
    """Two workers, which ask one teacher, take the same steps up to rounding."""
    other = config(data, output, name="two", ray={"num_workers": 2}, teacher={"placement": "node"})
    before = actors_started("TeacherActor")
    trainer.run(other)
    assert actors_started("TeacherActor") == before + 1
    ours, theirs = weights(finished), weights(other)
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], rtol=1e-3, atol=1e-5, msg=name)
    losses = lambda run: [r["loss"] for r in read_records(run.run_dir / "metrics.jsonl") if "loss" in r]  # noqa: E731
    assert losses(other) == pytest.approx(losses(finished), rel=1e-4)


def test_controls_have_the_same_data_and_no_teacher(finished):
    """Both find the same corpus, take the same steps, have no KD term, and are nested under their run.

    Without a factor on distilled rows they are one and the same, to the bit.
    """
    controls = [control_config(finished, name) for name in CONTROLS]
    with lease_on(finished.run_dir) as lease:
        trainer.run_together(trainer.checked(controls, lease))
    where = lambda run: json.loads((run.run_dir / "corpus.json").read_text())["path"]  # noqa: E731
    for control in controls:
        assert where(control) == where(finished)
        steps = [r for r in read_records(control.run_dir / "metrics.jsonl") if "loss" in r]
        assert len(steps) == 8 and all(record["kd"] is None for record in steps)
        ours, theirs = (json.loads((run.run_dir / "mlflow.json").read_text())["run_id"] for run in (control, finished))
        tracked = mlflow.MlflowClient(tracking_uri(finished)).get_run(ours)
        assert tracked.info.run_name == f"tiny/{control.name}" and tracked.data.tags[MLFLOW_PARENT_RUN_ID] == theirs
    same, plain = (weights(control) for control in controls)
    assert all(torch.equal(same[name], plain[name]) for name in same)


def test_finished_run_is_found_again_and_other_settings_are_refused(finished, data, output):
    """The same settings return at once; changed ones are refused by key, with both values."""
    before = (finished.run_dir / "export" / "model.safetensors").stat().st_mtime_ns
    trainer.run(finished)
    assert (finished.run_dir / "export" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"distill\.temperature\.end: 1\.0 before, 2\.0 now"):
        trainer.run(config(data, output, distill={"temperature": 2}))
    with pytest.raises(UserError, match="resume=never"):
        trainer.run(config(data, output, resume="never"))


def test_more_steps_extend_a_finished_run(finished, data, output):
    """`train.steps` up: training resumes from the last checkpoint, no step stands twice, and the model is written
    again; from there on the learning rate is that of a run of the new length. What changed is recorded."""
    run = config(data, output, name="longer", train={"steps": 4})
    trainer.run(run)
    first = weights(run)
    environment = run.run_dir / "environment.json"
    environment.write_text(json.dumps(json.loads(environment.read_text()) | {"torch": "1.0"}))
    longer = config(data, output, name="longer", train={"steps": 6})
    trainer.run(longer)
    steps = [r for r in read_records(run.run_dir / "metrics.jsonl") if "loss" in r]
    assert [r["step"] for r in steps] == [1, 2, 3, 4, 5, 6]
    whole = longer.train.learning_rates.decoder
    assert [r["lr"] for r in steps[4:]] == [pytest.approx(whole * lr_factor(s, longer.train)) for s in (4, 5)]
    assert any(not torch.equal(first[name], tensor) for name, tensor in weights(longer).items())
    recorded = json.loads(environment.read_text())
    assert recorded["torch"] == version("torch") and recorded["earlier.torch"] == "1.0"
    pointer = json.loads((run.run_dir / "mlflow.json").read_text())
    tracked = mlflow.MlflowClient(pointer["uri"]).get_run(pointer["run_id"])
    assert tracked.data.params["train.steps"] == "4" and tracked.data.tags["resumed.train.steps"] == "6"
    assert newest_settings(tracked) == flat(longer)


def test_a_driver_that_was_taken_for_dead_records_nothing(ray_cluster, data, output):
    """It was suspended while nodes started or the corpus was built: the folder says what the other trains with."""
    settings = config(data, output, name="taken")
    with lease_on(settings.run_place) as lease:
        (run,) = trainer.checked([settings], lease)
        write_json(Path(lease.path), read_json(Path(lease.path)) | {"owner": "another"})
        with pytest.raises(UserError, match="belongs to another driver now"):
            run.prepare()
    assert not run.folder.config.exists() and not run.folder.corpus.exists()


def test_what_the_user_has_to_mend_is_not_tried_again(ray_cluster, data, output):
    """A worker's `UserError` ends the run at once, as that error, though failures are retried; then the run is free."""
    hopeless = config(data, output, name="hopeless", train={"learning_rates": {"decoder": 1e30}, "checkpoint_every": 8})
    before = workers_started()
    with pytest.raises(UserError, match=r"step 5: .* not finite; .* before: 3 .* use train\.precision=fp32$"):
        trainer.run(hopeless)
    assert workers_started() == before + 1
    mended = config(data, output, name="hopeless", train={"steps": 2})
    assert (trainer.run(mended) / "model.safetensors").exists()


def test_a_run_with_checkpoints_is_mended_under_another_name(ray_cluster, data, output):
    """Where the first steps were good: other learning rates are refused then, and the error says so itself."""
    rates = {"learning_rates": {"decoder": 1e30}, "checkpoint_every": 1, "max_bad_steps": 1, "keep_last": 1}
    with pytest.raises(UserError, match=r"train\.precision=fp32, under another name=…, for this run has checkpoints"):
        trainer.run(config(data, output, name="begun", train=rates))
    with pytest.raises(UserError, match="was started with other settings"):
        trainer.run(config(data, output, name="begun"))


def test_a_finished_training_survives_a_failed_export(ray_cluster, data, output):
    """Weights that answer with NaN are not exported; the same command tries the export alone, here of mended ones."""
    rates = {"vision": 0.0, "projector": 0.0, "decoder": 1e25}  # the only step is taken with finite gradients
    settings = config(data, output, name="diverged", train={"steps": 1, "learning_rates": rates, "warmup": 0.0})
    with pytest.raises(UserError, match=r"answers a question with NaN(?s:.*)The training is complete, .*checkpoints"):
        trainer.run(settings)
    assert not (settings.run_dir / "export").exists()
    checkpoint = settings.run_dir / "checkpoints" / "step-00000001" / "model.safetensors"
    good = AutoModelForImageTextToText.from_pretrained(data / "student").state_dict()
    saved = load_file(checkpoint)
    save_file(saved | {name: good[name].clone() for name in saved.keys() & good.keys()}, checkpoint)
    write_json(checkpoint.with_name("state.json"), {"step": 1, "validation_ce": None})  # else it counts as damaged
    export = AutoModelForImageTextToText.from_pretrained(trainer.run(settings)).state_dict()
    assert all(torch.equal(export[name], tensor) for name, tensor in good.items())
    assert len([r for r in read_records(settings.run_dir / "metrics.jsonl") if "loss" in r]) == 1  # trained once


@pytest.mark.parametrize(
    "variant",
    [
        {
            "teacher": {"context": "prompt_text"},
            "distill": {"policy": "all", "divergence": "reverse_kl"},
            "corpus": {"validation_rows": 0},
            "train": {"precision": "auto"},
        },
        {
            "teacher": {"scope": "visual", "look_ahead": 2},
            "distill": {
                "policy": "language_only",
                "divergence": "jsd",
                "temperature": {"start": 3, "end": 1},
                "w_kd": {"start": 0.5, "end": 1, "shape": "cosine"},
            },
            "train": {"precision": "bf16", "gradient_checkpointing": True, "steps": 4},
        },
    ],
)
def test_variants_run(ray_cluster, data, output, variant):
    """Policies, contexts, scopes, divergences, schedules, bf16, gradient checkpointing, no validation: one path.

    With `auto` the precision that was chosen is the run's: in its settings, its environment, and when found again.
    """
    name = variant["distill"]["policy"]
    run = config(data, output, name=name, **variant)
    trainer.run(run)
    steps = [r for r in read_records(run.run_dir / "metrics.jsonl") if "loss" in r]
    assert len(steps) == run.train.steps and steps[-1]["ce"] < steps[0]["ce"]
    assert all(record["kd"] >= 0 for record in steps)
    assert (steps[0]["temperature"], steps[-1]["temperature"]) == (run.distill.temperature.start, 1.0)
    corpus = Corpus(Path(json.loads((run.run_dir / "corpus.json").read_text())["path"]))
    assert set(corpus.manifest["sources"]) == ({"text"} if name == "language_only" else {"text", "pictures"})
    assert {len(rows) for rows in corpus.validation().values()} == {run.corpus.validation_rows}
    chosen = load_yaml(run.run_dir / "config.yaml").train.precision
    assert chosen in {"fp32", "bf16"}
    assert (run.train.precision == "auto") == (f"{chosen}: " in read_environment(run.run_dir).get(PRECISION, ""))
    trainer.run(run)  # found again
    assert load_yaml(run.run_dir / "config.yaml").train.precision == chosen


def test_new_student_is_trained_from_its_teacher(ray_cluster, data, output):
    """`student.from_teacher` trains a new VLM with CE from its alignment on, and its export is a student path."""
    frozen = {"vision": 0, "projector": 0, "decoder": 1e-3}
    train = {"steps": 4, "learning_rates": frozen}
    adapt = config(
        data, output, name="adapt", student=NEW_STUDENT, distill={"policy": "none"}, train=train, align={"epochs": 1}
    )
    export = trainer.run(adapt)
    aligned, exported = load_file(RunFolder(adapt.run_dir).aligned_weights), weights(adapt)
    start = load_file(adapt.run_dir / "initial_model" / "model.safetensors")
    assert all(torch.equal(exported[name], tensor) for name, tensor in aligned.items())
    assert not any(torch.equal(start[name], tensor) for name, tensor in aligned.items() if tensor.ndim > 1)
    pointer = json.loads((adapt.run_dir / "mlflow.json").read_text())
    tracked = mlflow.MlflowClient(pointer["uri"]).get_run(pointer["run_id"]).data.metrics
    assert {"align/accuracy_before", "align/accuracy_after", "align/accuracy_blind"} <= tracked.keys()
    distill = config(data, output, name="distill", student={"path": str(export)}, train={"steps": 2})
    assert (trainer.run(distill) / "model.safetensors").exists()


def test_one_alignment_for_a_run_and_its_control(finished, data, output, caplog):
    """The control takes the run's, and so does a run beside it, as a sweep's trials are. Without its record there is
    none: it is made again, to the bit; else it is found."""
    caplog.set_level("INFO")
    settings = config(data, output, name="aligned", align={"epochs": 1}, controls=["plain_ce"])

    def prepared() -> list[bytes]:
        with lease_on(settings.run_place) as lease:
            runs = trainer.checked([settings, control_config(settings, "plain_ce")], lease)
            for run in runs:
                run.prepare()
        return [run.folder.aligned_weights.read_bytes() for run in runs]

    first, of_control = prepared()
    assert first == of_control and caplog.text.count("aligned on") == 1
    RunFolder(settings.run_dir).alignment.unlink()
    RunFolder(settings.run_dir).aligned_weights.write_bytes(b"half")
    assert prepared() == [first, first] and caplog.text.count("aligned on") == 2
    assert prepared() == [first, first] and caplog.text.count("aligned on") == 2
    settings = settings.model_copy(update={"name": "beside"})
    assert prepared() == [first, first] and caplog.text.count("aligned on") == 2
    settings = config(data, output, name="other", align={"epochs": 2}, controls=["plain_ce"])
    assert first not in prepared()


def test_forgetting_is_prevented_while_a_student_is_made(ray_cluster, data, output):
    """With KD from the first step the new VLM stays nearer to its teacher on language than plain adaptation does."""
    runs = {
        policy: config(data, output, name=f"new-{policy}", student=NEW_STUDENT, distill={"policy": policy, "w_kd": 5})
        for policy in ("selective", "none")
    }
    with lease_on(output) as lease:
        trainer.run_together(trainer.checked(list(runs.values()), lease))
    kd = [r["kd"] for r in read_records(runs["selective"].run_dir / "metrics.jsonl") if "loss" in r]
    assert kd[0] == pytest.approx(0, abs=1e-6) and kd[-1] > 0  # at first both decoders are equal
    start = load_file(runs["none"].run_dir / "initial_model" / "model.safetensors")
    moved = {
        policy: sum((weights(run)[name] - start[name]).square().sum() for name in start if "text_model" in name)
        for policy, run in runs.items()
    }
    assert moved["selective"] < moved["none"]


def test_on_policy_answers_are_the_students_own(finished, data, output):
    """Every answer sampled: steps have KD and no CE, which is not 0 but absent, and seeds repeat it all."""

    def on_policy(name):
        distill = {"policy": "all", "on_policy": 1.0, "sampled_tokens": 6}
        run = config(data, output, name=name, distill=distill, train={"steps": 3})
        trainer.run(run)
        return [r for r in read_records(run.run_dir / "metrics.jsonl") if "loss" in r]

    first, again = on_policy("on-policy"), on_policy("on-policy-again")
    assert [r["loss"] for r in first] == [r["loss"] for r in again]
    assert len(first) == 3 and all(r["kd"] > 0 for r in first[1:])
    assert all(r["ce"] is None and r["tokens"] == 0 for r in first)


def test_too_many_workers_are_refused_before_anything_starts(ray_cluster, data, output):
    """A request that the cluster can never meet is an error at once, not an endless wait."""
    with pytest.raises(UserError, match=r"ray.num_workers=6 needs 6 × \(100 CPU\).* no single node has 100 CPU"):
        trainer.run(config(data, output, name="wide", ray={"num_workers": 6, "cpus_per_worker": 100}))
