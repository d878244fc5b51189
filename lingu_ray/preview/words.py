"""What terminal and page say alike: the legend, and sentences about a run, a source, a row."""

from __future__ import annotations

from lingu_ray.config import Config
from lingu_ray.corpus.counts import where_images_are
from lingu_ray.corpus.images import image_size
from lingu_ray.corpus.order import none_left
from lingu_ray.preview.sources import Length, Share, SourcePreview

LEGEND = {
    "context": ("prompt", "the student reads it; nothing is learned, and the teacher has no part in it"),
    "donated": ("donated", "the teacher has the student's keys and values; nothing is learned"),
    "query": ("query", "the teacher computes it itself, on top of what is donated before it; nothing is learned"),
    "ce": ("CE", "to be predicted: cross-entropy"),
    "kd": ("KD", "to be predicted: the student's distribution is compared with the teacher's, beside CE"),
    "cut": ("left out", "beyond corpus.max_length: not trained; where it is long, its start"),
}
"""Name and meaning of each key of `tokens.Role`."""

BESIDE = (
    "Left of the tokens stands what is learned of them, with its weight, and what the teacher has of them: donated, a "
    "query of its own, or nothing where no KD token comes later."
)


def run_words(config: Config) -> str:
    """The settings that decide about roles."""
    parts = [f"distill.policy={config.distill.policy}"]
    if config.distill.policy != "none":
        parts += [f"teacher.context={config.teacher.context}", f"teacher.scope={config.teacher.scope}"]
    return " · ".join([*parts, f"corpus.max_length={config.corpus.max_length}"])


def about_source(preview: SourcePreview) -> str:
    """How the source is trained, and what was read of it."""
    return f"{judged_words(preview)}. {reading_words(preview)}."


def judged_words(preview: SourcePreview) -> str:
    """What the source's answers are trained with."""
    judge = preview.judge
    mark = "language-heavy" if judge.source.language_heavy else "not language-heavy"
    if not judge.trained:
        return f"Not trained: {mark}, and distill.policy={judge.config.distill.policy}"
    ce = f"CE × {judge.ce_weight:g}"
    if not judge.distilled:
        return f"Cross-entropy alone ({ce}): {mark}, distill.policy={judge.config.distill.policy}"
    sampled = judge.config.distill.on_policy
    replaced = f"; the student answers {sampled:.0%} of the rows itself, for KD alone" if sampled else ""
    return f"Distilled ({ce} + KD × {judge.kd_weight:g}): {mark}{replaced}"


def reading_words(preview: SourcePreview) -> str:
    """Which rows were read, and what became of them."""
    which = "all there are" if preview.complete else "spread over the source; read=null reads all"
    reasons = ", ".join(f"{len(rejects)} {reason}" for reason, rejects in preview.rejected.items())
    rejected = f"{len(preview.rejects):,} rejected{f' ({reasons})' if reasons else ''}"
    return f"{preview.read:,} rows read ({which}): {rejected}, {preview.truncated:,} truncated"


def stop_words(preview: SourcePreview) -> str:
    """Why the build would not accept the source."""
    corpus = preview.judge.config.corpus
    if not preview.rejects_too_many:
        why = none_left(preview.settings.name, len(preview.lengths), corpus.validation_rows)
        return f"The build would stop: {why}."
    rate = f"corpus.max_reject_rate={corpus.max_reject_rate:g}"
    said = f"More than {rate} of the rows read are rejected: the build would stop."
    return f"{said} {where_images_are(preview.judge.source, (reject.detail for reject in preview.rejects))}".strip()


def length_words(length: Length) -> str:
    """Tokens of a row, and how many are learned."""
    return f"{length.tokens} tokens, {length.supervised} to be predicted"


def cut_words(length: Length) -> str:
    """How much of a row is left out."""
    missing = length.whole - length.tokens
    return f"cut at corpus.max_length: of {length.whole:,} tokens the last {missing:,} are left out"


def weights_words(preview: SourcePreview) -> str:
    """The weights of the source's tokens in the loss."""
    judge = preview.judge
    return f"{judge.ce_weight:g} · {judge.kd_weight:g}" if judge.distilled else f"{judge.ce_weight:g}"


def image_words(images: list[bytes]) -> str:
    """Number and sizes of a row's images."""
    sizes = ", ".join("{} × {}".format(*image_size(image)) for image in images)
    return f"{len(images)} image{'s' if len(images) > 1 else ''} ({sizes})"


def share_words(share: Share | None) -> str:
    """The source's share of the mixture."""
    if share is None:
        return "by size"
    if not share.part:
        return "not trained"
    return f"{share.part:.1%}" if share.exact else f"about {share.part:.0%}"
