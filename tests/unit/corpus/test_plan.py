"""What a plan says of a corpus before it is built."""

from pathlib import Path

import pytest
from tiny import CHAT_TEMPLATE
from tinyrun import config, write_pair_and_data

from lingu_ray.corpus.plan import plan_corpus

LAST_ANSWER_ALONE = CHAT_TEMPLATE.replace(
    "messages %}", "messages %}{% set last = loop.last and message['role'] == 'assistant' %}"
).replace("{{ part['text'] }}", "{% if last %}<think></think>{% endif %}{{ part['text'] }}")


@pytest.mark.parametrize("is_said", [True, False])
def test_a_template_by_which_the_last_answer_alone_is_learned_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, is_said: bool
):
    """As Qwen3's, which writes a block of thoughts before the last one: most of a long conversation would be lost."""
    write_pair_and_data(tmp_path)
    student = tmp_path / "student"
    (student / "chat_template.jinja").write_text(LAST_ANSWER_ALONE if is_said else CHAT_TEMPLATE, encoding="utf-8")
    plan_corpus(config(tmp_path, tmp_path / "runs"), student)
    assert ("of each row the last answer alone is learned" in caplog.text) == is_said
