"""The merging baseline: a student's decoder between its own weights and the teacher's, the rest untouched."""

from pathlib import Path

import pytest
import torch
from families import FAMILIES, each
from safetensors.torch import load_file
from test_convert_gguf import tiny_llama, write_gguf
from tiny import VOCABULARY, tiny_processor, tiny_student, tiny_teacher, tiny_tokenizer
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Idefics3ForConditionalGeneration,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from lingu_ray.config import Config, CorpusConfig, SourceConfig, StudentConfig, TeacherConfig, VisionConfig
from lingu_ray.convert_gguf import convert
from lingu_ray.distill.head import output_head
from lingu_ray.distill.interpolate import common_ids, interpolate_
from lingu_ray.distill.pair import check_tokenizers
from lingu_ray.errors import UserError
from lingu_ray.merge import main, merge
from lingu_ray.runtime.models.load import prepare_student

pytestmark = pytest.mark.slow  # merges whole models


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher (`lm`), and a student (`vlm`) with other weights and a larger vocabulary, in bfloat16."""
    folder = tmp_path_factory.mktemp("pair")
    tiny_teacher(seed=3, folder=folder / "lm")
    student = tiny_student(tiny_teacher(seed=4)).bfloat16()
    student.save_pretrained(folder / "vlm")
    tiny_processor(folder / "vlm")
    return folder


def tensors(folder: Path) -> dict[str, Tensor]:
    """What the folder's safetensors hold."""
    return load_file(folder / "model.safetensors")


def logliks(model: LlamaForCausalLM | Idefics3ForConditionalGeneration, ids_BT: Tensor) -> Tensor:
    """Log-probability of each next token among the teacher's vocabulary, from the model's own forward pass."""
    with torch.no_grad():
        logits_BTV = model(input_ids=ids_BT).logits[:, :-1, :VOCABULARY]
    return logits_BTV.log_softmax(-1).gather(2, ids_BT[:, 1:, None]).squeeze(2)


def test_weight_0_is_the_student_to_the_bit(pair: Path, tmp_path: Path):
    """Nothing changes on the way through float32 and the export: every tensor, its precision, and the processor."""
    merge(str(pair / "lm"), str(pair / "vlm"), tmp_path / "out", [0.0])
    before, after = tensors(pair / "vlm"), tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(tensor.dtype == torch.bfloat16 for tensor in after.values())
    assert all(torch.equal(before[name], after[name]) for name in before)
    old, new = (AutoProcessor.from_pretrained(folder) for folder in (pair / "vlm", tmp_path / "out"))
    assert new.tokenizer.get_vocab() == old.tokenizer.get_vocab()
    assert new.chat_template == old.chat_template


def test_weight_1_reads_text_as_the_teacher_does(tmp_path: Path):
    """The merged model gives the teacher's log-likelihoods of text, and a student before it does not."""
    teacher = tiny_teacher(seed=3, folder=tmp_path / "lm")
    student = tiny_student(tiny_teacher(seed=4), folder=tmp_path / "vlm")
    merge(str(tmp_path / "lm"), str(tmp_path / "vlm"), tmp_path / "out", [1.0])
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert type(merged) is Idefics3ForConditionalGeneration
    ids_BT = torch.randint(3, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))
    expected = logliks(teacher, ids_BT)
    assert torch.equal(logliks(merged.eval(), ids_BT), expected)
    assert (logliks(student, ids_BT) - expected).abs().max() > 1


def test_in_between_decoder_and_head_are_averaged_and_the_rest_is_the_students(pair: Path, tmp_path: Path):
    """At 0.25 a decoder weight is the mean, rounded once; tower, projector and new tokens are the student's."""
    merge(str(pair / "lm"), str(pair / "vlm"), tmp_path / "out", [0.25])
    before, after, teacher = tensors(pair / "vlm"), tensors(tmp_path / "out"), tensors(pair / "lm")
    decoder = 0
    for name, tensor in before.items():
        if ".text_model." not in name:
            assert torch.equal(after[name], tensor), name
            continue
        decoder += 1
        theirs, ours = teacher[name.replace("text_model.", "")], tensor.float()
        mean = 0.75 * ours[: len(theirs)] + 0.25 * theirs
        half_a_bit = 1.001 * 2**-8  # the export rounds once
        torch.testing.assert_close(after[name][: len(theirs)].float(), mean, rtol=half_a_bit, atol=1e-6)
        assert torch.equal(after[name][len(theirs) :], tensor[len(theirs) :])
        assert name.endswith("norm.weight") or not torch.equal(after[name], tensor)
    assert decoder == len(teacher)


@pytest.mark.parametrize("name", each())
def test_every_family_has_a_decoder_that_can_be_merged(name: str):
    """Decoder and head of another teacher go into the student of each family, tied or not, and into nothing else."""
    family = FAMILIES[name]
    student, teacher = family.student(family.teacher()), family.teacher(seed=5)
    head = output_head(student).weight_VD
    language = {id(p) for p in [*student.get_decoder().parameters(), head]}
    others = {n: p.clone() for n, p in student.named_parameters() if id(p) not in language}
    added = head[VOCABULARY:].clone()

    interpolate_(student, teacher, 1.0, torch.arange(len(head)) < VOCABULARY)

    theirs = dict(teacher.get_decoder().named_parameters())
    for part, parameter in student.get_decoder().named_parameters():
        assert torch.equal(parameter[: len(theirs[part])], theirs[part]), part
    assert torch.equal(head[:VOCABULARY], output_head(teacher).weight_VD)
    assert torch.equal(head[VOCABULARY:], added)
    parameters = dict(student.named_parameters())
    assert all(torch.equal(parameters[n], before) for n, before in others.items())


def test_a_head_tied_on_one_side_alone_is_refused():
    """No weights lie between a head that is the embedding matrix and one that is not."""
    tied, untied = FAMILIES["qwen2_vl"], FAMILIES["qwen2_audio"]
    teachers = [family.teacher() for family in (tied, untied)]
    student = tied.student(teachers[0])
    with pytest.raises(UserError, match="the student's output head is its embedding matrix and the teacher's is not"):
        interpolate_(student, teachers[1], 0.5, torch.ones(len(output_head(student).weight_VD), dtype=torch.bool))


def test_tokens_of_the_students_own_do_not_take_part():
    """Ids beyond the teacher's rows, and ids whose token the student renamed, keep the student's rows."""
    teacher, core = tiny_tokenizer(), tiny_tokenizer().backend_tokenizer.to_str()
    renamed = core.replace("<|im_end|>", "<image_start>")
    assert renamed != core
    student = PreTrainedTokenizerFast(tokenizer_object=type(teacher.backend_tokenizer).from_str(renamed))
    check_tokenizers(student, teacher)  # one renamed token does not make it another tokenizer
    common_V = common_ids(student, teacher, student_rows=VOCABULARY + 4, teacher_rows=VOCABULARY)
    assert student.convert_tokens_to_ids("<image_start>") == 2
    assert (~common_V).nonzero().flatten().tolist() == [2, *range(VOCABULARY, VOCABULARY + 4)]


def test_several_weights_make_a_folder_each(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """The command writes OUT-WEIGHT for each, with different weights inside, and says where."""
    main([f"teacher={pair / 'lm'}", f"student={pair / 'vlm'}", f"out={tmp_path / 'merged'}", "weight=0.25,1"])
    folders = [tmp_path / "merged-0.25", tmp_path / "merged-1"]
    assert capsys.readouterr().out.splitlines() == [f"wrote {folder}" for folder in folders]
    name = "model.text_model.layers.0.mlp.up_proj.weight"
    quarter, whole = (tensors(folder)[name] for folder in folders)
    assert not torch.equal(quarter, whole)
    assert torch.equal(whole, tensors(pair / "lm")[name.replace("text_model.", "")].bfloat16())


def test_the_teacher_may_be_a_gguf_file(tmp_path: Path):
    """A VLM built on a GGUF file's model, its decoder then altered, gets that file's weights back at weight 1."""
    lm = tiny_llama()
    write_gguf(lm, tmp_path / "lm.gguf")
    convert(tmp_path / "lm.gguf", tmp_path / "lm")
    config = Config(
        name="built",
        student=StudentConfig(
            from_teacher=VisionConfig(image_size=32, patch_size=8, hidden_size=32, layers=1, heads=2)
        ),
        teacher=TeacherConfig(path=str(tmp_path / "lm")),
        corpus=CorpusConfig(sources=(SourceConfig(name="text", format="text", path="x", language_heavy=True),)),
    )
    prepare_student(config, tmp_path / "vlm")
    student = AutoModelForImageTextToText.from_pretrained(tmp_path / "vlm")
    torch.nn.init.normal_(student.get_decoder().layers[0].mlp.up_proj.weight)
    student.save_pretrained(tmp_path / "vlm")

    merge(str(tmp_path / "lm.gguf"), str(tmp_path / "vlm"), tmp_path / "out", [1.0])

    name = "layers.0.mlp.up_proj.weight"
    expected = lm.state_dict()[f"model.{name}"]
    assert torch.equal(tensors(tmp_path / "out")[f"model.text_model.{name}"], expected)
    assert not torch.equal(tensors(tmp_path / "vlm")[f"model.text_model.{name}"], expected)


def test_what_cannot_be_merged_is_refused(pair: Path, tmp_path: Path):
    """Missing or wrong arguments, a folder that is there, models that are no pair: named, and nothing is written."""
    lm, vlm, out = f"teacher={pair / 'lm'}", f"student={pair / 'vlm'}", f"out={tmp_path / 'out'}"
    tiny_teacher(layers=2, folder=tmp_path / "shallow")
    refused = {
        "out: missing; give a path": [lm, vlm],
        "is not a setting: the command takes key=value alone": [lm, vlm, str(tmp_path / "out")],
        r"weight: a number from 0 to 1 .* \[weight=1.5\]": [lm, vlm, out, "weight=1.5"],
        r"weight.0: half does not fit; .* \[weight=half\]": [lm, vlm, out, "weight=half"],
        r"weight: a number .* \[weight=0.5,0.5\]": [lm, vlm, out, "weight=0.5,0.5"],
        f"{pair / 'vlm'} exists": [lm, vlm, f"out={pair / 'vlm'}"],
        "num_hidden_layers: student 3, teacher 2": [f"teacher={tmp_path / 'shallow'}", vlm, out],
        "is not a text-only causal LM": [f"teacher={pair / 'vlm'}", vlm, out],
        "has no vision_config": [lm, f"student={pair / 'lm'}", out],
        "student: no such file or folder: .*nothing": [lm, f"student={tmp_path / 'nothing'}", out],
    }
    for message, arguments in refused.items():
        with pytest.raises(UserError, match=message):
            main(arguments)
    assert not (tmp_path / "out").exists()
