"""The content of a turn: its text, with `<image>` where an image stands, and references to the images.

Content is text or a list of parts. A reference is what an image is loaded from: bytes, a path or URL, base64, or an
object with one of these. A part that names none stands for an image of the record: the one of its index, else the next.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingu_ray.corpus.record import (
    TAKE_ONE_OUT,
    BadRecord,
    Record,
    as_dict,
    as_index,
    as_records,
    first_list,
    first_name,
    is_empty,
    is_null,
    read_text,
)
from lingu_ray.corpus.record_keys import check_turn
from lingu_ray.corpus.row import PLACEHOLDER
from lingu_ray.corpus.suffixes import ALL_PICTURES, MEDIA
from lingu_ray.literals import parsed

IMAGE_KEYS = ("images", "image", "image_path", "image_paths", "image_url", "image_urls", "img")
_NUMBERED_IMAGE = re.compile(r"(image|img)s?[_ ]?(\d+|[a-h]|left|right|before|after)", re.I)  # one of several
_LIKE_IMAGE_KEYS = re.compile(
    "image|img|picture|photo|screenshot|figure|file_?name|frame|scan|pdf|attachment", re.IGNORECASE
)
_NAME_OF_IMAGE = re.compile("(image|img|picture|photo)s?[_ ]?(id|name|url|link)s?", re.IGNORECASE)
_NAME_OF_MEDIA = re.compile("(video|audio|clip)s?[_ ]?(u?id|idx|name|file|url|link)s?", re.IGNORECASE)
_LIKE_FILE_KEYS = re.compile(
    "vid|audio|clip|media|sound|speech|wav|mp[34]|file|path|id|document|chart|diagram|visual", re.IGNORECASE
)
_LIKE_METADATA = re.compile("meta|extra|info|annotation|attribute|properties|additional", re.IGNORECASE)
_HEADS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*", b"%PDF-")
_BASE64_OF_PICTURES = re.compile("data:image/[a-z+-]+;base64,|/9j/|iVBORw0K|R0lGOD|UklGR.{6}XRUJQ|SUkqA|TU0AK")
_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_PARTS = ("image", "image_url", "input_image")
_REFERENCES = ("image", "image_url", "url", "path", "bytes", "base64", "source")  # of a part, by precedence


@dataclass(frozen=True)
class _ByIndex:
    """Stands for the record's image of that index."""

    index: Any

    def index_in(self, images: list[Any]) -> int:
        return as_index(self.index, len(images), "'index' of a part", "images")


def read_images(record: Record) -> list[Any]:
    """References to the images of a record: a list, a single one, or none (null, also in a list).

    Raises:
        BadRecord: one of several is null, or there are others under a second name.
    """
    name = first_list(record, *IMAGE_KEYS)
    images = as_images(record.get(name))
    for other in IMAGE_KEYS:
        if other != name and _are_others(images, parsed(record.get(other))):
            raise BadRecord("image_count", f"{name!r} and {other!r} {TAKE_ONE_OUT}")
    more = [key for key in record if _NUMBERED_IMAGE.fullmatch(str(key)) and _names_picture(record[key])]
    if images and more:
        raise BadRecord("image_count", f"{more[0]!r} beside {name!r} is not read: put all of them into 'images'")
    return images


def _are_others(images: list[Any], value: Any) -> bool:
    """Whether a value under a second name surely holds other images: their number differs, or the names of files do.

    Data sets keep names and URLs of what they have as bytes, or below another folder: these may be the same images.
    """
    there = [] if is_empty(value) else value if isinstance(value, list) else [value]
    return bool(there) and (len(there) != len(images) or any(map(_differ, images, there)))


def _differ(one: Any, other: Any) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return _is_path(one) and _is_path(other) and Path(one).name != Path(other).name
    if isinstance(one, dict) and isinstance(other, dict):
        both = [key for key in ("bytes", "path", "url") if not (is_empty(one.get(key)) or is_empty(other.get(key)))]
        return any(_differ(one[key], other[key]) for key in both)
    return type(one) is type(other) and one != other


def _is_path(text: str) -> bool:
    """Whether a reference is a path, and neither a URL nor base64."""
    return "://" not in text and _BASE64_OF_PICTURES.match(text) is None


def check_no_picture(record: Record, cure: str) -> None:
    """Check that a record, of which only columns of text are read, holds no picture, the path of one, or other media.

    Raises:
        BadRecord: it does; the student would learn to answer without seeing what it is asked about.
    """
    for key, value in record.items():
        if key in ("video", "videos", "audio", "audios") and not is_empty(value):
            raise BadRecord("missing_media", f"{key!r}: video and audio are not trained on; take the column out")
        if _holds_picture(value) or (key in IMAGE_KEYS and "url" not in key and _names_picture(value)):
            raise BadRecord("missing_image", f"{key!r} is a picture that nothing reads: {cure}, or take it out")


def check_none_unread(record: Record) -> None:
    """Check that a record without images, and its turns, name no picture, video or audio under a key that is not read.

    Raises:
        BadRecord: they do; the student would learn to answer without seeing what it is asked about.
    """
    for key, value in record.items():
        if _is_of_media(str(key), value):
            raise BadRecord("missing_media", f"{key!r} names video or audio, which are not trained on")
        named = _NAME_OF_IMAGE.fullmatch(str(key)) is not None and not is_empty(value)  # `image_id` of COCO, VQAv2, GQA
        named = named or (_LIKE_FILE_KEYS.search(str(key)) is not None and _is_file(value, ALL_PICTURES))
        if named or _holds_picture(value) or (_LIKE_IMAGE_KEYS.search(str(key)) and _names_picture(value)):
            detail = f"{key!r} names a picture, and the conversation has none: call it 'images', or take it out"
            raise BadRecord("missing_image", detail)
        beside = parsed(value) if _LIKE_METADATA.search(str(key)) else value  # other JSON text may be an answer
        for inner in beside if isinstance(beside, list) else [beside]:
            if isinstance(inner, dict):
                check_none_unread(inner)


def _holds_picture(value: Any) -> bool:
    """Whether a value is a picture itself, whatever its column is called, or a list with one.

    So are an object of `datasets` with bytes, and bytes, base64 and a data URL that begin as pictures do.
    """
    if isinstance(value, list):
        return any(map(_holds_picture, value))
    if isinstance(value, dict):
        return isinstance(value.get("bytes"), bytes) and not is_empty(value["bytes"])
    if isinstance(value, str):
        return _BASE64_OF_PICTURES.match(value) is not None
    return isinstance(value, bytes) and (value.startswith(_HEADS) or value[8:12] == b"WEBP")


def _is_of_media(key: str, value: Any) -> bool:
    """Whether a key is the name of video or audio, such as `video_id`, or a value of such a key is a file of theirs."""
    if _NAME_OF_MEDIA.fullmatch(key):
        return not is_empty(value)
    return _LIKE_FILE_KEYS.search(key) is not None and _is_file(value, MEDIA)


def _names_picture(value: Any) -> bool:
    """Whether a value is a picture's bytes, object, path or URL, or a list with one."""
    value = parsed(value)
    if isinstance(value, list):
        return any(map(_names_picture, value))
    if isinstance(value, dict):
        return any(not is_empty(value.get(key)) for key in ("bytes", "path", "url"))
    return _is_file(value, {*ALL_PICTURES, ".pdf"}) or isinstance(value, bytes)


def _is_file(value: Any, suffixes: set[str]) -> bool:
    """Whether a value is a path or URL of a file with one of the suffixes, or a list with one."""
    if isinstance(value, list):
        return any(_is_file(item, suffixes) for item in value)
    return isinstance(value, str) and Path(value.partition("?")[0].strip()).suffix.lower() in suffixes


def as_images(value: Any) -> list[Any]:
    """References of a field that is a list or a single one (see `read_images`)."""
    value = parsed(value)
    if is_empty(value):
        return []
    images = value if isinstance(value, list) else [value]
    if any(map(is_empty, images)):
        raise BadRecord("missing_image", f"one of {len(images)} images is null")
    return images


def read_content(turn: Record, name: str) -> tuple[str, list[Any]]:
    """The text of a turn, whose content is under `name`, and a reference for each placeholder in it.

    None stands for the record's next image.
    """
    value = _as_parts(turn.get(name))
    if isinstance(value, list | dict):
        text, inside = _join_parts(parts_of(value))
    else:
        text = "" if name in turn and is_null(value) else read_text(turn, name)
        inside = [None] * text.count(PLACEHOLDER)
    own = read_images(turn)
    if not own:
        return text, inside
    if not inside:
        return PLACEHOLDER * len(own) + text, own
    if len(inside) != len(own) or any(reference is not None for reference in inside):
        raise BadRecord("image_count", f"a turn has {len(own)} images of its own, and {len(inside)} in its content")
    return text, own


def resolve(inside: list[Any], beside: list[Any]) -> list[Any]:
    """The images in the order of their placeholders.

    Args:
        inside: what `read_content` gives for the placeholders.
        beside: the record's images.

    Raises:
        BadRecord: an index that is none, images that are named partly here and partly there, or others than beside.
    """
    if all(reference is None for reference in inside):
        return beside
    if None in inside:
        raise BadRecord("missing_image", "some images are named where they stand, and others are not")
    indices = {reference.index_in(beside) for reference in inside if isinstance(reference, _ByIndex)}
    if indices and len(indices) < len(beside):
        raise BadRecord("image_count", f"{len(beside)} images, of which the parts name {len(indices)} by their index")
    if not indices and _are_others(inside, beside):
        raise BadRecord("image_count", f"images in the messages and those beside them {TAKE_ONE_OUT}")
    return [
        beside[reference.index_in(beside)] if isinstance(reference, _ByIndex) else reference for reference in inside
    ]


def _as_parts(value: Any) -> Any:
    """The parts that JSON text holds, where all that it holds are parts of a known type; any other value as it is."""
    parts = parsed(value)
    known = (*_TEXT_PARTS, *_IMAGE_PARTS)
    if isinstance(parts, list) and all(isinstance(part, dict) and part.get("type") in known for part in parts):
        return parts or value
    return value


def parts_of(content: Any) -> list[Any]:
    """The parts of a turn's content, texts or objects; none where it is text."""
    value = _as_parts(content)
    return as_records(value, "the content") if isinstance(value, dict) else value if isinstance(value, list) else []


def _join_parts(parts: list[Any]) -> tuple[str, list[Any]]:
    if len(parts) > 1 and all(isinstance(part, str) for part in parts):
        raise BadRecord(
            "wrong_type", f"{len(parts)} texts in one message, as several answers: keep one ({parts!r:.80})"
        )
    text = ""
    inside: list[Any] = []
    for part in parts:
        piece, references = _read_part(part)
        text += piece
        inside += references
    return text, inside


def _read_part(value: Any) -> tuple[str, list[Any]]:
    """A part's text and references, as of `read_content`."""
    if isinstance(value, str):
        return value, [None] * value.count(PLACEHOLDER)
    part = as_dict(value, "a part of a message")
    check_turn(part)
    given = part.get("type")
    if given in (*_TEXT_PARTS, *_IMAGE_PARTS) and not is_null(part.get("value")):  # as LLaMA-Factory has all kinds
        part = part | {"text" if given in _TEXT_PARTS else "image": part["value"]}
    reference, text = _reference(part), part.get("text")
    kind = given or ("text" if reference is None and text is not None else "image")
    if kind in _TEXT_PARTS and reference is None:
        return _read_part(read_text(part, "text"))
    if kind in _IMAGE_PARTS and is_empty(text) and (reference is not None or given):
        return PLACEHOLDER, [reference]
    raise _not_a_part(kind, part)


def _reference(part: Record) -> Any:
    """What a part says of its image: a reference, its index among the record's, or nothing."""
    key = first_name(part, *_REFERENCES)
    value = part.get(key)
    if is_empty(value):
        index = part.get(first_name(part, "index", "image_index"))
        return None if is_null(index) else _ByIndex(index)
    if isinstance(value, dict) and not is_empty(value.get("data")):
        return value["data"]  # a `source` of base64
    return value


def _not_a_part(kind: Any, part: Record) -> BadRecord:
    if kind in (*_TEXT_PARTS, *_IMAGE_PARTS):
        return BadRecord(
            "wrong_type", f"a part of type {kind!r} holds both text and an image, or neither: {part!r:.80}"
        )
    detail = f"a part of a message must be text or image, not {kind!r}"
    if any(medium in str(kind) for medium in ("video", "audio", "file")):
        return BadRecord("missing_media", detail)
    return BadRecord("tools" if "tool" in str(kind) else "wrong_type", detail)
