"""What student and teacher know of a source, in a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from lingu_ray.evaluation.results import Estimate
from lingu_ray.preview.knowledge import Known

_COLUMNS = (26, 22)


def lines(known: Known) -> Iterator[str]:
    """The source's figures, and what follows from them for KD."""
    pictures = f", {known.pictured} with another row's pictures too" if known.pictured else ""
    yield f"{known.source}: {known.rows} rows{pictures}, {known.tokens:,} tokens of answers; nats a token"
    yield _line("student", known.student, "its pictures tell it", known.pictures_tell_student)
    yield _line("teacher, student's KV", known.teacher, "the pictures in it tell", known.pictures_tell_teacher)
    yield _line("teacher, prompt's text", known.teacher_by_text)
    yield f"  {conclusion(known)}"


def conclusion(known: Known) -> str:
    """What sharing KV tells the teacher more than the text of the prompt does."""
    tells = known.kv_tells
    if tells.is_positive is None:
        return f"shared KV and the prompt's text tell the teacher the same, up to noise: {_nats(tells)}"
    if tells.is_positive:
        return f"shared KV tells the teacher {_nats(tells)} more than the prompt's text does"
    less = f"shared KV tells the teacher {_nats(-tells)} less than the prompt's text does"
    return f"{less}: it reads this student's keys badly"


def _line(name: str, nats: Estimate, tells: str = "", told: Estimate | None = None) -> str:
    name_width, nats_width = _COLUMNS
    beside = "" if told is None else f"{tells} {_nats(told)}"
    return f"  {name:{name_width}}{_nats(nats):{nats_width}}{beside}".rstrip()


def _nats(found: Estimate) -> str:
    return f"{found.value:.3f} [{found.ci.low:.3f}, {found.ci.high:.3f}]"
