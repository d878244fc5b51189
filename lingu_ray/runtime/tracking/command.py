"""Which command a run was made by, as tags of MLflow."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import ray
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.git_utils import get_git_commit
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_SOURCE_NAME, MLFLOW_USER

from lingu_ray.config.flat import without_credentials

COMMAND = "command"
"""Tag of the full command: of `mlflow.source.name` MLflow's pages show only what follows the last slash."""
ORIGIN = ("mlflow.source.", MLFLOW_USER, COMMAND)
"""How the tags of a command begin."""
_SECRET_KEY = re.compile(r"token|secret|passw|credential|api_?key", re.IGNORECASE)


def source_tags() -> dict[str, str]:
    """Who ran which command, and the commit of the checkout that it ran in, under MLflow's names."""
    commit = get_git_commit(os.getcwd())
    tags = {MLFLOW_SOURCE_NAME: shlex.join(_program()), COMMAND: command_line()}
    return resolve_tags(tags | ({MLFLOW_GIT_COMMIT: commit} if commit else {}))


def command_line() -> str:
    """The command of this process as it is typed, without secrets."""
    return shlex.join([*_program(), *map(_without_secret, sys.argv[1:])])


def _program() -> list[str]:
    module = getattr(sys.modules["__main__"], "__spec__", None)
    return ["python", "-m", module.name.removesuffix(".__main__")] if module else [Path(sys.argv[0]).name]


def in_actor() -> bool:
    return ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None


def _without_secret(argument: str) -> str:
    key, equals, _ = argument.partition("=")
    return f"{key}=…" if equals and _SECRET_KEY.search(key) else without_credentials(argument)
