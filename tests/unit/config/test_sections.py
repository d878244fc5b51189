"""The typed configuration refuses what cannot work, before anything starts, and says how to fix it."""

from pathlib import Path
from typing import Any, Literal

import pytest
from config_files import FILE
from pydantic import PositiveInt, ValidationError

from lingu_ray.config import Config, Schedule, Section, Several, SourceConfig, TaskConfig, strict_yaml
from lingu_ray.config.base import Scheduled
from lingu_ray.config.command_line import load_config

SOURCE = {"name": "text", "format": "text", "path": "text.jsonl", "language_heavy": True}
MINIMAL = {
    "name": "run",
    "student": {"path": "vlm"},
    "teacher": {"path": "lm"},
    "corpus": {"sources": [SOURCE]},
}


def with_changes(**changes: object) -> dict[str, object]:
    return MINIMAL | changes


def test_minimal_configuration_is_complete():
    """Name, student, teacher and one source are all that has to be given."""
    config = Config.model_validate(MINIMAL)
    assert config.run_dir == Path("runs/run").absolute()
    assert config.corpora_dir == Path("runs/.corpora").absolute()
    assert config.distill.policy == "selective"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus": {}}, "name at least one source"),
        ({"student": {}}, "exactly one of student.path"),
        ({"student": {"path": "vlm", "from_teacher": {}}}, "exactly one of student.path"),
        ({"corpus": {"sources": [SOURCE | {"language_heavy": False}]}}, "language_heavy: true"),
        ({"corpus": {"sources": [SOURCE, SOURCE]}}, "names must be unique, found twice: text"),
        ({"corpus": {"sources": [SOURCE | {"weight": 0.5}, SOURCE | {"name": "b"}]}}, "missing: ['b']"),
        ({"corpus": {"sources": [SOURCE | {"format": "template"}]}}, "needs `prompt` and `answer`"),
        ({"corpus": {"sources": [SOURCE | {"image": "a"}]}}, "`image` is read by format template, not by"),
        ({"seed": 2**63}, "should be below 2^63"),
        ({"corpus": {"sources": [SOURCE | {"limit": 10**30}]}}, "should be below 2^63"),
        ({"student": {"from_teacher": {}, "revision": "v1"}}, "student.revision is of student.path"),
        ({"student": {"from_teacher": {}, "trust_remote_code": True}}, "student.trust_remote_code is of student.path"),
        ({"student": {"path": ""}}, "the path is empty"),
        ({"output_dir": " "}, "the path is empty"),
        ({"tracking": {"experiment": ""}}, "at least 1 character"),
        (
            {"ray": {"gpus_per_worker": 2}, "teacher": {"path": "lm", "placement": "in_process"}},
            "gives the second GPU to a teacher actor",
        ),
        ({"corpus": {"sources": [SOURCE], "max_length": 9000}}, "the longest sample must fit a micro-batch"),
        ({"train": {"rows_per_step": 2}, "ray": {"num_workers": 3}}, "every worker needs a row in every step"),
        ({"train": {"rows_per_step": 2}, "ray": {"num_workers": {"min": 1, "max": 3}}}, "every worker needs a row"),
        ({"ray": {"num_workers": {"min": 3, "max": 2}}}, "min 3 is above max 2"),
        ({"ray": {"num_workers": {"min": 1}}}, "give a number above 0, or {min: 1, max: 4}"),
        ({"ray": {"num_workers": True}}, "give a number above 0, or {min: 1, max: 4}"),
        ({"ray": {"gpus_per_worker": 1.5}}, "give a share of one GPU, 1 or 2"),
        (
            {"ray": {"gpus_per_worker": 0.5, "num_workers": 2}, "train": {"parallelism": "fsdp2"}},
            "fsdp2 needs a GPU for each worker",
        ),
        ({"teacher": {"path": "lm", "placement": "node", "transport": "nixl"}}, "an actor of a node serves several"),
        ({"distill": {"temperature": 0}}, "distill.temperature must be above 0"),
        ({"distill": {"temperature": {"start": 4, "end": 0}}}, "distill.temperature must be above 0"),
        ({"student": {"from_teacher": {"image_size": 100}}, "distill": {"policy": "none"}}, "must be a multiple of"),
        ({"student": {"from_teacher": {"heads": 7}}, "distill": {"policy": "none"}}, "must be a multiple of heads"),
        ({"align": {"learning_rates": {"projector": 0}, "blocks": 0}}, "set align.learning_rates.projector above 0"),
        ({"train": {"learning_rates": {"vision": 0, "projector": 0, "decoder": 0}}}, "nothing would be trained"),
        ({"distill": {"policy": "none", "w_ce": 0}}, "the loss is 0 in every step"),
        ({"distill": {"w_kd": 0, "w_ce": 0}}, "the loss is 0 in every step"),
        ({"corpus": {"sources": [SOURCE | {"ce_weight": 0, "kd_weight": 0}]}}, "the loss is 0 in every step"),
        ({"distill": {"w_kd": 0, "w_ce": 1}, "corpus": {"sources": [SOURCE | {"ce_weight": 0}]}}, "the loss is 0"),
        ({"name": "a/b"}, "should match pattern"),
        ({"name": "mlflow.db"}, "lies beside the runs already"),
        ({"name": ".."}, "should match pattern"),  # its folder would be that of all runs, or the one above
        ({"train": {"warmup": 1}}, "less than 1"),
        ({"train": {"betas": [0.9, 1.5]}}, "less than 1"),
        ({"train": {"betas": [-0.1, 0.95]}}, "greater than or equal to 0"),
        ({"train": {"grad_clip": float("nan")}}, "greater than 0"),
        ({"train": {"weight_decay": float("inf")}}, "finite number"),
        ({"evaluation": {"min_recovery": -0.1}}, "greater than or equal to 0"),
        ({"evaluation": {"bootstrap": 49}}, "greater than or equal to 50"),  # of one, intervals would have no width
        ({"evaluation": {"min_recovery": 90}}, "less than or equal to 2"),
        ({"evaluation": {"min_retention": 99}}, "less than or equal to 2"),
        ({"evaluation": {"min_retention": float("nan")}}, "finite number"),
        ({"seed": -1}, "greater than or equal to 0"),
        ({"distill": {"w_kd": [[0.1, 4]]}}, "points must start at 0, rise, and have values of 0 or more"),
        ({"distill": {"w_kd": [[0, 4], [0, 2]]}}, "points must start at 0, rise, and have values of 0 or more"),
        ({"distill": {"w_kd": [[0, 4], [0.5, -1], [0.7, 0]]}}, "points must start at 0, rise, and have values of 0"),
        ({"demo": {}, "output_dir": "s3://bucket/runs"}, "output_dir=s3://bucket/runs: the demo makes its models and"),
        ({"distill": {"w_kd": [[0, 4], [500, 2]]}}, "fractions of the run, not steps: give 0 to 1, found 500"),
        ({"distill": {"w_kd": [[0, 4], [0.5, float("inf")]]}}, "finite number"),
    ],
)
def test_bad_combinations_are_refused(changes: dict[str, object], message: str):
    """Each setting or combination that cannot work is an error that names it, and its cure."""
    with pytest.raises(ValidationError) as caught:
        Config.model_validate(with_changes(**changes))
    assert message in str(caught.value)


def test_schedule_moves_from_start_to_end():
    """Linear and cosine schedules start at `start`, reach `end` at `until`, and stay there."""
    linear = Schedule(start=4, end=1, until=0.5)
    assert [linear.at(x) for x in (0, 0.25, 0.5, 1)] == [4, 2.5, 1, 1]
    cosine = Schedule(start=4, end=1, shape="cosine")
    assert [cosine.at(x) for x in (0, 0.5, 1)] == pytest.approx([4, 2.5, 1])
    assert cosine.at(0.1) > Schedule(start=4, end=1).at(0.1)  # flat at the start


@pytest.mark.parametrize("more", [{}, {"start": 9, "end": 3}, {"start": 9, "end": 3, "shape": "cosine", "until": 0.5}])
def test_points_replace_the_rest_of_a_schedule(more: dict):
    """With points nothing else is needed; what else is given makes the same schedule, which a run's file keeps."""
    config = Config.model_validate(with_changes(distill={"w_kd": {"points": [[0, 0], [0.5, 2]], **more}}))
    assert [config.distill.w_kd.at(progress) for progress in (0, 0.4, 0.5, 1)] == [0, 0, 2, 2]
    kept = strict_yaml.load(strict_yaml.dump(config), "config.yaml")[0]
    assert Config.model_validate(kept) == config
    off = Config.model_validate(with_changes(distill={"w_kd": {"points": [[0, 0]], **more}}))
    assert off.distill.w_kd.always_zero


def test_number_is_a_constant_schedule():
    """A plain number stands for a schedule that does not move; true is not a number."""
    config = Config.model_validate(with_changes(distill={"w_kd": 2}))
    assert config.distill.w_kd == Schedule(start=2, end=2)
    with pytest.raises(ValidationError):
        Config.model_validate(with_changes(distill={"w_kd": True}))


class Numbers(Section):
    """Every way in which a setting may be a number, or not be one."""

    whole: PositiveInt = 1
    real: float = 1.0
    perhaps: int | None = None
    either: int | bool = 1
    word: float | Literal["auto"] = "auto"
    pair: tuple[float, float] = (0.0, 1.0)
    several: Several[int] = (1,)
    named: dict[str, float] = {}  # noqa: RUF012 (pydantic copies it)
    moving: Scheduled = Schedule(start=1, end=1)
    inside: Schedule | None = None
    switch: bool = False


@pytest.mark.parametrize(
    ("name", "value", "number"),
    [
        ("whole", True, 1),
        ("real", False, 0.5),
        ("perhaps", True, 2),
        ("perhaps", False, None),
        ("word", True, 0.5),
        ("word", False, "auto"),
        ("pair", [0.5, True], [0.5, 1]),
        ("several", True, 8),
        ("several", [1, False], [1, 0]),
        ("named", {"a": True}, {"a": 1}),
        ("moving", True, 0.5),
        ("moving", [[0, 1], [0.5, True]], [[0, 1], [0.5, 1]]),
        ("moving", {"start": True, "end": 1}, {"start": 1, "end": 1}),
        ("inside", {"start": 1, "end": False}, {"start": 1, "end": 0}),
    ],
)
def test_true_and_false_are_no_numbers(name: str, value: object, number: object):
    """`learning_rates.vision: true` is no rate of 1; what stands there else is taken as before."""
    with pytest.raises(ValidationError, match=name):
        Numbers.model_validate({name: value})
    Numbers.model_validate({name: number})


@pytest.mark.parametrize(("name", "value"), [("either", True), ("either", 1), ("either", 5), ("switch", True)])
def test_what_may_be_true_or_false_stays(name: str, value: object):
    """Also beside numbers, each as what it is."""
    found = getattr(Numbers.model_validate({name: value}), name)
    assert found == value and type(found) is type(value)


def test_no_clipping_is_an_infinite_norm():
    """The one number that may be infinite."""
    assert Config.model_validate(with_changes(train={"grad_clip": float("inf")})).train.grad_clip == float("inf")


@pytest.mark.parametrize(
    ("policy", "trained", "distilled"),
    [
        ("selective", ["text", "vision"], ["text"]),
        ("all", ["text", "vision"], ["text", "vision"]),
        ("language_only", ["text"], ["text"]),
        ("none", ["text", "vision"], []),
    ],
)
def test_policy_says_which_sources_train_and_distil(policy: str, trained: list[str], distilled: list[str]):
    """The variants differ in the sources trained on and distilled, as the paper's comparison has them."""
    sources = [SOURCE, {"name": "vision", "format": "cauldron", "path": "images"}]
    config = Config.model_validate(with_changes(corpus={"sources": sources}, distill={"policy": policy}))
    assert [s.name for s in config.training_sources()] == trained
    assert [s.name for s in config.training_sources() if config.distills(s)] == distilled


@pytest.mark.parametrize(
    ("changes", "needed", "setting"),
    [
        ({"distill.beta": 0.3}, {"distill.divergence": "jsd"}, "distill.beta"),
        ({"distill.sampled_tokens": 8}, {"distill.on_policy": 0.5}, "distill.sampled_tokens"),
        ({"distill.sampling_temperature": 0.5}, {"distill.on_policy": 0.5}, "distill.sampling_temperature"),
        ({"corpus.sources.1.kd_weight": 2}, {"distill.policy": "all"}, "corpus.sources.t0.long.kd_weight"),
    ],
)
def test_what_does_nothing_is_said(tmp_path: Path, changes: dict[str, Any], needed: dict[str, Any], setting: str):
    """A setting of a mode that is off, with what turns it on; nothing is said where it is on, or nothing distilled."""
    path = tmp_path / "mine.yaml"
    path.write_text(FILE, "utf-8")

    def said(**settings: Any) -> list[str]:
        return list(load_config([str(path), *(f"{key}={value}" for key, value in settings.items())]).without_effect())

    assert said() == said(**changes, **needed) == said(**changes, **{"distill.w_kd": 0}) == []
    (line,) = said(**changes)
    assert line.startswith(f"{setting} ") and all(key.rpartition(".")[2] in line for key in needed)


def test_configuration_does_not_change():
    """Sections are frozen: what was validated is what runs."""
    source = SourceConfig.model_validate(SOURCE)
    with pytest.raises(ValidationError):
        setattr(source, "limit", 3)  # noqa: B010 (a plain assignment is refused by the type checker already)


@pytest.mark.parametrize("name", ["", "lr@1", "a\nb", "../a", "/a", "a//b", "x" * 240])
def test_tags_that_mlflow_does_not_take_are_refused(name: str):
    """It would say so when the corpus is built; what it takes is taken."""
    with pytest.raises(ValidationError, match=r"tracking\.tags: MLflow takes no name"):
        Config.model_validate(with_changes(tracking={"tags": {name: "x"}}))
    tags = {"team": "a@b", "é x/y:z-1.0_": ""}
    assert Config.model_validate(with_changes(tracking={"tags": tags})).tracking.tags == tags


def test_fields_that_mlflow_does_not_take_are_refused():
    """A task's own columns are parameters of the run; it would fail when it is opened, by `tracking.uri`."""
    task = {"name": "t", "kind": "language", "type": "perplexity", "path": "a.jsonl"}
    TaskConfig.model_validate(task | {"fields": {"text": "text", "Größe": "size"}})
    with pytest.raises(ValidationError, match=r"task t: fields: MLflow takes no name 'size \(kB\)'"):
        TaskConfig.model_validate(task | {"fields": {"text": "text", "size (kB)": "size"}})
