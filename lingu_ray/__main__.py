"""The console command `lingu-ray`, also `python -m lingu_ray`: lists the commands, and runs one."""

from __future__ import annotations

from importlib import import_module

from lingu_ray import __version__
from lingu_ray.commands import COMMANDS, guide_path, recipes
from lingu_ray.config.layout import meant, table, text_width
from lingu_ray.errors import UserError, run_command

START = {
    "lingu-ray train": "the embedded demo, offline: build a small pair, distill it, report what came back",
    "lingu-ray train my.yaml": "your models and data (lingu-ray train smolvlm-256m --print-config > my.yaml)",
    "lingu-ray inspect my.yaml": "look at your data as they will be trained, before you train",
    "lingu-ray chat runs/demo/export": "talk to what was trained",
}


def main() -> None:
    """Run the command line of this process."""
    run_command(dispatch)


def dispatch(arguments: list[str]) -> None:
    """Run the command named by the first argument with the arguments after it.

    Raises:
        UserError: no such command, or whatever the command raises.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
    elif arguments[0] == "--version":
        print(f"lingu_ray {__version__}")
    elif arguments[0] in COMMANDS:
        import_module(COMMANDS[arguments[0]].module).main(arguments[1:])
    else:
        raise UserError(_unknown(arguments[0]))


def overview() -> str:
    """What `lingu-ray --help` prints."""
    width = text_width()
    return "\n".join(
        [
            f"lingu_ray {__version__}: distills a VLM from its own text-only language model, on Ray.",
            "",
            "usage: lingu-ray COMMAND [...]        lingu-ray COMMAND --help explains a command",
            "",
            "start with:",
            *table(START, width),
            "",
            "commands:",
            *table({name: command.summary for name, command in COMMANDS.items()}, width),
            "",
            "recipes, for lingu-ray train RECIPE:",
            *table(recipes(), width),
            "",
            f"guide: lingu-ray guide, or {guide_path()}",
            "As modules, for example in Ray jobs: python -m lingu_ray.train, python -m tuning.sweep",
        ]
    )


def _unknown(name: str) -> str:
    if name.startswith("-"):
        return f"unknown option {name}; it goes after a command: lingu-ray train {name}"
    if name in recipes() or name.endswith((".yaml", ".yml")):
        return f"no command {name!r}; did you mean lingu-ray train {name}?"
    return f"no command {name!r}; {meant(name, COMMANDS)}"


if __name__ == "__main__":
    main()
