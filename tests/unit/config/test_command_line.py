"""The command line: recipes, files and overrides become a `Config`, and what is wrong is told in one line each."""

from pathlib import Path

import pytest
from config_files import FILE, refusal

from lingu_ray.config import Config, Schedule, strict_yaml
from lingu_ray.config.command_line import load_config, load_yaml, read_settings, to_yaml
from lingu_ray.errors import UserError
from lingu_ray.export import ExportConfig


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(FILE)
    return str(path)


def test_no_argument_means_the_demo():
    """Without arguments the embedded default runs."""
    config = load_config([])
    assert config.name == "demo"
    assert config.demo is not None


def test_overrides_reach_every_level(file: str):
    """Dotted keys set plain values, schedules, lists' items by position and by name (the longest name that fits)."""
    config = load_config(
        [
            "train.steps=30",
            file,
            "distill.temperature={start: 4, end: 1}",
            "distill.w_kd=2",
            "train.learning_rates.decoder=1e-5",
            "corpus.sources.0.limit=10",
            "corpus.sources.t0.long.limit=20",
            "corpus.sources.t0.split=test",
            "evaluation.tasks=[{name: arc, kind: language, type: multiple_choice, path: arc.jsonl}]",
            "corpus.sources.t0.format=webdataset",
            'corpus.sources.t0.prompt="Question: {q}"',
            "output_dir=/data/runs",
        ]
    )
    assert config.train.steps == 30
    assert config.distill.temperature == Schedule(start=4, end=1)
    assert config.distill.w_kd == Schedule(start=2, end=2)
    assert config.train.learning_rates.decoder == 1e-5
    assert [s.limit for s in config.corpus.sources] == [10, 20]
    assert config.corpus.sources[0].split == "test"
    assert config.corpus.sources[0].prompt == "Question: {q}"
    assert config.evaluation.tasks[0].name == "arc"
    assert config.output_dir == Path("/data/runs")


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("a #2", "a #2"),
        ("#2", "#2"),
        ("3 # three", "3 # three"),
        ("'a #2' # quoted", "a #2"),
        ('"a #2"', "a #2"),
        ("a#2", "a#2"),
        ("", None),
        (" ", None),
    ],
)
def test_no_part_of_an_override_is_a_comment(file: str, given: str, value: str | None):
    """A folder `try #2` is not silently another one; what stands behind quotes is none of the value."""
    assert load_config([file, f"tracking.run_name={given}"]).tracking.run_name == value


def test_the_folder_of_a_run_is_no_recipe(tmp_path: Path):
    """Its settings are asked for by their file, as a copy of the run would be trained by."""
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "config.yaml").touch()
    assert f"did you mean {tmp_path}/demo/config.yaml?" in refusal(f"{tmp_path}/demo")
    assert "smolvlm-256m\nA file is named by its path" in refusal("qqqq")


def test_the_last_override_of_a_key_counts(file: str):
    """Overrides apply in the order given."""
    assert load_config([file, "train.steps=1", "train={steps: 2}", "train.steps=3"]).train.steps == 3


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["train.stepz=3"], ["train.stepz: no such setting; did you mean train.steps? [train.stepz=3]"]),
        (["steps=3"], ["did you mean train.steps?"]),
        (["train.lr=1e-4"], ["train.lr: no such setting; did you mean train.learning_rates?"]),
        (["lr=1e-4"], ["lr: no such setting; did you mean train.learning_rates?"]),
        (["align={lr: 1}"], ["align.lr: no such setting; did you mean align.learning_rates?"]),
        (["epochs=3"], ["epochs: no such setting; did you mean train.steps?"]),
        (["nonsense.x=3"], ["the top level has name, output_dir", "[nonsense.x=3]"]),
        (["train.steps=abc"], ["train.steps: abc does not fit; give a whole number above 0 (optimizer steps)"]),
        (["train.steps=abc", "train.rows_per_step=0"], ["train.steps: abc", "\ntrain.rows_per_step: 0"]),
        (["train.betas=[0.9]"], ["train.betas.1: missing; give a list of 2 numbers"]),
        (["train.betas=[0.9, 1.5]"], ["train.betas.1: 1.5 does not fit", "each at least 0 and below 1"]),
        (["train.learning_rates.vision=true"], ["train.learning_rates.vision: true does not fit; give a number at"]),
        (["train.weight_decay=.inf"], ["train.weight_decay: .inf does not fit; give a number", "it must be finite"]),
        (["distill.w_kd=[[0, 4], [9, 2]]"], ["distill.w_kd: points begin at fractions of the run, not steps"]),
        (["distill.temperature=0"], ["distill.temperature must be above 0 [distill.temperature=0]"]),
        (["ray.num_workers=99", "train.rows_per_step=8"], ["[train.rows_per_step=8, ray.num_workers=99]"]),
        (["distill.policy=some"], ["give selective | all | language_only | none"]),
        (["distill.w_kd=much"], ["give a number, {start, end, shape, until}, or [[fraction, value], ...]"]),
        (["corpus.sources.t1.limit=3"], ["corpus.sources has no item 't1'; it has: 0 (t0), 1 (t0.long)"]),
        (["corpus.sources.7.limit=3"], ["has no item '7'"]),
        (["evaluation.tasks.0.limit=3"], ["evaluation.tasks has no item '0'; it has: none"]),
        (["tracking.tags.team=1"], ["tracking.tags.team: 1 does not fit; give text ("]),
        (["ray.num_workers={min:1,max:4}"], ["'min:1' has no value: YAML wants a blank after the colon"]),
        (["evaluation.tasks=[piqa]", "evaluation.tasks.piqua.limit=3"], ["has no item 'piqua'; it has: 0 (piqa)"]),
        (
            ["corpus.sources.t0.form=text"],
            ["corpus.sources.t0.form is called format now [corpus.sources.t0.form=text]"],
        ),
        (["corpus.sources.t0.limits=3"], ["did you mean corpus.sources.t0.limit?"]),
        (["corpus.sources.t0.prompt={q}"], ["corpus.sources.t0.prompt: {q: null} does not fit", "quote text"]),
        (["name.x=1"], ["name is 'mine', a value without parts: give name as a whole"]),
        (["teacher={}"], ["teacher.path: missing; give text (the causal LM: a folder, a hub id, or a .gguf file"]),
        (["student.from_teacher={}"], ["student: give exactly one of student.path"]),
        (["train.steps=[1"], ["override train.steps=[1:1: not valid YAML"]),
        (["--train.steps=3"], ["settings are given without dashes: train.steps=3"]),
        (["--verbose"], ["unknown option --verbose\nusage:"]),
        (["--name", "other"], ["unknown option --name; settings are given without dashes: name=..."]),
        (["--train.steps", "3"], ["settings are given without dashes: train.steps=..."]),
        (["--output-dir", "runs"], ["settings are given without dashes: output_dir=..."]),
        (["--print-confg"], ["did you mean --print-config?"]),
        (
            ["train.steps", "3"],
            ["train.steps: a setting is given as key=value, without blanks: train.steps=...\nusage:"],
        ),
        (["train.steps", "=", "3"], ["without blanks: train.steps=..."]),
        (["evaluation.tasks=arc_eazy"], ["evaluation.tasks.0: no task 'arc_eazy'", "did you mean arc_easy?"]),
        (["evaluation.tasks=mine"], ["no task 'mine' in the catalog; there are arc_easy", "pope. A task of your own"]),
        (["train.steps =3"], ["'train.steps =3' is no key=value: a key has letters, digits"]),
        (["tracking.tags.my tag=x"], ["is no key=value", "tracking.tags='{my tag: x}'"]),
        (["train.learning_rates=1e-5"], ["1.0e-05 does not fit; give a section with vision, projector, decoder ["]),
        (["train.lora=true"], ["train.lora: true does not fit; give a section with rank, alpha, dropout, targets ["]),
        (["corpus.sources=chat"], ["corpus.sources: chat does not fit; give a list, each a section with its keys ("]),
        ([f"name={'x' * 151}"], ["does not fit; give text of a-z A-Z 0-9 _ - ., up to 150"]),
        (["demo"], ["more than one recipe or file"]),
    ],
)
def test_what_is_wrong_is_told(file: str, argv: list[str], expected: list[str]):
    """Each error names the key as one writes it, its value, what it wants, and where it came from."""
    message = refusal(file, *argv)
    for part in expected:
        assert part in message


def test_a_rule_names_its_setting_once(file: str):
    """What a rule of a section says begins with the setting, and so does the whole message."""
    message = refusal(file, "corpus.sources.t0.weight=1")
    assert message.startswith("corpus.sources: give `weight` to all sources or to none")


def test_tasks_are_named_with_commas(file: str):
    """`evaluation.tasks` takes what `tasks` of an evaluation takes: names with commas between, as a list does."""
    named, listed = (load_config([file, f"evaluation.tasks={tasks}"]) for tasks in ("piqa, boolq", "[piqa, boolq]"))
    assert [task.name for task in named.evaluation.tasks] == ["piqa", "boolq"] and named == listed


def test_errors_of_a_file_name_its_line(tmp_path: Path):
    """An unknown key, a wrong value and a key given twice are told with file and line."""
    path = tmp_path / "bad.yaml"
    path.write_text(FILE + "train:\n  stepz: 3\n  grad_clip: 0\n")
    assert f"train.stepz: no such setting; did you mean train.steps? [{path}:9]" in refusal(str(path))
    value, _ = refusal(str(path)).splitlines()
    assert value.startswith("train.grad_clip: 0 does not fit; give a number above 0 (largest global gradient norm")
    assert value.endswith(f"[{path}:10]")
    path.write_text(FILE + "train: {steps: 1}\ntrain: {steps: 2}\n")
    assert refusal(str(path)) == f"{path}:9: train is given twice, first on line 8: remove one"
    path.write_text("- a\n")
    assert "a configuration is a mapping of keys, not a list" in refusal(str(path))
    path.write_text("# to come\n")
    assert f"{path}: the file is empty" in refusal(str(path))
    path.write_text(FILE + "train:\n\tsteps: 3\n")
    assert refusal(str(path)).endswith("cannot start any token; indent with blanks instead of tabs")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "train.steps: 3",
            "no such setting; dots are for command lines; in a file it is train: {steps: …} [",
        ),
        ("train: {learning_rates.decoder: 1}", "in a file it is learning_rates: {decoder: …} ["),
        ("train.step: 3", "train.step: no such setting; did you mean train.train?"),
    ],
)
def test_a_dotted_key_in_a_file_is_told_how_it_is_written_there(file: str, line: str, expected: str):
    """As the section that it means; what means nothing is told as any other key."""
    with Path(file).open("a", encoding="utf-8") as more:
        more.write(line)
    assert expected in refusal(file)


@pytest.mark.parametrize("value", ["true", "0", "newest"])
def test_a_setting_of_two_forms_is_one_error(value: str):
    """A number or a word: the setting is named as it is written, once, with both forms."""
    with pytest.raises(UserError) as caught:
        read_settings([f"step={value}"], ExportConfig)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"step: {value} does not fit; give a whole number above 0 or last | best (")


def test_unknown_recipe_and_missing_file():
    """A recipe that is not there is refused with the nearest one, a file that is not there with its path."""
    assert "did you mean smolvlm-256m?" in refusal("smolvlm")
    assert "no such file: /" in (told := refusal("nowhere.yaml")) and told.endswith("/nowhere.yaml")


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path):
    """Text in another encoding, and a folder of that name: with the file."""
    (tmp_path / "my.yaml").write_bytes("name: größe".encode("latin-1"))
    told = refusal(str(tmp_path / "my.yaml"))
    assert told.startswith(f"{tmp_path}/my.yaml: its text is not UTF-8 (") and told.endswith("): save it as UTF-8")
    (tmp_path / "folder.yaml").mkdir()
    assert refusal(str(tmp_path / "folder.yaml")).startswith(f"{tmp_path}/folder.yaml: cannot be read: ")


def test_a_file_that_is_nearly_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its other ending, or none, is answered with the file that lies there."""
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").touch()
    assert refusal("my.yml") == f"no such file: {tmp_path}/my.yml; did you mean {tmp_path}/my.yaml?"
    assert refusal("my").startswith("no recipe 'my'; did you mean my.yaml?")


def test_yaml_round_trips(file: str, tmp_path: Path):
    """What `to_yaml` writes reads back equal: paths, schedules, tuples, text that looks like numbers."""
    config = load_config(
        [
            file,
            "distill.temperature={start: 4, end: 1, shape: cosine, until: 0.5}",
            "corpus.sources.0.format=template",
            "corpus.sources.0.answer='1e-5'",
            "corpus.sources.0.prompt='no'",
            "corpus.cache_dir=/data/corpora",
            "train.learning_rates.decoder=1e-5",
        ]
    )
    text = to_yaml(config)
    assert "w_kd: 1.0\n" in text  # a schedule that does not move is a plain number
    path = tmp_path / "again.yaml"
    path.write_text(text)
    assert load_yaml(path) == config


def test_print_config_prints_the_whole_and_exits(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """`--print-config` gives YAML with every key, which runs as it is."""
    with pytest.raises(SystemExit) as caught:
        load_config([file, "--print-config", "train.steps=7"])
    assert caught.value.code == 0
    path = tmp_path / "printed.yaml"
    path.write_text(capsys.readouterr().out)
    assert load_yaml(path) == load_config([file, "train.steps=7"])
    assert set(strict_yaml.load(path.read_text(), "x")[0]) == set(Config.model_fields)
