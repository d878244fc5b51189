"""The model card: its front matter, its settings, and a snippet that generates."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from families import ADDED, FAMILIES
from hub import serve_dataset
from measured import write_measured
from PIL import Image
from processors import processor_of
from pydantic import BaseModel
from tiny import VOCABULARY
from transformers import AutoProcessor, PreTrainedModel

from lingu_ray import storage
from lingu_ray.atomic import write_json
from lingu_ray.config import Config, EvaluationConfig, Schedule, SourceConfig, TaskConfig
from lingu_ray.corpus.encode import Encoder
from lingu_ray.corpus.row import PLACEHOLDER, Row
from lingu_ray.evaluation.recovery import summarize
from lingu_ray.evaluation.results import Recovery
from lingu_ray.evaluation.tasks.blind import blind_name
from lingu_ray.report.card_settings import in_words
from lingu_ray.report.model_card import front_matter, write_model_card
from lingu_ray.report.origin import hub_ids, public_name
from lingu_ray.runtime.controls import control_config
from lingu_ray.runtime.models.export import export_model
from lingu_ray.runtime.run_folder.folder import RunFolder

TREE: dict[str, Any] = {
    "name": "small",
    "student": {"path": "owner/vlm"},
    "teacher": {"path": "owner/lm"},
    "corpus": {
        "sources": [
            {"name": "stories", "format": "text", "path": "x.txt", "language_heavy": True, "weight": 3},
            {"name": "digits", "format": "cauldron", "path": "owner/data", "subset": "seven", "weight": 1},
        ]
    },
    "train": {"steps": 300, "rows_per_step": 8},
}
COUNTS = {"read": 340, "accepted": 332, "rejected": {"empty answer": 8}, "truncated": 1, "validation": 64}
MANIFEST = {"rows": 400, "sources": {"stories": COUNTS | {"used": 300}, "digits": COUNTS | {"used": 100}}}


def config(**sections: Any) -> Config:
    """The settings of `TREE`; sections replace keys of theirs."""
    tree = dict(TREE)
    for name, value in sections.items():
        tree[name] = {**tree.get(name, {}), **value} if isinstance(value, dict) else value
    return Config.model_validate(tree)


def card(settings: Config, folder: Path, result: Recovery | None = None) -> str:
    """The text of the card."""
    return write_model_card(folder, settings, result, MANIFEST).read_text(encoding="utf-8")


def local_model(folder: Path, front: str | None = None, config_json: str = "{}") -> str:
    """A folder of a model with a card that has this front matter."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config_json)
    if front is not None:
        (folder / "README.md").write_text(f"---\n{front}\n---\n\n# A model\n")
    return str(folder)


def test_front_matter_names_what_the_hub_knows(tmp_path: Path) -> None:
    """The student as base model, hub data alone, library and task; the card begins with it as YAML."""
    _, front, body = card(config(), tmp_path).split("---\n", 2)
    matter = yaml.safe_load(front)
    assert matter == front_matter(config())
    assert matter["base_model"] == ["owner/vlm"] and matter["base_model_relation"] == "finetune"
    assert matter["datasets"] == ["owner/data"]
    assert matter["library_name"] == "transformers" and matter["pipeline_tag"] == "image-text-to-text"
    assert "license" not in matter and "language" not in matter
    assert body.lstrip().startswith("# small")


def test_license_and_language_are_those_of_the_ancestors(tmp_path: Path) -> None:
    """The student's license where its card names one, else the teacher's, with the name of one that is not listed."""
    student = local_model(tmp_path / "vlm", "license: apache-2.0")
    teacher = local_model(tmp_path / "lm", "license: other\nlicense_name: its-own\nlanguage: [en]")
    both = front_matter(config(student={"path": student}, teacher={"path": teacher}))
    assert both["license"] == "apache-2.0" and "license_name" not in both and both["language"] == ["en"]
    silent = local_model(tmp_path / "silent", "library_name: transformers")
    of_teacher = front_matter(config(student={"path": silent}, teacher={"path": teacher}))
    assert of_teacher["license"] == "other" and of_teacher["license_name"] == "its-own"


def test_cards_of_the_hub_cache_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of the hub whose card lies in the cache names its license without a network."""
    cache = tmp_path / "models--owner--vlm"
    (cache / "snapshots" / "abc").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    (cache / "snapshots" / "abc" / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert front_matter(config())["license"] == "mit"


def cached(hub: Path, commit: str, revision: str) -> None:
    """A model of the hub as loading it leaves it in the cache: its configuration, and no card."""
    model = hub / "models--owner--vlm"
    for file, text in ((f"refs/{revision}", commit), (f"snapshots/{commit}/config.json", "{}")):
        (model / file).parent.mkdir(parents=True, exist_ok=True)
        (model / file).write_text(text)


@pytest.mark.parametrize("student", [{"path": "owner/vlm"}, {"path": "owner/vlm@v1"}, {"path": "/folder"}])
def test_a_card_that_is_not_known_may_name_another_license(
    student: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the student's is not here, and cannot be fetched, the teacher's license and languages are not claimed."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cached(tmp_path, "a" * 40, "v1")
    teacher = local_model(tmp_path / "lm", "license: mit\nlanguage: [en]")
    matter = front_matter(config(student=student, teacher={"path": teacher}))
    assert "license" not in matter and "language" not in matter
    assert matter.get("base_model") == (None if student["path"] == "/folder" else ["owner/vlm"])


@pytest.mark.parametrize("student", [{"path": "owner/vlm"}, {"path": "owner/vlm@v1"}])
def test_the_card_alone_is_fetched_of_the_commit_that_was_loaded(
    student: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the branch has moved on, with another license; the cache stays where it was."""
    hub, loaded = tmp_path / "cache", hashlib.sha1(b"loaded").hexdigest()
    revisions = {
        name: Path(local_model(tmp_path / name, f"license: {license}"))
        for name, license in (("loaded", "mit"), ("main", "gpl"), ("v1", "gpl"))
    }
    for revision in ("main", "v1"):
        cached(hub, loaded, revision)
    with serve_dataset("owner/vlm", revisions) as endpoint:
        address = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        of_hub = {"ENDPOINT": endpoint, "HUGGINGFACE_CO_URL_TEMPLATE": address}
        for name, value in (of_hub | {"HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": False}).items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        matter = front_matter(config(student=student))
    assert matter["license"] == "mit" and matter["base_model"] == ["owner/vlm"]
    assert {(hub / "models--owner--vlm" / "refs" / name).read_text() for name in ("main", "v1")} == {loaded}
    assert sorted(path.name for path in hub.glob("models--*/snapshots/*/*")) == ["README.md", "config.json"]


@pytest.mark.slow
def test_the_card_of_a_model_in_a_bucket_is_read(bucket: str) -> None:
    """License, languages and base model, by two small files; the weights stay where they are."""
    files = {"README.md": "---\nlicense: mit\nlanguage: [de]\n---\n", "config.json": '{"_name_or_path": "owner/vlm"}'}
    for name, text in (files | {"model.safetensors": "weights"}).items():
        storage.put(text.encode(), f"{bucket}/vlm/{name}")
    matter = front_matter(config(student={"path": f"{bucket}/vlm"}))
    assert (matter["license"], matter["language"], matter["base_model"]) == ("mit", ["de"], ["owner/vlm"])
    assert not list(storage.cache_folder().rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("front", "config_json", "bases"),
    [
        (None, '{"_name_or_path": "owner/original"}', ["owner/original"]),
        ("base_model: owner/from-card", "{}", ["owner/from-card"]),
        ("base_model: [owner/one, ./local, owner/two]", '{"_name_or_path": "/data/x"}', ["owner/one", "owner/two"]),
    ],
)
def test_a_local_student_has_the_base_models_that_it_names(
    tmp_path: Path, front: str | None, config_json: str, bases: list[str]
) -> None:
    """Its configuration first, then its card; paths of somebody's machine are none."""
    student = local_model(tmp_path / "vlm", front, config_json)
    assert front_matter(config(student={"path": student}))["base_model"] == bases


def test_a_new_model_is_no_finetune(tmp_path: Path) -> None:
    """What is built on the teacher has it as base model, without a relation; so has a student of unknown origin."""
    new = config(student={"path": None, "from_teacher": {}}, align={"epochs": 2})
    unknown = config(student={"path": local_model(tmp_path / "vlm", "[broken")})
    for settings in (new, unknown):
        matter = front_matter(settings)
        assert matter["base_model"] == ["owner/lm"] and "base_model_relation" not in matter
    assert "made from a text-only language model" in card(new, tmp_path)
    assert "| teacher | owner/lm |" in card(new, tmp_path) and "| student | new" in card(new, tmp_path)
    assert "| alignment | to the decoder's token embeddings before training: 2 passes" in card(new, tmp_path)


def test_a_new_model_names_its_tower(tmp_path: Path) -> None:
    """Decoder and tower are base models and rows of the settings; a license is named where both have the same one."""
    teacher, tower = (
        local_model(tmp_path / name, "license: mit", f'{{"_name_or_path": "owner/{name}"}}') for name in "ab"
    )
    new = config(student={"path": None, "from_teacher": {"tower": tower, "image_size": 112}}, teacher={"path": teacher})
    matter = front_matter(new)
    assert matter["base_model"] == ["owner/a", "owner/b"] and matter["license"] == "mit"
    text = card(new, tmp_path)
    assert (
        "the teacher's decoder and the vision tower b, for images of 112 × 112 |" in text and str(tmp_path) not in text
    )
    Path(tower, "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n", encoding="utf-8")
    assert "license" not in front_matter(new)


def test_local_paths_are_hidden(tmp_path: Path) -> None:
    """A local folder is named by its last part; an evaluation that was not made is left out."""
    text = card(config(student={"path": str(tmp_path / "my-vlm")}), tmp_path)
    assert str(tmp_path) not in text and "| student | my-vlm |" in text and "## Results" not in text


def test_sources_with_their_weights_and_passes(tmp_path: Path) -> None:
    """Weights as they acted, and passes of the order that wraps: 300 × 8 places of 400, 268 rows of each."""
    settings = config(distill={"ce_on_distilled": 0.2})
    sources = [source.model_copy(update={"kd_weight": 0.7}) for source in settings.corpus.sources]
    settings = settings.model_copy(update={"corpus": settings.corpus.model_copy(update={"sources": tuple(sources)})})
    text = card(settings, tmp_path)
    stories = "| stories | local, format text | yes | yes | 3 | 75.0% | 0.2 | 0.7 | 340 | 8 | 268 | 6.72 |"
    link = "[owner/data](https://huggingface.co/datasets/owner/data) (seven, train)"
    digits = f"| digits | {link} | no | no | 1 | 25.0% | 1 | – | 340 | 8 | 268 | 2.24 |"
    assert stories in text and digits in text


def test_passes_are_counted_since_the_data_changed(tmp_path: Path) -> None:
    """Of 300 steps the last 100 read this corpus: a third of the passes, and the card says of which steps."""
    settings = config(output_dir=str(tmp_path))
    settings.run_dir.mkdir(exist_ok=True)
    write_json(RunFolder(settings.run_dir).corpus, {"path": str(tmp_path), "since": 200})
    text = card(settings, tmp_path)
    assert "| 268 | 2.24 |" in text and "since step 200: the data changed then" in text


def test_results_are_a_table(tmp_path: Path) -> None:
    """The verdict, and lines of the table for each task, in nats and blind too; all tables are well formed."""
    task = TaskConfig(name="cloze", kind="language", type="multiple_choice", path="-")
    digits = TaskConfig(name="digits", kind="vision", type="exact_match", path="-")
    blind = digits.model_copy(update={"name": blind_name("digits")})
    for model, right in (("teacher", 90), ("adapted", 30), ("distilled", 80)):
        for one in (task, digits, blind)[: 1 if model == "teacher" else 3]:
            write_measured(tmp_path, one, model, [float(i < right) for i in range(100)])
    settings = EvaluationConfig(tasks=(task, digits), bootstrap=50, blind=True)
    result = summarize(tmp_path, ["teacher", "adapted", "distilled"], settings)
    text = card(config(), tmp_path, result)
    assert result.verdict.text in text and "| cloze | acc | 100 | 90.0%" in text
    assert "| cloze | nats_per_choice | 100 |" in text and "| digits | exact_match, blind | 100 | – | 30.0%" in text
    for table in re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert all(line.endswith("|") for line in text.splitlines() if line.startswith("|"))


def test_a_control_has_a_card_of_its_own(tmp_path: Path) -> None:
    """It is named after its run, says what it is, and has its own recovery; the verdict is that of the run."""
    task = TaskConfig(name="cloze", kind="language", type="multiple_choice", path="-")
    for model, right in (("teacher", 90), ("adapted", 30), ("plain_ce", 60), ("distilled", 84)):
        write_measured(tmp_path, task, model, [float(i < right) for i in range(100)])
    models = ["teacher", "adapted", "plain_ce", "distilled"]
    result = summarize(tmp_path, models, EvaluationConfig(tasks=(task,), bootstrap=50))
    run = config(output_dir=str(tmp_path))
    path = write_model_card(tmp_path, control_config(run, "plain_ce"), result, MANIFEST, control_of="small")
    text = path.read_text(encoding="utf-8")
    assert "knowledge-distillation" in front_matter(run)["tags"] and "distillation" not in text.partition("# small")[0]
    assert "# small/plain_ce\n" in text and "with cross-entropy alone" in text and "It is a control of small" in text
    assert f"On small: {result.verdict.text}" in text
    assert re.search(r"^\| cloze .* recovery 50% \[\d+, \d+\] \|$", text, flags=re.MULTILINE)


def test_what_the_intervals_are_of_is_told(tmp_path: Path) -> None:
    """Clusters beside the items, as in the report: the width of an interval follows from them; and no seeds."""
    task = TaskConfig(name="cloze", kind="language", type="multiple_choice", path="-")
    write_measured(tmp_path, task, "distilled", [float(i < 84) for i in range(100)])
    result = summarize(tmp_path, ["distilled"], EvaluationConfig(tasks=(task,), bootstrap=50))
    shared = replace(result, tasks={"cloze": replace(result.tasks["cloze"], clusters=20)})
    text = card(config(output_dir=str(tmp_path)), tmp_path, shared)
    assert "| cloze | acc | 100 in 20 clusters |" in text and "do not cover the choice of the training seed" in text


def test_a_trial_without_a_teacher_has_its_own_recovery(tmp_path: Path) -> None:
    """It is measured as the distilled model, beside the sweep's fine-tuned one, whose role it would have by itself."""
    task = TaskConfig(name="cloze", kind="language", type="multiple_choice", path="-")
    models = {"original_vlm": 90, "fine_tuned": 30, "distilled": 45}
    for model, right in models.items():
        write_measured(tmp_path, task, model, [float(i < right) for i in range(100)])
    result = summarize(tmp_path, list(models), EvaluationConfig(tasks=(task,), bootstrap=50))
    trial = config(output_dir=str(tmp_path), student={"role": "original_vlm"}, distill={"policy": "none"})
    assert re.search(r"^\| cloze .* recovery 25% \[\d+, \d+\] \|$", card(trial, tmp_path, result), flags=re.MULTILINE)


def test_the_control_without_the_teacher_is_not_called_distilled(tmp_path: Path) -> None:
    """same_ce keeps the run's policy, for the weights of its rows; its card speaks of no distillation."""
    run = config(distill={"ce_on_distilled": 0.2})
    control = control_config(run, "same_ce")
    text = write_model_card(tmp_path, control, None, MANIFEST, control_of="small").read_text(encoding="utf-8")
    assert "distilled from" not in text and "distillation" not in text.partition("# small")[0]
    assert "without a teacher, with that run's weights of each row's cross-entropy." in text
    assert "| policy | none: cross-entropy alone |" in text and "| teacher |" not in text
    assert "| cross-entropy on rows that the run distills | × 0.2 |" in text
    assert "| stories | local, format text | yes | no |" in text and "| 0.2 | – |" in text


def test_versions_are_told_where_the_run_has_them(tmp_path: Path) -> None:
    """The run's environment.json as a table; a run without one has no such section."""
    run = config(output_dir=str(tmp_path))
    assert "## Versions" not in card(run, tmp_path)
    run.run_dir.mkdir()
    (run.run_dir / "environment.json").write_text('{"torch": "2.9.0", "git.commit": "abc"}')
    text = card(run, tmp_path)
    assert "## Versions\n\n| | |\n|---|---|\n| torch | 2.9.0 |\n| git.commit | abc |\n" in text


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (2, "2"),
        ({"start": 4, "end": 1}, "from 4 to 1 linearly, over all steps"),
        (
            {"start": 4, "end": 1, "shape": "cosine", "until": 0.5},
            "from 4 to 1 along a cosine, over the first 50% of the steps",
        ),
        ([[0, 4], [0.5, 2]], "4 from 0% of the steps on, then 2 from 50% of the steps on"),
    ],
)
def test_schedules_in_words(written: Any, words: str, tmp_path: Path) -> None:
    """Every form of a schedule says where it begins, how it moves and when it ends; the card has these words."""
    settings = config(distill={"temperature": written})
    assert in_words(settings.distill.temperature) == words
    assert f"| temperature | {words} |" in card(settings, tmp_path)


# How often it is looked at what is trained; where the teacher runs; what names a source's data and cuts them into rows.
NOT_ACTING = {
    "distill": set(),
    "train": {
        "validate_every",
        "sample_every",
        "samples",
        "checkpoint_every",
        "checkpoint",
        "keep_last",
        "max_bad_steps",
    },
    "teacher": {"placement", "transport", "look_ahead", "micro_batches_per_call", "max_restarts"},
    "source": {"name", "format", "path", "image_root", "image", "prompt", "answer", "prompt_words", "answer_words"},
}
# Of the others each must act, or a change of it could not be told.
ACTIVE: dict[str, dict[str, Any]] = {
    "distill": {"divergence": "jsd", "on_policy": 0.5, "ce_on_distilled": 0.5},
    "train": {"lora": {"rank": 4, "dropout": 0.1}, "weight_decay": 0.1, "learning_rates": {"vision": 1e-6}},
}
OTHER_VALUES: dict[str, Any] = {
    "policy": "all",
    "divergence": "tv",
    "top_k": 7,
    "precision": "bf16",
    "parallelism": "fsdp2",
    "attention": "flash_attention_2",
    "betas": (0.8, 0.9),
    "targets": ("q_proj",),
    "subset": "other",
    "split": "validation",
    "limit": 5,
    "path": "owner/another",
    "revision": "abc",
    "context": "prompt_text",
    "scope": "visual",
    "earlier_turns": "teacher",
    "kd_normalizer": "distilled",
}


def other_values(name: str, value: Any) -> list[Any]:
    """Values that a setting may have instead: one, or of a section one for each of its settings."""
    if name in OTHER_VALUES:
        return [OTHER_VALUES[name]]
    if isinstance(value, Schedule):
        return [{"start": value.start / 2, "end": value.end / 2}]
    if isinstance(value, BaseModel):
        return [{**value.model_dump(), key: other} for key, inner in value for other in other_values(key, inner)]
    return [not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else value / 2]


@pytest.mark.parametrize("section", ["distill", "train", "teacher"])
def test_every_setting_that_acts_is_told(section: str, tmp_path: Path) -> None:
    """Another value of any setting of method, optimization or teacher makes another card, unless it cannot act."""
    base = config(**{section: ACTIVE.get(section, {})})
    before, tree = card(base, tmp_path), base.model_dump(mode="json")
    settings = {name: value for name, value in getattr(base, section) if name not in NOT_ACTING[section]}
    assert len(settings) + len(NOT_ACTING[section]) == len(tree[section])
    for name, value in settings.items():
        for other in other_values(name, value):
            changed = Config.model_validate({**tree, section: {**tree[section], name: other}})
            assert card(changed, tmp_path) != before, f"{section}.{name}={other} is not told"


def test_every_setting_of_a_source_that_acts_is_told(tmp_path: Path) -> None:
    """Likewise for a source of the hub."""
    base = config(distill={"policy": "all"})
    first, source = base.corpus.sources
    before = card(base, tmp_path)
    for name in set(SourceConfig.model_fields) - NOT_ACTING["source"]:
        for other in other_values(name, getattr(source, name)):
            sources = (first, source.model_copy(update={name: other}))
            changed = base.model_copy(update={"corpus": base.corpus.model_copy(update={"sources": sources})})
            assert card(changed, tmp_path) != before, f"corpus.sources.{name}={other} is not told"


def test_settings_that_cannot_act_are_not_told(tmp_path: Path) -> None:
    """Without KD no word of a teacher, on-policy answers only where they are used, beta only with JSD."""
    alone = card(config(distill={"policy": "none"}), tmp_path)
    for word in ("teacher", "temperature", "weight of KD", "on-policy"):
        assert f"| {word}" not in alone
    text = card(config(), tmp_path)
    assert "on-policy" not in text and "beta 0.5" not in text and "LoRA" not in text


@pytest.mark.slow
@pytest.mark.parametrize("family", ["idefics3", "llava", "llava_next", "gemma3"])
def test_the_snippet_answers(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card's own code, in the export's folder: text for a picture and for a text, asked as training asks."""
    student, processor = FAMILIES[family].student(FAMILIES[family].teacher()), processor_of(family)
    tokens = enumerate(processor.tokenizer.batch_decode([[i] for i in range(VOCABULARY)], skip_special_tokens=True))
    unsaid = [token for token, text in tokens if not re.search(r"[a-z]", text)]
    unsaid += range(VOCABULARY, VOCABULARY + len(ADDED))
    student.generation_config.suppress_tokens = unsaid  # an untrained model says anything, newlines alone included
    export_model(student, processor, torch.bfloat16, tmp_path)
    [snippet] = re.findall(r"```python\n(.*?)```", card(config(), tmp_path), flags=re.DOTALL)
    Image.new("RGB", (40, 30), (200, 30, 30)).save(tmp_path / "picture.jpg")
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    asked: list[list[int]] = []
    generate = type(student).generate

    def listened(model: PreTrainedModel, **inputs: Any) -> torch.Tensor:
        asked.append(inputs["input_ids"][0].tolist())
        return generate(model, **{**inputs, "max_new_tokens": 12})

    monkeypatch.setattr(type(student), "generate", listened)
    exec(compile(snippet, "README.md", "exec"), {"print": said.append})
    assert len(said) == 2 and all(re.search(r"\w", answer) for answer in said)
    questions = re.findall(r'"text": "(.*?)"', snippet)
    encoder = Encoder(AutoProcessor.from_pretrained(tmp_path), 512)
    pictures = [[(tmp_path / "picture.jpg").read_bytes()], []]
    for ids, question, images in zip(asked, questions, pictures, strict=True):
        turns = [
            {"role": "user", "content": PLACEHOLDER * len(images) + question},
            {"role": "assistant", "content": "."},
        ]
        assert ids == encoder.encode_question(Row("-", 0, turns, images, False)).input_ids_T.tolist()


def test_a_gguf_teacher_is_named_with_its_file(tmp_path: Path):
    """On the hub by id, revision and file, elsewhere by the file's name alone; the hub id is that of its repository."""
    assert public_name("org/lm/q8.gguf") == "org/lm/q8.gguf" and hub_ids("org/lm/q8.gguf") == ["org/lm"]
    assert public_name("org/lm@v1/q8.gguf") == "org/lm@v1/q8.gguf" and hub_ids("org/lm@v1/q8.gguf") == ["org/lm"]
    assert public_name(str(tmp_path / "q8.gguf")) == public_name("s3://bucket/lm/q8.gguf") == "q8.gguf"
