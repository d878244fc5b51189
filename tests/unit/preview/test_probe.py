"""`lingu-ray probe`: its nats are those of the plain models, and it says what sharing KV tells the teacher."""

from __future__ import annotations

import copy
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import yaml
from previewdata import preview_settings, say
from tiny import ADDED, VOCABULARY, picture, tiny_processor, tiny_student, tiny_teacher
from torch import Tensor
from transformers import AutoTokenizer

from lingu_ray.config import Config
from lingu_ray.corpus.encode import Encoder, Sample
from lingu_ray.corpus.row import Row
from lingu_ray.distill.student import Student
from lingu_ray.distill.teacher import Teacher
from lingu_ray.errors import UserError
from lingu_ray.evaluation.results import Estimate, Interval
from lingu_ray.preview.knowledge import Known, Probe, drawn_by, other_pictures
from lingu_ray.preview.knowledge_lines import conclusion
from lingu_ray.probe import in_bf16, main
from lingu_ray.runtime.training.precision import with_precision

ROWS = [
    Row("mine", -1, say("<image>What is it?", "A cat."), [picture(1)], True),
    Row("mine", -1, say("<image>And this?", "It is a dog.", "Sure?", "Yes."), [picture(2)], True),
    Row("mine", -1, say("Hello", "Good day to you."), [], True),
    Row("mine", -1, say("<image>Which?", "The third."), [picture(3)], True),
]


def probe() -> Probe:
    """Of a pair whose decoders are equal, without the student's own tokens."""
    teacher = copy.deepcopy(tiny_teacher())
    config = Config.model_validate(
        {
            "name": "mine",
            "student": {"path": "-"},
            "teacher": {"path": "-"},
            "corpus": {"rows": 1, "max_length": 128, "sources": [{"name": "mine", "format": "messages", "path": "-"}]},
            "train": {"tokens_per_micro_batch": 128},
            "distill": {"policy": "all"},
        }
    )
    student = tiny_student(copy.deepcopy(teacher))
    return Probe(config, Student(student), Teacher(teacher), Encoder(tiny_processor(), 128), bf16=False)


def asked(sample: Sample) -> list[int]:
    """Positions that predict an answer's token, where the teacher has both this and the one before."""
    ids, targets = sample.input_ids_T.tolist(), sample.supervised_T.nonzero().flatten().tolist()
    return [t - 1 for t in targets if ids[t] < VOCABULARY and ids[t - 1] < VOCABULARY]


def nats(logits_TV: Tensor, sample: Sample) -> float:
    """Of the answers' tokens that the teacher has, summed in float64."""
    log_p_TV = logits_TV.double().log_softmax(-1)
    return -sum(log_p_TV[t, sample.input_ids_T[t + 1]].item() for t in asked(sample))


def read(student: Student, sample: Sample) -> Tensor:
    """The VLM's logits, by its own forward pass."""
    with torch.no_grad():
        return student.model(input_ids=sample.input_ids_T[None], **sample.vision).logits[0]


def read_text(teacher: Teacher, sample: Sample) -> Tensor:
    """The LM's logits on the text alone, put back where its tokens are."""
    kept_T = (sample.input_ids_T < VOCABULARY).nonzero().flatten()
    logits_TV = torch.zeros(len(sample), VOCABULARY)
    with torch.no_grad():
        logits_TV[kept_T] = teacher.model(input_ids=sample.input_ids_T[kept_T][None]).logits[0]
    return logits_TV


def test_nats_are_those_of_the_plain_models() -> None:
    """Student by own and other pictures, teacher by KV and by text, against whole forward passes of Transformers.

    The decoders are equal, so that the teacher by the student's keys is the student over the ids that both have.
    """
    mine = probe()
    found = mine.ask("mine", ROWS)
    encoder = mine.encoder
    own = [encoder.encode(row) for row in ROWS]
    pictures = other_pictures(ROWS)
    other = [encoder.encode(replace(row, images=images)) for row, images in zip(ROWS, pictures, strict=True) if images]
    tokens = sum(len(asked(sample)) for sample in own)
    teacher = mine.by_kv.teacher
    expected = {
        "student": sum(nats(read(mine.student, sample), sample) for sample in own) / tokens,
        "teacher": sum(nats(read(mine.student, sample)[:, :VOCABULARY], sample) for sample in own) / tokens,
        "teacher_by_text": sum(nats(read_text(teacher, sample), sample) for sample in own) / tokens,
    }
    assert (found.rows, found.pictured, found.tokens) == (4, 3, tokens)
    for name, value in expected.items():
        assert getattr(found, name).value == pytest.approx(value, rel=1e-4), name
    assert found.kv_tells.value == pytest.approx(expected["teacher_by_text"] - expected["teacher"], rel=1e-3)
    with_pictures = [own[0], own[1], own[3]]
    told = [
        nats(read(mine.student, o), o) - nats(read(mine.student, s), s)
        for o, s in zip(other, with_pictures, strict=True)
    ]
    of_them = sum(len(asked(sample)) for sample in with_pictures)
    assert found.pictures_tell_student is not None
    assert found.pictures_tell_student.value == pytest.approx(sum(told) / of_them, rel=1e-3, abs=1e-4)


def test_other_pictures_are_as_many_and_not_the_same() -> None:
    """Of another row, never equal ones, none for text or where no other row has as many."""
    a, b = picture(1), picture(2)
    rows = [replace(ROWS[0], images=images) for images in ([a], [b], [], [a], [a, b], [a])]
    found = other_pictures(rows)
    assert found == [[b], [a], None, [b], None, [b]]


def test_pictures_of_one_product_are_drawn_together() -> None:
    """Those with one description are one; a word that answers share tells nothing, and one picture is one."""
    product, other = (
        "A sweet apple that is yellow and green, good for baking, and grown in France since 1890.",
        "An apple.",
    )
    answers = [product, product, other, other, "A pear.", product + " Ripe."]
    rows = [Row("mine", -1, say("<image>?", said), [picture(i % 5)], True) for i, said in enumerate(answers)]
    units = drawn_by(rows)
    assert units[0] == units[1] and len(set(units)) == 5
    same_picture = [replace(row, images=[picture(1)]) for row in rows]
    assert len(set(drawn_by(same_picture))) == 2


@pytest.mark.parametrize(
    ("tells", "said"),
    [
        (Estimate(0.3, Interval(0.2, 0.4)), "tells the teacher 0.300 [0.200, 0.400] more than"),
        (Estimate(-0.3, Interval(-0.4, -0.2)), "tells the teacher 0.300 [0.200, 0.400] less than"),
        (Estimate(0.1, Interval(-0.1, 0.3)), "the same, up to noise: 0.100 [-0.100, 0.300]"),
    ],
)
def test_what_follows_is_said(tells: Estimate, said: str) -> None:
    """More, less, or not told apart."""
    same = Estimate(1.0, Interval(1.0, 1.0))
    assert said in conclusion(Known("mine", 4, 0, 9, same, same, same, tells, None, None))


@pytest.fixture
def my_yaml(my_data: Path, tmp_path: Path) -> Path:
    """A settings file on the data, with a pair that has weights."""
    tree = preview_settings(my_data)
    teacher = copy.deepcopy(tiny_teacher())
    for name, model in (("teacher", teacher), ("student", tiny_student(teacher))):
        model.save_pretrained(tmp_path / name)
        tokens = tiny_processor() if name == "student" else tiny_processor().tokenizer
        tokens.save_pretrained(tmp_path / name)
        tree[name] = {"path": str(tmp_path / name)}
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_the_command_says_it_and_writes_it(my_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each source in turn, those that are named alone; what is printed is in the JSON. Of an attention that a CPU does
    not have PyTorch's takes the place."""
    chosen = ["rows=20", "device=cpu", "train.attention=flash_attention_2", "train.precision=bf16"]
    main([str(my_yaml), "chat", "pictures", *chosen, f"out={tmp_path / 'probe.json'}"])
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "probe.json").read_text("utf-8"))
    assert [entry["source"] for entry in found] == ["chat", "pictures"]
    for entry in found:
        assert f"{entry['source']}: {entry['rows']} rows" in out and f"{entry['teacher']['value']:.3f} [" in out
        # equal decoders: the student's keys are the teacher's own, but for the ids that the student added
        assert entry["teacher"]["value"] == pytest.approx(entry["student"]["value"], abs=0.3)
    assert found[1]["pictured"] == found[1]["rows"] == 20 and "its pictures tell it" in out


def test_what_was_found_stays_when_the_command_ends(
    my_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source takes minutes: one that fails, or Ctrl-C, takes nothing of those before it."""
    ask = Probe.ask

    def stopped(self: Probe, source: str, rows: Any) -> Known:
        if source == "pictures":
            raise KeyboardInterrupt
        return ask(self, source, rows)

    monkeypatch.setattr(Probe, "ask", stopped)
    with pytest.raises(KeyboardInterrupt):
        main([str(my_yaml), "chat", "pictures", "rows=20", "device=cpu", f"out={tmp_path / 'probe.json'}"])
    assert [entry["source"] for entry in json.loads((tmp_path / "probe.json").read_text("utf-8"))] == ["chat"]


@pytest.mark.parametrize(
    ("precision", "device", "emulated", "bf16"),
    [
        ("fp32", "cuda:1", False, False),
        ("bf16", "cuda:1", True, True),
        ("auto", "cuda:1", False, True),
        ("auto", "cuda:1", True, False),
        ("auto", "cpu", False, False),
    ],
)
def test_the_precision_is_that_of_training(
    monkeypatch: pytest.MonkeyPatch, precision: str, device: str, emulated: bool, bf16: bool
) -> None:
    """`auto` takes bf16 on a GPU that computes in it, and not on one that emulates it."""
    monkeypatch.setattr("torch.cuda.device", nullcontext)
    supported = lambda including_emulation=True: including_emulation or not emulated  # noqa: E731
    monkeypatch.setattr("torch.cuda.is_bf16_supported", supported)
    assert in_bf16(with_precision(probe().config, precision), torch.device(device)) is bf16


def test_mistakes_are_named(my_yaml: Path, tmp_path: Path) -> None:
    """A student that is still to be made, or sees no images; a source that is not there or gives nothing; no device."""
    nothing = tmp_path / "nothing.jsonl"
    nothing.write_text(json.dumps({"messages": say("Hello", " ")}) + "\n")
    one = tmp_path / "one.jsonl"
    one.write_text(json.dumps({"messages": say("Hello", "Good day.")}) + "\n")
    tree = yaml.safe_load(my_yaml.read_text("utf-8"))
    new = tree | {"student": {"from_teacher": {"tower": "models/some-tower"}}}
    (tmp_path / "new.yaml").write_text(yaml.safe_dump(new))
    for arguments, said in (
        ([str(tmp_path / "new.yaml")], "student.path: name a VLM"),
        ([str(my_yaml), "chta"], "did you mean chat"),
        ([str(my_yaml), "chat", "device=nowhere"], "device=nowhere: torch cannot use it"),
        ([str(my_yaml), "chat", f"corpus.sources.chat.path={nothing}"], "source chat: all rows that were read"),
        (
            [str(my_yaml), "chat", f"corpus.sources.chat.path={one}"],
            "source chat: one good row, .* tells nothing of how",
        ),
        ([str(my_yaml), "rows=1"], "rows"),
        ([str(my_yaml), "row=3"], "did you mean rows"),
        ([str(my_yaml), f"out={tmp_path}"], "out: .* cannot be written: it is a folder; name another one"),
    ):
        with pytest.raises(UserError, match=said):
            main(arguments)
    file = tmp_path / "student" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"image_token_id": 5}))
    with pytest.raises(UserError, match=r"student.path=.*writes token 320 \(<image>\) for an image"):
        main([str(my_yaml), "chat", "device=cpu"])


def test_a_tokenizer_is_loaded_once(my_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large vocabulary it takes many seconds."""
    load = Mock(wraps=AutoTokenizer.from_pretrained)
    monkeypatch.setattr("lingu_ray.processors.AutoTokenizer.from_pretrained", load)
    main([str(my_yaml), "chat", "rows=2", "device=cpu"])
    teacher = str(my_yaml.parent / "teacher")
    assert [call.args[0] for call in load.call_args_list if call.args[0] == teacher] == [teacher]


def test_a_gpu_that_is_full_is_told(my_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, with what helps."""
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 8 GiB")
    monkeypatch.setattr(Probe, "ask", Mock(side_effect=full))
    with pytest.raises(UserError, match=r"^the probe ran out of GPU memory: lower train\.tokens.* device=cpu\. CUDA"):
        main([str(my_yaml), "chat", "device=cpu"])


def test_the_students_own_tokens_are_not_counted() -> None:
    """A token that the teacher lacks, such as the end of a turn here, is in no figure."""
    mine = probe()
    sample = mine.encoder.encode(ROWS[2])
    ends = sample.input_ids_T >= VOCABULARY
    assert len(ADDED) == 4 and bool((ends & sample.supervised_T).any())
    found = mine.ask("mine", [ROWS[2], ROWS[2]])
    assert found.tokens == 2 * len(asked(sample)) < 2 * int(sample.supervised_T.sum())
