"""Talking to a model in the terminal: it is asked as in training, the conversation is kept, errors are told."""

import io
import os
import signal
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from commands import Command
from PIL import Image
from test_convert_gguf import tiny_llama, write_gguf
from tiny import IMAGE_TOKENS, VOCABULARY, picture, tiny_student, tiny_teacher, tiny_tokenizer

from lingu_ray.chat import ChatConfig, main, open_conversation, reply
from lingu_ray.conversation import Conversation, read_image
from lingu_ray.corpus.chat_template import FALLBACK_TEMPLATE
from lingu_ray.corpus.row import PLACEHOLDER, Row
from lingu_ray.distill.generate import Prompt, generate_answers
from lingu_ray.errors import UserError, printable
from lingu_ray.paths import model_path

SHORT = ChatConfig(max_new_tokens=8, device="cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`vlm`, its `lm` without a chat template, and two pictures."""
    folder = tmp_path_factory.mktemp("models")
    tiny_student(tiny_teacher(folder=folder / "lm"), folder=folder / "vlm")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    for old in (folder / "lm").glob("chat_template*"):
        old.unlink()
    tokenizer.save_pretrained(folder / "lm")
    for i in range(2):
        (folder / f"{i}.png").write_bytes(picture(i))
    return folder


def opened(path: Path, *images: Path, config: ChatConfig = SHORT) -> Conversation:
    return open_conversation(str(path), list(images), config)


def ignore(piece: str) -> None:
    """Where an answer's pieces go that nobody reads."""


def prompt_text(conversation: Conversation) -> str:
    """The prompt as the model reads it if the next question is `next`."""
    messages = [*conversation.messages, {"role": "user", "content": "next"}]
    sample = conversation.prompts.encoder.encode_conversation(messages, conversation.images)
    text = conversation.prompts.tokenizer.decode(sample.input_ids_T)
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("images", [0, 2])
def test_a_question_is_asked_as_in_training(models: Path, images: int):
    """The prompt has the tokens and pixels that the corpus's encoder gives the same row, and the answer is greedy."""
    conversation = opened(models / "vlm", *(models / f"{i}.png" for i in range(images)))
    pieces: list[str] = []
    answer = conversation.ask("What is it?", pieces.append)

    encoder = conversation.prompts.encoder
    shown = [picture(i) for i in range(images)]
    messages = [{"role": "user", "content": PLACEHOLDER * images + "What is it?"}]
    row = Row("x", 0, [*messages, {"role": "assistant", "content": "answer"}], shown, distill=False)
    asked, sample = encoder.encode_question(row), encoder.encode_conversation(messages, shown)
    assert torch.equal(sample.input_ids_T, asked.input_ids_T)
    assert sample.visual_T.sum() == images * IMAGE_TOKENS
    assert sample.vision.keys() == asked.vision.keys()
    assert all(torch.equal(sample.vision[key], asked.vision[key]) for key in asked.vision)
    (ids_T,) = generate_answers(
        conversation.model,
        [Prompt(asked.input_ids_T, asked.visual_T)],
        asked.vision,
        ends=conversation.prompts.ends,
        pad_id=encoder.pad_id,
        max_new_tokens=8,
    )
    assert answer == conversation.prompts.tokenizer.decode(ids_T, skip_special_tokens=True).strip() != ""
    assert "".join(pieces).strip() == answer


def test_the_conversation_is_kept_until_a_new_one(models: Path):
    """Question, image and answer stand in the next prompt; after `/new` nothing does."""
    conversation = opened(models / "vlm")
    reply(conversation, f"/image {models / '0.png'}")
    answer = conversation.ask("before <image> after", ignore)
    text = prompt_text(conversation)
    assert "before" in text and "after" in text and answer in text
    assert text.count("<image>") == IMAGE_TOKENS
    reply(conversation, "and now?")
    assert len(conversation.messages) == 4 and len(conversation.images) == 1
    reply(conversation, "/new")
    assert "before" not in prompt_text(conversation) and not conversation.images


def test_a_model_without_chat_template_is_asked_as_training_would(models: Path):
    """A text-only LM reads the conversation by the encoder's fallback."""
    conversation = opened(models / "lm")
    answer = conversation.ask("Who?", ignore)
    rendered = conversation.prompts.tokenizer.apply_chat_template(
        [*conversation.messages, {"role": "user", "content": "next"}],
        chat_template=FALLBACK_TEMPLATE,
        tokenize=False,
        add_generation_prompt=True,
    )
    assert rendered in prompt_text(conversation)
    assert rendered == f"User: Who?\nAssistant: {answer}<|endoftext|>\nUser: next\nAssistant:"


def test_a_gguf_file_is_a_model(tmp_path: Path):
    """Its weights, tokenizer and template come out of the one file."""
    write_gguf(tiny_llama(), tmp_path / "lm.gguf")
    conversation = opened(tmp_path / "lm.gguf")
    conversation.ask("abcd", ignore)
    assert prompt_text(conversation).startswith("<|im_start|>abcd<|im_end|>")


@pytest.mark.slow
def test_ctrl_c_stops_the_answer_and_not_the_program(models: Path):
    """What was written until then is the answer, and the next question is answered."""
    conversation = opened(models / "vlm", config=ChatConfig(max_new_tokens=200))
    whole = conversation.ask("Tell me a story.", ignore)
    conversation.restart()

    pieces: list[str] = []

    def interrupt(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 1:
            signal.raise_signal(signal.SIGINT)

    cut = conversation.ask("Tell me a story.", interrupt)
    assert "".join(pieces).strip() == cut
    assert len(cut) < len(whole) and whole.startswith(cut)
    assert conversation.messages[-1] == {"role": "assistant", "content": cut}
    assert conversation.ask("Go on.", ignore)


def test_an_answer_does_not_command_the_terminal(models: Path, capsys: pytest.CaptureFixture[str]):
    """Control characters that a model writes are shown as what they are."""
    conversation = opened(models / "vlm", config=ChatConfig(max_new_tokens=200))
    reply(conversation, "One?")
    answer, shown = conversation.messages[-1]["content"], capsys.readouterr().out
    assert printable(answer) != answer and printable(answer) in shown and printable(shown) == shown


def test_sampling_differs_from_greedy(models: Path):
    """Above temperature 0 the answers of two draws differ; at 0 they do not."""

    def answers(temperature: float, draws: int) -> set[str]:
        conversation = opened(models / "vlm", config=ChatConfig(temperature=temperature, max_new_tokens=8))
        found = set()
        for _ in range(draws):
            conversation.restart()
            found.add(conversation.ask("Well?", ignore))
        return found

    assert len(answers(0, draws=2)) == 1
    assert len(answers(1.5, draws=4)) > 1


def test_what_cannot_be_opened_is_refused(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Before any weights are read: no such folder, no image, a text-only model with an image, no such device."""
    broken = tmp_path / "broken.png"
    broken.write_bytes(picture()[:60])
    (models / "run").mkdir()
    (models / "run" / "export").symlink_to(models / "vlm")
    (models / "stopped" / "checkpoints").mkdir(parents=True)
    (models / "stopped" / "config.yaml").touch()
    monkeypatch.chdir(models)
    for path, images, config, message in (
        (models / "vln", [], SHORT, f"no such file or folder: {models / 'vln'}; did you mean {models / 'vlm'}?"),
        (Path("rum/export"), [], SHORT, f"did you mean {models}/run/export?"),
        (Path("run"), [], SHORT, f"there is no config.json in it; did you mean {models}/run/export?"),
        (Path("stopped"), [], SHORT, f"{models}/stopped is a run without an export; `lingu-ray export` makes a model"),
        (
            Path("run/exprt"),
            [],
            SHORT,
            f"{models}/run/exprt; did you mean {models}/run/export?",
        ),
        (Path("vln"), [], SHORT, f"did you mean {models}/vlm?"),
        (Path("vlm"), [tmp_path / "none.png"], SHORT, f"image {tmp_path / 'none.png'}: cannot be read"),
        (Path("vlm"), [broken], SHORT, f"image {broken}: cannot be read"),
        (Path("lm"), [models / "0.png"], SHORT, "lm is a text-only model: it takes no images"),
        (Path("lm"), [], ChatConfig(device="abacus"), "device=abacus: torch cannot use it"),
    ):
        with pytest.raises(UserError) as caught:
            opened(model_path(str(path)), *images, config=config)
        assert message in str(caught.value)


def test_a_damaged_picture_is_one_line(tmp_path: Path):
    """Each kind of file is decoded by code that raises what it likes: RuntimeError for the pixels of an AVIF."""
    file, path = io.BytesIO(), tmp_path / "damaged.avif"
    Image.linear_gradient("L").convert("RGB").save(file, "AVIF")
    whole = file.getvalue()
    place = len(whole) * 15 // 16
    path.write_bytes(whole[:place] + bytes(8) + whole[place + 8 :])
    with pytest.raises(UserError, match=r"damaged\.avif: cannot be read"):
        read_image(path)


def test_what_cannot_be_asked_is_refused(models: Path):
    """The conversation stays as it was: too long, marks without images, commands that do not exist."""
    conversation = opened(models / "vlm")
    for line, message in (
        ("word " * 2000, "/new starts a new one"),
        ("What is <image>?", "1 marks <image>, and 0 images"),
        ("/imge x", r"did you mean /image\?"),
        ("/image", "needs the path"),
        ("/image nowhere.png", "image .*/nowhere.png: cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            reply(conversation, line)
    assert not conversation.messages and not conversation.shown


def test_a_gpu_that_is_full_is_told(models: Path, monkeypatch: pytest.MonkeyPatch):
    """While the model is loaded, with what helps, and at a question, after which others can be asked."""
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 8 GiB")
    conversation = opened(models / "vlm")
    with monkeypatch.context() as patch:
        patch.setattr("lingu_ray.conversation.generate_answers", Mock(side_effect=full))
        with pytest.raises(UserError, match=r"^the answer ran out of GPU memory: /new .* device=cpu\. CUDA out of"):
            reply(conversation, "One?")
    assert not conversation.messages
    reply(conversation, "One?")
    monkeypatch.setattr("lingu_ray.evaluation.engines.transformers_engine.load_model", Mock(side_effect=full))
    with pytest.raises(UserError, match=r"^the model ran out of GPU memory: .* device=cpu\. CUDA out of memory"):
        opened(models / "vlm")


def test_a_tokenizer_of_another_model_is_told(models: Path, tmp_path: Path):
    """A token beyond the vocabulary is an error with a cure, not a crash in the embedding."""
    tiny_teacher(folder=tmp_path)  # with the student's template, which ends turns with an added token
    with pytest.raises(UserError, match="'<end_of_utterance>', which its model does not have"):
        opened(tmp_path).ask("Who?", ignore)
    assert len(tiny_tokenizer()) > VOCABULARY


def test_arguments():
    """A model is needed, and settings are checked."""
    with pytest.raises(UserError, match="name a model"):
        main([])
    with pytest.raises(UserError, match=r"did you mean temperature\?"):
        main(["vlm", "temprature=1"])


def test_questions_come_through_a_pipe(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A line a question; answers alone on standard output, errors on the other, and the rest is answered still."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("One?\n\n/nonsense\n/new\nOne?\n"))
    main([str(models / "vlm"), "max_new_tokens=8"])
    printed = capsys.readouterr()
    answer = printable(opened(models / "vlm").ask("One?", ignore))
    assert printed.out.split("\n") == [*answer.split("\n")] * 2 + [""]
    assert printed.err == "error: no command /nonsense; there are /image, /new, /help\n"


def test_a_line_in_another_encoding_ends_nothing(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """As of a file in Latin-1: the line is told, and the next one answered."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xe9t\xe9?\nOne?\n"), encoding="utf-8"))
    main([str(models / "vlm"), "max_new_tokens=8"])
    printed = capsys.readouterr()
    assert printed.out == f"{printable(opened(models / 'vlm').ask('One?', ignore))}\n"
    assert printed.err == "error: the question has bytes that are not utf-8: write it in that encoding\n"


def test_a_picture_is_named_as_terminals_write_it(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As it is, or quoted, as a file that was dropped on the terminal; a name with quotes of its own is that name."""
    monkeypatch.chdir(tmp_path)
    conversation = opened(models / "vlm")
    for name in ("a b.png", "it's.png", "'c'.png"):
        (tmp_path / name).write_bytes(picture(1))
    for written in ("a b.png", "'a b.png'", '"a b.png"', "a\\ b.png", f"'{tmp_path}/a b.png'", "it's.png", "'c'.png"):
        reply(conversation, f"/image {written}")
    assert len(conversation.shown) == 7
    for missing in ("'d.png'", "d'.png"):
        with pytest.raises(UserError, match=r"d'?\.png: cannot be read"):
            reply(conversation, f"/image {missing}")


@pytest.mark.slow
def test_the_command_talks_on_a_terminal(models: Path):
    """On a terminal it says what the model is and how to talk, and Ctrl-D ends it."""
    import pty

    controller, terminal = pty.openpty()
    argv = [sys.executable, "-m", "lingu_ray", "chat", str(models / "vlm"), "max_new_tokens=8"]
    with (
        Command(argv, cwd=Path(__file__).parents[2], stdin=terminal) as command,
        open(controller, "w", encoding="utf-8") as keys,
    ):
        keys.write("/help\nOne?\n\x04")
        keys.flush()
        printed = command.finish(seconds=120)
    assert "Idefics3ForConditionalGeneration" in printed and "text and images, on cpu" in printed
    assert printed.count("/image PATH") == 2
    assert printable(opened(models / "vlm").ask("One?", ignore)) in printed


@pytest.mark.slow
def test_ctrl_c_before_an_answer_keeps_the_conversation(models: Path, tmp_path: Path):
    """On a terminal, while a picture is read, here of a pipe that nobody writes: the next question is answered."""
    import pty

    os.mkfifo(fifo := tmp_path / "picture.png")
    controller, terminal = pty.openpty()
    argv = [sys.executable, "-m", "lingu_ray", "chat", str(models / "vlm"), "max_new_tokens=8"]
    with (
        Command(argv, cwd=Path(__file__).parents[2], stdin=terminal) as command,
        open(controller, "w", encoding="utf-8") as keys,
    ):
        keys.write(f"/image {fifo}\n")
        keys.flush()
        with fifo.open("wb"):  # the reader is there
            command.signal_group(signal.SIGINT)
            command.wait_for(lambda: command.printed.count("> ") == 2, seconds=60)
        keys.write("One?\n\x04")
        keys.flush()
        printed = command.finish(seconds=120)
    assert printable(opened(models / "vlm").ask("One?", ignore)) in printed


def test_who_waits_for_the_hub_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    """Before it is asked, as an answer may take minutes; a folder that was probably meant is named."""
    (tmp_path / "models" / "vlm").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("INFO", "lingu_ray"), pytest.raises(UserError, match="no model models/vlmm can be loaded"):
        open_conversation("models/vlmm", [], SHORT)
    told = f"model: asking the Hugging Face hub for models/vlmm; or did you mean {tmp_path}/models/vlm?"
    assert caplog.messages == [told]
