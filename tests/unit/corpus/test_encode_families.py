"""Encoding with each family's own processor, in miniature: what comes out is what the family's model takes.

Not here: Mistral 3 (its processor needs torchvision) and SmolVLM (its processor needs num2words; images go as in
Idefics3). Samples of both, and of audio, are joined as `families` writes them.
"""

from functools import cache
from typing import Any

import pytest
import torch
from families import FAMILIES, Prompt, each
from processors import PROCESSORS, SQUARE, processor_of, tokenizer
from tiny import picture
from torch import Tensor
from transformers import (
    PaliGemmaProcessor,
    PreTrainedModel,
    ProcessorMixin,
    SiglipImageProcessorPil,
)

from lingu_ray.corpus.batch import collate
from lingu_ray.corpus.chat_template import FALLBACK_TEMPLATE, CannotEncode
from lingu_ray.corpus.encode import Encoder, PromptTooLong, Sample
from lingu_ray.corpus.images import decode_image
from lingu_ray.corpus.row import PLACEHOLDER, Row
from lingu_ray.distill.inputs import ModelInputs, forward_arguments
from lingu_ray.errors import UserError


@cache
def student_of(name: str) -> PreTrainedModel:
    family = FAMILIES[name]
    return family.student(family.teacher())


def row(*turns: str) -> Row:
    """Questions and answers in turn, with as many images as placeholders; each image has another shape."""
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": content} for index, content in enumerate(turns)]
    sizes = [(32, 16), (20, 20), (16, 30)]
    pictures = [picture(seed, sizes[seed]) for seed in range("".join(turns).count(PLACEHOLDER))]
    return Row("pictures", len(turns), messages, pictures, distill=True)


ROWS = {
    "text": row("What is a cat?", "An animal."),
    "one": row("<image>What is it?", "A cat."),
    "two": row("Is <image> the same as <image>?", "No."),
    "turns": row("<image>What is it?", "A cat.", "And this? <image>", "A dog."),
}


def conversation(row: Row) -> list[dict[str, Any]]:
    """The row without its last answer, as `apply_chat_template` takes it."""
    images = iter(row.images)
    messages = []
    for message in row.messages[:-1]:
        parts: list[dict[str, Any]] = []
        for index, text in enumerate(message["content"].split(PLACEHOLDER)):
            parts += [{"type": "image", "image": decode_image(next(images))}] if index else []
            parts += [{"type": "text", "text": text}] if text else []
        messages.append({"role": message["role"], "content": parts})
    return messages


def forward(model: PreTrainedModel, samples: list[Sample]) -> Tensor:
    """Final hidden states `[B, T, D]` of the samples as one padded micro-batch."""
    batch = collate(samples, pad_id=2)
    inputs = ModelInputs(batch.input_ids_BT, batch.sample_BT, batch.supervised_BT, batch.visual_BT, batch.vision)
    with torch.no_grad():
        return model.model(**forward_arguments(model.model, inputs), use_cache=False).last_hidden_state


def assert_batch_equals_rows(model: PreTrainedModel, samples: list[Sample]) -> None:
    together_BTD = forward(model, samples)
    for hidden_TD, sample in zip(together_BTD, samples, strict=True):
        alone_TD = forward(model, [sample])[0]
        torch.testing.assert_close(hidden_TD[: len(sample)], alone_TD, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("name", PROCESSORS)
def test_prompts_are_those_of_inference(name, kind):
    """Ids and vision tensors of a question equal those of the processor's `apply_chat_template`."""
    processor = processor_of(name)
    assert_as_inference(Encoder(processor, max_length=512).encode_question(ROWS[kind]), processor, kind)


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("name", PROCESSORS)
def test_conversations_are_those_of_inference(name, kind):
    """So do those of a conversation that is had, with all its images at once."""
    processor, row = processor_of(name), ROWS[kind]
    sample = Encoder(processor, max_length=512).encode_conversation(row.messages[:-1], row.images)
    assert_as_inference(sample, processor, kind)


@pytest.mark.parametrize("name", PROCESSORS)
def test_templates_of_all_families_are_accepted(name):
    """The check before a corpus is built compares what the processor and the encoder make of questions."""
    Encoder(processor_of(name), max_length=8).check_template()


def assert_as_inference(sample: Sample, processor: ProcessorMixin, kind: str) -> None:
    expected = processor.apply_chat_template(
        conversation(ROWS[kind]), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert sample.input_ids_T.tolist() == expected["input_ids"][0].tolist()
    for key, tensor in sample.vision.items():
        assert torch.equal(tensor, expected[key]), key


@cache
def paligemma() -> PaliGemmaProcessor:
    images = SiglipImageProcessorPil(size=SQUARE)
    images.image_seq_length = 16
    return PaliGemmaProcessor(images, tokenizer("<image>", "<s>", "</s>", "<break>", "<video>"))


def test_paligemma_reads_images_first_then_the_question():
    """Prompts with and without images are what its processor writes: images, BOS, question, newline; length agrees."""
    processor = paligemma()
    encoder = Encoder(processor, max_length=512)
    encoder.check_template()
    for kind, question, count in (("one", "What is it?", 1), ("two", "Is  the same as ?", 2)):
        pictures = [decode_image(image) for image in ROWS[kind].images]
        expected = processor(text="<image>" * count + question, images=[pictures], return_tensors="pt")
        sample = encoder.encode_question(ROWS[kind])
        assert sample.input_ids_T.tolist() == expected["input_ids"][0].tolist()
        assert torch.equal(sample.vision["pixel_values"], expected["pixel_values"])
        whole = encoder.encode(ROWS[kind])
        assert encoder.length(ROWS[kind]) == len(whole)
        answer = encoder.tokenizer.decode(whole.input_ids_T[whole.supervised_T])
        assert answer == ROWS[kind].messages[-1]["content"] + "<|endoftext|>"
        assert whole.input_ids_T[: len(sample)].tolist() == sample.input_ids_T.tolist()
    text = encoder.encode_question(ROWS["text"]).input_ids_T.tolist()
    assert text == encoder.tokenizer("<|im_start|>What is a cat?\n", add_special_tokens=False)["input_ids"]
    assert encoder.encode(ROWS["turns"]).supervised_T.sum() < len("A dog.<|endoftext|>")  # its images come first too


@pytest.mark.parametrize("kind", ["text", "one", "two", "turns"])
@pytest.mark.parametrize("strings", [True, False])
def test_paligemmas_template_is_one_for_transformers(kind, strings):
    """Its processor adds BOS and newline to what the template renders: the prompt is the one of training."""
    processor, messages = paligemma(), ROWS[kind].messages[:-1]
    given = messages if strings else conversation(ROWS[kind])
    text = processor.apply_chat_template(
        given, chat_template=Encoder(processor, 512).template, add_generation_prompt=True
    )
    pictures = [decode_image(image) for image in ROWS[kind].images]
    asked = processor(text=[text], images=[pictures]) if pictures else processor.tokenizer([text])
    encoder = Encoder(processor, 512)
    assert asked["input_ids"][0] == encoder.encode_question(ROWS[kind]).input_ids_T.tolist()
    exported = paligemma.__wrapped__()
    exported.chat_template = encoder.template
    assert torch.equal(Encoder(exported, 512).encode(ROWS[kind]).input_ids_T, encoder.encode(ROWS[kind]).input_ids_T)


def test_a_processor_that_writes_around_questions_is_told_at_once():
    """PaliGemma's writes BOS and a newline into whatever its template renders: another template cannot be right."""
    processor = paligemma.__wrapped__()
    processor.chat_template = FALLBACK_TEMPLATE
    with pytest.raises(UserError, match="PaliGemmaProcessor writes more around a question than the template"):
        Encoder(processor, 512).check_template()


def test_text_that_would_count_as_image_features_is_refused():
    """Gemma 3's features replace another token than its template writes: neither may stand in a text."""
    encoder = Encoder(processor_of("gemma3"), 512)
    for token in ("<image_soft_token>", "<start_of_image>"):
        with pytest.raises(CannotEncode, match=f"the text holds {token}"):
            encoder.length(row(f"What is {token}?", "A token."))


def test_an_image_is_expanded_as_its_conversation_is():
    """LLaVA-OneVision cuts an image only if it is alone: so it does where the turn of a second one is left out."""
    processor = processor_of("llava_onevision")
    whole = ROWS["turns"]
    length = Encoder(processor, 512).length(whole)
    for max_length, images in ((length, 2), (length - 12, 1)):
        encoder = Encoder(processor, max_length)
        assert encoder.encode(whole).vision["batch_num_images"].tolist() == [images]
        assert encoder.length(whole) == length
    encoder = Encoder(processor, length - 24)  # room for the first turn, but not for the image cut
    for method in (encoder.encode, encoder.length):
        with pytest.raises(PromptTooLong):
            method(whole)


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("name", PROCESSORS)
def test_length_is_known_without_the_images(name, kind):
    """`length` counts each family's tokens of images by their sizes, as many as encoding gives."""
    encoder = Encoder(processor_of(name), max_length=512)
    assert encoder.length(ROWS[kind]) == len(encoder.encode(ROWS[kind]))


@pytest.mark.parametrize("kind", ["one", "two", "turns"])
@pytest.mark.parametrize("name", PROCESSORS)
def test_there_is_a_placeholder_for_every_feature(name, kind):
    """`visual_T` marks as many positions as the family's model makes features, and all are its image token."""
    model = student_of(name)
    sample = Encoder(processor_of(name), max_length=512).encode(ROWS[kind])
    assert (sample.input_ids_T[sample.visual_T] == model.config.image_token_id).all()
    with torch.no_grad():
        features = model.model.get_image_features(**sample.vision).pooler_output
    width = model.config.get_text_config().hidden_size
    assert int(sample.visual_T.sum()) == sum(part.numel() for part in features) // width


@pytest.mark.parametrize("name", PROCESSORS)
def test_encoded_rows_in_a_batch_are_what_they_are_alone(name):
    """Rows with none, one and two images in one padded micro-batch: each has the hidden states that it has alone."""
    encoder = Encoder(processor_of(name), max_length=512)
    assert_batch_equals_rows(student_of(name), [encoder.encode(row) for row in ROWS.values()])


@pytest.mark.parametrize("name", each())
def test_samples_of_every_family_are_joined(name):
    """Likewise for samples as the families' processors write them: images of two sizes, several tiles, audio."""

    def sample(prompt: Prompt) -> Sample:
        supervised_T = torch.zeros_like(prompt.visual_T)
        supervised_T[-4:] = True
        return Sample("pictures", 0, prompt.input_ids_T, supervised_T, prompt.visual_T, prompt.vision)

    family = FAMILIES[name]
    prompts = [family.prompt(0), family.text(1), family.prompt(1), family.prompt(2, images=2), family.prompt(3, 3)]
    assert_batch_equals_rows(student_of(name), [sample(prompt) for prompt in prompts])
