"""The command: what it prints and the page it writes, and the mistakes that it names."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from previewdata import preview_settings
from rich.console import Console

from lingu_ray.config.command_line import run_and_own
from lingu_ray.errors import UserError
from lingu_ray.inspect import HELP, InspectConfig, main, named_sources, read_sources
from lingu_ray.preview.terminal import BORDER, render


@pytest.fixture
def my_yaml(my_data: Path, tmp_path: Path) -> str:
    """A settings file on the data."""
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(preview_settings(my_data) | {"output_dir": str(tmp_path / "my runs")}))
    return str(path)


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text; every tag that opens must close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if self.open and self.open[-1] not in ("style", "script") else ""


def test_plain_text_has_all_that_colors_tell(my_yaml: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """In a pipe: roles in words, borders as marks, rejects with their lines, the page's path; no escape sequence."""
    main([my_yaml, "rows=1", "corpus.sources.chat.ce_weight=3", "corpus.sources.chat.kd_weight=0.5"])
    out = capsys.readouterr().out
    assert "\x1b" not in out and BORDER in out
    for line in (
        r"chat +\S.* 4 of 33",
        r"Distilled \(CE × 3 \+ KD × 0.5\): language-heavy",
        r"chat.jsonl:1 · \d+ tokens, \d+ to be predicted · 2 images \(48 × 32, 48 × 32\)",
        r"donated +│ <\|im_start\|>",
        r"<image>×4",
        r"query +│ :\n",
        r"CE × 3 \+ KD × 0.5 +query +│ ·",
        r"CE +│ ·",
        r"rejected: 1 × missing_image\n .*chat.jsonl:6 ",
    ):
        assert re.search(line, re.sub(r" +\n", "\n", out)), line
    page = tmp_path / "my runs" / "inspect" / "mine.html"
    assert out.endswith(f"page     '{page}'\n") and page.exists()


def test_it_is_said_where_images_are(my_yaml: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Where so many are missing that the build would stop: the folder, and the setting that names it."""
    setting = "corpus.sources.chat.image_root"
    for root, where in ((tmp_path, f"{setting}={tmp_path}"), ("null", f"the folder of the rows' file ({setting})")):
        main([my_yaml, "chat", "rows=0", "corpus.max_reject_rate=0.01", f"{setting}={root}"])
        said = f"Images that rows name by relative paths are looked for in {where}."
        assert "".join(said.split()) in "".join(capsys.readouterr().out.split())


def test_a_source_that_is_all_held_out_is_told(my_yaml: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In the words of the build, which would stop; of rows that are not all read nothing is said."""
    held_out = "corpus.validation_rows=29"
    for reading, is_told in (("read=null", True), ("read=20", False)):
        main([my_yaml, "chat", "rows=0", held_out, reading])
        said = " ".join(capsys.readouterr().out.split())
        assert (f"source chat has 29 good rows, and {held_out} are held out" in said) is is_told


def test_the_page_stands_alone(my_yaml: str, tmp_path: Path) -> None:
    """One file without scripts or anything from elsewhere, data shown as text, every token with id and role."""
    main([my_yaml, f"out={tmp_path / 'page.html'}", "row=chat.jsonl:5", "chat"])
    hostile = Page((tmp_path / "page.html").read_text())
    assert "script" not in {tag for tag, _ in hostile.tags}
    assert "<script>alert(1)</script>" in hostile.text.replace("\n", "") and "\\x1b[31m" in hostile.text

    main([my_yaml, f"out={tmp_path / 'page.html'}", "rows=1"])
    page = Page((tmp_path / "page.html").read_text())
    addresses = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert all(value and value.startswith(("data:image/jpeg;", "#")) for value in addresses)
    assert sum(tag == "img" for tag, _ in page.tags) == 3
    assert sum(tag == "svg" for tag, _ in page.tags) == 3
    tips = [attributes["data-tip"] or "" for tag, attributes in page.tags if "data-tip" in attributes]
    assert all(re.match(r"id \d+", tip) for tip in tips)
    assert any("(4 times) · <image> · not learned · teacher: donated" in tip for tip in tips)
    assert any(tip.endswith("<end_of_utterance> · CE + KD · teacher: donated") for tip in tips)
    assert "chat.jsonl:6" in page.text and "prompt_too_long" in page.text


def test_colors_only_where_they_are_wanted(my_yaml: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal gets pictures, and colors in two shades without marks between tokens; with NO_COLOR the marks."""
    config, names, settings = run_and_own([my_yaml, "chat", "rows=1"], HELP)
    previews = read_sources(config, named_sources(config, names), settings)

    def shown(width: int) -> str:
        terminal = io.StringIO()
        render(previews, config, Console(file=terminal, force_terminal=True, color_system="truecolor", width=width))
        return terminal.getvalue()

    assert BORDER not in shown(100) and "\x1b[1;4;38;2;" in shown(100) and "▀" in shown(100)
    monkeypatch.setenv("NO_COLOR", "1")
    assert BORDER in shown(100) and "38;2" not in shown(100) and "▀" not in shown(100)
    for width in (60, 100):
        plain = re.sub(r"\x1b\[[\d;]*m", "", shown(width))
        assert max(map(len, plain.splitlines())) <= width


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chta"], "no source 'chta' in corpus.sources; did you mean chat?"),
        (["xyz"], "there are chat, book, pictures"),
        (["rowss=3"], "rowss: no such setting; did you mean rows?"),
        (["corpus.max_lenght=3"], "did you mean corpus.max_length?"),
        (["row=chat.jsonl:99"], "no such record in chat, book, pictures"),
        (["corpus.sources.book.path=nowhere.txt"], "source book: no such file"),
        (["student.path=./nowhere"], "student.path"),
        (["teacher.path=./nowhere"], "teacher.path"),
    ],
)
def test_mistakes_are_named(my_yaml: str, arguments: list[str], message: str) -> None:
    """Each is refused with what was probably meant."""
    with pytest.raises(UserError) as caught:
        main([my_yaml, *arguments])
    assert message in str(caught.value)


@pytest.mark.parametrize("setting", ["out={0}", "out={0}/my.yaml/page.html", "output_dir={0}/my.yaml"])
def test_a_page_that_cannot_be_written_is_told_before_data_are_read(my_yaml: str, tmp_path: Path, setting: str) -> None:
    """A folder of that name, and a file in place of a folder above it."""
    with pytest.raises(UserError, match=rf"^{setting.partition('=')[0]}: .* cannot be written: .*; name another one$"):
        main([my_yaml, setting.format(tmp_path), "corpus.sources.chat.path=/not/read"])


@pytest.mark.parametrize("row", [[], ["row=nowhere.jsonl:1"]])
def test_a_source_without_records_is_named(my_yaml: str, tmp_path: Path, row: list[str]) -> None:
    """As the build names it, also where a row is looked for."""
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UserError, match=r"source chat: .*empty.jsonl holds no records; correct its `path`"):
        main([my_yaml, f"corpus.sources.chat.path={tmp_path / 'empty.jsonl'}", *row])


def test_the_demo_is_made_by_training(tmp_path: Path) -> None:
    """Before its data exist the command says what makes them."""
    with pytest.raises(UserError, match=r"python -m lingu_ray.train, with the same settings, makes them"):
        main([f"output_dir={tmp_path}"])


def test_settings_are_of_the_command_or_of_the_run(my_yaml: str) -> None:
    """Those of the command are told from the run's by their names."""
    config, names, settings = run_and_own([my_yaml, "chat", "rows=1", "corpus.max_length=64", "row=17"], HELP)
    assert (config.corpus.max_length, names) == (64, ["chat"])
    assert settings == InspectConfig(rows=1, row="17")
