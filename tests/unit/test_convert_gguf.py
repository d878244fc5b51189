"""A GGUF file becomes a Hugging Face folder with the same weights, tokenizer and chat template."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter, RopeScalingType, TokenType
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from lingu_ray.config import TeacherConfig
from lingu_ray.convert_gguf import convert, find_gguf
from lingu_ray.distill.pair import compare_decoders
from lingu_ray.errors import UserError
from lingu_ray.evaluation.engines.load import load_model_files
from lingu_ray.runtime.models.gguf_tokenizer import load_tokenizer
from lingu_ray.runtime.models.load import load_config, teacher_tokens

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefgh01", "Ġ", "Ċ", "ab", "cd", "abcd", "ĊĊ"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
    "model.layers": "blk",
}


def tiny_llama(padding: int = 0) -> LlamaForCausalLM:
    """`padding`: ids beyond those that have a token."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS) + padding,
        hidden_size=HEADS * HEAD_DIM,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def gguf_rows(name: str, weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF interleaves the two halves of a rotary head: the rows of q and k, as llama.cpp's converter lays them."""
    if not name.endswith(("attn_q.weight", "attn_k.weight")):
        return weight
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def write_all(writer: GGUFWriter) -> None:
    """Write what was added, and close the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def byte_level(writer: GGUFWriter, pre: str = "smollm") -> None:
    """A tokenizer of bytes, split as `pre` says."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["a b", "c d", "ab cd", "Ċ Ċ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def write_gguf(
    model: LlamaForCausalLM,
    path: Path,
    add: Callable[[GGUFWriter], None] = lambda writer: None,
    split: int = 0,
    tokens: Callable[[GGUFWriter], None] = byte_level,
) -> None:
    """`add`: writes what the file has beside the model; `split`: tensors of a file, where there are to be several;
    `tokens`: writes the tokenizer.
    """
    config = model.config
    writer = GGUFWriter(path, "llama", split_max_tensors=split)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    tokens(writer)
    writer.add_chat_template(TEMPLATE)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        heads = HEADS if "attn_q" in name else KV_HEADS
        writer.add_tensor(name, gguf_rows(name, weight.numpy(), heads).copy())
    add(writer)
    write_all(writer)


def test_converted_folder_is_the_same_model(tmp_path: Path):
    """The folder's logits equal those of the model that the GGUF was written from; template and end token are kept."""
    model = tiny_llama()
    (tmp_path / "in").mkdir()
    write_gguf(model, tmp_path / "in" / "tiny.gguf")
    convert(tmp_path / "in", tmp_path / "out")

    assert (tmp_path / "out" / "model.safetensors").is_file()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    ids = tokenizer("abcd ab", return_tensors="pt")["input_ids"]
    assert [tokenizer.decode(i) for i in ids[0]] == ["abcd", " ", "ab"]
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=0, atol=1e-5)
    assert tokenizer.eos_token == "<|im_end|>"
    assert again.generation_config.eos_token_id == 2
    assert tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == (
        "<|im_start|>ab<|im_end|>"
    )


def test_a_gguf_file_is_the_teacher_of_a_published_student(tmp_path: Path):
    """As a file and converted: it holds fractions, such as the epsilon of norms, in float32, others' JSON does not."""
    model = tiny_llama()
    model.config.rms_norm_eps = 1e-5
    write_gguf(model, tmp_path / "tiny.gguf")
    convert(tmp_path / "tiny.gguf", tmp_path / "out")
    for path in (tmp_path / "tiny.gguf", tmp_path / "out"):
        teacher = load_config(str(path), None, False, "teacher.path")
        compare_decoders(model.config, teacher)
        with pytest.raises(UserError, match=r"rms_norm_eps: student 1e-06, teacher 9\.99"):
            compare_decoders(LlamaConfig(**model.config.to_dict() | {"rms_norm_eps": 1e-6}), teacher)


def test_ids_that_pad_a_vocabulary_are_not_known(tmp_path: Path):
    """As a file and converted: llama.cpp gives them names, and nobody trained their rows."""
    padding = 3

    def tokens(writer: GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list([*TOKENS, *(f"[PAD{len(TOKENS) + i}]" for i in range(padding))])
        writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3) + [TokenType.UNUSED] * padding)
        writer.add_token_merges(["a b", "c d", "ab cd", "Ċ Ċ"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)

    write_gguf(tiny_llama(padding), tmp_path / "tiny.gguf", tokens=tokens)
    convert(tmp_path / "tiny.gguf", tmp_path / "out")
    for path in (tmp_path / "tiny.gguf", tmp_path / "out"):
        assert teacher_tokens(TeacherConfig(path=str(path)))[1] == len(TOKENS)


def tokenizers_of(file: Path, out: Path) -> list[PreTrainedTokenizerBase]:
    """The tokenizer of a file as it is converted, as a teacher has it, and where it is measured."""
    convert(file, out)
    teacher, _ = teacher_tokens(TeacherConfig(path=str(file)))
    return [AutoTokenizer.from_pretrained(out), teacher, load_model_files(file).tokenizer]


def test_digits_are_apart_where_the_vocabulary_was_made_so(tmp_path: Path):
    """A blank line before a number is one token, as merges were learned: in the folder, as a teacher, where it is
    measured.
    """
    file = tmp_path / "tiny.gguf"
    write_gguf(tiny_llama(), file)
    for tokenizer in tokenizers_of(file, tmp_path / "out"):
        ids = tokenizer("ab\n\n10 ab", add_special_tokens=False)["input_ids"]
        assert [tokenizer.decode(i) for i in ids] == ["ab", "\n\n", "1", "0", " ", "ab"]


@pytest.mark.parametrize(
    ("pre", "pieces"), [("llama-bpe", ["abcd"]), ("tekken", ["abcd"]), ("smollm", ["abc", "d"])], ids=str
)
def test_a_word_that_is_a_token_is_not_merged_where_the_vocabulary_was_made_so(
    pre: str, pieces: list[str], tmp_path: Path
):
    """As in Llama 3's and Mistral's own tokenizers (ignore_merges): merges alone make other tokens of the word."""

    def tokens(writer: GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list([*TOKENS[:-4], "bc", "abc", "abcd", "ĊĊ"])
        writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
        writer.add_token_merges(["b c", "a bc", "Ċ Ċ"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)

    file = tmp_path / "tiny.gguf"
    write_gguf(tiny_llama(), file, tokens=tokens)
    for tokenizer in tokenizers_of(file, tmp_path / "out"):
        ids = tokenizer("abcd", add_special_tokens=False)["input_ids"]
        assert [tokenizer.decode(i) for i in ids] == pieces


@pytest.mark.parametrize(("stated", "begin"), [(None, ["▁ab"]), (True, ["▁ab"]), (False, ["ab"])])
def test_a_text_begins_with_a_space_as_the_file_says(stated: bool | None, begin: list[str], tmp_path: Path):
    """That of SentencePiece; where the file says nothing, it does. What is read again is the text."""

    def tokens(writer: GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        pieces = ["<unk>", "<s>", "</s>", "a", "b", "ab", "▁", "▁ab"]
        bytes_ = [f"<0x{i:02X}>" for i in range(len(TOKENS) - len(pieces))]
        writer.add_token_list([*pieces, *bytes_])
        writer.add_token_scores([0.0, 0.0, 0.0, -4.0, -4.0, -2.0, -3.0, -1.0, *[0.0] * len(bytes_)])
        writer.add_token_types([2, 3, 3, 1, 1, 1, 1, 1, *[6] * len(bytes_)])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        if stated is not None:
            writer.add_add_space_prefix(stated)

    file = tmp_path / "tiny.gguf"
    write_gguf(tiny_llama(), file, tokens=tokens)
    for tokenizer in tokenizers_of(file, tmp_path / "out"):
        ids = tokenizer("ab ab", add_special_tokens=False)["input_ids"]
        assert tokenizer.convert_ids_to_tokens(ids) == [*begin, "▁ab"]
        assert tokenizer.decode(ids) == "ab ab"


@pytest.mark.parametrize(
    ("stated", "begin", "end"),
    [({}, [], []), ({"bos": False}, [], []), ({"bos": True}, [1], []), ({"bos": True, "eos": True}, [1], [2])],
)
def test_texts_begin_and_end_as_the_file_says(
    stated: dict[str, bool], begin: list[int], end: list[int], tmp_path: Path
):
    """With BOS, without which many models score far worse: in the folder, as a teacher, where it is measured."""

    def add(writer: GGUFWriter) -> None:
        for token, is_added in stated.items():
            writer.add_bool(f"tokenizer.ggml.add_{token}_token", is_added)

    file = tmp_path / "tiny.gguf"
    write_gguf(tiny_llama(), file, add)
    for tokenizer in tokenizers_of(file, tmp_path / "out"):
        bare = tokenizer("ab", add_special_tokens=False)["input_ids"]
        assert tokenizer("ab")["input_ids"] == [*begin, *bare, *end]


def tokens_alone(path: Path, kind: str, pre: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a file without a model, split as `pre` says."""
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(["<unk>", "<s>", "</s>", "a", "b", "ab", "▁", "▁ab"])
    writer.add_token_scores([0.0, 0.0, 0.0, -4.0, -4.0, -2.0, -3.0, -1.0])
    writer.add_token_types([2, 3, 3, 1, 1, 1, 1, 1])
    if kind == "gpt2":
        writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    write_all(writer)
    return load_tokenizer(str(path.parent), gguf_file=path.name)


@pytest.mark.parametrize(
    ("kind", "pre", "begin"), [("llama", "default", [1]), ("gpt2", "llama-bpe", [1]), ("gpt2", "qwen2", [])]
)
def test_texts_begin_as_of_their_kind_where_the_file_does_not_say(
    kind: str, pre: str, begin: list[int], tmp_path: Path
):
    """Those of SentencePiece and of Llama 3 with BOS."""
    tokenizer = tokens_alone(tmp_path / "tokens.gguf", kind, pre)
    assert tokenizer("ab")["input_ids"] == begin + tokenizer("ab", add_special_tokens=False)["input_ids"]


def test_splits_that_are_not_known_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Those of DeepSeek, which are taken for GPT-2's; not GPT-2's own, those that are known, and SentencePiece."""
    for kind, pre in (("gpt2", "gpt-2"), ("gpt2", "smollm"), ("gpt2", "qwen2"), ("llama", "default")):
        tokens_alone(tmp_path / f"{pre}.gguf", kind, pre)
    assert not caplog.records
    tokens_alone(tmp_path / "other.gguf", "gpt2", "deepseek-llm")
    assert "other.gguf: how its tokenizer splits text (tokenizer.ggml.pre: deepseek-llm) is not known" in caplog.text


def test_the_file_must_be_clear(tmp_path: Path):
    """A folder without a GGUF file, or with two, is refused with what was found."""
    with pytest.raises(UserError, match="found: none"):
        find_gguf(tmp_path)
    (tmp_path / "a.gguf").touch()
    assert find_gguf(tmp_path) == find_gguf(tmp_path / "a.gguf") == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").touch()
    with pytest.raises(UserError, match=r"found: a\.gguf, b\.gguf"):
        find_gguf(tmp_path)


@pytest.mark.parametrize("left", [0, 24, -1])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, left: int):
    """Empty, before its first setting, or in its last tensor."""
    file = tmp_path / "tiny.gguf"
    write_gguf(tiny_llama(), file)
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(UserError, match=r"tiny\.gguf: cannot be loaded as a causal LM"):
        convert(file, tmp_path / "out")
    if left >= 0:  # settings are read before tensors
        with pytest.raises(UserError, match=r"^teacher\.path: .*tiny\.gguf: "):
            load_config(str(file), None, False, "teacher.path")


def test_a_model_in_several_files_is_refused(tmp_path: Path):
    """Transformers reads one of them: told before training, and with the cure where others would miss weights."""
    write_gguf(tiny_llama(), tmp_path / "tiny.gguf", split=8)
    first, *_ = files = sorted(tmp_path.glob("tiny-*.gguf"))
    refused = rf"this GGUF file is one of {len(files)}, .* llama-gguf-split --merge"
    with pytest.raises(UserError, match=refused):
        load_config(str(first), None, False, "teacher.path")
    with pytest.raises(UserError, match=refused):
        convert(first, tmp_path / "out")


def rope_of_llama_3(writer: GGUFWriter) -> None:
    writer.add_tensor("rope_freqs.weight", np.ones(HEAD_DIM // 2, dtype=np.float32))


def bias(writer: GGUFWriter) -> None:
    writer.add_tensor("blk.1.attn_q.bias", np.ones(HEADS * HEAD_DIM, dtype=np.float32))


def yarn(writer: GGUFWriter) -> None:
    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)


def linear(writer: GGUFWriter) -> None:
    writer.add_rope_scaling_factor(8.0)  # of no type: llama.cpp takes it for linear


@pytest.mark.parametrize(
    ("add", "unread"),
    [
        (rope_of_llama_3, "rope_freqs.weight"),
        (bias, "blk.1.attn_q.bias"),
        (yarn, "llama.rope.scaling.type=yarn, llama.rope.scaling.factor=4.0"),
        (linear, "llama.rope.scaling.factor=8.0"),
    ],
)
def test_what_transformers_would_skip_is_refused(add: Callable[[GGUFWriter], None], unread: str, tmp_path: Path):
    """Converted, as a teacher, and where it is measured: the model would be another one than the file's."""
    file = tmp_path / "tiny.gguf"
    write_gguf(tiny_llama(), file, add)
    refused = rf"tiny\.gguf: Transformers reads this GGUF file without {unread}, and .* Take the safetensors"
    with pytest.raises(UserError, match=refused):
        convert(file, tmp_path / "out")
    with pytest.raises(UserError, match=rf"^teacher\.path=.*{refused}"):
        load_config(str(file), None, False, "teacher.path")
    with pytest.raises(UserError, match=refused):
        load_model_files(file)


def write_keys(path: Path, architecture: str, **keys: float) -> None:
    """A file without tensors, whose keys have `__` for dots."""
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_vocab_size(40_000)
    for name, value in keys.items():
        add = writer.add_uint32 if isinstance(value, int) else writer.add_float32
        add(f"{architecture}.{name.replace('__', '.')}", value)
    write_all(writer)


GEMMA_2 = {"attention__key_length": 256, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}


@pytest.mark.parametrize(
    ("architecture", "keys", "unread"),
    [
        ("starcoder2", {"rope__freq_base": 1e6}, "rope.freq_base=1e+06"),
        ("stablelm", {"rope__dimension_count": 8}, "rope.dimension_count=8"),
        ("nemotron", {"attention__layer_norm_epsilon": 1e-6}, "attention.layer_norm_epsilon=1e-06"),
        ("phi3", {"rope__dimension_count": 8, "attention__sliding_window": 2047}, "attention.sliding_window=2047"),
        ("phi3", {"rope__freq_base": 1e4, "rope__dimension_count": 6}, "rope.dimension_count=6"),
        ("qwen3", {"attention__key_length": 64}, "attention.key_length=64"),
        ("gemma2", GEMMA_2 | {"attention__key_length": 128}, "attention.key_length=128"),
        ("gemma2", GEMMA_2 | {"attn_logit_softcapping": 20.0}, "attn_logit_softcapping=20"),
        ("gemma2", GEMMA_2 | {"final_logit_softcapping": 10.0}, "final_logit_softcapping=10"),
    ],
)
def test_a_key_that_the_class_has_otherwise_is_refused(
    architecture: str, keys: dict[str, float], unread: str, tmp_path: Path
):
    """What llama.cpp computes with and Transformers leaves at the default of the class; Gemma 2 27B's scale, too."""
    write_keys(tmp_path / "keys.gguf", architecture, **keys)
    with pytest.raises(UserError, match=re.escape(f"without {architecture}.{unread}, and a")):
        load_config(str(tmp_path / "keys.gguf"), None, False, "teacher.path")


@pytest.mark.parametrize(
    ("architecture", "keys"),
    [
        ("llama", {"rope__freq_base": 5e5, "rope__dimension_count": 16, "attention__key_length": 16}),
        ("qwen2", {"rope__freq_base": 1e6, "rope__dimension_count": 8}),
        ("qwen3", {"rope__freq_base": 1e6, "attention__key_length": 128}),
        ("gemma2", GEMMA_2),
        ("gemma3", {"rope__freq_base": 1e6, "attention__key_length": 256, "attention__sliding_window": 16}),
        ("gemma4", {"rope__freq_base": 1e6, "rope__dimension_count": 512, "attention__key_length": 512}),
        ("stablelm", {"rope__freq_base": 1e4, "rope__dimension_count": 2}),
        ("nemotron", {"rope__freq_base": 1e4, "rope__dimension_count": 4, "attention__layer_norm_epsilon": 1e-5}),
        ("phi3", {"rope__freq_base": 1e4, "rope__dimension_count": 8, "attention__sliding_window": 0}),
        ("gemma2", GEMMA_2 | {"attention__layer_norm_rms_epsilon": 1e-5, "attention__sliding_window": 32}),
    ],
)
def test_keys_that_the_class_computes_with_are_not_refused(architecture: str, keys: dict[str, float], tmp_path: Path):
    """Such as llama.cpp's converter writes them: read by Transformers, or the default of the class."""
    write_keys(tmp_path / "keys.gguf", architecture, **keys)
    load_config(str(tmp_path / "keys.gguf"), None, False, "teacher.path")


def test_a_rope_that_is_not_scaled_is_not_refused(tmp_path: Path):
    """Keys that llama.cpp's converter writes for models as they were trained: a length, a factor of one, no type."""

    def add(writer: GGUFWriter) -> None:
        writer.add_rope_scaling_type(RopeScalingType.NONE)
        writer.add_rope_scaling_factor(1.0)
        writer.add_rope_scaling_orig_ctx_len(64)

    write_gguf(tiny_llama(), tmp_path / "tiny.gguf", add)
    convert(tmp_path / "tiny.gguf", tmp_path / "out")
