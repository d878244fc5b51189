"""The console command: what it says there is, and where it leads."""

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

import lingu_ray
from lingu_ray.__main__ import dispatch, overview
from lingu_ray.commands import COMMANDS, as_called, guide_path, recipes
from lingu_ray.config.command_line import load_yaml
from lingu_ray.errors import UserError

ROOT = Path(__file__).parents[3]
NAMES = (
    *(
        "choices",
        "cpu_memory",
        "earlier_turns",
        "estimate",
        "evaluate",
        "gpu",
        "loss",
        "parity",
        "readings",
        "rounding",
        "scaling",
        "scaling_points",
        "short_rows",
        "small_step",
    ),
    *("result.data", "result.page", "result.rows", "result.sight", "soak", "step", "transport"),
)
BENCHMARKS = [f"benchmarks.{name}" for name in NAMES]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m lingu_ray` in a process of its own."""
    return subprocess.run([sys.executable, "-m", "lingu_ray", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_overview_says_what_there_is():
    """Every command and recipe has its line, and the guide its place."""
    words = " ".join(overview().split())
    for name, command in COMMANDS.items():
        assert f"{name} {command.summary}" in words
    for name, line in recipes().items():
        assert f"{name} {line}" in words
    assert str(guide_path()) in words


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]):
    """Each leads to a module whose `--help` begins with how the command is called."""
    with pytest.raises(SystemExit) as caught:
        dispatch([name, "--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m {COMMANDS[name].module}")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_terminal_of_80_columns(name: str, capsys: pytest.CaptureFixture[str], monkeypatch):
    """Docstrings are filled to 120 columns; shown, only a command, which is to be copied, may be longer.

    The words are those of a wide screen.
    """
    pages = []
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit):
            dispatch([name, "--help"])
        pages.append(capsys.readouterr().out)
    long = [line for line in pages[0].splitlines() if len(line) > 80]
    assert not [line for line in long if not re.match(r"(usage:)? *python -m ", line)]
    assert pages[0].split() == pages[1].split()


@pytest.mark.parametrize("module", [*(command.module for command in COMMANDS.values()), *BENCHMARKS])
def test_every_command_refuses_unknown_options(module: str):
    """All of them, benchmarks too, read their arguments alike."""
    with pytest.raises(UserError, match="unknown option --hlep; did you mean --help"):
        import_module(module).main(["--hlep"])


def test_every_program_is_run_in_one_way():
    """What can be run as a module has its `main` run by `run_command`, and nothing has a parser of its own."""
    modules = [path for package in ("lingu_ray", "tuning", "benchmarks") for path in (ROOT / package).rglob("*.py")]
    texts = {path: path.read_text("utf-8") for path in modules}
    programs = [text for text in texts.values() if '\nif __name__ == "__main__":\n' in text]
    assert len(programs) == len(COMMANDS) + len(BENCHMARKS) + 1
    assert all("run_command(" in text for text in programs)
    assert not [path for path, text in texts.items() if "argparse" in text]


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["trian"], "no command 'trian'; did you mean train?"),
        (["convert_gguf"], "did you mean convert-gguf?"),
        (["smollm2-135m"], "did you mean lingu-ray train smollm2-135m?"),
        (["my.yaml"], "did you mean lingu-ray train my.yaml?"),
        (["xyzzy"], "there are train, inspect"),
        (["--print-config"], "it goes after a command"),
    ],
)
def test_a_mistyped_command_gets_the_nearest(arguments: list[str], meant: str):
    """What is no command is refused with the one that may have been meant."""
    with pytest.raises(UserError, match=r"no command|unknown option") as caught:
        dispatch(arguments)
    assert meant in str(caught.value)


def test_version(capsys: pytest.CaptureFixture[str]):
    """`--version` and `__version__` are those of the installed package."""
    assert lingu_ray.__version__ == version("lingu-ray")
    dispatch(["--version"])
    assert capsys.readouterr().out == f"lingu_ray {version('lingu-ray')}\n"


def test_texts_name_commands_as_they_were_called(monkeypatch: pytest.MonkeyPatch):
    """Through `lingu-ray`, usage and errors read `lingu-ray train`; through a module, `python -m lingu_ray.train`."""
    text = "usage: python -m lingu_ray.train; python -m tuning.sweep; python -m benchmarks.loss"
    monkeypatch.setattr(sys, "argv", ["/x/lingu_ray/train.py"])
    assert as_called(text) == text
    monkeypatch.setattr(sys, "argv", ["/x/bin/lingu-ray"])
    assert as_called(text) == "usage: lingu-ray train; lingu-ray sweep; python -m benchmarks.loss"
    assert "usage: lingu-ray train [" in run("train", "--verbose").stderr


def test_help_loads_nothing_heavy():
    """The first things a newcomer types come without torch, Ray, MLflow or Transformers."""
    code = (
        "import sys\nfrom lingu_ray.__main__ import dispatch\n"
        "for words in (['--help'], ['train', '--help'], ['sweep', '--help'], ['evaluate', '--help']):\n"
        "    try: dispatch(words)\n"
        "    except SystemExit: pass\n"
        "    heavy = sorted({'torch', 'ray', 'mlflow', 'transformers'} & set(sys.modules))\n"
        "    print(*words, *heavy, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["--help", "train --help", "sweep --help", "evaluate --help"]


def test_a_reader_who_has_enough_is_no_error():
    """`--help | head -1` ends without a traceback."""
    command = f"{sys.executable} -m lingu_ray train --help all"
    done = subprocess.run(["bash", "-c", f"{command} | head -1"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("usage:")
    assert done.stderr == ""


def test_a_reader_of_messages_who_is_gone_ends_nothing():
    """Training goes on, and is saved, where Ctrl-C has ended `tee` as well, or a terminal was closed."""
    code = (
        "import sys\nfrom tqdm import tqdm\nfrom lingu_ray.errors import Interrupted, run_command\n"
        "def main(arguments):\n"
        "    for step in range(2000): tqdm.write(f'step {step}', file=sys.stderr)\n"
        "    raise Interrupted('saved')\n"
        "run_command(main)"
    )
    command = f'{sys.executable} -c "{code}" 2>&1 | head -1; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("step 0\n", "", 130)


@pytest.mark.slow
def test_text_that_an_encoding_has_not_is_escaped(tmp_path: Path):
    """Help in a locale of ASCII; what is for a file is in UTF-8, as it is read again."""
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    wanted = ["train", "--help", "distill"], ["train", "demo", "output_dir=/ü", "--print-config"], ["schema", "train"]
    code = (
        "import sys\nfrom lingu_ray.__main__ import dispatch\nfrom lingu_ray.errors import run_command\n"
        "run_command(dispatch)"
    )
    shown, settings, schema = (
        subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, env=ascii_only, check=True)
        for words in wanted
    )
    assert b"KL(T\\u2016S)" in shown.stdout
    (tmp_path / "printed.yaml").write_bytes(settings.stdout)
    assert load_yaml(tmp_path / "printed.yaml").output_dir == Path("/ü")
    assert "…" in schema.stdout.decode() and json.loads(schema.stdout)


@pytest.mark.slow
def test_a_command_without_streams_ends_as_with_them():
    """As a daemon starts it: what it prints is lost, and nothing else."""
    command = f"{sys.executable} -m lingu_ray"
    script = (
        f"{command} guide >&-; echo $?; {command} --version >&- 2>&-; echo $?; {command} train --no >&- 2>&-; echo $?"
    )
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n0\n1\n", "")


def test_messages_do_not_command_a_terminal():
    """Names from data and models stand in errors and in what is logged: control characters are escaped."""
    code = (
        "import logging\nfrom lingu_ray.errors import UserError, run_command\n"
        "def main(arguments):\n"
        "    logging.getLogger('x').warning('of %s\\n\\tand more', '\\x1b[2J')\n"
        "    raise UserError('no \\x9b2J, no \\r')\n"
        "run_command(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "of \\x1b[2J\n\tand more\nerror: no \\x9b2J, no \\r\n"


def test_a_full_disk_is_told_in_one_line():
    """Whatever a command writes as a disk fills up, the line names the file, and no traceback follows."""
    code = (
        "from lingu_ray.errors import run_command\n"
        "def main(arguments):\n"
        "    with open('/dev/full', 'w') as file: file.write('x')\n"
        "run_command(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no disk space: [Errno 28] No space left on device. Free some, and run")


def test_what_this_user_may_not_use_is_told_in_one_line(tmp_path: Path):
    """A model, data or a run in another user's folder, which nobody may even look at."""
    code = (
        "import os\nfrom pathlib import Path\nfrom lingu_ray.errors import run_command\n"
        "def main(arguments):\n"
        "    os.getuid() or os.setuid(65534)\n"
        "    try: Path(arguments[0], 'lm').exists()\n"
        "    except OSError as error: raise RuntimeError('as Ray wraps it') from error\n"
        "run_command(main)"
    )
    (tmp_path / "theirs").mkdir(mode=0)
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "theirs"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(
        r"error: /.*: Permission denied\. Open it and what it lies in to this user, or name another\n", done.stderr
    )


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("{python} -OO -m lingu_ray.chat --help", "Python was told to drop docstrings"),
        ("PYTHONOPTIMIZE=2 {python} -m lingu_ray train", "Python was told to drop docstrings"),
        ("rmdir {folder}; {python} -m lingu_ray train", "the folder that this command was started in is gone: cd to"),
        ("ulimit -f 0; {python} -m lingu_ray train", r"No usable temporary directory found in \[.*\]: set TMPDIR to"),
    ],
)
def test_what_no_command_can_work_with_is_told_in_one_line(tmp_path: Path, script: str, told: str):
    """Python without docstrings, a working directory that was deleted, nowhere to write temporary files."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    words = ["bash", "-c", script.format(python=sys.executable, folder=tmp_path)]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and re.fullmatch(f"error: {told}.*\n", done.stderr), done.stderr


def test_a_file_system_that_is_read_only_is_told_in_one_line():
    """As a container's, whatever a command writes there."""
    code = (
        "import errno\nfrom lingu_ray.errors import run_command\n"
        "def main(arguments):\n"
        "    raise RuntimeError('as Ray wraps it') from OSError(errno.EROFS, 'Read-only file system', '/srv/x')\n"
        "run_command(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (
        done.stderr
        == "error: /srv/x: Read-only file system. Open it and what it lies in to this user, or name another\n"
    )


def test_the_guide_is_printed_or_found(capsys: pytest.CaptureFixture[str]):
    """`guide` prints the guide, `guide --path` where it lies."""
    text = (ROOT / "docs/guide.md").read_text("utf-8")
    assert run("guide").stdout == text
    dispatch(["guide", "--path"])
    assert Path(capsys.readouterr().out.strip()).read_text("utf-8") == text


def test_the_retries_of_the_hub_are_not_shown():
    """Its library logs two lines for each; it is imported after the command began, and sets its own level."""
    main = "from huggingface_hub.utils._http import logger; logger.warning('Retrying in 1s'); logger.error('gone')"
    code = f"from lingu_ray.errors import run_command\ndef main(_):\n    {main}\nrun_command(main)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "Retrying" not in done.stderr and "gone" in done.stderr
