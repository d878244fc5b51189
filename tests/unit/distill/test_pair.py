"""Pairs that do not fit are refused with field and values; a new student is its teacher plus eyes."""

import logging
from functools import partial

import pytest
import torch
from families import FAMILIES, PACKABLE, TEXT
from tiny import VOCABULARY, tiny_student, tiny_teacher, tiny_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    Blip2Config,
    CohereConfig,
    DeepseekV3Config,
    DeepseekVLHybridConfig,
    DeepseekVLHybridForConditionalGeneration,
    Ernie4_5Config,
    Gemma2Config,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GemmaConfig,
    Glm4Config,
    Glm4MoeConfig,
    Glm4vMoeTextConfig,
    Glm4vMoeTextModel,
    Glm4vTextConfig,
    Glm4vTextModel,
    GptOssConfig,
    GraniteConfig,
    Idefics3Config,
    IdeficsConfig,
    InternVLConfig,
    Llama4TextConfig,
    LlamaConfig,
    LlavaConfig,
    MambaConfig,
    MistralConfig,
    MistralModel,
    MllamaConfig,
    Olmo2Config,
    OPTConfig,
    PaddleOCRTextConfig,
    PaddleOCRTextModel,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLTextConfig,
    Qwen2VLTextModel,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    Qwen3VLMoeTextConfig,
    Qwen3VLTextConfig,
    Qwen3VLTextModel,
    T5Config,
    configuration_utils,
)

from lingu_ray.config import Config
from lingu_ray.distill.decoder import head_dim
from lingu_ray.distill.new_student import PLAIN
from lingu_ray.distill.pair import check_kind, check_tokenizers, compare_decoders
from lingu_ray.distill.student import Student
from lingu_ray.errors import UserError
from lingu_ray.runtime.models.check import check_pair
from lingu_ray.runtime.models.load import prepare_student

SOURCE = {"name": "text", "format": "text", "path": "text.txt", "language_heavy": True}
VISION = {
    "image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 2,
    "pixel_shuffle": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
GLM = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "attention_bias": True}
GLM_ROPE = {"mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}


def settings(tmp_path, **sections):
    """A configuration over folders in tmp_path."""
    student = {"path": str(tmp_path / "student")}
    tree = {"name": "x", "student": student, "teacher": {"path": str(tmp_path / "teacher")}}
    return Config.model_validate(tree | {"corpus": {"sources": [SOURCE]}} | sections)


@pytest.mark.parametrize(
    ("change", "field", "values"),
    [
        ({"layers": 2}, "num_hidden_layers", ("3", "2")),
        ({"kv_heads": 4}, "num_key_value_heads", ("2", "4")),
        ({"head_dim": 16}, "head_dim", ("32", "16")),
        ({"hidden": 32}, "hidden_size", ("64", "32")),
    ],
)
def test_architecture_mismatch_is_named(tmp_path, change, field, values):
    """Each differing field is named with both values, from the configurations alone."""
    tiny_student(tiny_teacher(), folder=tmp_path / "student")
    tiny_teacher(**change, folder=tmp_path / "teacher")
    with pytest.raises(UserError, match=rf"{field}: student {values[0]}, teacher {values[1]}"):
        check_pair(settings(tmp_path))


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (LlamaConfig, "rms_norm_eps", 1e-3),
        (LlamaConfig, "hidden_act", "gelu"),
        (LlamaConfig, "attention_bias", True),
        (LlamaConfig, "mlp_bias", True),
        (Gemma2Config, "query_pre_attn_scalar", 100),
        (Gemma2Config, "attn_logit_softcapping", 20.0),
        (Gemma2Config, "final_logit_softcapping", None),
        (Gemma2Config, "hidden_activation", "silu"),
        (GraniteConfig, "embedding_multiplier", 12.0),
        (GraniteConfig, "residual_multiplier", 0.2),
        (GraniteConfig, "attention_multiplier", 0.1),
        (GraniteConfig, "logits_scaling", 8.0),
        (CohereConfig, "layer_norm_eps", 1e-3),
        (CohereConfig, "logit_scale", 1.0),
    ],
)
def test_every_field_that_a_decoder_computes_with_is_compared(kind, field, value):
    """Norms, activations, biases, scalars and soft caps: one that differs is named with both values."""
    with pytest.raises(UserError, match=rf"\n  {field}: student {getattr(kind(), field)}, teacher {value}\n"):
        compare_decoders(kind(), kind(**{field: value}))


@pytest.mark.parametrize(
    ("student", "teacher"),
    [(LlamaConfig, GemmaConfig), (Qwen2VLTextConfig, LlamaConfig), (Gemma3TextConfig, Qwen3Config)],
)
def test_families_are_compared(student, teacher):
    """Decoders of two families compute differently however equal their sizes are."""
    with pytest.raises(UserError, match=f"model_type: student {student.model_type}, teacher {teacher.model_type}"):
        compare_decoders(student(), teacher())


@pytest.mark.parametrize(
    ("student", "teacher", "free"),
    [
        (Qwen2VLTextConfig, Qwen2Config, {}),
        (Qwen2_5_VLTextConfig, Qwen2Config, {}),
        (Qwen3VLTextConfig, Qwen3Config, {"head_dim": 16}),
        (LlamaConfig, LlamaConfig, {"vocab_size": 9, "attention_dropout": 0.5, "initializer_range": 1.0}),
        (LlamaConfig, LlamaConfig, {"eos_token_id": 7, "tie_word_embeddings": True, "max_position_embeddings": 99}),
    ],
)
def test_what_has_no_part_in_the_numbers_may_differ(student, teacher, free):
    """A VLM's own class for its LM's decoder, vocabularies, special ids, dropout, lengths."""
    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 96, "rms_norm_eps": 1e-5}
    rope = {"rope_theta": 1e4, "rope_type": "default"}
    head = {"head_dim": 16} if "head_dim" in free else {}
    compare_decoders(
        student(**sizes, **head, rope_parameters=dict(rope)), teacher(**sizes, **free, rope_parameters=dict(rope))
    )


@pytest.mark.parametrize(
    ("text", "config", "lm", "rope"),
    [
        (Qwen2VLTextModel, Qwen2VLTextConfig, Qwen2Config, {"mrope_section": [2, 3, 3]}),
        (Qwen2_5_VLTextModel, Qwen2_5_VLTextConfig, Qwen2Config, {"mrope_section": [2, 3, 3]}),
        (Qwen3VLTextModel, Qwen3VLTextConfig, Qwen3Config, {"mrope_section": [2, 3, 3]}),
        (Glm4vTextModel, Glm4vTextConfig, Glm4Config, GLM_ROPE),
        (Glm4vMoeTextModel, partial(Glm4vMoeTextConfig, **GLM), partial(Glm4MoeConfig, **GLM), GLM_ROPE),
        (PaddleOCRTextModel, PaddleOCRTextConfig, Ernie4_5Config, {"mrope_section": [2, 3, 3]}),
        (MistralModel, partial(MistralConfig, sliding_window=None), LlamaConfig, {}),  # as GGUF files call a Mistral
    ],
)
def test_a_family_is_what_computes_alike(text, config, lm, rope):
    """With the same weights a VLM's text decoder computes what its LM computes, or the two are no pair."""
    sizes = TEXT | {"head_dim": 16, "rms_norm_eps": 1e-5}
    plain = {"rope_theta": 1e4, "rope_type": "default"}
    decoder = AutoModelForCausalLM.from_config(lm(**sizes, rope_parameters=plain | rope)).get_decoder().eval()
    ours = text(config(**sizes, rope_parameters=plain | rope)).eval()
    ours.load_state_dict(decoder.state_dict())
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        alike = torch.allclose(ours(ids).last_hidden_state, decoder(ids).last_hidden_state, atol=1e-4)
    if alike:
        compare_decoders(ours.config, decoder.config)
        return
    with pytest.raises(UserError, match=r"\n  model_type: student.*\n.* If this is that one, .* take another student"):
        compare_decoders(ours.config, decoder.config)


def test_norms_of_queries_that_one_class_has_alone_are_compared():
    """GLM-4.5's, which GLM-4.5V's decoder does not have."""
    with pytest.raises(UserError, match=r"\n  use_qk_norm: student False, teacher True\n"):
        compare_decoders(Glm4vMoeTextConfig(**GLM), Glm4MoeConfig(**GLM, use_qk_norm=True))


@pytest.mark.parametrize(
    ("ours", "theirs", "field"),
    [
        ({}, {}, "sliding_window: student 4096, teacher None"),
        ({"sliding_window": None}, {"attention_bias": True}, "attention_bias: student False, teacher True"),
        ({"sliding_window": None}, {"mlp_bias": True}, "mlp_bias: student False, teacher True"),
    ],
)
def test_a_mistral_is_a_llama_without_window_and_biases(ours, theirs, field):
    """What one of the two has alone is compared, though the other's configuration has no field for it."""
    sizes = {"num_key_value_heads": 8, "intermediate_size": 64, "rms_norm_eps": 1e-5}
    with pytest.raises(UserError, match=rf"\n  {field}\n"):
        compare_decoders(MistralConfig(**sizes, **ours), LlamaConfig(**sizes, **theirs))


@pytest.mark.parametrize("kind", [LlamaConfig, Qwen2Config, Qwen3Config, Qwen3MoeConfig, Olmo2Config, GraniteConfig])
def test_the_width_of_heads_is_that_of_the_models_keys(kind):
    """Whether or not the configuration's class has `head_dim`, which the model reads from the file."""
    config = kind(**TEXT, head_dim=24, **(EXPERTS if kind is Qwen3MoeConfig else {}))
    cache = AutoModelForCausalLM.from_config(config)(torch.ones(1, 2, dtype=torch.long)).past_key_values
    assert head_dim(config) == cache.layers[0].keys.shape[-1] == 24


def test_qwen3_vl_moe_fits_its_lm():
    """What one class alone has a field for is compared: the width of heads, whether experts' weights add up to 1."""
    sizes = TEXT | EXPERTS | {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}
    student = Qwen3VLMoeTextConfig(**sizes, head_dim=32)
    compare_decoders(student, Qwen3MoeConfig(**sizes, head_dim=32, norm_topk_prob=True))
    with pytest.raises(UserError, match="\n  head_dim: student 32, teacher 24\n"):
        compare_decoders(student, Qwen3MoeConfig(**sizes, head_dim=24, norm_topk_prob=True))
    with pytest.raises(UserError, match="\n  norm_topk_prob: student True, teacher False\n"):
        compare_decoders(student, Qwen3MoeConfig(**sizes, head_dim=32))


def test_fitting_pair_passes_and_rope_is_compared(tmp_path):
    """The real pair passes; another RoPE base is refused."""
    teacher = tiny_teacher(folder=tmp_path / "teacher")
    tiny_student(teacher, folder=tmp_path / "student")
    check_pair(settings(tmp_path))
    teacher.config.rope_parameters["rope_theta"] = 500000.0
    teacher.config.save_pretrained(tmp_path / "teacher")
    with pytest.raises(UserError, match="rope_parameters"):
        check_pair(settings(tmp_path))


@pytest.mark.parametrize(
    ("vlm", "rope_scaling"),
    [
        (Qwen2VLConfig, {"type": "mrope", "mrope_section": [2, 3, 3]}),
        (Qwen2_5_VLConfig, {"type": "mrope", "mrope_section": [2, 3, 3]}),
        (InternVLConfig, {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"}),
    ],
)
def test_ropes_of_published_files_that_are_the_same_in_text_fit(vlm, rope_scaling):
    """Qwen2-VL's and InternVL3's files, as published, and those of the LM that their decoder came from."""
    text = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    text |= {"intermediate_size": 96, "rms_norm_eps": 1e-6, "rope_theta": 1e6}
    student = vlm.from_dict({"text_config": text | {"model_type": "qwen2", "rope_scaling": rope_scaling}})
    compare_decoders(student.get_text_config(decoder=True), Qwen2Config.from_dict(dict(text)))


def test_a_rope_that_is_scaled_by_the_longest_position_is_compared():
    """Phi-3's `longrope` has no factor: it scales keys by positions now to positions before, so both have a part."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "original_max_position_embeddings": 256}
    one, other = (
        Phi3Config(**sizes, rope_parameters=dict(rope), max_position_embeddings=most) for most in (8192, 1024)
    )
    compare_decoders(one, one)
    with pytest.raises(UserError, match=r"rope_parameters: student .*'factor': 32.0.*, teacher .*'factor': 4.0"):
        compare_decoders(one, other)


class _OwnConfig(PreTrainedConfig):
    """As code of a model's own writes it: it declares no fields."""

    model_type = "own"

    def __init__(self, rms_norm_eps: float = 1e-6, **others):
        self.hidden_size, self.num_attention_heads, self.num_hidden_layers = 64, 4, 2
        self.rms_norm_eps = rms_norm_eps
        super().__init__(**others)


def test_configurations_of_own_code_are_compared():
    """What their decoders compute with is in their attributes."""
    compare_decoders(_OwnConfig(), _OwnConfig(name_or_path="elsewhere", eos_token_id=7))
    with pytest.raises(UserError, match=r"\n  rms_norm_eps: student 1e-06, teacher 0.001\n"):
        compare_decoders(_OwnConfig(), _OwnConfig(rms_norm_eps=1e-3))


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 16, "long_factor": [2.0] * 16,
         "original_max_position_embeddings": 1024},
    ],
)  # fmt: skip
def test_rows_whose_rope_depends_on_other_rows_are_refused(tmp_path, rope):
    """Above the length from which the longest row of a batch decides on RoPE, keys would not fit the teacher's."""
    teacher = tiny_teacher(folder=tmp_path / "teacher")
    student = tiny_student(teacher, folder=tmp_path / "student")
    for config, of_decoder, name in (
        (teacher.config, teacher.config, "teacher"),
        (student.config, student.config.text_config, "student"),
    ):
        of_decoder.rope_parameters = rope | {"rope_theta": 10000.0}
        config.save_pretrained(tmp_path / name)
    fits = {"sources": [SOURCE], "max_length": 1024}
    check_pair(settings(tmp_path, corpus=fits))
    with pytest.raises(UserError, match=r"corpus.max_length=1025 is above the 1024 tokens"):
        check_pair(settings(tmp_path, corpus=fits | {"max_length": 1025}))


def test_wrong_kinds_of_model_are_refused(tmp_path):
    """A folder without model, a text-only student and a VLM as teacher: each is said, with the setting's name."""
    teacher = tiny_teacher(folder=tmp_path / "teacher")
    tiny_student(teacher, folder=tmp_path / "student")
    with pytest.raises(UserError, match=r"student.path: no such file or folder: .*nowhere"):
        check_pair(settings(tmp_path, student={"path": str(tmp_path / "nowhere")}))
    with pytest.raises(UserError, match="no vision-language"):
        check_pair(settings(tmp_path, student={"path": str(tmp_path / "teacher")}))
    with pytest.raises(UserError, match="not a text-only"):
        check_pair(settings(tmp_path, teacher={"path": str(tmp_path / "student")}))


def test_other_tokenizer_is_refused():
    """Added tokens are fine; the same ids with other meanings are not."""
    check_tokenizers(tiny_tokenizer(), tiny_tokenizer())
    other = tiny_tokenizer()
    shuffled = {token: (i + 7) % VOCABULARY for token, i in other.get_vocab().items()}
    other.get_vocab = lambda: shuffled
    with pytest.raises(UserError, match="tokenize differently"):
        check_tokenizers(tiny_tokenizer(), other)


def test_a_tokenizer_that_has_two_tokens_the_other_way_around_is_refused():
    """Two of many ids are few, and the teacher would end turns with another token than the student."""
    other = tiny_tokenizer()
    ends = {"<|endoftext|>": "<|im_end|>", "<|im_end|>": "<|endoftext|>"}
    swapped = {ends.get(token, token): i for token, i in other.get_vocab().items()}
    other.get_vocab = lambda: swapped
    match = r"2 of 324 shared ids, first 0: student '<\|endoftext\|>', teacher '<\|im_end\|>'"
    with pytest.raises(UserError, match=match):
        check_tokenizers(tiny_tokenizer(), other)


def test_new_student_is_its_teacher_plus_eyes(tmp_path):
    """`from_teacher`: on text the new VLM's logits are the teacher's; it reloads; its tokens and pixels fit."""
    teacher = tiny_teacher(folder=tmp_path / "teacher")
    config = settings(tmp_path, student={"from_teacher": VISION}, distill={"policy": "none"})
    prepare_student(config, tmp_path / "start")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "start").eval()
    ids = torch.randint(3, VOCABULARY, (2, 9))
    torch.testing.assert_close(model(input_ids=ids).logits[..., :VOCABULARY], teacher(input_ids=ids).logits)
    processor = AutoProcessor.from_pretrained(tmp_path / "start")
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    prompt = processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=prompt, images=[torch.zeros(3, 8, 8, dtype=torch.uint8).numpy()], return_tensors="pt")
    assert torch.isfinite(model(**inputs).logits).all()
    assert prompt == "<|im_start|>user\n<image>What?<|im_end|>\n<|im_start|>assistant\n"


def test_a_warning_that_is_about_no_model_is_dropped():
    """Transformers' defaults of Idefics3 have a padding token beyond their vocabulary; a model that has one is told."""
    warned = []
    logger, handler = logging.getLogger("transformers.configuration_utils"), logging.Handler(logging.WARNING)
    handler.emit = lambda record: warned.append(record.getMessage())
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    configuration_utils.logger.warning_once.cache_clear()
    try:
        repr(Idefics3Config())
        assert warned == []
        LlamaConfig(vocab_size=10, pad_token_id=11)
        assert len(warned) == 1 and "between 0 and 9), got 11" in warned[0]
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


def test_plain_template_keeps_its_lines():
    """A teacher without ChatML tokens gets one line a turn, and its end-of-text token ends an answer."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = PLAIN
    turns = [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": [{"type": "text", "text": "So."}]}]
    assert tokenizer.apply_chat_template(turns * 2, tokenize=False) == (
        "User: Hm?\nAssistant: So.<|endoftext|>\nUser: Hm?\nAssistant: So.<|endoftext|>\n"
    )
    prompt = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert prompt.endswith("\nAssistant:")  # a space there would cut an answer's first word from its space


def test_parameter_groups_cover_everything_once():
    """Every parameter is in exactly one of vision, projector and decoder; tied head and embedding count once."""
    model = tiny_student(tiny_teacher())
    groups = Student(model).parameter_groups()
    names = [name for named in groups.values() for name, _ in named]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert all("vision_model" in name for name, _ in groups["vision"])
    assert [name for name, _ in groups["projector"]] == ["model.connector.modality_projection.proj.weight"]


def test_a_second_tower_is_no_projector():
    """DeepSeek-VL's for high resolution learns, or is frozen, with the first; what joins them is the projector."""
    config = DeepseekVLHybridConfig(text_config={"model_type": "llama", "num_hidden_layers": 1})
    with torch.device("meta"):
        student = Student(DeepseekVLHybridForConditionalGeneration(config))
    parts = {group: {name.split(".")[1] for name, _ in named} for group, named in student.parameter_groups().items()}
    assert parts["vision"] == {"vision_model", "high_res_vision_model"}
    assert parts["projector"] == {"high_res_vision_neck", "high_res_vision_proj", "aligner", "high_res_vision_alpha"}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (MllamaConfig().get_text_config(), "mllama.* cross-attention"),
        (IdeficsConfig(), "idefics.* cross-attention"),
        (T5Config(), "t5 is an encoder-decoder"),
        (MambaConfig(), "mamba has no attention heads"),
        (DeepseekV3Config(), r"deepseek_v3 keeps compressed keys and values \(MLA\)"),
        (Qwen3NextConfig(), "qwen3_next has layers without plain attention"),
        (Llama4TextConfig(), "llama4_text has layers without plain attention"),
        (Gemma3nTextConfig(), "gemma3n_text has layers that read keys and values of others"),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_architectures_that_cannot_share_kv_are_refused_by_name(config, reason):
    """What keeps no key and value a position and layer is refused, with its name and the reason."""
    with pytest.raises(UserError, match=f"teacher.path=x: {reason}"):
        check_kind(config, "teacher.path=x")


@pytest.mark.parametrize("check", [check_kind, lambda config, _: compare_decoders(Qwen3Config(), config)])
def test_layers_of_different_sizes_are_refused(check):
    """Gemma 4's, of which no field has one value for all."""
    with pytest.raises(UserError, match=r"teacher.*: the layers of gemma4_text have keys and values of"):
        check(Gemma4TextConfig(), "teacher.path=x")


OF_TEXT = {
    "num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 32,
}  # fmt: skip
OF_TOWER = {**OF_TEXT, "image_size": 16, "patch_size": 8}


@pytest.mark.parametrize(
    ("teacher", "vlm", "message"),
    [
        (PhiConfig(**OF_TEXT), LlavaConfig, r"teacher.path=.*: PhiForCausalLM: the method needs an output head"),
        (GptOssConfig(**OF_TEXT), LlavaConfig, r"teacher.path=.*: a GptOssForCausalLM does not support SDPA"),
        (OPTConfig(**OF_TEXT), Blip2Config, r"student.path=.*: a Blip2ForConditionalGeneration is built otherwise"),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)  # fmt: skip
def test_parts_that_the_method_cannot_use_are_refused_at_once(tmp_path, teacher, vlm, message):
    """A head with a bias, no SDPA, no body: said from the configurations alone, not by the workers."""
    teacher.save_pretrained(tmp_path / "teacher")
    vlm(text_config=teacher.to_dict(), vision_config=dict(OF_TOWER)).save_pretrained(tmp_path / "student")
    with pytest.raises(UserError, match=message):
        check_pair(settings(tmp_path))


@pytest.mark.parametrize("name", FAMILIES)
def test_plain_decoders_are_not_refused(name):
    """No family that works is refused."""
    check_kind(FAMILIES[name].decoder, "teacher.path=x")


def test_images_that_see_ahead_are_packed_where_transformers_keeps_their_places(tmp_path):
    """Gemma 3: with a Transformers whose masks of packed rows let images see other places, packing is refused."""
    teacher = FAMILIES["gemma3"].teacher()
    teacher.save_pretrained(tmp_path / "teacher")
    FAMILIES["gemma3"].student(teacher).save_pretrained(tmp_path / "student")
    with pytest.raises(
        UserError, match=r"train.attention=flash_attention_2: gemma3 sees ahead .*: leave train.attention"
    ):
        check_pair(settings(tmp_path, train={"attention": "flash_attention_2"}))
    packed = settings(tmp_path, train={"packing": True})
    if "gemma3" in PACKABLE:
        check_pair(packed)
    else:
        with pytest.raises(UserError, match=r"train.packing: Transformers .* at wrong places of packed rows"):
            check_pair(packed)


def test_paligemma_is_not_packed_and_fits_its_window(tmp_path):
    """Its prompts see all of their row, so it is not packed; nor may they be longer than its sliding window."""
    teacher = FAMILIES["paligemma2"].teacher()
    teacher.save_pretrained(tmp_path / "teacher")
    FAMILIES["paligemma2"].student(teacher).save_pretrained(tmp_path / "student")
    check_pair(settings(tmp_path, corpus={"sources": [SOURCE], "max_length": 64}))
    with pytest.raises(UserError, match=r"train.packing: PaliGemma"):
        check_pair(settings(tmp_path, train={"packing": True}))
    with pytest.raises(UserError, match=r"corpus.max_length=2048 is above the 64 tokens"):
        check_pair(settings(tmp_path))
