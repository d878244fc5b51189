"""Read the guide: settings, data formats, variants, resuming, evaluation, sweeps, trouble.

Pages through it on a terminal, and prints it where the output goes elsewhere. With --path only the file's place is
printed.
"""

from __future__ import annotations

import pydoc

from lingu_ray.commands import guide_path
from lingu_ray.config.command_line import split_arguments
from lingu_ray.config.help_pages import Help, NoSettings
from lingu_ray.errors import UserError, run_command

HELP = Help("python -m lingu_ray.guide [--path]", __doc__, NoSettings)


def main(arguments: list[str]) -> None:
    """Run the command; raises UserError for an argument that it does not take."""
    names, settings, options = split_arguments(arguments, HELP, ("--path",))
    if names or settings:
        raise UserError(f"the guide takes no {(names + settings)[0]!r}\nusage: {HELP.usage}")
    if options:
        print(guide_path())
    else:
        pydoc.pager(guide_path().read_text("utf-8"))


if __name__ == "__main__":
    run_command(main)
