import pytest
import torch
from tiny import IMAGE_TOKENS, picture, tiny_processor, tiny_student, tiny_teacher
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from lingu_ray.corpus.batch import collate
from lingu_ray.corpus.chat_template import FALLBACK_TEMPLATE, CannotEncode
from lingu_ray.corpus.encode import Encoder, PromptTooLong
from lingu_ray.corpus.image_tokens import ImageTokens
from lingu_ray.corpus.images import decode_image
from lingu_ray.corpus.row import Row
from lingu_ray.errors import UserError
from lingu_ray.evaluation.engines.prompts import TextProcessor


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture
def encoder(processor):
    return Encoder(processor, max_length=256)


def row(*turns: str, images: int = 0, system: str | None = None) -> Row:
    messages = [{"role": "system", "content": system}] if system else []
    for index, content in enumerate(turns):
        messages.append({"role": "assistant" if index % 2 else "user", "content": content})
    return Row("words", 7, messages, [picture(seed) for seed in range(images)], distill=True)


def text_of(encoder: Encoder, ids: torch.Tensor) -> str:
    return encoder.tokenizer.decode(ids)


def test_prompt_is_the_one_of_inference_and_the_answer_follows_it(encoder, processor):
    """The tokens before the first supervised one are exactly the processor's own for the prompt, images included."""
    sample = encoder.encode(row("<image>What is <image> it?", "A stop sign.", images=2))
    conversation = [
        {
            "role": "user",
            "content": [
                {"type": "image"},
                {"type": "text", "text": "What is "},
                {"type": "image"},
                {"type": "text", "text": " it?"},
            ],
        }
    ]
    prompt = processor.apply_chat_template(conversation, add_generation_prompt=True)
    images = [decode_image(picture(0)), decode_image(picture(1))]
    expected = processor(text=prompt, images=images, add_special_tokens=False, return_tensors="pt")
    first = int(sample.supervised_T.nonzero()[0])
    assert sample.input_ids_T[:first].tolist() == expected["input_ids"][0].tolist()
    assert torch.equal(sample.vision["pixel_values"], expected["pixel_values"])
    assert text_of(encoder, sample.input_ids_T[first:]) == " A stop sign.<end_of_utterance>"
    assert sample.supervised_T[first:].all()


def test_a_picture_is_processed_once(processor, monkeypatch):
    """Also one of a size that is new: what is written for it comes with its tensors."""
    asked = []
    ask = ImageTokens._ask
    monkeypatch.setattr(ImageTokens, "_ask", lambda self, images: asked.append(len(images)) or ask(self, images))
    encoder = Encoder(processor, max_length=256)
    one, two = row("<image>What?", "A.", images=1), row("<image>What?", "A.", "<image>And?", "B.", images=2)
    one.images[0] = picture(0, (40, 30))
    length = len(encoder.encode(one))
    assert asked == [1] and encoder.length(one) == length and asked == [1]
    encoder.encode(two)
    assert asked == [1, 2]
    short = Encoder(processor, max_length=length)
    asked.clear()
    assert len(short.encode(two).vision["pixel_values"][0]) == 1  # the second turn does not fit
    assert asked[:2] == [2, 1]


def test_a_processor_that_writes_by_what_a_picture_shows_is_refused(processor, monkeypatch):
    """The build counts tokens by sizes alone: said before any row is read."""
    ask = ImageTokens._ask

    def ask_by_content(self, images):
        texts, encoded = ask(self, images)
        shown = [image.getbbox() is not None for image in images]
        return [text * (1 + more) for text, more in zip(texts, shown, strict=True)], encoded

    Encoder(processor, max_length=256).check_template()
    monkeypatch.setattr(ImageTokens, "_ask", ask_by_content)
    with pytest.raises(UserError, match="expands an image by more than its size"):
        Encoder(processor, max_length=256).check_template()


def test_visual_positions_are_the_placeholders(encoder):
    """`visual_T` marks every image token and nothing else."""
    sample = encoder.encode(row("<image><image>Same?", "No.", images=2))
    assert int(sample.visual_T.sum()) == 2 * IMAGE_TOKENS
    assert not (sample.visual_T & sample.supervised_T).any()
    assert sample.vision["pixel_values"].shape == (1, 2, 3, 32, 32)


def test_every_turn_is_supervised_with_its_end_and_no_prompt_is(encoder):
    """Several turns, an image in the second: the answers with their end-of-turn token are targets, all else is not."""
    sample = encoder.encode(row("Hello?", "Hi.", "<image>And this?", "A cat.", images=1, system="Be brief."))
    answers = text_of(encoder, sample.input_ids_T[sample.supervised_T])
    assert answers == " Hi.<end_of_utterance> A cat.<end_of_utterance>"
    prompts = text_of(encoder, sample.input_ids_T[~sample.supervised_T & ~sample.visual_T])
    assert prompts.startswith("<|im_start|>System: Be brief.<end_of_utterance>\nUser: Hello?")
    assert prompts.count("<|im_start|>") == 1


def test_turns_read_as_the_whole_conversation_does(encoder):
    """The joined ids decode to the template's rendering of all messages, up to the last end of turn."""
    sample = encoder.encode(row("One?", "1", "Two?", "2", "Three?", "3"))
    assert text_of(encoder, sample.input_ids_T) == (
        "<|im_start|>User: One?<end_of_utterance>\nAssistant: 1<end_of_utterance>\n"
        "User: Two?<end_of_utterance>\nAssistant: 2<end_of_utterance>\n"
        "User: Three?<end_of_utterance>\nAssistant: 3<end_of_utterance>"
    )


def test_text_only_has_no_vision(encoder):
    """A row without images has no vision tensors and no visual position."""
    sample = encoder.encode(row("Hello?", "Hi."))
    assert sample.vision == {}
    assert not sample.visual_T.any()


def test_an_answer_that_does_not_fit_is_cut_and_later_turns_are_left_out(processor):
    """Nothing exceeds `max_length`; a turn whose prompt does not fit goes with its image; `length` says it was cut."""
    conversation = row("<image>One?", "word " * 30, "<image>Two?", "2", images=2)
    whole = Encoder(processor, 256)
    first = int(whole.encode(conversation).supervised_T.nonzero()[0])
    short = Encoder(processor, first + 5)
    sample = short.encode(conversation)
    assert len(sample) == first + 5
    assert int(sample.supervised_T.sum()) == 5
    assert sample.vision["pixel_values"].shape[1] == 1
    assert short.length(conversation) == len(whole.encode(conversation)) > short.max_length


def test_prompt_without_room_for_an_answer_is_refused(processor):
    """A prompt of max_length tokens leaves no room for one answer token: refused by `encode` and by `length` alike."""
    conversation = row("<image>What is it?", "A cat.", images=1)
    prompt = int(Encoder(processor, 256).encode(conversation).supervised_T.nonzero()[0])
    for method in ("encode", "length"):
        with pytest.raises(PromptTooLong, match=f"the prompt has {prompt} tokens"):
            getattr(Encoder(processor, prompt), method)(conversation)
        getattr(Encoder(processor, prompt + 1), method)(conversation)


@pytest.mark.parametrize("size", [(32, 32), (8, 8), (70, 20), (20, 70)])
def test_length_counts_images_without_processing_them(size):
    """`length` equals the number of encoded tokens for any size of image, also where images are split into tiles."""
    splitting = tiny_processor()
    splitting.image_processor.do_image_splitting = True
    splitting.image_processor.size = {"longest_edge": 64}
    splitting_encoder = Encoder(splitting, 1000)
    messages = row("<image>a<image>", "b").messages
    conversation = Row("s", 0, messages, [picture(0, size), picture(1, size)], distill=False)
    assert splitting_encoder.length(conversation) == len(splitting_encoder.encode(conversation))


def test_question_ends_where_the_answer_starts(encoder):
    """`encode_question` is `encode` without the last answer."""
    conversation = row("<image>One?", "1", "Two?", "Two it is.", images=1)
    question, whole = encoder.encode_question(conversation), encoder.encode(conversation)
    assert whole.input_ids_T[: len(question)].tolist() == question.input_ids_T.tolist()
    assert text_of(encoder, whole.input_ids_T[len(question) :]) == " Two it is.<end_of_utterance>"
    assert torch.equal(question.vision["pixel_values"], whole.vision["pixel_values"])
    assert encoder.end_of_turn_id == encoder.tokenizer.convert_tokens_to_ids("<end_of_utterance>")


def test_fallback_template_for_students_without_one():
    """Without a chat template: `User: …`, `Assistant: …` and the EOS token after every answer."""
    bare = tiny_processor()
    bare.chat_template = bare.tokenizer.chat_template = None
    encoder = Encoder(bare, 256)
    sample = encoder.encode(row("<image>What?", "That.", "Sure?", "Yes.", images=1))
    assert text_of(encoder, sample.input_ids_T[sample.supervised_T]) == " That.<|endoftext|> Yes.<|endoftext|>"
    text = text_of(encoder, sample.input_ids_T[~sample.visual_T])
    assert text.endswith("\nAssistant: That.<|endoftext|>\nUser: Sure?\nAssistant: Yes.<|endoftext|>")
    assert sample.visual_T.any()


def test_bos_comes_once_from_tokenizer_or_template():
    """A tokenizer that adds BOS adds it to the first prompt alone, and not where the template has written it."""
    from tokenizers.processors import TemplateProcessing

    for template in (None, "<|im_start|>" + FALLBACK_TEMPLATE):
        bare = tiny_processor()
        bare.chat_template = bare.tokenizer.chat_template = template
        encoder = Encoder(bare, 256)
        bos = bare.tokenizer.bos_token_id
        bare.tokenizer._tokenizer.post_processor = TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", bos)]
        )
        for conversation in (row("a", "b", "c", "d"), row("<image>a", "b", "<image>c", "d", images=2)):
            ids = encoder.encode(conversation).input_ids_T
            assert ids[0] == bos
            assert int((ids == bos).sum()) == 1
            assert len(ids) == encoder.length(conversation)


def test_a_tokenizer_that_tells_no_places_writes_prompts_alone():
    """One in Python: the EOS that it adds ends no prompt, as of others; rows with answers are refused."""
    encoder = Encoder(TextProcessor(ByT5Tokenizer()), 64)
    assert encoder.tokenize("ab") == [100, 101]
    messages = [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "a"}]
    with pytest.raises(CannotEncode, match="ByT5Tokenizer does not tell where its tokens stand in the text"):
        encoder.encode(Row("s", 0, messages, [], False))


@pytest.fixture(scope="module")
def without_bytes():
    """An encoder whose tokenizer knows the letters that it was trained on and no bytes, as `<unk>` all others."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=99, special_tokens=["<unk>", "</s>"], show_progress=False)
    core.train_from_iterator(["User: What is it?", "Assistant: A cat."], trainer)
    return Encoder(
        TextProcessor(PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")), 64
    )


@pytest.mark.parametrize("turns", [("What?", "A \U0001f642 cat."), ("What is 猫?", "A cat."), ("What?", "A\ncat.")])
def test_what_the_tokenizer_does_not_know_is_not_trained_on(without_bytes, turns):
    """The student would learn to say `<unk>`, or answer what it cannot read; the build's count says so, too."""
    for encode in (without_bytes.encode, without_bytes.length):
        with pytest.raises(CannotEncode, match=r"the tokenizer has no token for .* and makes <unk> of it"):
            encode(row(*turns))


def test_an_unknown_token_that_the_text_says_or_that_sets_a_prompt_is_trained_on(without_bytes):
    """As the template's line breaks, which are the same at inference; a question of inference may hold anything."""
    sample = without_bytes.encode(row("What\nis <unk>?", "A <unk>."))
    unknown = without_bytes.tokenizer.unk_token_id
    assert (sample.input_ids_T[~sample.supervised_T] == unknown).sum() == 3  # of two line breaks, and of what is said
    assert (sample.input_ids_T[sample.supervised_T] == unknown).sum() == 1
    assert unknown in without_bytes.encode_conversation(row("What is 猫?").messages, []).input_ids_T


def test_template_without_end_of_turn_gets_the_eos_token():
    """A template in LLaVA 1.5's manner ends no answer: the EOS token is appended, and the student learns to stop."""
    llava = tiny_processor()
    llava.chat_template = (
        "{% for m in messages %}{{ m['role'] | upper }}: {% for p in m['content'] %}"
        "{% if p['type'] == 'image' %}<image>\n{% else %}{{ p['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    encoder = Encoder(llava, 256)
    sample = encoder.encode(row("<image>What?", "That.", "Sure?", "Yes.", images=1))
    assert text_of(encoder, sample.input_ids_T[sample.supervised_T]) == " That.<|endoftext|> Yes.<|endoftext|>"


def test_each_sample_in_a_batch_gives_what_it_gives_alone(encoder):
    """Ragged batch of rows with two images, none, and one: the student's logits equal those of each row alone."""
    student = tiny_student(tiny_teacher())
    rows = [
        row("<image>a<image>b?", "Two.", images=2),
        row("Text?", "Text, and more of it."),
        row("<image>", "x", images=1),
    ]
    samples = [encoder.encode(r) for r in rows]
    batch = collate(samples, encoder.pad_id)
    with torch.no_grad():
        together = student(batch.input_ids_BT, attention_mask=batch.attention_mask_BT, **batch.vision).logits
        for index, sample in enumerate(samples):
            alone = student(sample.input_ids_T[None], **sample.vision).logits[0]
            torch.testing.assert_close(together[index, : len(sample)], alone, atol=1e-4, rtol=1e-4)
