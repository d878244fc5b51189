"""The JSON schemas that editors read: what runs is valid by them, and what is refused is not."""

import json
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel

from lingu_ray.commands import guide_path, recipes
from lingu_ray.config import Config, strict_yaml
from lingu_ray.config.command_line import load_config, to_yaml
from lingu_ray.errors import UserError
from lingu_ray.evaluate import EvaluateConfig
from lingu_ray.schema import SCHEMAS, main
from tuning.space import Space, shipped

MODELS: dict[str, type[BaseModel]] = {"train": Config, "evaluate": EvaluateConfig, "sweep": Space}
RUN = """
name: mine
student: {path: vlm}
teacher: {path: lm}
corpus: {sources: [{name: text, format: text, path: t.txt, language_heavy: true}]}
"""
OWN_TASK = "{name: mine, kind: language, type: multiple_choice, path: items.jsonl"


@cache
def validator(kind: str) -> jsonschema.Draft202012Validator:
    schema = SCHEMAS[kind]()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def valid(kind: str, text: str) -> bool:
    """Whether an editor finds nothing wrong in a file."""
    return validator(kind).is_valid(strict_yaml.load(text, "test")[0])


def accepted(kind: str, text: str) -> bool:
    """Whether the command takes the file."""
    try:
        MODELS[kind].model_validate(strict_yaml.load(text, "test")[0])
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", recipes())
def test_recipes_are_valid(name: str):
    """Every recipe, as it is shipped and as `--print-config` writes it out."""
    assert valid("train", (files("lingu_ray") / "recipes" / f"{name}.yaml").read_text("utf-8"))
    assert valid("train", to_yaml(load_config([name])))


@pytest.mark.parametrize("name", shipped())
def test_spaces_are_valid(name: str):
    """Every space that is shipped."""
    assert valid("sweep", (files("tuning") / "spaces" / f"{name}.yaml").read_text("utf-8"))


@pytest.mark.parametrize(
    ("fits", "line"),
    [
        (True, "distill: {temperature: 2, w_kd: {start: 4, end: 1, shape: cosine, until: 0.5}}"),
        (True, "distill: {w_ce: [[0, 4], [0.5, 2]]}"),
        (True, "distill: {w_ce: {points: [[0, 4], [0.5, 2]]}}"),
        (False, "distill: {w_ce: {points: []}}"),
        (False, "distill: {w_ce: {points: [[0, 4], [0.5, 2]], unti: 0.5}}"),
        (True, "train: {learning_rates: {decoder: 1e-5}, lora: {rank: 4}}"),
        (True, "controls: plain_ce"),
        (True, "controls: same_ce, plain_ce"),
        (True, "controls: [same_ce]\ntracking: {also: 'tensorboard,wandb'}"),
        (False, "controls: same_ce; plain_ce"),
        (False, "controls: [same_ce, plain]"),
        (True, "evaluation: {tasks: [arc_easy, lm_eval/gsm8k, {name: boolq, limit: 500}]}"),
        (True, "evaluation: {tasks: [{name: anatomy, like: mmlu, subset: anatomy}, {name: lm_eval/gsm8k, limit: 3}]}"),
        (True, f"evaluation: {{tasks: [{OWN_TASK}}}]}}"),
        (False, "distill: {temperature: hot}"),
        (False, "distill: {temperature: {start: 4}}"),
        (False, "distill: {w_ce: [[0, 4, 2]]}"),
        (False, "distill: {w_ce: [[0, 4], [500, 2]]}"),
        (False, "train: {betas: [0.9, 1]}"),
        (False, "train: {learning_rates: {vision: true}}"),
        (False, "distill: {policy: some}"),
        (False, "train: {stepz: 3}"),
        (False, "train: {steps: 0}"),
        (False, "output_dir: [runs]"),
        (False, "evaluation: {tasks: [arc_eesy]}"),
        (False, "evaluation: {tasks: [{name: mine, limit: 5}]}"),
        (False, "evaluation: {tasks: [{name: anatomy, like: mmmlu}]}"),
        (False, f"evaluation: {{tasks: [{OWN_TASK}, like: mmlu}}]}}"),
    ],
)
def test_the_schema_of_a_run_judges_as_training_does(fits: bool, line: str):
    """Schedules and tasks in each way they may be written, and mistakes: schema and command agree."""
    assert valid("train", RUN + line) is accepted("train", RUN + line) is fits


@pytest.mark.parametrize("missing", ["name", "student", "teacher"])
def test_what_a_run_needs_is_required(missing: str):
    """A file without it is marked."""
    tree = strict_yaml.load(RUN, "test")[0]
    del tree[missing]
    assert not valid("train", json.dumps(tree))


@pytest.mark.parametrize(
    ("fits", "text"),
    [
        (True, "{tasks: [piqa], engine: vllm, ray: {cpus_per_worker: 2}, out: scores}"),
        (False, "{task: [piqa]}"),
        (False, "{tasks: [piqa], ray: {cpus: 2}}"),
    ],
)
def test_the_schema_of_tasks_judges_as_evaluation_does(fits: bool, text: str):
    """A file for `tasks=FILE.yaml`."""
    assert valid("evaluate", text) is accepted("evaluate", text) is fits


@pytest.mark.parametrize(
    ("fits", "part"),
    [
        (True, "search: {distill.w_kd: {loguniform: [0.1, 10]}, corpus.sources.docvqa.weight: {choice: [1, 2]}}"),
        (True, "cases: {one: {distill.policy: all}, two: {train.steps: 5}}\nsettings: {tracking.tags.set: a}"),
        (True, "search: {distill.temperature.end: {choice: [1]}}\ncases: {one: {distill.w_kd.until: 0.5}}"),
        (True, "cases: {one: {distill.policy: all}}\nsettings: {train: {steps: 3}, evaluation.bootstrap: 100}"),
        (False, "cases: {one: {train: {steps: 3}}}"),
        (False, "cases: {one: {evaluation.bootstrap: 100}}"),
        (False, "search: {distill.temprature: {choice: [1]}}"),
        (False, "search: {teacher.path: {choice: [a, b]}}"),
        (False, "search: {distill.w_kd: {loguniform: [0.1]}}"),
        (False, "search: {distill.w_kd: {choices: [0.1]}}"),
        (False, "cases: {one: {distill.policy: some}}"),
        (False, "cases: {one: {distill.polcy: all}}"),
        (False, "search: {distill.w_kd: {choice: [1]}}\nsettings: {train.stepz: 3}"),
    ],
)
def test_the_schema_of_a_space_knows_the_settings(fits: bool, part: str):
    """Keys of `search`, `cases` and `settings` are the configuration's own, and so are the values."""
    text = f"name: mine\nbase: demo\n{part}"
    assert valid("sweep", text) is fits and (accepted("sweep", text) or not fits)


def descriptions(node: Any) -> list[str]:
    """Every description in a schema."""
    if isinstance(node, list):
        return [text for item in node for text in descriptions(item)]
    if not isinstance(node, dict):
        return []
    own = [node["description"]] if isinstance(node.get("description"), str) else []
    return own + [text for item in node.values() for text in descriptions(item)]


def test_the_command_prints_a_schema_that_explains(capsys: pytest.CaptureFixture[str]):
    """The output is JSON, with the settings' meanings, and their defaults as one writes them."""
    main([])
    schema = json.loads(capsys.readouterr().out)
    assert "optimizer steps" in descriptions(schema)
    assert schema["$defs"]["DistillConfig"]["properties"]["temperature"]["default"] == 1.0
    assert schema["$defs"]["TrainConfig"]["properties"]["steps"]["default"] == 1000


def test_no_such_schema():
    """A kind of file that there is no schema of is refused with the nearest."""
    with pytest.raises(UserError, match=r"did you mean sweep\?"):
        main(["sweeps"])


def test_the_guide_names_the_schema_as_editors_want_it(tmp_path: Path):
    """The guide's comment names the file that its command writes, and does no harm in a configuration."""
    text = guide_path().read_text("utf-8")
    (command,) = re.findall(r"python -m lingu_ray\.schema train > (\S+)", text)
    (comment,) = re.findall(r"# yaml-language-server: \$schema=\S+", text)
    assert comment.endswith(f"={command}")
    path = tmp_path / "mine.yaml"
    path.write_text(comment + RUN)
    assert load_config([str(path)]).name == "mine"
