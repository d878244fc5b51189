"""A model is what its files say: whatever is wrong with a folder is said by name, before anything is built."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import ADDED, FAMILIES, VOCABULARY
from processors import PROCESSORS, processor_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import tiny_processor, tiny_student, tiny_teacher, tiny_tokenizer
from tinyrun import NEW_STUDENT, config, write_pair_and_data
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    BloomConfig,
    DiffLlamaConfig,
    Gemma3TextConfig,
    GPTNeoConfig,
    LlamaForSequenceClassification,
    MoshiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from lingu_ray.config import Config, StudentConfig, TeacherConfig
from lingu_ray.corpus.encode import Encoder
from lingu_ray.corpus.plan import plan_corpus
from lingu_ray.corpus.processor import run_processor
from lingu_ray.errors import UserError
from lingu_ray.evaluation.engines.load import load_model_files
from lingu_ray.inspect import InspectConfig, read_sources
from lingu_ray.runtime import preparation
from lingu_ray.runtime.models.export import export_model
from lingu_ray.runtime.models.load import (
    export_dtype,
    load_config,
    load_processor,
    load_student,
    load_teacher,
    load_teacher_tokenizer,
    teacher_vocabulary,
)
from lingu_ray.runtime.models.verify import question
from lingu_ray.runtime.models.weights import _JSON_FILES, check_files, empty_model, load_whole
from lingu_ray.runtime.preparation import prepare_initial_model
from lingu_ray.runtime.rehearsal import check_image_features, rehearse_export, rehearse_teacher
from lingu_ray.runtime.run_folder.folder import RunFolder

pytestmark = pytest.mark.slow  # loads, spoils and repairs whole models

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair and data on disk."""
    folder = tmp_path_factory.mktemp("pair")
    write_pair_and_data(folder)
    return folder


def changed(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Rewrite the weights of a folder."""
    tensors = change(load_file(folder / WEIGHTS))
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def changed_json(file: Path, **values: Any) -> None:
    """Set keys of a JSON file, which may be new."""
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.write_text(json.dumps(before | values), encoding="utf-8")


def prefixed(prefix: str) -> Callable[[Path], None]:
    """Every name with a prefix."""
    return lambda folder: changed(folder, lambda ts: {prefix + name: tensor for name, tensor in ts.items()})


def without(part: str) -> Callable[[Path], None]:
    """No tensor with this in its name."""
    return lambda folder: changed(folder, lambda ts: {name: t for name, t in ts.items() if part not in name})


def cut_off(folder: Path) -> None:
    """The last byte of the weights is gone."""
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-1])


def absent_shard(folder: Path) -> None:
    """An index with a shard that is not there."""
    names = dict.fromkeys(load_file(folder / WEIGHTS), "model-00001-of-00002.safetensors")
    names |= {next(iter(names)): "model-00002-of-00002.safetensors"}
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))


def only_pickled(folder: Path) -> None:
    """Weights as PyTorch's own files."""
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def another_width(folder: Path) -> None:
    """A norm's weight of half its size."""
    changed(folder, lambda ts: {name: t[: len(t) // 2] if "norm.weight" in name else t for name, t in ts.items()})


def with_adapter(folder: Path) -> None:
    """The adapter of peft's that was trained on the folder's model."""
    changed_json(folder / "adapter_config.json", peft_type="LORA", base_model_name_or_path="some/base")


def adapter_alone(folder: Path) -> None:
    """What peft saves: no model."""
    for file in (folder / WEIGHTS, folder / "config.json"):
        file.unlink()
    with_adapter(folder)


def decoder(**values: int) -> Callable[[Path], None]:
    """Writes numbers into what the model's configuration says of its decoder."""

    def write(folder: Path) -> None:
        found = json.loads((folder / "config.json").read_text())
        found.get("text_config", found).update(values)
        (folder / "config.json").write_text(json.dumps(found))

    return write


def quantized(**settings: Any) -> Callable[[Path], None]:
    """A configuration that says how the weights are quantized."""
    return lambda folder: changed_json(folder / "config.json", quantization_config=settings)


def quantized_by_an_old_version(folder: Path) -> None:
    """Weights of GPTQ whose settings stand in a file of their own, quantize_config.json."""
    changed(folder, lambda ts: {name.replace("_proj.weight", "_proj.qweight"): tensor for name, tensor in ts.items()})


def eight_bits(dtype: torch.dtype) -> Callable[[Path], None]:
    """Matrices of eight bits under a configuration that says nothing of it, and without scales."""
    return lambda folder: changed(
        folder, lambda ts: {name: t.to(dtype) if "_proj" in name else t for name, t in ts.items()}
    )


def own_code(folder: Path) -> None:
    """A class that comes with the checkpoint."""
    changed_json(
        folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
    )
    (folder / "own.py").write_text("raise SystemExit('this code was run')")


MUTILATIONS: dict[str, tuple[Callable[[Path], None], str]] = {
    "names of peft": (
        prefixed("base_model.model."),
        r"missing, and would be random: (?s:.*)left over: (?s:.*)merge_and",
    ),
    "names of DDP": (prefixed("module."), "save its `.module`"),
    "names of torch.compile": (prefixed("_orig_mod."), "save its `._orig_mod`"),
    "no embeddings": (without("embed_tokens"), "missing, and would be random: (?s:.*)embed_tokens"),
    "no last layer": (without("layers.2."), r"missing, and would be random: .*layers.2.* and 6 more"),
    "another tensor": (lambda f: changed(f, lambda ts: ts | {"v_head.weight": torch.ones(2)}), "left over: v_head"),
    "another shape": (another_width, r"of another shape: .*norm.weight \[32\] instead of \[64\]"),
    "another architecture": (
        lambda f: changed(f, lambda ts: {name.replace("self_attn", "attention"): t for name, t in ts.items()}),
        "missing, and would be random: .*self_attn(?s:.*)left over: .*attention",
    ),
    "cut off": (cut_off, "model.safetensors is cut off or damaged"),
    "empty": (lambda f: (f / WEIGHTS).write_bytes(b""), "model.safetensors is cut off or damaged"),
    "absent shard": (absent_shard, r"names model-00002-of-00002.safetensors, not found"),
    "damaged index": (
        lambda f: (absent_shard(f), (f / INDEX).write_text("{")),
        "index.json is cut off, or no JSON .*: copy or download it again$",
    ),
    "index of names alone": (
        lambda f: (absent_shard(f), changed_json(f / INDEX, weight_map=[WEIGHTS])),
        "index.json names no files by tensor .*: copy or download it again$",
    ),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "no model.safetensors and no .* Copy or download"),
    "pickle": (only_pickled, r"It holds pytorch_model.bin: pickle can run code, and is not read"),
    "adapter beside": (with_adapter, r"holds an adapter of some/base .* merge_and_unload\(\)"),
    "adapter alone": (adapter_alone, r"holds an adapter of some/base .* merge_and_unload\(\)"),
    "bitsandbytes": (quantized(quant_method="bitsandbytes", load_in_4bit=True), r"are quantized \(bitsandbytes\)"),
    "GPTQ": (quantized(quant_method="gptq", bits=4), r"are quantized \(gptq\)"),
    "old GPTQ": (quantized_by_an_old_version, r"left over: .*qweight(?s:.*)quantized weights: .* was not quantized"),
    "AWQ": (quantized(quant_method="awq", bits=4), r"are quantized \(awq\)"),
    "FP8": (quantized(quant_method="fp8"), r"are quantized \(fp8\)"),
    "FP8 that is not said": (eight_bits(torch.float8_e4m3fn), r"are quantized \(F8_E4M3: .*_proj"),
    "INT8 that is not said": (eight_bits(torch.int8), r"are quantized \(I8: .*_proj"),
    "own code": (own_code, "comes with model code of its own"),
    "endless layers": (decoder(num_hidden_layers=10**12), "has num_hidden_layers=1000000000000, which is no"),
    "fewer tokens than none": (decoder(vocab_size=-1), "cannot be loaded as a"),
    "a field of another type": (
        lambda f: changed_json(f / "config.json", tie_word_embeddings="both"),
        "'tie_word_embeddings'(?s:.*)expected bool",
    ),
}


@pytest.mark.parametrize(
    "content", [b"", b'{"a"', b"[]", b"3", b'{"a": "\xff"}', b"[" * 100_000], ids=lambda b: str(b[:9])
)
def test_a_damaged_json_file_is_named(content: bytes, tmp_path: Path) -> None:
    """Cut off, of another shape or encoding: Transformers fails at it without its name, or in an AttributeError."""
    tiny_teacher(folder=tmp_path)
    names = {*_JSON_FILES, "adapter_config.json"}
    for file in (tmp_path / name for name in sorted(names)):
        before = file.read_bytes() if file.exists() else None
        file.write_bytes(content)
        for load in (load_model_files, lambda folder: load_config(str(folder), None, False, "model")):
            with pytest.raises(UserError, match=rf"^model: {file} .*: copy or download it again$"):
                load(tmp_path)
        file.unlink() if before is None else file.write_bytes(before)
    assert load_model_files(tmp_path).processor is None


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("mutilation", MUTILATIONS)
def test_a_mutilated_model_is_refused_before_the_corpus(mutilation: str, role: str, pair: Path, tmp_path: Path) -> None:
    """Setting, folder, what is wrong and the cure are said; nothing of the run is written but its folder."""
    mutilate, message = MUTILATIONS[mutilation]
    shutil.copytree(pair / role, tmp_path / role)
    mutilate(tmp_path / role)
    settings = config(pair, tmp_path / "runs", **{role: {"path": str(tmp_path / role)}})
    with pytest.raises(UserError, match=rf"^{role}\.path(?s:.*){tmp_path / role}(?s:.*){message}"):
        prepare_initial_model(settings, RunFolder(settings.run_dir))
    assert not RunFolder(settings.run_dir).initial_model.exists()


@pytest.mark.parametrize("mutilation", ["names of peft", "another tensor", "another shape", "cut off"])
def test_what_only_loading_can_tell_is_told_by_it(mutilation: str, pair: Path, tmp_path: Path) -> None:
    """A model of the hub has no files here before it is loaded: loading refuses the same."""
    mutilate, message = MUTILATIONS[mutilation]
    for role in ("student", "teacher"):
        shutil.copytree(pair / role, tmp_path / role)
        mutilate(tmp_path / role)
    settings = config(tmp_path, tmp_path)
    message = "student.path" if mutilation == "cut off" else message
    with pytest.raises(UserError, match=message):
        load_student(settings.student)
    with pytest.raises(UserError, match=message.replace("student", "teacher")):
        load_teacher(settings.teacher, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value: float, pair: Path, tmp_path: Path) -> None:
    """One is enough; the tensor is named."""
    shutil.copytree(pair / "student", tmp_path / "student")

    def damage(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors["model.text_model.norm.weight"][3] = value
        return tensors

    changed(tmp_path / "student", damage)
    with pytest.raises(UserError, match=r"student.path=.*: model.text_model.norm.weight holds NaN or infinity"):
        load_student(StudentConfig(path=str(tmp_path / "student")))


def test_a_classifier_is_no_teacher(pair: Path, tmp_path: Path) -> None:
    """A head for classes is left over, and the one for tokens missing where it is not tied."""
    teacher = tiny_teacher()
    teacher.config.tie_word_embeddings = False
    LlamaForSequenceClassification(teacher.config).save_pretrained(tmp_path / "teacher")
    settings = config(pair, tmp_path, teacher={"path": str(tmp_path / "teacher")})
    with pytest.raises(UserError, match=r"would be random: lm_head.weight(?s:.*)left over: score.weight"):
        prepare_initial_model(settings, RunFolder(settings.run_dir))


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_folder_has_no_revision(role: str, pair: Path, tmp_path: Path) -> None:
    """It would be ignored."""
    settings = config(pair, tmp_path, **{role: {"path": str(pair / role), "revision": "v2"}})
    with pytest.raises(UserError, match=rf"{role}.path: .* is no hub id, so revision=v2 means nothing"):
        prepare_initial_model(settings, RunFolder(settings.run_dir))


def as_is(model: PreTrainedModel, folder: Path) -> None:
    """What `save_pretrained` writes."""
    model.save_pretrained(folder)


def sharded(model: PreTrainedModel, folder: Path) -> None:
    """Many files."""
    model.save_pretrained(folder, max_shard_size="50KB")


def halves(model: PreTrainedModel, folder: Path) -> None:
    """Weights in bfloat16."""
    model.bfloat16().save_pretrained(folder)


def with_tied_head(model: PreTrainedModel, folder: Path) -> None:
    """The head beside the embeddings that it is."""
    model.save_pretrained(folder)
    changed(folder, lambda ts: ts | {"lm_head.weight": model.get_input_embeddings().weight.detach().clone()})


def with_computed_buffers(model: PreTrainedModel, folder: Path) -> None:
    """The buffers that older versions saved."""
    model.save_pretrained(folder)
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    changed(folder, lambda ts: ts | old)


@pytest.mark.parametrize("save", [as_is, sharded, halves, with_tied_head, with_computed_buffers])
@pytest.mark.parametrize("family", ["llava", "idefics3", "qwen2_vl"])
def test_what_is_whole_is_not_refused(
    family: str, save: Callable[[PreTrainedModel, Path], None], tmp_path: Path
) -> None:
    """Files as people have them pass: shards, tied heads, old buffers, another precision; and they load."""
    student = FAMILIES[family].student(FAMILIES[family].teacher())
    save(student, tmp_path)
    check_files(empty_model(AutoModelForImageTextToText, student.config), tmp_path, "student.path=x")
    load_whole(AutoModelForImageTextToText, "student.path=x", str(tmp_path))


@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_onevision", "paligemma2"])
def test_names_of_older_checkpoints_are_known(family: str, tmp_path: Path) -> None:
    """LLaVA's published files have `language_model.model.…` and `vision_tower.vision_model.…`: they are found."""
    student = FAMILIES[family].student(FAMILIES[family].teacher())
    student.save_pretrained(tmp_path)

    def older(name: str) -> str:
        name = name.replace("model.vision_tower.", "vision_tower.").replace(
            "model.language_model.", "language_model.model."
        )
        inner = name.removeprefix("vision_tower.")
        return f"vision_tower.vision_model.{inner.removeprefix('vision_model.')}" if inner != name else name

    changed(tmp_path, lambda ts: {older(name): tensor for name, tensor in ts.items()})
    with safe_open(tmp_path / WEIGHTS, "pt") as file:
        assert any(name.startswith("vision_tower.vision_model.") for name in file.keys())  # noqa: SIM118
    check_files(empty_model(AutoModelForImageTextToText, student.config), tmp_path, "student.path=x")


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """A student's folder to change."""
    tiny_student(tiny_teacher(), folder=tmp_path / "student")
    return tmp_path / "student"


@pytest.mark.parametrize(
    "flags",
    [
        {"temperature": 0.9},
        {"temperature": 0.2, "top_p": 0.9, "top_k": 5, "min_p": 0.1},
        {"num_beams": 1, "length_penalty": 2.0},
        {"use_cache": False, "cache_implementation": "static"},
        {"output_scores": True},
        {"pad_token_id": -1},
    ],
    ids=str,
)
def test_generation_flags_without_effect_do_not_end_a_run(
    flags: dict[str, Any], student: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Transformers loads but does not save them: they are dropped with a word, and the export can be written."""
    caplog.set_level(logging.INFO)
    changed_json(student / "generation_config.json", **flags)
    rehearse_export(StudentConfig(path=str(student)), tiny_processor())
    dropped = [name for name in flags if name not in ("num_beams", "use_cache")]
    assert all(name in caplog.text for name in dropped) and "have no effect there, and are dropped" in caplog.text


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (BloomConfig, "layer 0 did not donate .* attends by code of its own"),
        (GPTNeoConfig, "layer 0 did not donate"),
        (DiffLlamaConfig, "layer 0 of the decoder attends more than once"),
        (MoshiConfig, "it computes something else than in one pass"),
    ],
)
def test_a_teacher_that_cannot_be_continued_is_known_by_its_configuration(
    kind: type[PreTrainedConfig], reason: str, tmp_path: Path
) -> None:
    """Of the size that is published, in seconds, without a weight; torch's random numbers are left alone."""
    kind().save_pretrained(tmp_path)
    before = torch.random.get_rng_state()
    with pytest.raises(UserError, match=rf"^teacher.path={tmp_path}: {kind.model_type} cannot be .*: {reason}"):
        rehearse_teacher(TeacherConfig(path=str(tmp_path)))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("sizes", [{}, {"hidden_size": 16384, "head_dim": 1024}])
def test_a_teacher_of_a_published_size_is_not_refused(sizes: dict[str, int], tmp_path: Path) -> None:
    """Nor is one that is too large to be tried."""
    Gemma3TextConfig(**sizes).save_pretrained(tmp_path)
    rehearse_teacher(TeacherConfig(path=str(tmp_path)))


@pytest.mark.parametrize("policy", ["selective", "none"])
def test_teachers_are_tried_before_the_corpus(
    policy: str, pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is something to distill, once for a run."""
    asked: list[TeacherConfig] = []
    monkeypatch.setattr(preparation, "rehearse_teacher", asked.append)
    settings = config(pair, tmp_path, distill={"policy": policy})
    for _ in range(2):
        prepare_initial_model(settings, RunFolder(settings.run_dir))
    assert asked == ([settings.teacher] if policy == "selective" else [])


def with_head(times: float) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Weights with a head beside the embeddings: so many times these."""

    def add(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        embeddings = next(tensor for name, tensor in tensors.items() if name.endswith("embed_tokens.weight"))
        return tensors | {"lm_head.weight": times * embeddings}

    return add


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_head_that_is_saved_twice_is_taken(role: str, pair: Path, tmp_path: Path) -> None:
    """It is the embedding matrix, as older versions have written it."""
    shutil.copytree(pair / role, tmp_path / role)
    changed(tmp_path / role, with_head(1.0))
    settings = config(pair, tmp_path / "runs", **{role: {"path": str(tmp_path / role)}})
    prepare_initial_model(settings, RunFolder(settings.run_dir))


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_second_head_of_a_tied_model_is_refused(role: str, pair: Path, tmp_path: Path) -> None:
    """Transformers would take the head of the files, and vLLM the embedding matrix; told by the files, before the
    corpus, and where they are not here yet, by loading."""
    shutil.copytree(pair / role, tmp_path / role)
    changed(tmp_path / role, with_head(2.0))
    settings = config(pair, tmp_path / "runs", **{role: {"path": str(tmp_path / role)}})
    with pytest.raises(UserError, match=rf"^{role}.path=.* hold another head"):
        prepare_initial_model(settings, RunFolder(settings.run_dir))
    path = str(tmp_path / role)
    with pytest.raises(UserError, match=rf"{role}.path=.* hold another head"):
        if role == "student":
            load_student(StudentConfig(path=path))
        else:
            load_teacher(TeacherConfig(path=path), torch.float32, torch.device("cpu"))


def test_a_teacher_knows_the_ids_of_its_tokenizer(tmp_path: Path) -> None:
    """Rows beyond them, which make a vocabulary divide well, are in no distribution; `inspect` counts as training."""
    teacher, tokens = copy.deepcopy(tiny_teacher()), tiny_tokenizer()
    teacher.resize_token_embeddings(384, mean_resizing=False)
    teacher.save_pretrained(tmp_path)
    tokens.save_pretrained(tmp_path)
    settings = TeacherConfig(path=str(tmp_path))
    loaded = load_teacher(settings, torch.float32, torch.device("cpu"))
    assert len(loaded.model.get_input_embeddings().weight) == 384
    assert loaded.output_head.vocabulary == teacher_vocabulary(settings) == len(tokens) < 384


def test_a_teacher_without_tokenizer_files_is_refused(tmp_path: Path) -> None:
    """Transformers makes an empty tokenizer of such a folder, by which KD would compare three ids."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    Qwen2ForCausalLM(Qwen2Config(**sizes, num_key_value_heads=2, vocab_size=320)).save_pretrained(tmp_path)
    settings = TeacherConfig(path=str(tmp_path))
    for load in (load_teacher_tokenizer, teacher_vocabulary):
        with pytest.raises(UserError, match=r"teacher.path=.* has tokens for 1 of .*tokenizer.json"):
            load(settings)
    with pytest.raises(UserError, match=r"teacher.path=.* has tokens for 1 of .*tokenizer.json"):
        load_teacher(settings, torch.float32, torch.device("cpu"))


def test_a_tower_in_the_teacher_is_told_where_its_tokenizer_alone_is_read(student: Path) -> None:
    """As `inspect` does, which loads no pair."""
    with pytest.raises(UserError, match=r"teacher.path=.*: idefics3 is not a text-only causal LM"):
        teacher_vocabulary(TeacherConfig(path=str(student)))


def test_a_head_that_the_text_alone_ties_is_told_its_cure(student: Path) -> None:
    """Of files as Transformers 4 has written them."""
    changed_json(student / "config.json", tie_word_embeddings=False)
    with pytest.raises(
        UserError, match=r"random: lm_head.weight\nA head .* set tie_word_embeddings to true at the top"
    ):
        load_student(StudentConfig(path=str(student)))


def test_an_export_has_the_dtype_that_the_text_alone_names(student: Path) -> None:
    """Some VLMs are published so."""
    text = json.loads((student / "config.json").read_text())["text_config"]
    changed_json(student / "config.json", dtype=None, text_config=text | {"dtype": "bfloat16"})
    assert export_dtype(StudentConfig(path=str(student))) == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_an_export_has_the_dtype_of_the_files_where_nothing_names_it(student: Path, dtype: torch.dtype) -> None:
    """Most numbers count, not the first tensor: norms may be kept in float32."""
    text = json.loads((student / "config.json").read_text())["text_config"]
    changed_json(student / "config.json", dtype=None, text_config=text | {"dtype": None})
    changed(student, lambda ts: {name: t if "norm" in name else t.to(dtype) for name, t in ts.items()})
    assert export_dtype(StudentConfig(path=str(student))) == dtype


def too_large_tokenizer(folder: Path) -> None:
    """A token more than the embeddings have rows."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<one more>"])
    tokenizer.save_pretrained(folder)


def bad_flags(**flags: Any) -> Callable[[Path], None]:
    """Generation settings that Transformers refuses to load."""
    return lambda folder: changed_json(folder / "generation_config.json", **flags)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (bad_flags(num_return_sequences=3), "its generation_config.json cannot be used: .*num_return_sequences"),
        (bad_flags(max_new_tokens=0), "its generation_config.json cannot be used: .*max_new_tokens"),
        (lambda f: (f / "generation_config.json").write_text("{"), "generation_config.json is cut off"),
        (too_large_tokenizer, r"has 1 tokens beyond the 324 rows of its embeddings: <one more> \(324\)"),
        (lambda f: (f / "chat_template.jinja").write_text("{{ messages[0]['role'] }}"), "template"),
        (
            lambda f: changed_json(f / "processor_config.json", image_seq_len=2),
            "writes 2 image tokens, .* has 4 features",
        ),
        (lambda f: changed_json(f / "config.json", image_token_id=5), r"writes token 320 \(<image>\) .* place of 5: "),
    ],
)
def test_an_export_that_would_fail_is_refused_before_training(
    change: Callable[[Path], Any], message: str, student: Path, pair: Path, tmp_path: Path
) -> None:
    """What the end of a run needs is tried at its start, and nothing is left of the attempt."""
    change(student)
    settings = config(pair, tmp_path, student={"path": str(student)})
    with pytest.raises(UserError, match=rf"student.path[=:].*{message}"):
        prepare_initial_model(settings, RunFolder(settings.run_dir))
    assert not RunFolder(settings.run_dir).initial_model.exists()


@pytest.mark.parametrize("new", [False, True])
def test_adapters_that_cannot_be_made_are_refused_before_the_corpus(
    new: bool, pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A target's name that no layer has, and peft that is not installed, of an existing student and of a new one."""
    student = NEW_STUDENT if new else {}

    def prepare(*targets: str) -> None:
        settings = config(pair, tmp_path, student=student, train={"lora": {"targets": [*targets]}})
        prepare_initial_model(settings, RunFolder(settings.run_dir))

    prepare()
    prepare("q_proj", "v_proj")
    with pytest.raises(UserError, match=r"train\.lora\.targets: .*no linear layer named q_porj; it has .*q_proj"):
        prepare("q_porj")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"train\.lora needs peft"):
        prepare()


def test_a_run_needs_room_for_its_export(pair: Path, tmp_path: Path) -> None:
    """A pair that fits passes: processor in the run's folder, weights where they were."""
    settings: Config = config(pair, tmp_path)
    folder = RunFolder(settings.run_dir)
    prepare_initial_model(settings, folder)
    assert (folder.initial_model / "tokenizer.json").exists() and not (folder.initial_model / WEIGHTS).exists()
    student = load_student(settings.student)
    needed = rehearse_export(settings.student, tiny_processor())
    assert needed == sum(p.numel() for p in student.parameters()) * (4 + 4)


@pytest.mark.parametrize("name", PROCESSORS)
def test_an_image_has_as_many_tokens_as_features(name: str) -> None:
    """Of every family; one token more is refused, and torch's random numbers are left alone."""
    family, processor = FAMILIES[name], processor_of(name)
    config = family.config(family.decoder.to_dict() | {"vocab_size": VOCABULARY + len(ADDED)})
    token, before = Encoder(processor, 1).image_token_id, torch.random.get_rng_state()
    inputs = question(processor, Encoder(processor, 1))
    check_image_features(config, inputs, token, "student.path=x")
    written = int((inputs["input_ids"] == token).sum())
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token]])], 1)
    message = rf"^student.path=x: for one picture its processor writes {written + 1} .* has {written} features: correct"
    with pytest.raises(UserError, match=message):
        check_image_features(config, inputs, token, "student.path=x")
    assert torch.equal(torch.random.get_rng_state(), before)


OWN_PROCESSOR = """
from transformers import Idefics3Processor


class OwnProcessor(Idefics3Processor):
    pass
"""


OWN_MODEL = """
from transformers import Idefics3Config, Idefics3ForConditionalGeneration


class OwnConfig(Idefics3Config):
    model_type = "own_vlm"


class OwnModel(Idefics3ForConditionalGeneration):
    config_class = OwnConfig
"""
TASK = {"name": "cities", "kind": "language", "type": "last_word", "path": "cities.jsonl"}


@pytest.fixture
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that comes with models is copied into the test's folder."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


@pytest.fixture
def own_model(student: Path, own_modules: None) -> Path:
    """A student whose model has code of its own, and whose processor is one of Transformers."""
    (student / "modeling_own.py").write_text(OWN_MODEL)
    own = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForImageTextToText": "modeling_own.OwnModel"}
    changed_json(student / "config.json", model_type="own_vlm", architectures=["OwnModel"], auto_map=own)
    return student


@pytest.fixture
def own_processor(student: Path, own_modules: None) -> Path:
    """A student whose model is one of Transformers, and whose processor has code of its own."""
    (student / "processing_own.py").write_text(OWN_PROCESSOR)
    own = {"processor_class": "OwnProcessor", "auto_map": {"AutoProcessor": "processing_own.OwnProcessor"}}
    changed_json(student / "processor_config.json", **own)
    changed_json(student / "tokenizer_config.json", processor_class="OwnProcessor")
    return student


def test_a_processor_with_code_of_its_own_is_run_where_it_is_trusted(
    own_processor: Path, pair: Path, tmp_path: Path
) -> None:
    """From the run's copy too: on preparing and rehearsing, in the corpus's build, in its preview and in an export."""
    settings = config(pair, tmp_path, student={"path": str(own_processor), "trust_remote_code": True})
    folder = RunFolder(settings.run_dir)
    prepare_initial_model(settings, folder)
    processor = run_processor(folder.initial_model, trust_remote_code=True)
    assert type(processor).__name__ == "OwnProcessor"
    plan = plan_corpus(settings, folder.initial_model)
    (row, *_), *_ = (table.to_pylist() for table in plan.tasks[-1].tables())
    assert row["reason"] is None
    assert [preview.read for preview in read_sources(settings, list(plan.sources), InspectConfig(read=2))] == [2, 2]
    export_model(load_student(settings.student), processor, torch.float32, tmp_path / "export")
    assert (tmp_path / "export" / "processing_own.py").exists()


def test_a_processor_with_code_of_its_own_is_refused(own_processor: Path, pair: Path, tmp_path: Path) -> None:
    """With the setting that trusts it; nothing of it is run, and nobody is asked."""
    settings = config(pair, tmp_path, student={"path": str(own_processor)})
    with pytest.raises(UserError, match=r"student.path: .*processor code of its own.* set student.trust_remote_code="):
        prepare_initial_model(settings, RunFolder(settings.run_dir))
    with pytest.raises(ValueError, match="trust_remote_code"):
        run_processor(own_processor, trust_remote_code=False)
    assert not (tmp_path / "modules").exists()


def test_a_text_only_model_is_no_student_of_a_preview(pair: Path) -> None:
    """`inspect` reads the student's processor and no model; of an LM that is its tokenizer."""
    with pytest.raises(UserError, match=r"^student.path=.*teacher: its processor, a \w+, takes no images: name a VLM$"):
        load_processor(StudentConfig(path=str(pair / "teacher")))


@pytest.mark.parametrize("kind", ["own_model", "own_processor"])
def test_code_that_evaluation_does_not_run_is_refused_before_training(
    kind: str, pair: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """With tasks, on a resumed run too; without them it is taken, and of its export is said why it is not measured."""
    path = request.getfixturevalue(kind)
    settings = config(pair, tmp_path, student={"path": str(path), "trust_remote_code": True})
    folder = RunFolder(settings.run_dir)
    prepare_initial_model(settings, folder)
    measured = config(pair, tmp_path, student=settings.student.model_dump(), evaluation={"tasks": [TASK]})
    for _ in range(2):
        with pytest.raises(UserError, match=r"evaluation\.tasks: student\.path=.* has code of its own"):
            prepare_initial_model(measured, folder)
        shutil.rmtree(folder.initial_model)
    export_model(load_student(settings.student), load_processor(settings.student), torch.float32, tmp_path / "export")
    with pytest.raises(UserError, match=r"export comes with (model )?code of its own.*, which is not run"):
        load_model_files(tmp_path / "export")


def test_trust_alone_is_no_reason_to_measure_nothing(student: Path, pair: Path, tmp_path: Path) -> None:
    """A student of Transformers' own classes is measured, whatever is trusted."""
    trusted = {"path": str(student), "trust_remote_code": True}
    settings = config(pair, tmp_path, student=trusted, evaluation={"tasks": [TASK]})
    prepare_initial_model(settings, RunFolder(settings.run_dir))
