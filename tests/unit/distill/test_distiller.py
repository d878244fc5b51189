"""The library: `Distiller` gives the run's own numbers from a processor's batch, and refuses what it cannot use."""

import copy
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from families import FAMILIES, PLACEHOLDER, Prompt, each
from parallelrun import in_workers
from pretended_gpu import CUDA, PretendedGpu
from tiny import VOCABULARY, tiny_processor, tiny_student, tiny_teacher, tiny_tokenizer
from tinyrun import config
from torch._dynamo.utils import counters
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.two_tensor import TwoTensor
from transformers import AttentionInterface, DiffLlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.integrations.peft import MIN_PEFT_VERSION
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lingu_ray.corpus.batch import MicroBatch, collate
from lingu_ray.corpus.encode import Sample
from lingu_ray.distill import Distiller, TokenCounts, UserError
from lingu_ray.distill.capture import KVCapture, capturing
from lingu_ray.distill.pair import check_separate
from lingu_ray.distill.sequences import sequence_arguments
from lingu_ray.distill.student import Student
from lingu_ray.distill.teacher import Teacher
from lingu_ray.runtime.training.distributed import sum_gradients
from lingu_ray.runtime.training.step import MicroBatches

ANSWER, PAD = 5, 2
MASK = torch.tensor([True, False, True, True])


@cache
def pair(name: str):
    """Student and teacher of a family; the teacher has other weights, so that there is something to distill."""
    family = FAMILIES[name]
    return family.student(family.teacher()), family.teacher(seed=7)


def samples(name: str) -> list[Sample]:
    """Text, one image, two images; the rows of `MASK` are of the distilled source."""
    family = FAMILIES[name]
    prompts = [family.prompt(1), family.text(2, 17), family.prompt(3, images=2), family.prompt(4)]
    return [sample(prompt, position) for position, prompt in enumerate(prompts)]


def sample(prompt: Prompt, position: int) -> Sample:
    """A prompt whose last tokens are the answer."""
    supervised_T = torch.arange(len(prompt.input_ids_T)) >= len(prompt.input_ids_T) - ANSWER
    source = "text" if MASK[position] else "pictures"
    return Sample(source, position, prompt.input_ids_T, supervised_T, prompt.visual_T, prompt.vision)


def as_processor(batch: MicroBatch) -> dict[str, torch.Tensor]:
    """The micro-batch as a processor returns it, with labels."""
    return {
        "input_ids": batch.input_ids_BT,
        "attention_mask": batch.attention_mask_BT,
        "labels": batch.input_ids_BT.masked_fill(~batch.supervised_BT, -100),
        **batch.vision,
    }


def left_padded(batch: dict[str, torch.Tensor], extra: int = 2) -> dict[str, torch.Tensor]:
    """The same rows with all padding on the left, and two columns more of it on each side."""
    moved = dict(batch)
    length_B = batch["attention_mask"].sum(1)
    for name, padding in (("input_ids", PAD), ("attention_mask", 0), ("labels", -100)):
        rows = [torch.roll(row, -int(length), 0) for row, length in zip(batch[name], length_B, strict=True)]
        moved[name] = torch.nn.functional.pad(torch.stack(rows), (extra, extra), value=padding)
    return moved


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Gradients by parameter, which are then dropped."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def by_the_run(name: str, batch: MicroBatch, **distill):
    """Loss and gradients of one step of a run over this micro-batch."""
    student, teacher = pair(name)
    settings = config(Path(), Path(), distill=distill)
    client = Teacher(teacher)
    micro_batches = MicroBatches(settings, Student(student), client, torch.device("cpu"))
    plans = [micro_batches.plan(batch)]
    sums = micro_batches.run([batch], plans, micro_batches.weights(0.0, [batch], plans))
    sum_gradients(p for p in student.parameters() if p.requires_grad)
    return sums, gradients(student)


def equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """The same gradients, to the bit."""
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


@pytest.mark.parametrize("name", each())
def test_the_librarys_numbers_are_the_runs(name):
    """Every family: the same rows give the same loss and gradients, to the bit, wherever the padding is."""
    batch = collate(samples(name), PAD)
    choice = {"divergence": "jsd", "beta": 0.3, "temperature": 2.0, "w_ce": 0.5, "w_kd": 2.0}
    sums, expected = by_the_run(name, batch, **choice)
    distiller = Distiller(*pair(name), **choice)
    for given in (as_processor(batch), left_padded(as_processor(batch))):
        output = distiller(given, MASK)
        output.loss.backward()
        equal(gradients(distiller.student), expected)
        assert output.loss.item() == sums.loss
        assert output.kd.item() * output.counts.ce == pytest.approx(sums.kd, rel=1e-6) and sums.kd > 0.01
        assert output.ce.item() * output.counts.ce == pytest.approx(sums.ce, rel=1e-6)
        assert output.counts == distiller.count(given, MASK) == TokenCounts(ce=4 * ANSWER, kd=3 * ANSWER)


@pytest.fixture
def distiller() -> Distiller:
    """Over the pair of Idefics3."""
    return Distiller(*pair("idefics3"))


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """A batch of the pair of Idefics3 as its processor returns it."""
    return as_processor(collate(samples("idefics3"), PAD))


def test_accumulation_is_one_large_batch(distiller):
    """Rows one by one, divided by the counts of all, add up to the loss and gradients of all rows at once."""
    rows = [as_processor(collate([one], PAD)) for one in samples("idefics3")]
    marks = [[bool(mark)] for mark in MASK]
    output = distiller(as_processor(collate(samples("idefics3"), PAD)), MASK)
    output.loss.backward()
    expected = gradients(distiller.student)
    counts = sum(map(distiller.count, rows, marks), TokenCounts(0, 0))
    assert counts == output.counts
    total = 0.0
    for row, mark in zip(rows, marks, strict=True):
        part = distiller(row, mark, tokens=torch.tensor(counts.ce))
        part.loss.backward()
        total += part.loss.item()
    assert total == pytest.approx(output.loss.item(), rel=1e-5)
    for name, gradient in gradients(distiller.student).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6, msg=name)


def in_ddp(distiller: Distiller) -> torch.nn.Module:
    """All parameters are used in each step."""
    return DistributedDataParallel(distiller)


def in_searching_ddp(distiller: Distiller) -> torch.nn.Module:
    """Parameters may be unused in a step."""
    return DistributedDataParallel(distiller, find_unused_parameters=True)


def in_static_ddp(distiller: Distiller) -> torch.nn.Module:
    """The same parameters are used in each step; gradients are summed at the end of the first backward pass."""
    return DistributedDataParallel(distiller, static_graph=True)


def in_fsdp(distiller: Distiller) -> torch.nn.Module:
    """FSDP2, layer by layer, and the rest with the module."""
    for layer in distiller.student.get_decoder().layers:
        fully_shard(layer)
    return fully_shard(distiller)


STEPS = (([0], [1]), ([1], [1]), ([1], [2]), ([0, 1], [2, 3]))
"""Which of `samples` each of two workers has, step by step: 1 is text, the others have images."""
HAS_UNUSED = "llava"  # the last layer of its tower is never used


def batch_of(name: str, rows: list[int]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """These of `samples` as one batch, and which of them are distilled."""
    chosen = samples(name)
    return as_processor(collate([chosen[row] for row in rows], PAD)), MASK[rows]


def own_rows(wrap: Callable[[Distiller], torch.nn.Module], folder: Path) -> None:
    """A worker's gradients after each step of the wrapped module on its own rows, saved."""
    rank = torch.distributed.get_rank()
    for name in ("idefics3", HAS_UNUSED):
        distiller, found = Distiller(*pair(name)), []
        wrapped = wrap(distiller)
        for rows in STEPS:
            everything = distiller.count(*batch_of(name, [*rows[0], *rows[1]]))
            wrapped(*batch_of(name, rows[rank]), tokens=everything.ce / 2).loss.backward()
            own = gradients(distiller.student).items()
            found.append({key: p.full_tensor() if isinstance(p, DTensor) else p for key, p in own})
        torch.save(found, folder / f"{name}-{rank}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [in_ddp, in_searching_ddp, in_static_ddp, in_fsdp])
def test_data_parallel_is_one_large_batch(of_workers, wrap):
    """Wrapped, both of two workers have in each step the gradient of the rows of both, whoever has images."""
    for name in ("idefics3", HAS_UNUSED):
        distiller = Distiller(*pair(name))
        found = [torch.load(of_workers / wrap.__name__ / f"{name}-{rank}.pt") for rank in (0, 1)]
        for step, rows in enumerate(STEPS):
            distiller(*batch_of(name, [*rows[0], *rows[1]])).loss.backward()
            expected = gradients(distiller.student)
            for of_worker in found:
                assert of_worker[step].keys() == expected.keys()
                for key, gradient in of_worker[step].items():
                    torch.testing.assert_close(gradient, expected[key], rtol=1e-3, atol=1e-6, msg=key)


def adapted() -> Distiller:
    """Of a student whose tower and decoder have adapters; all else is frozen, the embedding matrix too."""
    peft = pytest.importorskip("peft", minversion=MIN_PEFT_VERSION)
    student = FAMILIES["idefics3"].student(pair("idefics3")[1])
    torch.manual_seed(0)
    student.add_adapter(peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    return Distiller(student, pair("idefics3")[1])


def own_row(wrap: Callable[[Distiller], torch.nn.Module], folder: Path) -> None:
    """A worker's gradients of the wrapped adapters on its one row, the first an image, the second text; and those of
    both rows without a wrapper, saved.
    """
    rank, distiller, rows = torch.distributed.get_rank(), adapted(), [batch_of("idefics3", [row]) for row in (0, 1)]
    tokens = sum(distiller.count(*row).ce for row in rows)
    for row in rows:
        distiller(*row, tokens=tokens).loss.backward()
    expected = gradients(distiller.student)
    wrapped = wrap(distiller)
    wrapped(*rows[rank], tokens=tokens / 2).loss.backward()
    own = gradients(distiller.student).items()
    found = {key: p.full_tensor() if isinstance(p, DTensor) else p for key, p in own}
    torch.save((found, expected), folder / f"{rank}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [in_ddp, in_fsdp])
def test_adapters_are_reduced_in_one_order(of_workers, wrap):
    """Behind a frozen embedding matrix, where an image alone gives the first layer's input a gradient, too."""
    pytest.importorskip("peft")
    for rank in (0, 1):
        found, expected = torch.load(of_workers / wrap.__name__ / f"{rank}.pt")
        assert found.keys() == expected.keys()
        for key, gradient in found.items():
            torch.testing.assert_close(gradient, expected[key], rtol=1e-3, atol=1e-6, msg=key)


def sharded_alone(folder: Path) -> None:
    """The error of a student that is sharded without its `Distiller`, written to a file."""
    student, teacher = pair("idefics3")
    distiller = Distiller(student, teacher)
    fully_shard(student)
    with pytest.raises(UserError) as caught:
        distiller(as_processor(collate(samples("idefics3"), PAD)))
    (folder / "sharded_alone").write_text(str(caught.value))


@pytest.mark.slow
def test_a_student_that_is_sharded_alone_is_refused(of_workers):
    """Nobody would gather its weights: the error says what to shard instead."""
    assert "fully_shard(distiller) after its layers" in (of_workers / "sharded_alone").read_text()


def tower_sharded_alone(folder: Path) -> None:
    """The error of a text where the vision tower has shards of its own, written to a file; an image is fine."""
    distiller = Distiller(*pair("idefics3"))
    fully_shard(distiller.student.model.vision_model)
    fully_shard(distiller)
    distiller(*batch_of("idefics3", [0])).loss.backward()
    with pytest.raises(UserError) as caught:
        distiller(*batch_of("idefics3", [1]))
    (folder / "tower_sharded_alone").write_text(str(caught.value))


@pytest.mark.slow
def test_a_tower_that_is_sharded_by_itself_needs_images(of_workers):
    """A text would leave the others waiting for its shards: the error says what to shard instead."""
    assert "fully_shard(distiller) after the decoder's layers alone" in (of_workers / "tower_sharded_alone").read_text()


def all_of_a_worker(data: Path, folder: Path) -> None:
    """What one of two workers does for all of these tests: its models are this process's own, and made for each."""
    for wrap in (in_ddp, in_searching_ddp, in_static_ddp, in_fsdp):
        pair.cache_clear()  # what was sharded is of no use to the next
        own_rows(wrap, folder / wrap.__name__)
    for wrap in (in_ddp, in_fsdp) if find_spec("peft") else ():
        pair.cache_clear()
        own_row(wrap, folder / wrap.__name__)
    for work in (sharded_alone, tower_sharded_alone):
        pair.cache_clear()
        work(folder)


@pytest.fixture(scope="module")
def of_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two workers left, who were started once."""
    folder = tmp_path_factory.mktemp("workers")
    for wrap in (in_ddp, in_searching_ddp, in_static_ddp, in_fsdp):
        (folder / wrap.__name__).mkdir()
    in_workers(all_of_a_worker, folder, folder)
    return folder


@pytest.mark.slow
def test_a_student_may_be_compiled_in_place(batch):
    """`student.model.compile()`, as the error about a compiled part says: the same loss and gradients."""
    student, teacher = FAMILIES["idefics3"].student(pair("idefics3")[1]), pair("idefics3")[1]
    distiller, losses, found = Distiller(student, teacher), [], []
    for prepare in (lambda: None, lambda: student.model.compile(backend="eager")):
        prepare()
        output = distiller(batch, MASK)
        output.loss.backward()
        losses.append(output.loss.item())
        found.append(gradients(student))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_a_head_without_its_weight_is_refused(batch):
    """ZeRO stage 3 leaves a weight without elements behind: never a vocabulary of nothing."""
    student = FAMILIES["idefics3"].student(pair("idefics3")[1])
    distiller = Distiller(student, pair("idefics3")[1])
    student.lm_head.weight = torch.nn.Parameter(torch.empty(0))
    with pytest.raises(UserError, match="the output head's weight is elsewhere"):
        distiller(batch)


@pytest.mark.parametrize("offloaded", ["student", "teacher"])
def test_a_head_that_is_offloaded_is_refused(offloaded):
    """By `device_map="auto"` where memory is short: the head comes last. Its products would be what memory held."""
    models = {"student": FAMILIES["llava"].student(pair("llava")[1]), "teacher": FAMILIES["llava"].teacher()}
    models[offloaded].lm_head.to("meta")
    with pytest.raises(UserError, match=r"the output head's weight is elsewhere .*offload other parts"):
        Distiller(**models)


@pytest.mark.parametrize("spread", ["student", "teacher"])
def test_a_model_on_several_devices_is_refused(spread):
    """As `device_map="auto"` spreads it over all GPUs: never that its architecture could not be distilled."""
    models = {"student": FAMILIES["llava"].student(pair("llava")[1]), "teacher": FAMILIES["llava"].teacher()}
    with PretendedGpu():
        models[spread].get_decoder().layers[1].to(CUDA)
    with pytest.raises(UserError, match=f"{spread}: its weights are on cpu, cuda:0, as device_map='auto' spreads them"):
        Distiller(**models)


def test_another_student_in_its_place_is_refused(batch):
    """As averaged weights for a validation: never the loss of the one that the `Distiller` was made of."""
    distiller = Distiller(FAMILIES["idefics3"].student(pair("idefics3")[1]), pair("idefics3")[1])
    distiller.student = copy.deepcopy(distiller.student)
    with pytest.raises(UserError, match="student: another model stands in the place of the Distiller's own"):
        distiller(batch)


@pytest.mark.parametrize("name", FAMILIES)
def test_tensors_of_no_image_are_none(name):
    """As a collator puts them beside rows of text: the loss of the text, and a tower that did not run."""
    seen, text = batch_of(name, [0])[0], batch_of(name, [1])[0]
    empty = {name: value[:0] for name, value in seen.items() if name not in text}
    distiller = Distiller(*pair(name))
    assert empty and torch.equal(distiller(text | empty).loss, distiller(text).loss)


def test_models_that_are_set_to_return_tuples_are_used(batch):
    """`return_dict=False` of their configurations changes nothing."""
    student, teacher = FAMILIES["idefics3"].student(pair("idefics3")[1]), FAMILIES["idefics3"].teacher(seed=7)
    expected = Distiller(student, teacher)(batch, MASK).loss
    student.config.return_dict = teacher.config.return_dict = False
    assert torch.equal(Distiller(student, teacher)(batch, MASK).loss, expected)


def test_nothing_to_learn_is_a_loss_of_zero(distiller, batch):
    """A batch without labels that count has loss 0 and gradients of 0, or none; unlabeled rows have no KD."""
    output = distiller(batch | {"labels": torch.full_like(batch["labels"], -100)})
    output.loss.backward()
    assert output.loss == 0 and output.counts == TokenCounts(0, 0)
    assert not any(gradient.any() for gradient in gradients(distiller.student).values())
    labels = batch["labels"].clone()
    labels[2] = -100
    output = distiller(batch | {"labels": labels}, MASK)
    assert output.counts == TokenCounts(ce=3 * ANSWER, kd=2 * ANSWER) and torch.isfinite(output.loss)


def test_no_row_to_distil_is_plain_cross_entropy(distiller, batch):
    """With an empty mask the loss is Transformers' own, and the teacher is not asked."""
    output = distiller(batch, [False] * 4)
    assert output.kd == 0 and output.counts.kd == 0
    with torch.no_grad():
        expected = distiller.student(**batch).loss
    torch.testing.assert_close(output.loss.detach(), expected, rtol=1e-5, atol=1e-5)


def test_the_module_is_the_student(distiller, batch):
    """Parameters and state are the student's alone; the teacher is frozen and without gradient; no_grad works."""
    assert list(distiller.parameters()) == list(distiller.student.parameters())
    teacher = pair("idefics3")[1]
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    with torch.no_grad():
        assert not distiller(batch).loss.requires_grad


def test_autocast_is_the_students_alone(batch):
    """Under bf16 autocast the teacher keeps its precision: the result is that of a run with train.precision=bf16."""
    student, teacher = pair("idefics3")
    settings = config(Path(), Path(), train={"precision": "bf16"})
    micro_batches = MicroBatches(settings, Student(student), Teacher(teacher), torch.device("cpu"))
    batches = [collate(samples("idefics3"), PAD)]
    plans = [micro_batches.plan(batches[0])]
    sums = micro_batches.run(batches, plans, micro_batches.weights(0.0, batches, plans))
    expected = gradients(student)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = Distiller(student, teacher)(batch, MASK)
    output.loss.backward()
    assert output.loss.item() == sums.loss
    equal(gradients(student), expected)


def test_students_of_one_configuration_are_alike():
    """Two models that share a configuration object: the second donates its positions, too."""
    batch = as_processor(collate(samples("paligemma2"), PAD))
    student, teacher = pair("paligemma2")
    second = type(student)(student.config).eval()
    second.load_state_dict(student.state_dict())
    assert torch.equal(Distiller(second, teacher)(batch).loss, Distiller(student, teacher)(batch).loss)


@pytest.mark.slow
def test_another_process_may_be_given_it(batch, tmp_path):
    """Pickled, as `torch.multiprocessing.spawn` and `torch.save` do: the same loss where nothing is imported yet."""
    distiller = Distiller(FAMILIES["idefics3"].student(pair("idefics3")[1]), FAMILIES["idefics3"].teacher(seed=8))
    torch.save((distiller, batch), tmp_path / "pickled.pt")
    code = (
        "import sys, torch\n"
        "distiller, batch = torch.load(sys.argv[1], weights_only=False)\n"
        "print(distiller(batch).loss.item())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "pickled.pt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(distiller(batch).loss.item(), rel=1e-6)


def test_the_teachers_head_is_its_own_as_it_is_now(batch):
    """Weights that are loaded into other tensors are read: the loss is that of a `Distiller` made afterwards."""
    student, teacher = pair("idefics3")[0], FAMILIES["idefics3"].teacher(seed=7)
    distiller = Distiller(student, teacher)
    before = distiller(batch).loss
    teacher.load_state_dict(FAMILIES["idefics3"].teacher(seed=8).state_dict(), assign=True)
    assert (
        torch.equal(distiller(batch).loss, Distiller(student, teacher)(batch).loss) and distiller(batch).loss != before
    )


CASTS = {
    "to": lambda model: model.to(torch.bfloat16),
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
}


@pytest.mark.parametrize("which", ["student", "teacher"])
@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
@pytest.mark.parametrize("name", ["idefics3", "gemma3"])
def test_a_cast_that_rounds_rope_is_refused(name, which, cast):
    """Before and after, of either: at a thousand tokens KD of equal decoders would be 0.8 nats instead of 0.004."""
    models = {"student": FAMILIES[name].student(pair(name)[1]), "teacher": FAMILIES[name].teacher(seed=7)}
    distiller, message = Distiller(**models), f"{which}: the frequencies of its RoPE were rounded to torch"
    cast(models[which])
    with pytest.raises(UserError, match=message):
        distiller(as_processor(collate(samples(name), PAD)))
    with pytest.raises(UserError, match=message):
        Distiller(**models)


def test_a_teacher_that_is_loaded_in_bf16_keeps_its_rope(tmp_path):
    """Its distance from the same decoder in float32 is the rounding of its weights, also in a long row."""
    tiny_teacher(folder=tmp_path)
    teacher = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    ids_BT = torch.arange(3, 303).repeat(3).reshape(1, -1)
    labels_BT = ids_BT.masked_fill(torch.arange(900) < 890, -100)
    with torch.no_grad():
        output = Distiller(tiny_student(tiny_teacher()), teacher)({"input_ids": ids_BT, "labels": labels_BT})
    assert output.kd < 0.02


def test_the_teacher_stays_in_eval_mode(batch):
    """Also where a module that holds both is set to training, as a LightningModule is: no dropout, no checkpoints."""
    student, teacher = FAMILIES["idefics3"].student(pair("idefics3")[1]), FAMILIES["idefics3"].teacher(seed=7)
    teacher.model.norm = torch.nn.Sequential(teacher.model.norm, torch.nn.Dropout(0.5))
    holder = torch.nn.ModuleList([distiller := Distiller(student, teacher), teacher])
    expected = distiller(batch).loss
    teacher.gradient_checkpointing_enable()
    holder.train()
    assert torch.equal(distiller(batch).loss, expected)


def test_what_a_batch_does_not_run_is_not_read(batch):
    """Every parameter of tower and projector has a gradient of its own in a batch of text, whatever its numbers are."""
    student = FAMILIES["idefics3"].student(pair("idefics3")[1])
    student.model.connector.scalars = torch.nn.ParameterList([torch.ones(1), torch.ones(1)])
    with torch.no_grad():
        student.model.vision_model.post_layernorm.bias.fill_(torch.inf)
    output = Distiller(student, pair("idefics3")[1])({name: batch[name][1:2] for name in ("input_ids", "labels")})
    output.loss.backward()
    assert torch.isfinite(output.loss)
    trained = [*student.model.vision_model.parameters(), *student.model.connector.parameters()]
    assert all(p.grad is not None and p.grad.is_contiguous() and not p.grad.any() for p in trained)
    assert len({p.grad.data_ptr() for p in trained}) == len(trained)


@pytest.fixture
def defaults() -> Iterator[Callable[[torch.dtype, str], None]]:
    """Sets torch's default dtype and device, as a training script may."""
    dtype = torch.get_default_dtype()

    def set_them(dtype: torch.dtype, device: str) -> None:
        torch.set_default_dtype(dtype)
        torch.set_default_device(device)

    yield set_them
    set_them(dtype, "cpu")
    torch.set_default_device(None)


@pytest.mark.parametrize("name", each())
@pytest.mark.parametrize("padded", [False, True])
def test_torch_defaults_do_not_matter(name, padded, defaults):
    """Under another default dtype, and a default device that nothing can be read from, the numbers are equal."""
    batch = as_processor(collate(samples(name), PAD))
    batch = left_padded(batch) if padded else batch
    expected = Distiller(*pair(name), divergence="jsd", temperature=2)(batch, MASK)
    reads_there = name == "qwen2_5_vl"  # Transformers makes its windows on the default device
    defaults(torch.bfloat16, "cpu" if reads_there else "meta")
    found = Distiller(*pair(name), divergence="jsd", temperature=2)(batch, MASK.tolist())
    assert [found.loss.item(), found.ce.item(), found.kd.item()] == [expected.loss, expected.ce, expected.kd]
    assert found.loss.dtype == torch.float32 and found.counts == expected.counts


def test_bounds_for_flash_attention_are_on_the_cpu(defaults):
    """Also under another default device, where the last bound would be on another device than the rest."""
    sample_BT = torch.tensor([[0, 0, 1, 1, 1], [2, 2, 2, 2, -1]])
    defaults(torch.float32, "meta")
    found = sequence_arguments(sample_BT)
    assert found["cu_seq_lens_q"].tolist() == [0, 2, 5, 9, 10] and found["max_length_q"] == 4


@pytest.mark.parametrize("name", each())
@pytest.mark.parametrize("all_of_them", [False, True])
def test_image_tokens_that_were_cut_off_are_refused(name, all_of_them):
    """Where a row has lost image tokens, the pictures of later rows would move into earlier ones."""
    batch = as_processor(collate(samples(name), PAD))
    placeholder_T = (batch["input_ids"][0] == PLACEHOLDER).nonzero().flatten()
    lost_T = placeholder_T if all_of_them else placeholder_T[-1:]
    batch["input_ids"][0, lost_T] = 7
    by_row = ", ".join(str(int(count)) for count in (batch["input_ids"] == PLACEHOLDER).sum(1))
    with pytest.raises(UserError, match=rf"input_ids: image tokens by row: {by_row}; .*rows were cut, or put together"):
        Distiller(*pair(name))(batch)


def change(name, value=None, **places):
    """A function that changes one tensor of a batch: to `value`, or at `places` {"row_column": value}."""

    def changed(batch):
        tensor = batch[name].clone() if value is None else value
        for place, entry in places.items():
            row, column = map(int, place.removeprefix("at_").split("_"))
            tensor[row, column] = entry
        return batch | {name: tensor}

    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: {k: v for k, v in b.items() if k != "labels"}, "labels: the batch has none"),
        (lambda b: b | {"labels": b["labels"][:, :-1]}, r"labels: must have the shape \[4, \d+\], as input_ids"),
        (lambda b: b | {"labels": b["labels"].float()}, "labels: must hold integers; its dtype is torch.float32"),
        (lambda b: b | {"labels": b["labels"].tolist()}, "labels: must be a tensor, not a list"),
        (lambda b: b | {"input_ids": b["input_ids"][0]}, r"input_ids: must have the shape \[rows, tokens\]"),
        (lambda b: [b], "batch: must be a processor's tensors by name, with labels; it is a list"),
        (lambda b: b | {3: b["labels"]}, "batch: must be a processor's tensors by name"),
        (change("input_ids", at_0_4=9999), "input_ids: 9999 at row 0, token 4 is no id of the student, .* 325 rows"),
        (change("input_ids", at_1_20=-1), "input_ids: -1 at row 1, token 20 is no id of the student"),
        (change("labels", at_0_3=9999), r"labels: 9999 at row 0, token 3 lies outside the student's vocabulary of 325"),
        (change("labels", at_0_3=-1), "labels: -1 at row 0, token 3 lies outside .* is learned it is -100"),
        (change("labels", at_1_20=7), "labels: 7 at row 1, token 20 is on padding"),
        (change("labels", at_0_6=PLACEHOLDER), "labels: 320 at row 0, token 6 is on an image token"),
        (change("labels", at_0_3=1), "labels: 1 at row 0, token 3 differs from input_ids"),
        (change("attention_mask", at_0_4=0), "attention_mask: row 0 has padding between its tokens"),
        (change("attention_mask", at_0_4=3), "attention_mask: must be 1 on tokens and 0 on padding"),
        (
            lambda b: b | {"attention_mask": b["attention_mask"] * torch.tensor([[1], [0], [1], [1]])},
            "row 1 has no token",
        ),
        (lambda b: b | {"attention_mask": b["attention_mask"][:, None, None]}, "attention_mask: must have the shape"),
        (lambda b: b | {"position_ids": b["input_ids"]}, "position_ids: leave it out"),
        (lambda b: b | {"cache": b["input_ids"]}, "cache: leave it out"),
        (lambda b: b | {"cu_seq_lens_q": b["input_ids"]}, "cu_seq_lens_q: leave it out; give each sample a row"),
        (lambda b: b | {"max_length_k": 7}, "max_length_k: leave it out; give each sample a row"),
        (lambda b: b | {"distill": MASK}, r"distill: give the rows' mask beside the batch, distiller\(batch, distill"),
        (lambda b: b | {"pixels": b["pixel_values"]}, "pixels: Idefics3Model takes no such input"),
        (lambda b: b | {"pixel_values_videos": b["pixel_values"]}, "videos are not supported"),
        (lambda b: b | {"pixel_values": [1]}, "pixel_values: must be a tensor"),
        (lambda b: b | {"pixel_values": None, "pixel_attention_mask": None}, "has image tokens and no images"),
        (
            lambda b: {name: b[name] if name.startswith("pixel") else b[name][1:2] for name in b},
            "pixel_values: the batch has no image tokens: leave images out",
        ),
    ],
)
def test_batches_that_cannot_be_used_are_refused(distiller, batch, change, message):
    """Each error names the tensor, where in it, and what is wanted; counting refuses the same."""
    for ask in (distiller, distiller.count):
        with pytest.raises(UserError, match=message):
            ask(change(batch))


def test_rows_whose_rope_depends_on_other_rows_are_refused():
    """Above the length from which the longest row of a batch decides on RoPE, keys would not fit the teacher's."""
    family = FAMILIES["internvl3"]
    student, teacher = family.student(family.teacher()), family.teacher(seed=7)
    decoder = student.config.text_config
    decoder.rope_parameters = decoder.rope_parameters | {"rope_type": "dynamic", "factor": 2.0}
    decoder.max_position_embeddings = 8
    ids_BT = torch.arange(3, 15).reshape(1, -1)
    distiller = Distiller(student, teacher)
    distiller.count({"input_ids": ids_BT[:, :8], "labels": ids_BT[:, :8]})
    with pytest.raises(UserError, match="input_ids: a row has 12 tokens, and above 8 the models have another RoPE"):
        distiller.count({"input_ids": ids_BT, "labels": ids_BT})


def test_rows_beyond_paligemmas_window_are_refused():
    """Its prompt sees all of itself, also in sliding layers, where the teacher sees the window alone."""
    distiller = Distiller(*pair("paligemma2"))
    window = distiller.student.config.text_config.sliding_window
    ids_BT = torch.arange(3, 4 + window).reshape(1, -1)
    distiller.count({"input_ids": ids_BT[:, 1:], "labels": ids_BT[:, 1:]})
    with pytest.raises(UserError, match=f"input_ids: a row has {window + 1} tokens, above the {window} that PaliGemma"):
        distiller.count({"input_ids": ids_BT, "labels": ids_BT})


@pytest.mark.parametrize(
    "mask",
    [
        *([True] * 3, [1, 0, 1, 1], torch.ones(4, 1, dtype=torch.bool), torch.ones(4)),
        *([True, None, True, True], [[True], [True, False]], "text", {True}),
    ],
)
def test_masks_that_do_not_fit_are_refused(distiller, batch, mask):
    """Another length, shape or dtype of the mask, or what is no mask, is refused with what is wanted."""
    with pytest.raises(UserError, match="distill: must hold one bool for each of the 4 rows"):
        distiller(batch, mask)


@pytest.mark.parametrize("count", [-1, float("nan"), float("inf")])
def test_counts_that_are_none_are_refused(distiller, batch, count):
    """A divisor has to be a number of tokens."""
    with pytest.raises(UserError, match=r"tokens=.*: must be a number of tokens"):
        distiller(batch, tokens=count)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_count_that_was_rounded_is_refused(distiller, batch, dtype):
    """As FSDP2's mixed precision casts a tensor on its way into the module: 5001 tokens would be 4992."""
    with pytest.raises(UserError, match=r"tokens: numbers above .* pass a number of Python"):
        distiller(batch, tokens=torch.tensor(5001.0).to(dtype))


def test_token_types_have_to_agree():
    """A processor's token types are accepted where they are those that the method derives, and refused elsewhere."""
    for name, key in (("gemma3", "token_type_ids"), ("qwen2_vl", "mm_token_type_ids")):
        batch = as_processor(collate(samples(name), PAD))
        types = (batch["input_ids"] == PLACEHOLDER).int()
        distiller = Distiller(*pair(name))
        given = left_padded(batch)
        moved = (given["input_ids"] == PLACEHOLDER).int()
        assert torch.equal(distiller(given | {key: moved}).loss, distiller(batch).loss)
        with pytest.raises(UserError, match=f"{key}: differs from what follows from labels and images"):
            distiller(batch | {key: 1 - types})


def test_pairs_that_do_not_fit_are_refused():
    """Wrong kinds of model, wrapped models, other decoders and other tokenizers: each is said."""
    student, teacher = pair("idefics3")
    narrow = tiny_teacher(hidden=32)
    qwen = Qwen3ForCausalLM(Qwen3Config(vocab_size=9, hidden_size=8, num_hidden_layers=1, intermediate_size=8))
    wrapped, compiled = torch.nn.DataParallel(student), tiny_student(teacher)
    compiled.model = torch.compile(compiled.model)
    for models, message in (
        ((student, narrow), "hidden_size: student 64, teacher 32"),
        ((student, qwen), "student and teacher do not fit"),
        ((student, student), "teacher: idefics3 is not a text-only causal LM: name the one"),
        ((teacher, teacher), "student: LlamaForCausalLM is no vision-language model"),
        (
            (wrapped, teacher),
            "student: must be the Transformers model itself; it is a DataParallel.* wrap the Distiller",
        ),
        ((compiled, teacher), "student: `model` of .* is wrapped or compiled"),
        ((student, teacher.model), "LlamaModel: the method needs an output head without bias"),
        ((student, teacher.model.layers), "teacher: must be the Transformers model itself"),
    ):
        with pytest.raises(UserError, match=message):
            Distiller(*models)
    other = tiny_tokenizer()
    other.get_vocab = lambda: {token: (i + 7) % VOCABULARY for token, i in tiny_tokenizer().get_vocab().items()}
    with pytest.raises(UserError, match="tokenize differently"):
        Distiller(student, teacher, tokenizers=(tiny_tokenizer(), other))
    for given in ((tiny_processor(), other), (other,), other, (1, 2)):
        with pytest.raises(UserError, match=r"tokenizers: must be the student's and the teacher's, \(processor.tok"):
            Distiller(student, teacher, tokenizers=given)


@pytest.mark.parametrize("shared", ["modules", "memory"])
def test_a_student_made_of_the_teachers_own_weights_is_refused(shared):
    """Frozen with the teacher, or trained with it in silence: the error names a weight; the teacher is untouched."""
    student = tiny_student(teacher := tiny_teacher())
    if shared == "modules":
        student.model.text_model.layers = teacher.model.layers
    else:
        student.model.text_model.layers.load_state_dict(teacher.model.layers.state_dict(), assign=True)
    with pytest.raises(UserError, match=r"student: model\.text_model\.layers\.0\..* lies in the teacher's memory"):
        Distiller(student, teacher)
    assert teacher.model.embed_tokens.weight.requires_grad


def test_a_quantized_teacher_is_another_model():
    """torchao's tensors hold several and have no memory of their own: no error of torch about it."""
    student = tiny_student(teacher := tiny_teacher())
    layer = teacher.model.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(TwoTensor(layer.weight.detach(), torch.ones_like(layer.weight)))
    check_separate(student, teacher)


def test_a_layer_that_does_not_donate_is_an_error(batch):
    """Another attention, or a layer of another model, which has a configuration of its own: never KV that is none."""
    family = FAMILIES["idefics3"]
    student, teacher = family.student(family.teacher()), family.teacher(seed=7)
    distiller = Distiller(student, teacher)
    layers = student.model.text_model.layers
    layers[1], own = copy.deepcopy(teacher.model.layers[1]), layers[1]
    with pytest.raises(UserError, match="layer 1 of the decoder did not donate"):
        distiller(batch)
    layers[1] = own
    assert distiller(batch).kd > 0
    student.set_attn_implementation("eager")
    with pytest.raises(UserError, match="layer 0 of the decoder did not donate"):
        distiller(batch)
    assert distiller(batch, [False] * 4).kd == 0  # nobody is asked


def test_an_attention_that_has_no_mask_of_its_own_is_an_error(batch):
    """One that a user has registered: what it does with masks is not known. The cure is taken."""
    AttentionInterface.register("mine", sdpa_attention_forward)
    family = FAMILIES["idefics3"]
    student, teacher = family.student(family.teacher()), family.teacher(seed=7)
    student.set_attn_implementation("mine")
    with pytest.raises(UserError, match=r"'mine' of LlamaModel cannot donate its KV: .* attn_implementation='sdpa'"):
        Distiller(student, teacher)
    student.set_attn_implementation("sdpa")
    assert Distiller(student, teacher)(batch).kd > 0


def test_a_layer_that_attends_twice_is_an_error():
    """DiffLlama calls its attention twice, with half of its values each time: neither is what a teacher would keep."""
    family, sizes = FAMILIES["llava"], FAMILIES["llava"].decoder.to_dict()
    del sizes["model_type"]
    twice = replace(family, decoder=DiffLlamaConfig(**sizes | {"num_key_value_heads": 4}))
    teacher = twice.teacher()
    ids_BT = torch.arange(3, 15).reshape(1, -1)
    student = twice.student(teacher)
    with pytest.raises(UserError, match="layer 0 of the decoder attends more than once in a pass"):
        Distiller(student, teacher)({"input_ids": ids_BT, "labels": ids_BT})
    decoder = Student(student).decoder
    decoder.layers[0].compile(backend="eager")
    with (
        capturing(KVCapture(2, torch.arange(12))),
        pytest.raises(UserError, match=r"layer 0 .* attends more than once"),
    ):
        decoder(ids_BT)


class Full(torch.nn.Module):
    """A part of a model for which there is no memory."""

    @torch.compiler.disable
    def forward(self, hidden):
        raise torch.OutOfMemoryError


@pytest.mark.slow
def test_a_compiled_layer_is_one_graph(batch):
    """And donates the same to the bit, also after a pass in which it failed."""
    family = FAMILIES["idefics3"]
    student, teacher = family.student(family.teacher()), family.teacher(seed=7)
    distiller, layers = Distiller(student, teacher), student.model.text_model.layers
    expected = distiller(batch)
    counters.clear()
    for layer in layers:
        layer.compile(backend="eager", dynamic=True)
    compiled = distiller(batch)
    assert counters["stats"]["unique_graphs"] > 0 and not counters["graph_break"]
    layers[1].mlp, own = Full(), layers[1].mlp
    with pytest.raises(torch.OutOfMemoryError):
        distiller(batch)
    layers[1].mlp = own
    for found in (compiled, distiller(batch)):
        assert (found.loss, found.kd) == (expected.loss, expected.kd) and found.kd > 0


def test_layers_may_be_compiled_before(batch):
    """By `torch.compile(layer)`, which puts a module around each, as training loops of one's own do: the same loss."""
    expected = Distiller(*pair("idefics3"))(batch).loss
    family = FAMILIES["idefics3"]
    student, teacher = family.student(family.teacher()), family.teacher(seed=7)
    layers = student.get_decoder().layers
    for name, layer in list(layers.named_children()):
        layers.register_module(name, torch.compile(layer, fullgraph=True, backend="eager"))
    assert torch.equal(Distiller(student, teacher)(batch).loss, expected)


def test_a_student_without_image_token_is_refused():
    """A configuration that names no image token leaves open which positions are visual."""
    student = tiny_student(teacher := tiny_teacher())
    vars(student.config)["image_token_id"] = None
    with pytest.raises(UserError, match="names no image token: set its image_token_id"):
        Distiller(student, teacher)
    assert isinstance(teacher, LlamaForCausalLM) and teacher.model.embed_tokens.weight.requires_grad  # untouched


def test_a_loss_of_routers_is_refused():
    """Transformers' own loss of a mixture of experts has it where the configuration asks for it; this one never has."""
    family = FAMILIES["qwen3_vl_moe"]
    student, teacher = family.student(family.teacher()), family.teacher(seed=7)
    student.config.text_config.output_router_logits = True
    with pytest.raises(UserError, match="student: output_router_logits asks for the auxiliary loss"):
        Distiller(student, teacher)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"divergence": "kl"}, "divergence='kl': choose one of forward_kl, reverse_kl, jsd, tv"),
        ({"divergence": ["jsd"]}, r"divergence=\['jsd'\]: choose one of forward_kl"),
        ({"beta": 1.0}, "beta=1.0: must be a number between 0 and 1"),
        ({"beta": "half"}, "beta='half': must be a number between 0 and 1"),
        ({"top_k": 0}, "top_k=0: must be a whole number of 1 or more"),
        ({"top_k": "8"}, "top_k='8': must be a whole number of 1 or more"),
        ({"top_k": 2.5}, "top_k=2.5: must be a whole number of 1 or more"),
        ({"temperature": 0}, "temperature=0: must be a number above 0"),
        ({"w_kd": -1}, "w_kd=-1: must be a number from 0 on"),
        ({"context": "kv"}, "context='kv': choose one of shared_kv, prompt_text"),
        ({"scope": "all"}, "scope='all': choose one of full, visual"),
    ],
)
def test_arguments_out_of_range_are_refused(choice, message):
    """Each with its name, its value and what is possible."""
    with pytest.raises(UserError, match=message):
        Distiller(*pair("idefics3"), **choice)


@pytest.mark.parametrize("name", ["temperature", "w_ce", "w_kd"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "2", True, None, [1.0]])
def test_schedules_out_of_range_are_refused(distiller, batch, name, value):
    """Attributes that are set between steps are checked as the arguments are."""
    setattr(distiller, name, value)
    with pytest.raises(UserError, match=re.escape(f"{name}={value!r}: must be a number")):
        distiller(batch)


def test_numbers_may_be_of_torch_and_numpy(distiller, batch):
    """What a schedule computes with either is a number."""
    expected = float(distiller(batch).loss.detach())
    for one in (torch.tensor(1.0), np.float64(1)):
        distiller.temperature = distiller.w_ce = distiller.w_kd = one
        assert float(distiller(batch).loss.detach()) == expected


def test_ids_that_the_teachers_tokenizer_lacks_do_not_count():
    """Rows that pad a teacher's head, whatever is in them: KD is that of the teacher without them, and a token of such
    an id in an answer is the student's to compute, as one beyond the teacher's rows is.
    """
    known, rows, tokenizer = len(tiny_tokenizer()), 400, tiny_tokenizer()
    student = tiny_student(tiny_teacher())
    student.resize_token_embeddings(rows, mean_resizing=False)
    padded = copy.deepcopy(tiny_teacher(seed=7))
    padded.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        padded.get_input_embeddings().weight[known:] *= 100
    cut = copy.deepcopy(padded)
    cut.resize_token_embeddings(known)
    prompts = as_processor(collate([sample(FAMILIES["idefics3"].text(2, 17), 0)], PAD))
    prompts["input_ids"][0, -3] = prompts["labels"][0, -3] = known + 9  # in the answer

    def loss(teacher: LlamaForCausalLM, tokenizers: tuple | None) -> float:
        torch.manual_seed(0)
        distiller = Distiller(copy.deepcopy(student), copy.deepcopy(teacher), tokenizers=tokenizers)
        return float(distiller(prompts).kd)

    assert loss(padded, (tokenizer, tokenizer)) == pytest.approx(loss(cut, None), rel=1e-6)
    assert loss(padded, None) != pytest.approx(loss(cut, None), rel=1e-2)
    padded.resize_token_embeddings(1000, mean_resizing=False)
    with pytest.raises(UserError, match="teacher: its tokenizer has tokens for 324 of the model's 1000 ids"):
        Distiller(student, padded, tokenizers=(tokenizer, tokenizer))


def test_ablations_are_the_runs(batch):
    """`context`, `scope` and `top_k` reach the method: each changes the loss, to what the run says."""
    losses = {Distiller(*pair("idefics3"))(batch, MASK).loss.item()}
    for teacher, distill in (({"context": "prompt_text"}, {}), ({"scope": "visual"}, {}), ({}, {"top_k": 3})):
        settings = config(Path(), Path(), teacher=teacher, distill=distill)
        student, lm = pair("idefics3")
        client = Teacher(lm)
        micro_batches = MicroBatches(settings, Student(student), client, torch.device("cpu"))
        one = collate(samples("idefics3"), PAD)
        plans = [micro_batches.plan(one)]
        sums = micro_batches.run([one], plans, micro_batches.weights(0.0, [one], plans))
        student.zero_grad(set_to_none=True)
        assert Distiller(student, lm, **teacher, **distill)(batch, MASK).loss.item() == sums.loss
        losses.add(sums.loss)
    assert len(losses) == 4


@pytest.mark.slow
def test_the_method_brings_nothing_of_the_run():
    """Imported alone, `lingu_ray.distill` and all its modules load no settings, Ray, MLflow or evaluation.

    And whoever imports it keeps the pace of Python's garbage collection.
    """
    code = (
        "import gc; before = gc.get_threshold()\n"
        "import importlib, pkgutil, sys, lingu_ray.distill as d\n"
        "for m in pkgutil.iter_modules(d.__path__): importlib.import_module(f'lingu_ray.distill.{m.name}')\n"
        "assert gc.get_threshold() == before\n"
        "print(*(name for name in sys.modules if '.' not in name or name.startswith('lingu_ray.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "lingu_ray.distill.distiller" in loaded
    assert not {"ray", "mlflow", "pydantic", "datasets", "matplotlib", "peft"} & set(loaded)
    ours = {name for name in loaded if name.startswith("lingu_ray.") and not name.startswith("lingu_ray.distill")}
    assert ours == {f"lingu_ray.{name}" for name in ("commands", "errors", "passes", "pinning", "starting")}
