"""What was found of a run's evaluation items in the rows that it trains on: `contamination.json` in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from lingu_ray.atomic import read_json, write_json
from lingu_ray.errors import UserError
from lingu_ray.evaluation.results import Recovery
from lingu_ray.runtime.run_folder.folder import RunFolder

RULES = 3
"""Number of the rules by which items are found: what earlier ones found is looked for again. Raised when they change.

1: tasks of lm-evaluation-harness by their whole prompt. 2: images by the bytes of their files.
"""


@dataclass(frozen=True)
class Found:
    """How many of a task's items stand in the rows.

    `asked`: fingerprint of the items (`Task.asked`). `corpus`: fingerprint of the corpus. `rows`: how many of it were
    looked through. `first`: the first item that was found, in words, with its row; None where none was. `rules`: by
    which it was looked for (`RULES`).
    """

    asked: str
    items: int
    corpus: str
    rows: int
    found: int
    first: str | None = None
    rules: int = 1

    def said(self, task: str) -> str:
        """`12 of 500 items of arc_easy stand in rows that are trained on (item 17 in row 3, source chat)`."""
        return f"{self.found} of {self.items} items of {task} stand in rows that are trained on ({self.first})"


def write_found(found: Mapping[str, Found], folder: RunFolder) -> None:
    """Write what was found, by task."""
    write_json(folder.contamination, {name: asdict(one) for name, one in found.items()})


def read_found(folder: RunFolder) -> dict[str, Found]:
    """What was found, by task; empty where nobody looked."""
    if not folder.contamination.exists():
        return {}
    tree = read_json(folder.contamination)
    try:
        return {name: Found(**one) for name, one in tree.items()}
    except TypeError as error:
        raise UserError(
            f"{folder.contamination} is another file than was written there ({error}): remove it, and items are looked "
            "for again"
        ) from error


def trained_items(folder: RunFolder, result: Recovery | None) -> list[str]:
    """A sentence on each task that was measured and of which items were found."""
    found = {} if result is None else read_found(folder)
    measured = {} if result is None else result.tasks
    same = [name for name, one in found.items() if name in measured and measured[name].asked == one.asked]
    return [f"{found[name].said(name)}. Of these its scores show memory." for name in same if found[name].found]
