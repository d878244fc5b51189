"""Rows as kinds of tokenizers and chat templates make them: what is trained is what inference reads and generates."""

import copy
import re
from functools import cache
from typing import Any

import pytest
from chat_kinds import ADDS, BOS, CORES, ENDS, EOS, TAKES_STRINGS, TEMPLATES, processor_with, tokenizer_of
from hypothesis import given
from hypothesis import strategies as st
from tiny import picture, tiny_processor
from tokenizers import AddedToken

from lingu_ray.corpus.chat_template import FALLBACK_TEMPLATE, CannotEncode, ChatTemplate
from lingu_ray.corpus.encode import Encoder, PromptTooLong, Sample
from lingu_ray.corpus.images import decode_image
from lingu_ray.corpus.row import PLACEHOLDER, Messages, Row
from lingu_ray.errors import UserError
from lingu_ray.runtime.models.verify import question

ANSWERS = ("a cat on a mat.", "in the house,\nor not.")


@cache
def encoder_of(template: str, core: str, adds: str = "nothing", max_length: int = 512) -> Encoder:
    return Encoder(processor_with(tokenizer_of(core, adds), TEMPLATES[template]), max_length)


def row(*turns: str, system: str | None = None) -> Row:
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(turns)]
    pictures = "".join(turns).count(PLACEHOLDER)
    return Row("s", 0, messages, [picture(seed, (20 + seed, 16)) for seed in range(pictures)], distill=False)


def asked(processor: Any, template: str, messages: Messages, images: list[bytes], prompt: bool) -> list[int]:
    """Token ids that Transformers' processor makes of the conversation, `prompt`: with the generation prompt."""
    strings = TAKES_STRINGS.get(template, set())
    conversation = []
    for message in messages:
        texts = [text for text in re.split("(<image>)", message["content"]) if text] or [""]
        parts = [{"type": "image"} if text == PLACEHOLDER else {"type": "text", "text": text} for text in texts]
        conversation.append(message if message["role"] in strings else {"role": message["role"], "content": parts})
    text = processor.apply_chat_template(conversation, add_generation_prompt=prompt)
    pictures = [[decode_image(image) for image in images]] if images else None
    special = not text.startswith(BOS)
    return processor(text=[text], images=pictures, add_special_tokens=special)["input_ids"][0]


def said(encoder: Encoder, sample: Sample) -> list[str]:
    """The text of each supervised stretch."""
    marks = [*sample.supervised_T.tolist(), False]
    starts = [i for i, mark in enumerate(marks) if mark and not (i and marks[i - 1])]
    ids = sample.input_ids_T
    return [encoder.tokenizer.decode(ids[start : marks.index(False, start)]) for start in starts]


def test_named_templates_without_a_default_are_refused():
    """Of several templates the default is taken; without one the error names them, and the cure."""
    processor = tiny_processor()
    processor.chat_template = {"default": TEMPLATES["chatml"], "rag": "r"}
    assert Encoder(processor, 512).template == TEMPLATES["chatml"]
    processor.chat_template = {"tool_use": "t", "rag": "r"}
    with pytest.raises(UserError, match=r"there are tool_use, rag, and none is called default: .*chat_template.jinja"):
        Encoder(processor, 512)


@pytest.mark.parametrize("template", TEMPLATES)
def test_ids_are_those_of_the_whole_conversation(template: str):
    """For every kind of tokenizer: ids are Transformers' own for the conversation, up to the end of the last answer.

    The question is the model's prompt at inference, and what is supervised follows it: answer and end of turn.
    """
    conversations = (
        row("What is it?", ANSWERS[0]),
        row("<image>Is it <image>so?", ANSWERS[1]),
        row("<image>one?", ANSWERS[0], "and<image>two?", ANSWERS[1], "three?", ANSWERS[0]),
    )
    for number, core in enumerate(CORES):
        encoder = encoder_of(template, core, list(ADDS)[number % len(ADDS)])
        for conversation in conversations:
            messages, images = conversation.messages, conversation.images
            if template == "vicuna" and len(messages) > 2:
                continue  # EOS is written into it
            sample = encoder.encode(conversation)
            ids = sample.input_ids_T.tolist()
            text = ids[:-1] if template == "vicuna" else ids
            assert text == asked(encoder.processor, template, messages, images, prompt=False)[: len(text)]
            assert ids[-1] == encoder.tokenizer.convert_tokens_to_ids(ENDS[template]) == encoder.end_of_turn_id
            assert encoder.length(conversation) == len(ids)

            question = encoder.encode_question(conversation).input_ids_T.tolist()
            assert question == asked(encoder.processor, template, messages[:-1], images, prompt=True)[: len(question)]
            begin = sample.supervised_T.tolist().index(True) if len(messages) == 2 else len(question)
            if template != "onevision":
                assert ids[: len(question)] == question and sample.supervised_T[len(question) :].all()
                assert begin == len(question)
            supervised = "".join(said(encoder, sample))
            earlier = [] if template == "qwen3" else [m["content"] for m in messages[1:-1:2]]
            expected = [answer + ENDS[template] for answer in (*earlier, messages[-1]["content"])]
            assert supervised.replace(" ", "").replace("<think>\n\n</think>\n\n", "") == "".join(expected).replace(
                " ", ""
            )


TEXTS = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=12),
    st.sampled_from(
        ["a cat", " a\n", "\n\n", "", "</s>", "<|im_end|>", "<unk>", "<think>x</think>y", "ASSISTANT:", "é😀"]
    ),
)


@pytest.mark.slow
@given(data=st.data())
def test_length_accepts_what_encode_accepts(data: st.DataObject):
    """Both refuse a row for the same reason, or count the same tokens, whatever the text, images and tokenizer.

    What is longer than `max_length` is cut to it, or before it where only a question would be left over.
    """
    template = data.draw(st.sampled_from([*TEMPLATES]))
    core, adds = data.draw(st.sampled_from([*CORES])), data.draw(st.sampled_from([*ADDS]))
    encoder = encoder_of(template, core, adds, data.draw(st.sampled_from([70, 512])))
    turns = []
    for _ in range(data.draw(st.integers(1, 3))):
        pieces = data.draw(st.lists(TEXTS, min_size=1, max_size=3))
        turns += [PLACEHOLDER.join(piece.replace(PLACEHOLDER, "") for piece in pieces), data.draw(TEXTS)]
    conversation = row(*turns, system=data.draw(st.sampled_from([None, "Be brief."])))
    try:
        length = encoder.length(conversation)
    except CannotEncode as refused:
        with pytest.raises(type(refused), match=re.escape(str(refused))):
            encoder.encode(conversation)
        return
    sample = encoder.encode(conversation)
    assert sample.supervised_T[-1] and len(sample) <= min(length, encoder.max_length)
    assert len(sample) == length or len(sample) == encoder.max_length or len(conversation.messages) > 3
    assert ("pixel_values" in sample.vision) == bool(sample.visual_T.any())
    if len(sample) == length and template != "vicuna":
        whole = asked(encoder.processor, template, conversation.messages, conversation.images, prompt=False)
        assert sample.input_ids_T.tolist() == whole[:length]
        if core.startswith("byte_level") and template != "qwen3":  # every character has tokens, and stays as it is
            last = said(encoder, sample)[-1]
            assert "".join(last.split()) == "".join((turns[-1] + ENDS[template]).split())
    assert int(sample.visual_T.sum()) == 16 * len(sample.vision.get("pixel_values", []))


@pytest.mark.parametrize("template", ["chatml", "llama2", "vicuna", "qwen3"])
@pytest.mark.parametrize(
    "turns",
    [
        ("a cat?", "a cat?", "a cat?", "a cat?"),
        ("say: a cat.", "a"),
        ("</think> what?", "think"),
        ("what?", "  a cat \n"),
        ("", "a cat"),
        ("\n", "\n- one\n- two"),
    ],
)
def test_answers_are_found_wherever_their_text_stands(template: str, turns: tuple[str, ...]):
    """Repeated, in the question or the template, trimmed, beside empty questions: the answer is what follows."""
    for core in ("byte_level", "prepending"):
        encoder = encoder_of(template, core)
        last = said(encoder, encoder.encode(row(*turns)))[-1]
        assert last.removesuffix(ENDS[template]).removeprefix("<think>\n\n</think>\n\n").strip() == turns[-1].strip()


def test_reasoning_is_supervised_where_the_template_shows_it():
    """Thoughts of the last answer are; those of earlier ones, which the template drops, are not, nor their answers."""
    encoder = encoder_of("qwen3", "byte_level")
    answers = ("<think>\none\n</think>\n\na cat", "<think>two</think>a dog")
    first, last = row("what?", answers[0]), row("what?", answers[0], "and now?", answers[1])
    assert said(encoder, encoder.encode(first)) == [answers[0] + "<|im_end|>"]
    assert said(encoder, encoder.encode(last)) == ["<think>\ntwo\n</think>\n\na dog<|im_end|>"]
    assert "one" not in encoder.tokenizer.decode(encoder.encode(last).input_ids_T)
    short = Encoder(encoder.processor, encoder.length(first))
    assert said(short, short.encode(row("what?", answers[0], "word " * 40, answers[1]))) == [answers[0] + "<|im_end|>"]


def test_templates_by_which_the_last_answer_alone_is_learned():
    """Those that show earlier answers without what is generated, or otherwise ended; rows would lose the others."""
    end = "{{ eos_token if loop.last and m.role == 'assistant' else '<|im_end|>' }}"
    gpt_oss = TEMPLATES["chatml"].replace("<|im_end|>\n", end)
    assert Encoder(processor_with(tokenizer_of("byte_level"), gpt_oss), 64).learns_last_answer_alone()
    alone = {name for name in TEMPLATES if encoder_of(name, "byte_level").learns_last_answer_alone()}
    assert alone == {"qwen3"}


def test_an_open_block_of_thoughts_is_closed_by_the_answer():
    """Nemotron asks with `<think>`, newline, and renders `<think></think>`: the answer begins with `</think>`."""
    template = TEMPLATES["qwen3"].replace("'\n</think>\n\n'", "'</think>'").replace("'<think>\n'", "'<think>'")
    template = template.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    encoder = Encoder(processor_with(tokenizer_of("byte_level"), template), 512)
    encoder.check_template()
    for answer, expected in (("a cat", "</think>a cat"), ("<think>why</think>a cat", "why</think>a cat")):
        assert said(encoder, encoder.encode(row("what?", answer))) == [f"{expected}<|im_end|>"]


def test_the_switch_of_a_template_that_reasons_is_set_in_its_first_line():
    """As Qwen3's, by what the guide says: the question ends with the empty block of thoughts, and the answer alone is
    learned."""
    off = "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif"
    template = TEMPLATES["qwen3"].replace("assistant\n{% endif", f"assistant\n{off}")
    for first_line, answer in (("", "<think>\n\n</think>\n\na cat"), ("{%- set enable_thinking = false %}\n", "a cat")):
        encoder = Encoder(processor_with(tokenizer_of("byte_level"), first_line + template), 512)
        encoder.check_template()
        assert said(encoder, encoder.encode(row("what?", "a cat"))) == [f"{answer}<|im_end|>"]


def test_eos_closes_answers_that_the_template_leaves_open():
    """LLaVA 1.5: every answer gets EOS, in training and in the conversations that our own inference continues."""
    encoder = encoder_of("vicuna", "prepending", "bos")
    conversation = row("<image>what?", "that. ", "sure?", "yes.")
    assert [text.strip() for text in said(encoder, encoder.encode(conversation))] == ["that.</s>", "yes.</s>"]
    asked_ids = encoder.encode_question(conversation).input_ids_T.tolist()
    assert encoder.encode(conversation).input_ids_T[: len(asked_ids)].tolist() == asked_ids
    continued = encoder.encode_conversation(conversation.messages[:-1], conversation.images)
    assert continued.input_ids_T.tolist() == asked_ids


@pytest.mark.parametrize(
    ("template", "closed_by"),
    [
        (TEMPLATES["chatml"].replace("<|im_end|>\n", "<|end|><|im_end|>\n"), "<|end|><|im_end|>"),  # Aya, two tokens
        (TEMPLATES["phi3"].replace("<|end|>\n", "<|end|>"), "<|end|>"),  # Phi-4 mini: at the end EOS follows
    ],
)
def test_all_that_always_closes_an_answer_is_its_target(template: str, closed_by: str):
    """Several tokens that close each answer are targets, and generation stops at the last; not what ends the whole."""
    encoder = Encoder(processor_with(tokenizer_of("byte_level"), template), 512)
    encoder.check_template()
    assert said(encoder, encoder.encode(row("one?", "a", "two?", "b"))) == [f"a{closed_by}", f"b{closed_by}"]
    assert closed_by.endswith(encoder.tokenizer.convert_ids_to_tokens(encoder.end_of_turn_id))


def test_an_end_of_turn_that_is_not_marked_as_special_closes_answers():
    """As `tokenizer.add_tokens` adds one: it is the target, and no EOS is written in front of it."""
    core = tokenizer_of("byte_level").backend_tokenizer
    core.add_tokens([AddedToken("[E]", special=False), AddedToken("\n\n", special=False)])
    tokenizer = tokenizer_of("byte_level").__class__(tokenizer_object=core, bos_token=BOS, eos_token=EOS)
    encoder = Encoder(processor_with(tokenizer, TEMPLATES["chatml"].replace("<|im_end|>\n", "{{ '\n\n[E]\n' }}")), 512)
    conversation = row("one?", "a", "two?", "b")
    sample = encoder.encode(conversation)
    assert said(encoder, sample) == ["a\n\n[E]", "b\n\n[E]"]
    assert EOS not in tokenizer.decode(sample.input_ids_T)
    assert encoder.end_of_turn_id == tokenizer.convert_tokens_to_ids("[E]")
    with pytest.raises(CannotEncode, match=r"the text holds \[E\]"):
        encoder.encode(row("one [E]?", "a"))


@pytest.mark.parametrize("template", ["chatml", "vicuna", "mistral"])
def test_answers_that_are_marked_as_context_are_not_supervised(template: str):
    """They keep their tokens, EOS included; without them as the last ones, what is too long ends with a target."""
    encoder = encoder_of(template, "prepending")
    conversation = row("one?", "a", "two?", "b", "three?", "c")
    whole = encoder.encode(conversation)
    conversation.messages[3]["supervised"] = False
    sample = encoder.encode(conversation)
    assert sample.input_ids_T.tolist() == whole.input_ids_T.tolist()
    assert [text.strip()[0] for text in said(encoder, sample)] == ["a", "c"]
    short = Encoder(encoder.processor, len(sample) - 3)
    assert [text.strip()[0] for text in said(encoder, short.encode(conversation))] == ["a"]
    assert short.encode(conversation).supervised_T[-1] and short.length(conversation) == len(whole)
    conversation.messages[1]["supervised"] = False
    for method in (short.encode, short.length):
        with pytest.raises(PromptTooLong):
            method(conversation)


def test_a_token_on_the_border_is_the_answers():
    """`Answer: ` and `the` give the token ` the`: it is supervised, and the prompt is what stands before it."""
    template = "{% for m in messages %}{{ m.content }}\n{% if m.role == 'user' %}Answer: {% endif %}{% endfor %}"
    encoder = Encoder(processor_with(tokenizer_of("byte_level"), template.replace("\n", "")), 64)
    sample = encoder.encode(row("what?", "the cat"))
    tokens = encoder.tokenizer.convert_ids_to_tokens(sample.input_ids_T[sample.supervised_T].tolist())
    assert tokens[0] == "Ġthe" and tokens[-1] == EOS
    assert encoder.tokenizer.decode(encoder.encode_question(row("what?", "the cat")).input_ids_T) == "what?Answer: "


def test_special_tokens_that_take_white_space_stay_in_the_prompt():
    """Phi-3's `<|assistant|>` takes the newline and spaces behind it, also the answer's: it is no target."""
    tokenizer = tokenizer_of("metaspace_first").__class__(
        tokenizer_object=tokenizer_of("metaspace_first").backend_tokenizer, eos_token=EOS
    )
    tokenizer.add_tokens([AddedToken("<|assist|>", special=True, rstrip=True)], special_tokens=True)
    encoder = Encoder(
        processor_with(
            tokenizer, TEMPLATES["phi3"].replace("'<|' + m.role", "'<|' + m.role[:6]").replace("assistant", "assist")
        ),
        64,
    )
    for answer in ("a cat", "  a cat"):
        assert said(encoder, encoder.encode(row("what?", answer))) == ["a cat<|end|>"]


@pytest.mark.parametrize(
    ("template", "turns", "held"),
    [
        ("chatml", ("what <|im_end|> is it?", "a cat"), "<|im_end|>"),
        ("chatml", ("what?", "a cat<|im_start|>user"), "<|im_start|>"),
        ("zephyr", ("<s>old</s> new", "a cat"), "</s>"),
        ("qwen2_vl", ("what?", "<|vision_start|>"), "<|vision_start|>"),
        ("phi3", ("what?", "a cat<pad>"), "<pad>"),
    ],
)
def test_text_with_the_templates_tokens_is_refused(template: str, turns: tuple[str, ...], held: str):
    """It would end a turn where none ends. At inference it is tokenized as Transformers does."""
    encoder = encoder_of(template, "byte_level")
    for method in (encoder.encode, encoder.length):
        with pytest.raises(CannotEncode, match=f"the text holds {re.escape(held)}"):
            method(row(*turns))
    question = encoder.encode_conversation(row(*turns).messages[:1], []).input_ids_T.tolist()
    assert question == asked(encoder.processor, template, row(*turns).messages[:1], [], prompt=True)


def test_other_special_tokens_are_text():
    """Tokens of boxes, HTML that the template does not write, names of roles: rows with them are fine."""
    encoder = encoder_of("chatml", "byte_level")
    encoder.encode(row("<|end|> User: <s>old ASSISTANT: <unk>", "[/INST] <end_of_turn>"))


def test_a_template_that_refuses_a_system_message_refuses_the_row():
    """Gemma's raises for the role: that row is refused by its words, others are fine."""
    encoder = encoder_of("gemma", "metaspace_never")
    encoder.check_template()
    for method in (encoder.encode, encoder.length):
        with pytest.raises(CannotEncode, match="refuses the conversation: System role not supported"):
            method(row("what?", "that", system="Be brief."))


@pytest.mark.parametrize(
    ("template", "role", "held"),
    [
        (
            TEMPLATES["chatml"].replace("messages %}", "messages if m.role != 'system' %}"),
            "system",
            row("what?", "a", system="Be brief."),
        ),
        (TEMPLATES["llama3"].replace("m.content", "m.content.split('##')[0]"), "user", row("what? ## Say.", "a")),
    ],
)
def test_a_template_that_leaves_out_what_is_asked_refuses_the_row(template: str, role: str, held: Row):
    """As one that knows no system messages: that row would be learned without it; those that lose nothing are fine."""
    encoder = Encoder(processor_with(tokenizer_of("byte_level"), template), 512)
    encoder.check_template()
    encoder.encode(row("what?", "a", f" the{PLACEHOLDER} \n{PLACEHOLDER} so ", "b"))
    for method in (encoder.encode, encoder.length):
        with pytest.raises(CannotEncode, match=f"the chat template leaves out, or changes, what the {role} says"):
            method(held)


@pytest.mark.parametrize("template", TEMPLATES)
def test_usual_templates_are_accepted(template: str):
    """The check that runs before a corpus is built finds nothing wrong with any of them."""
    for core in ("byte_level", "prepending"):
        encoder_of(template, core, "both").check_template()


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages | length }}" + TEMPLATES["chatml"], "the generation prompt is not what stands before an answer"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "changes the text of an answer: 'b' became 'B'"),
        (TEMPLATES["chatml"].replace("assistant\n{%", "assistant\n<think>\n{%"), "the generation prompt is not"),
        (TEMPLATES["chatml"].replace("<image>", ""), "writes 0 image tokens, and there are 1 images"),
        ("{% for m in messages %}{{ m.text }}{% endfor %}", "changes the text of an answer"),
        ("{{ raise_exception('Not today') }}", "Not today"),
    ],
)
def test_templates_that_cannot_work_are_told_at_once(template: str, message: str):
    """One error that names the cure, before any row is read."""
    encoder = Encoder(processor_with(tokenizer_of("byte_level"), template), 64)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        encoder.check_template()
    assert str(error.value).startswith("the student's chat template: ")
    assert "in the chat_template.jinja of student.path" in str(error.value)


def test_answers_that_nothing_ends_are_told_at_once():
    """Neither a token of the template nor EOS: with the EOS that the error asks for they can be learned."""
    turns = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    tokenizer = copy.deepcopy(tokenizer_of("byte_level"))
    processor = processor_with(tokenizer, turns + "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}")
    tokenizer.eos_token = None
    with pytest.raises(UserError, match=r"neither chat template nor tokenizer has a special .*: name its eos_token in"):
        Encoder(processor, 64).check_template()
    tokenizer.eos_token = EOS
    Encoder(processor, 64).check_template()


def test_a_model_that_cannot_be_trained_can_be_asked():
    """A generation prompt that no conversation shows (DeepSeek's `<think>`): inference uses it, and knows the end."""
    template = TEMPLATES["chatml"].replace("assistant\n{%", "assistant\n<think>\n{%")
    encoder = Encoder(processor_with(tokenizer_of("byte_level"), template), 64)
    messages = row("what?", "a cat", "and now?", "").messages[:-1]
    text = encoder.tokenizer.decode(encoder.encode_conversation(messages, []).input_ids_T)
    assert text.endswith("a cat<|im_end|>\n<|im_start|>user\nand now?<|im_end|>\n<|im_start|>assistant\n<think>\n")
    assert encoder.end_of_turn_id == encoder.tokenizer.convert_tokens_to_ids("<|im_end|>")


TODAY = {
    "%Y-%m-%d": "{{ strftime_now('%Y-%m-%d') }}",  # Mistral Small 3, gpt-oss
    "%-d %B, %A": "{% set form = '%-d %B, %A' %}{% macro day() %}{{ strftime_now(form) }}{% endmacro %}{{ day() }}",
    "%d %b %Y": "{% if not date_string is defined %}{% if strftime_now is defined %}"  # Llama 3.2
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '26 Jul 2024' %}"
    "{% endif %}{% endif %}{{ date_string }}",
}


@pytest.mark.parametrize("pattern", TODAY)
def test_tokens_do_not_depend_on_the_day(pattern: str):
    """A template that prints today's date prints one day, in training, in evaluation and where an export is checked."""
    day = {"%Y-%m-%d": "2024-07-26", "%d %b %Y": "26 Jul 2024", "%-d %B, %A": "26 July, Friday"}[pattern]
    processor = processor_with(tokenizer_of("byte_level"), f"Today: {TODAY[pattern]}\n" + TEMPLATES["chatml"])
    encoder = Encoder(processor, 512)
    encoder.check_template()
    conversation = row("<image>what?", "a cat")
    messages, images = conversation.messages[:1], conversation.images
    for ids in (
        encoder.encode(conversation).input_ids_T,
        encoder.encode_question(conversation).input_ids_T,
        encoder.encode_conversation(messages, images).input_ids_T,
    ):
        assert encoder.tokenizer.decode(ids).startswith(f"Today: {day}\n")
    assert encoder.prompt(messages, expanded=False).startswith(f"Today: {day}\n")
    assert day in processor.tokenizer.decode(question(processor, encoder)["input_ids"][0])


@pytest.mark.parametrize("before", ["", "\n", "  ", "\n\n  ", "text "])
def test_a_template_that_asks_for_the_day_keeps_its_white_space(before: str):
    """What a template begins with, which Jinja trims in front of blocks, is written as without the one day."""
    rest = "{% if messages %}\n{{ messages[0]['content'] }}{% endif %}"
    texts = []
    for day in ("{% set unused = strftime_now('%d') %}", "{% set unused = '26' %}"):
        template = ChatTemplate(processor_with(tokenizer_of("byte_level"), before + day + rest))
        texts.append(template.render([{"role": "user", "content": "what?"}]))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("template", ["chatml", "llava_next_mistral", "qwen3"])
def test_no_text_is_taken_for_what_stands_in_for_an_answer(template: str):
    """Digits that the search for answers uses may stand in a conversation, also several times and counted on."""
    encoder = encoder_of(template, "byte_level")
    digits = ("3141592653589793", "3141592653589794 3141592653589793")
    turns = (digits[0], "a", *digits, "what?", "b")
    expected = ["b"] if template == "qwen3" else ["a", digits[1], "b"]
    supervised = [text.removesuffix(ENDS[template]).strip() for text in said(encoder, encoder.encode(row(*turns)))]
    assert [text.removeprefix("<think>\n\n</think>\n\n") for text in supervised] == expected


@pytest.mark.parametrize("strings", [True, False])
def test_the_fallback_template_is_one_for_transformers(strings: bool):
    """An export that carries it is asked by `apply_chat_template` as it was trained, by strings and by parts."""
    bare = tiny_processor()
    bare.chat_template = bare.tokenizer.chat_template = None
    encoder = Encoder(bare, 256)
    assert encoder.template == FALLBACK_TEMPLATE
    bare.chat_template = encoder.template
    parts = [{"type": "image", "image": decode_image(picture(0))}, {"type": "text", "text": "What?"}]
    content = "<image>What?" if strings else parts
    text = bare.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    ids = bare(text=text, images=[[decode_image(picture(0))]])["input_ids"][0]
    assert ids == encoder.encode_question(row("<image>What?", "b")).input_ids_T.tolist()
    assert (
        Encoder(bare, 256).encode(row("a", "b")).input_ids_T.tolist()
        == encoder.encode(row("a", "b")).input_ids_T.tolist()
    )
