"""Keys that change what a record or a turn means: read by a format, honored here, or the record is rejected by name.

They are those of files made for axolotl, LLaMA-Factory, ms-swift, TRL, verl, the OpenAI API and a `Distiller`. All
other keys are metadata, and not looked at. `template`, `text` and `image_folder` take what their source's settings
name, and nothing of this applies to them, but for `VERDICTS` to `template`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lingu_ray.config import SourceConfig
from lingu_ray.corpus.record import BadRecord, Record, is_empty


@dataclass(frozen=True)
class KeyRule:
    """Keys under which a value for which `rejects` is true rejects the record for `reason`; `why` explains it."""

    reason: str
    keys: tuple[str, ...]
    why: str
    rejects: Callable[[Any], bool] = lambda value: not is_empty(value)


def _switched_on(value: Any) -> bool:
    return not is_empty(value) and value is not False and value != 0


def _is_mask(value: Any) -> bool:
    """Numbers or truth values; a picture that is a mask is metadata."""
    first = value
    while isinstance(first, list) and first:
        first = first[0]
    return isinstance(first, int | float) and _switched_on(value)


def _is_prose(value: Any) -> bool:
    return isinstance(value, str) and len(value.split()) > 1


_MEDIA = KeyRule(
    "missing_media",
    ("video", "videos", "video_path", "video_url", "audio", "audios", "audio_path", "audio_url", "input_audio"),
    "video and audio are not trained on",
)
_UNDESIRED = "marks an undesired answer"
VERDICTS = ("is_correct", "is_safe")  # on an answer, and nothing else, of OpenMathInstruct, P3, BeaverTails
_JUDGED = (
    KeyRule(
        "preference_pair",
        (
            *("chosen", "rejected", "rejected_response", "rejected_messages", "rejected_conversations"),
            *("rejected_images", "preferred_output", "non_preferred_output"),
        ),
        "of a better and a worse answer none is learned: keep the better one as the answer, and take the pair out",
    ),
    KeyRule("undesired_answer", ("label", "correct"), _UNDESIRED, lambda value: value is False),  # 0 may be a class
    KeyRule("undesired_answer", ("kto_tag", *VERDICTS), _UNDESIRED, lambda value: value == 0),
    KeyRule("undesired_answer", ("reward",), _UNDESIRED, lambda value: value == -1),
)
_TOOLS = KeyRule("tools", ("tools", "functions"), "tools that the prompt would have to name")
_REASONING = ("reasoning_content", "reasoning", "thinking", "reasoning_details", "thinking_blocks")
_GOES_ON = "an answer that is not finished; the student would learn to end there: finish it, or take it out"
_CUT_OFF = KeyRule(
    "unfinished", ("finish_reason", "stop_reason"), _GOES_ON, lambda value: value in ("length", "max_tokens")
)
_SWITCHES = ("loss", "loss_mask", "train", "training", "trainable", "train_on_turn", "supervised")
_MASKS = ("mask", "masks", "token_mask", "completion_mask", "assistant_mask", "assistant_masks")

# What stands beside the conversation.
RECORD_RULES = (
    _MEDIA,
    _TOOLS,
    _CUT_OFF,
    *_JUDGED,
    KeyRule(
        "weight",
        ("weight", "sample_weight", "loss_weight", "loss_scale"),
        "rows have no weights of their own; `ce_weight` is a source's",
        lambda value: not is_empty(value) and value != 1,
    ),
    KeyRule(
        "nothing_supervised",
        _SWITCHES,
        "the record is not to be trained on",
        lambda value: not is_empty(value) and value == 0,
    ),
    KeyRule("mask", (*_MASKS, "loss_mask"), "masks of tokens or turns are not read", _is_mask),
    KeyRule("mask", ("mask_history",), "mark the turns themselves: `weight: 0`", _switched_on),
    KeyRule(
        "reasoning",
        _REASONING,
        "reasoning beside the answer; write into the answer what the model is to say, or take it out",
        _is_prose,  # else it says of the record whether it has any
    ),
    KeyRule(
        "template_settings",
        ("chat_template_kwargs", "enable_thinking"),
        "the chat template is rendered with its defaults: write what they add into the messages, and take them out",
    ),
)
# What stands in one turn.
TURN_RULES = (
    _MEDIA,
    *_JUDGED,
    KeyRule("tools", ("tool_calls", "function_call", "tool_call_id"), "calls of tools are not trained on"),
    _TOOLS,  # as Phi-4 mini has them in the system message
    KeyRule("tools", ("ipython",), "calls of tools are not trained on", _switched_on),  # of torchtune
    KeyRule(
        "reasoning",
        _REASONING,
        "reasoning beside the content; write into the content what the model is to say",
    ),
    KeyRule(
        "reasoning",
        ("channel",),  # of OpenAI's harmony
        "a turn of another channel than the final answer",
        lambda value: value in ("analysis", "commentary"),
    ),
    KeyRule("refusal", ("refusal",), "a refusal beside the content"),
    KeyRule("unfinished", ("prefix", "partial"), _GOES_ON, lambda value: value is True),  # of Mistral, Kimi
    KeyRule("unfinished", ("eot", "end_turn"), _GOES_ON, lambda value: value is False),  # of torchtune, harmony
    _CUT_OFF,
    KeyRule("mask", (*_MASKS, "train_detail", "training_detail"), "parts of a turn are not masked"),
    KeyRule(
        "template_settings",
        ("min_pixels", "max_pixels", "resized_height", "resized_width"),  # of Qwen's parts with pictures
        "the student's processor has one size of pictures for all rows: resize the picture itself, or take it out",
    ),
)
# Flags of an answer: 1 or true, the default, is a target of the loss; 0 or false is not.
SUPERVISED_FLAGS = ("weight", "loss_weight", "loss_scale", *_SWITCHES)


def check_record(record: Record, source: SourceConfig) -> None:
    """Reject a record for a key beside the conversation that changes its meaning in a way that no row can keep."""
    _check_keys(record, RECORD_RULES)
    distill = _plain(record.get("distill"))  # as files for a `Distiller` have it
    if isinstance(distill, int) and bool(distill) != source.language_heavy:
        raise BadRecord(
            "distill",
            f"'distill' is {distill}, and language_heavy of the whole source {source.language_heavy}: put rows with "
            "and without KD into two sources",
        )


def check_verdicts(record: Record, patterns: str) -> None:
    """Reject a record that says its answer is bad, unless the format strings name the verdict itself."""
    _check_keys({key: record[key] for key in VERDICTS if key in record and f"{{{key}" not in patterns}, _JUDGED)


def check_turn(turn: Record) -> None:
    """Reject a record for such a key in a turn, or in a part of one."""
    _check_keys(turn, TURN_RULES)


def _check_keys(values: Record, rules: tuple[KeyRule, ...]) -> None:
    for rule in rules:
        for key in rule.keys:
            if key in values and rule.rejects(_plain(values[key])):
                raise BadRecord(rule.reason, f"{key!r}: {rule.why} ({values[key]!r:.80})")


def _plain(value: Any) -> Any:
    """What text of a JSON value or a truth value says, as CSV files have them; any other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value.strip().lower())
    except ValueError:
        return value


def is_supervised(answer: Record, parts: list[Any]) -> bool:
    """Whether an answer is a target of the loss, by its flags.

    Args:
        answer: its turn.
        parts: those of its content; it is learned as a whole, or not at all.

    Raises:
        BadRecord: a flag that is neither 0 nor 1, two that contradict each other, or a part that says otherwise than
            its turn.
    """
    supervised = _flagged(answer, otherwise=True)
    for part in parts:
        if isinstance(part, dict) and _flagged(part, otherwise=supervised) != supervised:
            raise BadRecord(
                "mask", f"a part of an answer is flagged otherwise than the rest, which is not read: {part!r:.80}"
            )
    return supervised


def _flagged(values: Record, otherwise: bool) -> bool:
    """What the flags of a turn, or of a part, say, or `otherwise`; torchtune's `masked` says the opposite."""
    flags = {key: _plain(values[key]) for key in SUPERVISED_FLAGS if not is_empty(values.get(key))}
    if isinstance(masked := _plain(values.get("masked")), bool):
        flags["masked"] = not masked
    for key, value in flags.items():
        if value not in (0, 1):
            raise BadRecord("weight", f"{key!r} of an answer must be 0 or 1, not {value!r:.80}")
    if len(set(map(bool, flags.values()))) > 1:
        raise BadRecord("weight", f"flags of an answer contradict each other: {flags}")
    return all(flags.values()) if flags else otherwise
