"""What the documentation tells people to type works: commands parse, settings exist, make targets are there."""

import inspect
import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lingu_ray.__main__ import dispatch
from lingu_ray.chat import read_arguments as read_chat
from lingu_ray.commands import COMMANDS
from lingu_ray.config.command_line import load_config, run_and_own
from lingu_ray.config.strict_yaml import load
from lingu_ray.estimate import read_arguments as read_estimate
from lingu_ray.evaluate import read_arguments
from lingu_ray.inspect import HELP as INSPECT
from lingu_ray.inspect import named_sources
from lingu_ray.probe import HELP as PROBE
from tuning.check import check
from tuning.space import Space, configure
from tuning.sweep import load as load_sweep

ROOT = Path(__file__).parents[2]
GUIDES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *GUIDES]
LINKED = [*DOCUMENTS, "clusters/README.md", "benchmarks/result/README.md"]


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / document).read_text("utf-8"), re.MULTILINE | re.DOTALL)


def commands(word: str) -> list[list[str]]:
    """Every command line of the documents' bash blocks that begins with `word`, split into words."""
    lines = {line for d in DOCUMENTS for block in blocks(d, "bash") for line in block.replace("\\\n", "").splitlines()}
    split = (shlex.split(line, comments=True) for line in sorted(lines))
    return [words for words in split if words and words[0] == word]


@pytest.fixture
def my_yaml(tmp_path: Path) -> str:
    """The README's example configuration, as a file."""
    (example,) = blocks("README.md", "yaml")
    path = tmp_path / "my.yaml"
    path.write_text(example, encoding="utf-8")
    return str(path)


def parse_train(words: list[str], my_yaml: str) -> None:
    arguments = [my_yaml if word == "my.yaml" else word for word in words]
    with pytest.raises(SystemExit) as caught:
        load_config([*arguments, "--print-config"])
    assert caught.value.code == 0


def parse(module: str, words: list[str], my_yaml: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read a command line as its command does: training and evaluation give settings, sweeps a space, sources exist.

    Other modules exist and explain themselves.
    """
    arguments = [my_yaml if word == "my.yaml" else word.replace("base=my.yaml", f"base={my_yaml}") for word in words]
    if "--help" in words:
        explain(module, words, monkeypatch)
    elif module == "lingu_ray.train":
        parse_train(arguments, my_yaml)
    elif module == "tuning.sweep":
        space, _ = load_sweep(arguments)
        assert space.size > 1
    elif module == "lingu_ray.evaluate":
        monkeypatch.chdir(Path(my_yaml).parent)
        Path("tasks.yaml").write_text("tasks: [arc_easy]", encoding="utf-8")
        assert read_arguments(arguments)[1].tasks
    elif module in ("lingu_ray.inspect", "lingu_ray.probe"):
        config, names, _ = run_and_own(arguments, INSPECT if module == "lingu_ray.inspect" else PROBE)
        assert named_sources(config, names)
    elif module == "lingu_ray.chat":
        assert read_chat(arguments)[0]
    elif module == "lingu_ray.estimate":
        assert read_estimate(arguments)[0].student
    else:
        explain(module, ["--help"], monkeypatch)


def explain(module: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a module with `--help` among its words."""
    monkeypatch.setattr(sys, "argv", [module, *words])
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as caught:
        runpy.run_module(module, run_name="__main__")
    assert caught.value.code in (0, None)


@pytest.mark.parametrize("words", commands("python"), ids=" ".join)
def test_python_commands_parse(words: list[str], my_yaml: str, monkeypatch: pytest.MonkeyPatch):
    """Modules take what they are given; scripts exist and take so many arguments (`test_examples.py` runs them)."""
    if words[1] != "-m":
        monkeypatch.syspath_prepend(str(ROOT / "examples"))
        inspect.signature(runpy.run_path(str(ROOT / words[1]))["main"]).bind(*words[2:])
    elif words[2] == "lmms_eval":
        pytest.skip("lmms-eval has an environment of its own")
    else:
        parse(words[2], words[3:], my_yaml, monkeypatch)


@pytest.mark.parametrize("words", commands("lingu-ray"), ids=" ".join)
def test_console_commands_parse(
    words: list[str], my_yaml: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """What the console command is told to do it knows, with settings that exist."""
    if words[1:]:
        parse(COMMANDS[words[1]].module, words[2:], my_yaml, monkeypatch)
    else:
        dispatch([])
        assert capsys.readouterr().out


@pytest.mark.parametrize("words", commands("ray"), ids=" ".join)
def test_job_commands_parse(words: list[str], my_yaml: str):
    """What a Ray job runs gives a configuration."""
    inner = words[words.index("--") + 1 :]
    assert inner[:3] == ["python", "-m", "lingu_ray.train"]
    parse_train(inner[3:], my_yaml)


@pytest.mark.parametrize("words", commands("make"), ids=" ".join)
def test_make_targets_exist(words: list[str]):
    """Each `make` command is one that the Makefile can carry out."""
    subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)


def test_examples_in_the_guide_are_settings(my_yaml: str):
    """The guide's YAML fits the configuration, or is a space whose every value does."""
    for example in blocks("docs/guide.md", "yaml"):
        tree, _ = load(example, "docs/guide.md")
        if "search" in tree:
            space = Space.model_validate(tree)
            check(space, configure(load_config([my_yaml]), space.settings, "guide"))
            continue
        load_config([my_yaml, *(f"{key}={json.dumps(value)}" for key, value in tree.items())])


def anchors(document: Path) -> set[str]:
    """The names of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", LINKED)
def test_links_lead_somewhere(document: str):
    """Relative links and pictures of a document are files of the project, and lead to headings that are there."""
    here = ROOT / document
    for target in re.findall(r"\]\((?!https?://)([^)]+)", here.read_text("utf-8")):
        name, _, heading = target.partition("#")
        there = here.parent / name if name else here
        assert there.exists(), target
        assert not heading or heading in anchors(there), target


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_figure_is_left_open(document: str):
    """Every figure that a document announces is there."""
    assert "FIGURE:" not in (ROOT / document).read_text("utf-8")


def test_settings_named_in_the_guide_exist():
    """Dotted settings that the guide mentions in backticks are settings."""
    from lingu_ray.config.tree import field_at, section_at

    text = (ROOT / "docs/guide.md").read_text("utf-8")
    for name in re.findall(r"`((?:student|teacher|corpus|distill|train|ray|tracking|evaluation)\.[a-z_.]+)", text):
        key = tuple(name.rstrip(".").split("."))
        assert field_at(key) or section_at(key), name
