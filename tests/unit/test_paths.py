"""Paths in the settings: absolute from the moment they are read, whatever their spelling and wherever code runs."""

import os
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from lingu_ray import paths
from lingu_ray.chat import read_arguments as read_chat
from lingu_ray.config import Config, TaskConfig, TeacherConfig
from lingu_ray.config.settings import Settings
from lingu_ray.config.tree import section_in
from lingu_ray.errors import UserError
from lingu_ray.evaluate import EvaluateConfig
from lingu_ray.evaluate import read_arguments as read_evaluate
from lingu_ray.runtime.models.load import load_config

SETTINGS = {
    "name": "run",
    "output_dir": "runs",
    "student": {"path": "models/vlm"},
    "teacher": {"path": "models/lm"},
    "corpus": {
        "cache_dir": "corpora",
        "sources": [
            {"name": "a", "format": "text", "path": "data/*.txt", "language_heavy": True},
            {"name": "b", "format": "messages", "path": "data/b.jsonl", "image_root": "images"},
        ],
    },
    "tracking": {"uri": "sqlite:///mlflow.db"},
    "evaluation": {"tasks": [{"name": "t", "kind": "language", "type": "perplexity", "path": "data/t.jsonl"}]},
}


def respelled(tree: Any, spell: Any) -> Any:
    """The settings with every path spelled another way."""
    if isinstance(tree, dict):
        return {key: respelled(value, spell) for key, value in tree.items()}
    if isinstance(tree, list):
        return [respelled(value, spell) for value in tree]
    if not isinstance(tree, str):
        return tree
    if tree.startswith("sqlite:///"):
        return f"sqlite:///{spell(tree.removeprefix('sqlite:///'))}"
    return spell(tree) if "/" in tree or tree in ("runs", "corpora", "images") else tree


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with both models in it, which is the home folder too."""
    for name in ("models/vlm", "models/lm", "data"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_every_spelling_of_a_path_is_the_same_setting(here: Path, monkeypatch: pytest.MonkeyPatch):
    """Relative, absolute, with `~` and with `..`: equal settings, which mean the same files from any directory."""
    relative = Config.model_validate(SETTINGS)
    for spell in (lambda p: str(here / p), lambda p: f"~/{p}", lambda p: f"data/../{p}"):
        assert Config.model_validate(respelled(SETTINGS, spell)) == relative
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert Config.model_validate(relative.model_dump()) == relative
    assert relative.corpus.sources[0].path == str(here / "data/*.txt")


def fields(section: type[BaseModel], seen: set[type]) -> list[tuple[str, Any]]:
    """Every setting of a tree of sections, by name."""
    if section in seen:
        return []
    seen.add(section)
    found = []
    for name, field in section.model_fields.items():
        found.append((f"{section.__name__}.{name}", field))
        if inner := section_in(field.annotation):
            found += fields(inner, seen)
    return found


def is_made_absolute(field: Any) -> bool:
    """Whether one of the types of `paths` stands in a field."""
    kinds = [get_args(kind)[1] for kind in vars(paths).values() if getattr(kind, "__metadata__", None)]
    inner = [one for arg in get_args(field.annotation) for one in getattr(arg, "__metadata__", ())]
    return any(one in kinds for one in [*field.metadata, *inner])


def test_no_path_is_left_as_it_was_written():
    """Every setting that is called a path, folder or store, or is described as one, is made absolute on reading."""
    named = ("path", "dir", "root", "uri", "out")
    for name, field in fields(Config, set()) + fields(EvaluateConfig, set()):
        words = (field.description or "").replace(",", " ").replace(":", " ").split()
        called = name.rpartition(".")[2].split("_")[-1] in named
        if called or (words[:1] == ["folder"] and field.annotation is not bool):
            assert is_made_absolute(field), name


@pytest.mark.parametrize("hub_id", ["HuggingFaceTB/SmolVLM-256M-Instruct", "gpt2", "org/model.gguf"])
def test_hub_ids_stay(here: Path, hub_id: str):
    """What nothing local has, and the hub may know, is left alone; a name that is a folder here is that folder."""
    assert paths.model_path(hub_id) == hub_id or hub_id == "org/model.gguf"
    assert paths.model_path("models/vlm") == str(here / "models/vlm")
    assert paths.data_path("HuggingFaceM4/the_cauldron") == "HuggingFaceM4/the_cauldron"
    for name in ("gone.jsonl", "gone.csv.gz", "gone.tgz", "gone.bz2"):
        assert paths.data_path(f"data/{name}") == str(here / "data" / name)


def test_names_of_harness_tasks_stay(here: Path):
    """A folder that is called like a task of lm-evaluation-harness does not take its place; a YAML file is a path."""
    (here / "gsm8k").mkdir()
    settings = {"name": "t", "kind": "language", "type": "lm_eval"}
    assert TaskConfig.model_validate(settings | {"path": "gsm8k"}).path == "gsm8k"
    assert TaskConfig.model_validate(settings | {"path": "own.yaml"}).path == str(here / "own.yaml")


def test_a_glob_in_a_folder_with_brackets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The working directory's own brackets are no part of the pattern."""
    import glob

    folder = tmp_path / "[data]"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    monkeypatch.chdir(folder)
    assert glob.glob(paths.data_path("*.txt")) == [str(folder / "a.txt")]


def test_relative_paths_start_where_the_command_did(here: Path, monkeypatch: pytest.MonkeyPatch):
    """Settings that another process reads for a command mean that command's paths (a trial's values do)."""
    monkeypatch.chdir("/")
    with paths.starting_from(here):
        assert paths.model_path("models/vlm") == str(here / "models/vlm")
        assert paths.absolute("x") == here / "x"
    assert paths.absolute("x") == Path("/x")


def test_stores(here: Path):
    """Stores on disk are made absolute, servers are left alone."""
    assert paths.tracking_uri("sqlite:///a.db") == f"sqlite:///{here / 'a.db'}"
    assert paths.tracking_uri("mlruns") == str(here / "mlruns")
    assert paths.tracking_uri("http://host:5000") == "http://host:5000"
    for path in ("~/mlruns", "mlruns", str(here / "mlruns")):
        assert paths.tracking_uri(f"file:{path}") == paths.tracking_uri(f"file://{path}") == f"file://{here / 'mlruns'}"
    assert paths.tracking_uri("sqlite:///~/a.db") == f"sqlite:///{here / 'a.db'}"
    (here / "store").touch()
    for file in ("runs/mlflow.db", "~/store", str(here / "b.sqlite")):  # MLflow would take them for folders
        named = here / Path(file).name if file.startswith("~") else here / file
        with pytest.raises(paths.NoPath, match=f"a database is named with its kind: sqlite:///{named}"):
            paths.tracking_uri(file)
    for server in ("localhost:5000", "mlflow.example.com:80/path"):  # which MLflow would take for a scheme
        with pytest.raises(paths.NoPath, match=f"^{server}: a server's address begins with .*: http://{server}$"):
            paths.tracking_uri(server)


def test_a_typo_is_answered_with_the_nearest_name(here: Path):
    """A local model that is not there: no such folder, the nearest name, and nothing of the hub."""
    with pytest.raises(UserError) as caught:
        load_config(str(here / "models/vml"), None, False, "student.path")
    assert f"no such file or folder: {here}/models/vml; did you mean {here}/models/vlm?" in str(caught.value)
    assert "hub" not in str(caught.value).lower() and "\n" not in str(caught.value)
    assert paths.nearest(here / "modles" / "vlm") == here / "models/vlm"
    (here / "models" / "vlm.old").symlink_to(here / "gone")
    assert paths.nearest(here / "models" / "vlm.old") == here / "models/vlm"  # not the link itself
    for name in ("insp.yaml", "train.yaml"):
        (here / name).touch()
    assert paths.nearest(here / "trian.yml") == here / "train.yaml"
    assert paths.nearest(here / "none.yaml") is None  # alike by its ending alone
    with pytest.raises(UserError, match=r"did you mean .*/models/vlm\?; and no model models/vml can be loaded from"):
        load_config("models/vml", None, False, "student.path")


def test_home_is_only_the_tilde(here: Path):
    """`~` in the middle of a path is a name like any other."""
    assert paths.absolute("data/~x") == here / "data/~x" and paths.absolute("~") == here
    assert os.path.isabs(paths.absolute("~/x"))


@pytest.mark.parametrize("begins", ["$SCRATCH", "${HOME}", "${oc.env:HOME}", "~nobody-of-that-name"])
def test_what_shells_read_is_refused(here: Path, begins: str):
    """A variable, or the home of nobody, in any path of the settings; a folder that is called so is that folder."""
    setting = Settings(Config, respelled(SETTINGS, lambda path: f"{begins}/{path}"), "my.yaml")
    with pytest.raises(UserError) as caught:
        setting.validate()
    said = str(caught.value).splitlines()
    refused = {line.partition(":")[0] for line in said if line.endswith("single quotes [my.yaml]")}
    refused |= {line.partition(":")[0] for line in said if "no home folder ~nobody-of-that-name is known here" in line}
    sources = {"corpus.sources.a.path", "corpus.sources.b.path", "corpus.sources.b.image_root"}
    others = {"output_dir", "student.path", "teacher.path", "corpus.cache_dir", "evaluation.tasks.t.path"}
    assert refused == sources | others | {"tracking.uri"}
    (here / begins / "runs").mkdir(parents=True)
    assert Config.model_validate(SETTINGS | {"output_dir": f"{begins}/runs"}).output_dir == here / begins / "runs"
    server = "postgresql://me:pa$word@host/db"
    assert Config.model_validate(SETTINGS | {"tracking": {"uri": server}}).tracking.uri == server


@pytest.mark.parametrize("begins", ["a\nb", "a\0b", 300 * "n", "a\udce9b"], ids=["line break", "NUL", "long", "bytes"])
def test_what_nothing_is_called_is_refused(here: Path, begins: str):
    """In any path of the settings, by its name; a folder whose name has a line break is that folder."""
    with pytest.raises(UserError) as caught:
        Settings(Config, respelled(SETTINGS, lambda path: f"{begins}/{path}"), "my.yaml").validate()
    said = [line.partition(":")[0] for line in str(caught.value).splitlines() if line.endswith("[my.yaml]")]
    assert len(said) == 9 and {"output_dir", "student.path", "corpus.sources.a.path", "tracking.uri"} <= {*said}
    if "\n" in begins:
        (here / begins / "runs").mkdir(parents=True)
        assert Config.model_validate(SETTINGS | {"output_dir": f"{begins}/runs"}).output_dir == here / begins / "runs"


def test_a_gguf_file_has_one_spelling(here: Path):
    """`folder/name.gguf` is the teacher everywhere, on the hub too; `gguf_file` of earlier settings becomes its end."""
    (here / "models" / "lm.gguf").touch()
    now, before = TeacherConfig(path="models/lm.gguf"), {"path": "models", "gguf_file": "lm.gguf"}
    assert now == TeacherConfig.model_validate(before) and now.path == str(here / "models/lm.gguf")
    assert TeacherConfig.model_validate({"path": "org/lm", "gguf_file": "q8.gguf"}).path == "org/lm/q8.gguf"
    assert TeacherConfig.model_validate({"path": "org/lm", "gguf_file": None}).path == "org/lm"
    assert paths.model_origin("org/lm/q8.gguf") == ("org/lm", {"gguf_file": "q8.gguf"})
    assert paths.model_origin("org/lm") == ("org/lm", {})


@pytest.mark.parametrize("setting", ["student.path", "teacher.path", "student.from_teacher.tower"])
def test_a_file_is_no_model(here: Path, setting: str):
    """Weights or a config.json in place of their folder are refused on reading, by the setting; so are model words."""
    (here / "models/lm/model.safetensors").touch()
    tree = SETTINGS | {"student": {"from_teacher": {}}} if "tower" in setting else SETTINGS
    settings = Settings(Config, deepcopy(tree), "my.yaml")
    settings.override(f"{setting}=models/lm/model.safetensors")
    said = rf"{here}/models/lm/model\.safetensors is a file, and a model is a folder, .*: give its folder"
    with pytest.raises(UserError, match=rf"{setting}: {said}"):
        settings.validate()
    for read, further in ((read_evaluate, ["tasks=piqa"]), (read_chat, [])):
        with pytest.raises(UserError, match=said):
            read(["models/lm/model.safetensors", *further])


def test_a_revision_is_named_once(here: Path):
    """Of two, `@` and `revision`, one would count in silence."""
    with pytest.raises(UserError, match=r"teacher\.path: org/lm@v1 names a revision, and revision=v2 is a second one"):
        load_config("org/lm@v1", "v2", False, "teacher.path")


TAKE_LOCATIONS = (
    "student.path",
    "teacher.path",
    "corpus.sources.0.path",
    "corpus.sources.1.image_root",
    "evaluation.tasks.t.path",
    "corpus.cache_dir",
    "output_dir",
)
TAKE_NONE = ("tracking.uri", "tracking.parent")


@pytest.mark.parametrize("setting", [*TAKE_LOCATIONS, *TAKE_NONE])
def test_a_scheme_is_refused_by_name(setting: str):
    """No setting takes `s3a://…` for a folder of that name; those that take buckets say so, others refuse them too."""
    settings = Settings(Config, deepcopy(SETTINGS), "my.yaml")
    for scheme in ("hdfs", "s3a", "az", "file") if setting != "tracking.uri" else ("gs",):
        settings.override(f"{setting}={scheme}://place/a")
        with pytest.raises(
            UserError, match=rf"{setting.replace('.0', '.a').replace('.1', '.b')}: {scheme}://place/a: "
        ):
            settings.validate()
    settings.override(f"{setting}=s3://place/a")
    if setting in TAKE_LOCATIONS:
        settings.validate()
    else:
        with pytest.raises(UserError, match=f"{setting}: s3://place/a: "):
            settings.validate()


def test_credentials_in_a_location_are_not_repeated():
    """A location with a password is refused, and the message has it nowhere, not even where it quotes the override."""
    for place in ("s3://key:hidden@bucket/a", "gs://bucket/a?token=hidden"):
        settings = Settings(Config, deepcopy(SETTINGS), "my.yaml")
        settings.override(f"student.path={place}")
        with pytest.raises(UserError, match="neither user nor settings") as told:
            settings.validate()
        assert "hidden" not in str(told.value)


def test_a_location_has_one_spelling():
    """Slashes at the end and twice in a row say nothing."""
    for path in (paths.model_path, paths.data_path, paths.data_folder, paths.output_folder):
        assert path("s3://bucket//models/lm/") == "s3://bucket/models/lm"
    assert paths.data_path("gs://bucket/**/part-?.parquet") == "gs://bucket/**/part-?.parquet"
    with pytest.raises(UserError, match="has to be a local path"):
        paths.absolute("s3://bucket/out")
