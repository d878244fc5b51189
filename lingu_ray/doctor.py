"""Check a machine or a cluster before a run: says what is wrong there and what to do; trains nothing.

Takes what training takes, a recipe or a settings file with its settings, because what is needed depends on the run.
Checked are, on every node of the cluster that a run would use:

  tracking, ray       the MLflow store and the cluster answer
  resources, network  the workers have room; the nodes reach each other
  versions            lingu_ray, Python, Ray, torch and Transformers are the same everywhere
  output, data        every node writes into output_dir, and sees the same one; it has the files that the settings name
  gpu, compute mode   the driver works, torch fits it and sees the GPUs; student and teacher may share one
  MPS, cuda_ipc       they compute on it at once; the teacher can open the student's memory
  /dev/shm, token     it is large enough; Ray asks for a token
  environment         what a cluster that was started elsewhere needs in its environment; jobs are given time to save

The exit code is 1 after an error. `--json` prints a list of {check, level, message, cure}.

examples:
  python -m lingu_ray.doctor                                    this machine
  python -m lingu_ray.doctor my.yaml ray.address=auto           the cluster that this machine belongs to
  python -m lingu_ray.doctor my.yaml --address 10.0.0.5:6379    the same as ray.address=10.0.0.5:6379
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from lingu_ray.config import Config
from lingu_ray.config.command_line import read_run, split_arguments
from lingu_ray.config.help_pages import Help, NoSettings
from lingu_ray.config.layout import print_file, text_width, wrapped
from lingu_ray.errors import UserError, run_command

if TYPE_CHECKING:
    from lingu_ray.runtime.doctor.finding import Finding

USAGE = "python -m lingu_ray.doctor [RECIPE | file.yaml] [key=value ...] [--address ADDRESS] [--json]"
HELP = Help(USAGE, __doc__, NoSettings)


def main(arguments: list[str]) -> None:
    """Run the command; raises UserError for a mistake of the user, and exits with 1 after an error that was found."""
    config, as_json = read_arguments(arguments)

    from lingu_ray.runtime.doctor.cluster import examine
    from lingu_ray.runtime.tracking.progress import quiet_libraries

    quiet_libraries()
    logging.getLogger("lingu_ray").setLevel(logging.WARNING)
    found = examine(config)
    if as_json:
        print_file(json.dumps([asdict(one) for one in found], indent=1, ensure_ascii=False))
    else:
        print(shown(found))
    if any(one.level == "error" for one in found):
        sys.exit(1)


def read_arguments(arguments: list[str]) -> tuple[Config, bool]:
    """The run's settings, and whether findings are printed as JSON. Raises `UserError` for whatever is wrong."""
    given = list(arguments)
    if "--address" in given[:-1]:
        at = given.index("--address")
        given[at : at + 2] = [f"--address={given[at + 1]}"]
    given = [re.sub(r"^--address=", "ray.address=", argument) for argument in given]
    names, settings, options = split_arguments(given, HELP, ("--json",))
    if len(names) > 1:
        raise UserError(f"more than one recipe or file: {', '.join(names)}\nusage: {USAGE}")
    return read_run(names[0] if names else "demo", settings), bool(options)


def shown(found: Sequence[Finding]) -> str:
    """The findings as a table, each with its cure below it."""
    lines = []
    for one in found:
        lines += wrapped(f"{one.level:8} {one.check:13} ", one.message, text_width())
        lines += wrapped(" " * 23 + "→ ", one.cure, text_width()) if one.cure else []
    counts = {level: sum(one.level == level for one in found) for level in ("error", "warning")}
    return "\n".join([*lines, ", ".join(f"{count} {level}{'s' * (count != 1)}" for level, count in counts.items())])


if __name__ == "__main__":
    run_command(main)
