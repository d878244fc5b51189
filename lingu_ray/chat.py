"""Talk to a model in the terminal: an exported VLM, about images too, or a text-only LM.

MODEL is a folder, a hub id or a .gguf file; IMAGE files are shown with the first question. Each line is a question, and
the answer is written as it is generated. The model sees the whole conversation, by its own chat template.

  python -m lingu_ray.chat runs/demo/export
  python -m lingu_ray.chat runs/mine/export receipt.png
  echo 'What is the total?' | python -m lingu_ray.chat runs/mine/export receipt.png

While you talk:
  /image PATH   show an image with the next question; `<image>` in the question says where it stands
  /new          start a new conversation
  /help         show these commands
  Ctrl-C        stop the answer
  Ctrl-D        end
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, PositiveInt

from lingu_ray.config import Section
from lingu_ray.config.command_line import names_and_settings
from lingu_ray.config.help_pages import Help
from lingu_ray.config.layout import meant
from lingu_ray.errors import UserError, printable, run_command
from lingu_ray.paths import absolute, model_path

if TYPE_CHECKING:
    from lingu_ray.conversation import Conversation


class ChatConfig(Section):
    """Settings of the command."""

    temperature: float = Field(0.0, ge=0, description="0: always the likeliest token; above 0: sampled")
    max_new_tokens: PositiveInt = Field(256, description="longest answer in tokens")
    device: str | None = Field(None, description="torch device, such as cpu or cuda:1; null: a GPU where there is one")


HELP = Help("python -m lingu_ray.chat MODEL [IMAGE ...] [key=value ...]", __doc__, ChatConfig)
COMMANDS = ("/image", "/new", "/help")
WHILE_YOU_TALK = (__doc__ or "").partition("While you talk:\n")[2].rstrip()


def main(arguments: list[str]) -> None:
    """Run the command; raises UserError for a mistake of the user before the first question."""
    model, images, config = read_arguments(arguments)
    conversation = open_conversation(model, images, config)
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line in another encoding is told, and ends nothing
    if sys.stdin.isatty():
        print(f"{describe(conversation)}\n{WHILE_YOU_TALK}\n")
    for line in questions():
        try:
            reply(conversation, line.strip())
        except UserError as error:
            print(f"error: {printable(str(error))}", file=sys.stderr)
        except KeyboardInterrupt:  # before the answer began, as while pictures are read
            if not sys.stdin.isatty():
                raise
            print()


def read_arguments(arguments: list[str]) -> tuple[str, list[Path], ChatConfig]:
    """The model, the images, and the settings.

    Raises:
        UserError: no model, or wrong settings.
    """
    names, config = names_and_settings(arguments, HELP)
    if not names:
        raise UserError(f"name a model: a folder, a hub id or a .gguf file\nusage: {HELP.usage}")
    return model_path(names[0]), [absolute(name) for name in names[1:]], config


def open_conversation(path: str, images: list[Path], config: ChatConfig) -> Conversation:
    """Load the model, after everything else is checked.

    Raises:
        UserError: no such model, an image that cannot be read or is not for this model, no such device, or a GPU whose
            memory does not suffice.
    """
    from transformers.utils import logging

    from lingu_ray.conversation import Conversation, read_image
    from lingu_ray.evaluation.engines.load import load_model_files
    from lingu_ray.evaluation.engines.transformers_engine import load_model
    from lingu_ray.runtime.cluster.memory import explained
    from lingu_ray.runtime.models.device import torch_device

    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    conversation = Conversation(load_model_files(path), None, config.temperature, config.max_new_tokens)
    conversation.show(*map(read_image, images))
    device = torch_device(config.device)
    with explained("the model", "end what else uses it, or set device=cpu"):
        conversation.model = load_model(conversation.files).eval().to(device)
    return conversation


def describe(conversation: Conversation) -> str:
    """What the model is, in one line."""
    model, folder = conversation.model, conversation.files
    kind = "text only" if folder.processor is None else "text and images"
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return f"{folder.path}: {type(model).__name__}, {millions:.1f}M parameters, {kind}, on {model.device}"


def questions() -> Iterator[str]:
    """Lines to answer, up to the end of the input; on a terminal with a prompt and a history."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    import readline  # noqa: F401  (gives `input` its editing and history)

    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()


def reply(conversation: Conversation, line: str) -> None:
    """Answer a question, or run a command such as /new.

    Raises:
        UserError: no such command, an image that cannot be read, a question that cannot be asked, or an answer for
            which the GPU's memory does not suffice.
    """
    from lingu_ray.runtime.cluster.memory import explained

    if line.startswith("/"):
        _run(conversation, *line.partition(" ")[::2])
    elif not _is_text(line):
        raise UserError(f"the question has bytes that are not {sys.stdin.encoding}: write it in that encoding")
    elif line:
        with explained("the answer", "/new starts a new conversation; fewer or smaller images, or device=cpu"):
            conversation.ask(line, lambda piece: print(printable(piece), end="", flush=True))
        print()


def _is_text(line: str) -> bool:
    """Whether a line holds no bytes that its encoding has not (`surrogateescape`)."""
    try:
        line.encode()
    except UnicodeEncodeError:
        return False
    return True


def _image_path(written: str) -> Path:
    """The path that is written as it is or, where there is none, as a terminal writes a file dropped on it: quoted."""
    path = absolute(written)
    with suppress(ValueError):  # a quote without its other one
        if not path.exists() and len(words := shlex.split(written)) == 1:
            return absolute(words[0])
    return path


def _run(conversation: Conversation, command: str, rest: str) -> None:
    from lingu_ray.conversation import read_image

    if command == "/image" and rest.strip():
        conversation.show(read_image(_image_path(rest.strip())))
    elif command == "/new":
        conversation.restart()
    elif command == "/help":
        print(WHILE_YOU_TALK)
    elif command == "/image":
        raise UserError("/image needs the path of an image")
    else:
        raise UserError(f"no command {command}; {meant(command, COMMANDS)}")


if __name__ == "__main__":
    run_command(main)
