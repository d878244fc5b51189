"""A small settings file, and what training's command line says against arguments."""

import pytest

from lingu_ray.config.command_line import load_config
from lingu_ray.errors import UserError

FILE = """\
name: mine
student: {path: vlm}
teacher: {path: lm}
corpus:
  sources:
    - {name: t0, format: prompt_completion, path: t0.jsonl, language_heavy: true}
    - {name: t0.long, format: text, path: long.txt}
"""


def refusal(*argv: str) -> str:
    """The error that the command line is refused with."""
    with pytest.raises(UserError) as caught:
        load_config(list(argv))
    return str(caught.value)
