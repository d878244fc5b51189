"""The examples run as they are, and their accumulated gradients are those of one large batch."""

import copy
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import commands
import numpy as np
import pytest
import torch
from datasets import Dataset
from parallelrun import in_workers
from PIL import ExifTags, Image
from processors import PROCESSORS, processor_of
from safetensors.torch import load_file
from tiny import picture, tiny_processor, tiny_student, tiny_teacher
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainingArguments
from transformers.integrations.peft import MIN_PEFT_VERSION

from lingu_ray.corpus.encode import Encoder
from lingu_ray.corpus.row import Row
from lingu_ray.distill import Distiller, UserError

AS_IT_IS = {"skip_prepare_dataset": True}
ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair whose models differ, on disk, and ten rows: two of three with a picture, two of three distilled."""
    folder = tmp_path_factory.mktemp("pair")
    tiny_student(tiny_teacher(), folder=folder / "student")
    tiny_teacher(seed=7, folder=folder / "teacher")
    rows = []
    for i in range(10):
        (folder / f"{i}.png").write_bytes(picture(i))
        image = str(folder / f"{i}.png") if i % 3 else None
        question, answer = "What? " * (1 + i % 4), "A. " * (1 + i)
        rows.append({"question": question, "answer": answer, "distill": i % 3 < 2, "image": image})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`examples/trainer.py` as a module."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return example()


def example() -> Any:
    """`examples/trainer.py` as a module, where its folder is in the path."""
    specification = importlib.util.spec_from_file_location("example_trainer", EXAMPLES / "trainer.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_rows_are_lines_as_other_tools_write_them(examples: Any, tmp_path: Path):
    """With Windows' mark and line ends, blank lines, and characters in a text that only Python ends a line at."""
    row = {"question": "A\u2028B\x85C", "answer": "D", "distill": True}
    line = json.dumps(row, ensure_ascii=False)
    (tmp_path / "rows.jsonl").write_bytes(f"\ufeff{line}\r\n\r\n{line}\n\n".encode())
    assert examples.read_rows(str(tmp_path / "rows.jsonl")) == [row, row]


@pytest.mark.parametrize("change", [{"answer": None}, {"question": 7}, {"distill": 1}, {"distill": None}])
def test_rows_without_a_field_are_refused(change: dict[str, Any], examples: Any, tmp_path: Path):
    """With their line, never trained on as the `None` that a template writes."""
    row = {"question": "A", "answer": "B", "distill": True}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n\n{json.dumps(row | change)}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=f"rows.jsonl, line 3: {next(iter(change))}: texts are needed"):
        examples.read_rows(str(tmp_path / "rows.jsonl"))


def plain(processor: Any) -> Any:
    """The processor with a template that ends no turn, as LLaVA 1.5's, and BOS of the tokenizer."""
    processor = copy.deepcopy(processor)
    processor.chat_template = (
        "{% for message in messages %}{{ message['role'] | upper }}: {% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    bos, core = processor.tokenizer.bos_token, processor.tokenizer.backend_tokenizer
    core.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, processor.tokenizer.bos_token_id)]
    )
    return processor


STUDENTS: dict[str, Callable[[], Any]] = {
    "SmolVLM's template": tiny_processor,
    **{name: partial(processor_of, name) for name in PROCESSORS},
    "no end of turn": lambda: plain(processor_of("llava")),
}


@pytest.mark.parametrize("student", STUDENTS.values(), ids=STUDENTS)
@pytest.mark.parametrize("seen", [False, True])
def test_labels_are_those_of_a_run(student: Callable[[], Any], seen: bool, examples: Any, tmp_path: Path):
    """Whatever ends a turn in the template, the example's tokens and labels are those that a run makes of the row."""
    (tmp_path / "a.png").write_bytes(picture(3))
    row = {"question": "What is it?", "answer": "A dog.", "distill": True, "image": str(tmp_path / "a.png") * seen}
    processor = student()
    batch = examples.collate(processor, [row])
    messages = [
        {"role": "user", "content": "<image>" * seen + row["question"]},
        {"role": "assistant", "content": row["answer"]},
    ]
    sample = Encoder(processor, 512).encode(Row("-", 0, messages, [picture(3)] * seen, True))
    assert batch["input_ids"][0].tolist() == sample.input_ids_T.tolist()
    assert batch["labels"][0].tolist() == sample.input_ids_T.masked_fill(~sample.supervised_T, -100).tolist()


RAMP = np.linspace(0, 255, 32 * 16 * 4).reshape(16, 32, 4)
PICTURES = {"photo": RAMP[..., :3].astype(np.uint8), "16 bits": (RAMP[..., 0] * 200).astype(np.uint16)}
PICTURES["transparent"] = RAMP.astype(np.uint8)


@pytest.mark.parametrize("pixels", PICTURES.values(), ids=PICTURES)
def test_images_are_those_of_a_run(pixels: np.ndarray, examples: Any, tmp_path: Path):
    """Scans of 16 bits and what is transparent, too, all lying on their side as phones write photos."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    row = {"question": "What?", "answer": "A.", "distill": True, "image": str(tmp_path / "a.png")}
    found = examples.collate(tiny_processor(), [row])["pixel_values"]
    messages = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A."}]
    encoded = (tmp_path / "a.png").read_bytes()
    sample = Encoder(tiny_processor(), 512).encode(Row("-", 0, messages, [encoded], True))
    assert torch.equal(found, sample.vision["pixel_values"])


def test_a_template_that_asks_otherwise_is_refused(examples: Any):
    """Where a conversation does not begin as it is asked, nothing says where the answer begins."""
    processor = tiny_processor()
    processor.chat_template = processor.chat_template.replace("'Assistant:'", "'Helper:'")
    with pytest.raises(ValueError, match=r"the chat template asks with .*Helper:"):
        examples.collate(processor, [{"question": "What?", "answer": "A dog.", "distill": True}])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own_loop", "trainer"])
def test_example_trains_a_model_that_loads(name: str, folder: Path, tmp_path: Path, warm_workers: Path):
    """Run as a command, it writes a model of the student's class with other weights, and its processor."""
    arguments = [folder / part for part in ("student", "teacher", "rows.jsonl")]
    printed = commands.run(name, *arguments, tmp_path / "out", cwd=EXAMPLES, warm=True)
    assert "step 2: CE " in printed or "'train_loss'" in printed
    AutoProcessor.from_pretrained(tmp_path / "out")
    before, after = (AutoModelForImageTextToText.from_pretrained(p) for p in (folder / "student", tmp_path / "out"))
    assert type(before) is type(after)
    changed = [n for n, p in before.named_parameters() if not torch.equal(p, after.get_parameter(n))]
    assert any("text_model" in name for name in changed) and any("vision_model" in name for name in changed)


def trained(
    kind: type, arguments: Callable[..., Any], examples: Any, folder: Path, rows_at_once: int, workers: int = 1
) -> dict[str, Tensor]:
    """The student's weights after two steps of four rows each by plain gradient descent, `rows_at_once` a batch of one
    of the workers.
    """
    student = AutoModelForImageTextToText.from_pretrained(folder / "student")
    processor = AutoProcessor.from_pretrained(folder / "student")
    settings = arguments(
        output_dir=str(folder / "out"), per_device_train_batch_size=rows_at_once, seed=0, num_train_epochs=1,
        gradient_accumulation_steps=4 // rows_at_once // workers, optim="sgd", learning_rate=0.1,
        lr_scheduler_type="constant", max_grad_norm=0, bf16=False, use_cpu=True, report_to="none", save_strategy="no",
        remove_unused_columns=False,
    )  # fmt: skip
    collator = partial(examples.collate, processor)
    distiller = Distiller(student, tiny_teacher(seed=7), w_kd=3.0)
    rows = Dataset.from_list(examples.read_rows(str(folder / "rows.jsonl"))[:8])
    kind(distiller, settings, collator, rows, processing_class=processor).train()
    return {name: p.detach() for name, p in student.named_parameters()}


def check_weights(found: dict[str, Tensor], expected: dict[str, Tensor], folder: Path) -> None:
    """Weights that were trained from those of the folder are equal, but for rounding."""
    with torch.no_grad():
        start = AutoModelForImageTextToText.from_pretrained(folder / "student")
        moved = max(float((p - expected[name]).abs().max()) for name, p in start.named_parameters())
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-4 * moved, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["transformers.Trainer", "trl.SFTTrainer"])
def test_accumulation_is_one_large_batch(trainer: str, examples: Any, folder: Path):
    """Four batches of one row give the weights of one batch of four, though rows differ in labels and KD tokens."""
    package, name = trainer.split(".")
    library = pytest.importorskip(package)
    kind = type("Distill", (examples.DistillMixin, getattr(library, name)), {})
    plain = package == "transformers"
    arguments = library.TrainingArguments if plain else partial(library.SFTConfig, dataset_kwargs=AS_IT_IS)
    at_once, one_by_one = (trained(kind, arguments, examples, folder, rows) for rows in (4, 1))
    check_weights(one_by_one, at_once, folder)


def of_a_worker(folder: Path, out: Path) -> None:
    """The weights that one of two workers has in the end, saved; the environment is that of torchrun."""
    rank = torch.distributed.get_rank()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT="0")
    sys.path.insert(0, str(EXAMPLES))
    examples = example()
    arguments = partial(TrainingArguments, ddp_backend="gloo")
    torch.save(trained(examples.DistillTrainer, arguments, examples, folder, 1, workers=2), out / f"{rank}.pt")


@pytest.mark.slow
def test_two_processes_are_one_large_batch(examples: Any, folder: Path, tmp_path: Path):
    """Both have the weights of one batch of all rows of a step, of which each reads half, a row at a time."""
    in_workers(of_a_worker, folder, tmp_path)
    at_once = trained(examples.DistillTrainer, TrainingArguments, examples, folder, 4)
    for rank in (0, 1):
        check_weights(torch.load(tmp_path / f"{rank}.pt"), at_once, folder)


def test_several_devices_of_a_process_are_refused(examples: Any, folder: Path):
    """Where a Trainer would copy the student, whose gradients then would not be summed, the mixin says so."""
    arguments = TrainingArguments(output_dir=str(folder / "out"), use_cpu=True, report_to="none")
    arguments._n_gpu = 2
    student = AutoModelForImageTextToText.from_pretrained(folder / "student")
    with pytest.raises(UserError, match="take one process for each"):
        examples.DistillTrainer(Distiller(student, tiny_teacher()), arguments)


def test_adapters_are_saved_where_they_can_be(examples: Any, folder: Path, tmp_path: Path):
    """Those of `add_adapter` load into the student's class; those of `get_peft_model`, which would not, are refused."""
    peft = pytest.importorskip("peft", minversion=MIN_PEFT_VERSION)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    student, other, loaded = (AutoModelForImageTextToText.from_pretrained(folder / "student") for _ in range(3))
    adapters = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    base = peft.get_peft_model(student, adapters).get_base_model()
    with pytest.raises(UserError, match="add them by the student's own add_adapter"):
        examples.DistillTrainer(Distiller(base, tiny_teacher()), arguments)
    other.add_adapter(adapters)
    examples.DistillTrainer(Distiller(other, tiny_teacher()), arguments).save_model(str(tmp_path))
    loaded.load_adapter(str(tmp_path))
    assert loaded.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in other.state_dict().items())


@pytest.mark.slow
def test_adapters_are_resumed(examples: Any, folder: Path, tmp_path: Path):
    """Training that resumes after the first of two steps ends with the same adapters; the best ones are read, too."""
    peft = pytest.importorskip("peft", minversion=MIN_PEFT_VERSION)
    processor = AutoProcessor.from_pretrained(folder / "student")
    rows = Dataset.from_list(examples.read_rows(str(folder / "rows.jsonl"))[:4])
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=2, num_train_epochs=1, learning_rate=0.1, use_cpu=True,
        report_to="none", remove_unused_columns=False, save_strategy="steps", save_steps=1, eval_strategy="steps",
        eval_steps=1, load_best_model_at_end=True,
    )  # fmt: skip

    def trainer() -> Any:
        student = AutoModelForImageTextToText.from_pretrained(folder / "student")
        student.add_adapter(peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["connector"]))
        collator, distiller = partial(examples.collate, processor), Distiller(student, tiny_teacher(seed=7))
        return examples.DistillTrainer(distiller, arguments, collator, rows, rows)

    first, second = trainer(), trainer()
    first.train()
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    for name, weight in first.model.state_dict().items():
        assert torch.equal(weight, second.model.state_dict()[name]), name
    best = load_file(Path(first.state.best_model_checkpoint) / "adapter_model.safetensors")
    first.save_model(str(tmp_path))
    kept = load_file(tmp_path / "adapter_model.safetensors")
    assert kept.keys() == best.keys() and all(torch.equal(kept[name], best[name]) for name in best)


@pytest.mark.parametrize("trainer", ["transformers.Trainer", "trl.SFTTrainer"])
def test_settings_of_the_trainers_own_loss_are_refused(trainer: str, examples: Any, folder: Path):
    """They would have no effect; those of the optimizer and the rest are the Trainer's."""
    package, name = trainer.split(".")
    library = pytest.importorskip(package)
    plain = package == "transformers"
    arguments = library.TrainingArguments if plain else partial(library.SFTConfig, dataset_kwargs=AS_IT_IS)
    settings = arguments(
        output_dir=str(folder / "out"), use_cpu=True, bf16=False, report_to="none", remove_unused_columns=False,
        label_smoothing_factor=0.1,
    )  # fmt: skip
    student = AutoModelForImageTextToText.from_pretrained(folder / "student")
    processor = AutoProcessor.from_pretrained(folder / "student")
    rows = Dataset.from_list(examples.read_rows(str(folder / "rows.jsonl"))[:2])
    kind = type("Distill", (examples.DistillMixin, getattr(library, name)), {})
    given = (Distiller(student, tiny_teacher()), settings, partial(examples.collate, processor), rows)
    with pytest.raises(UserError, match="label_smoothing_factor: of the Trainer's own loss"):
        kind(*given, processing_class=processor)


def test_a_batch_without_its_mask_is_refused(examples: Any, folder: Path):
    """As TRL's own collator makes it: neither KD on every row nor an error about a key."""
    arguments = TrainingArguments(output_dir=str(folder / "out"), use_cpu=True, report_to="none")
    student = AutoModelForImageTextToText.from_pretrained(folder / "student")
    row = examples.read_rows(str(folder / "rows.jsonl"))[0]
    batch = examples.collate(AutoProcessor.from_pretrained(folder / "student"), [row])
    trainer = examples.DistillTrainer(Distiller(student, tiny_teacher()), arguments)
    with pytest.raises(UserError, match="the batch has no distill, a bool for each row"):
        trainer.compute_loss(student, {name: value for name, value in batch.items() if name != "distill"})


@pytest.mark.parametrize("cast", ["bf16_full_eval", "fp16_full_eval"])
def test_a_cast_of_the_student_is_refused(cast: str, examples: Any, folder: Path):
    """At once, not by the first evaluation after a training: it would round RoPE, and the weights that are saved."""
    arguments = TrainingArguments(output_dir=str(folder / "out"), use_cpu=True, report_to="none", **{cast: True})
    student = AutoModelForImageTextToText.from_pretrained(folder / "student")
    with pytest.raises(UserError, match="cast the student, and so round"):
        examples.DistillTrainer(Distiller(student, tiny_teacher()), arguments)


def snippets(document: str) -> list[str]:
    """The Python blocks of a document."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_what_the_documents_show_works(examples: Any, folder: Path):
    """The README's lines and the guide's, run one after another on the tiny pair, fill the student's gradients."""
    rows = examples.read_rows(str(folder / "rows.jsonl"))[:2]
    batch = examples.collate(AutoProcessor.from_pretrained(folder / "student"), rows)
    mask = batch.pop("distill")
    names: dict[str, Any] = {"batch": batch, "mask": mask, "step": [(batch, mask)] * 2}
    (readme,) = snippets("README.md")
    for hub_id, name in (("SmolVLM-256M-Instruct", "student"), ("SmolLM2-135M-Instruct", "teacher")):
        readme = readme.replace(f"HuggingFaceTB/{hub_id}", str(folder / name))
    for block in (readme, *snippets("docs/guide.md")):
        exec(block, names)
        assert any(p.grad is not None and p.grad.any() for p in names["student"].parameters())
        names["student"].zero_grad(set_to_none=True)
    assert names["output"].counts.ce * len(names["step"]) == names["tokens"] > 0
