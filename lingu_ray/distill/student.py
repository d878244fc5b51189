"""The student VLM: loaded, or built on the teacher; its forward pass, parameter groups and heads."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from lingu_ray.config import Config, StudentConfig, VisionConfig
from lingu_ray.distill.capture import KVCapture, capturing, donate
from lingu_ray.distill.decoder import use_exact_attention
from lingu_ray.distill.donation import Donation
from lingu_ray.distill.head import OutputHead, output_head
from lingu_ray.distill.inputs import ModelInputs, forward_arguments
from lingu_ray.distill.pair import load_teacher_tokenizer
from lingu_ray.errors import UserError
from lingu_ray.paths import why_not_loaded

_IMAGE_TOKENS = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")

# How the turns of a new VLM are written. `turn_end` must be one token of the teacher's vocabulary.
_CONTENT = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n" + _CONTENT + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}Assistant: " + _CONTENT + "{{ eos_token }}\n"
    # a newline right after a block would be trimmed
    "{% else %}{{ message['role'] | capitalize }}: " + _CONTENT + "{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


class Student:
    """An image-text-to-text model, with the parts the method needs by name."""

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.decoder = model.get_decoder()
        self.body = model.model  # the forward pass without the head
        output_head(model)  # refuses a head that the loss does not know
        self.head = cast(nn.Module, model.get_output_embeddings())
        donate(self.decoder)

    @property
    def output_head(self) -> OutputHead:
        """How final hidden states become logits; gradients reach its weight."""
        return output_head(self.model)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder's layers."""
        return cast(nn.ModuleList, self.decoder.layers)

    def hidden_states(self, inputs: ModelInputs, donation: Donation | None = None) -> tuple[Tensor, KVCapture | None]:
        """Final hidden states `[B, T, D]` and, with a donation, what was captured for it, detached."""
        capture = None
        if donation is not None:
            device = inputs.input_ids_BT.device
            layers = self.decoder.config.num_hidden_layers
            capture = KVCapture(layers, donation.donated_row_P.to(device), donation.donated_column_P.to(device))
        with capturing(capture):
            output = self.body(**forward_arguments(self.body, inputs), use_cache=False)
        return output.last_hidden_state, capture

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Named parameters by group: `decoder` (with embeddings and head), `vision` tower, `projector` (the rest).

        Qwen's towers hold their projector, the merger, which counts as such. An audio tower counts as `vision`.
        """
        decoder = {id(p) for p in [*self.decoder.parameters(), *self.head.parameters()]}
        modality = "image" if hasattr(self.model.config, "vision_config") else "audio"
        encoder = self.model.get_encoder(modality=modality)
        tower = {id(p) for name, p in encoder.named_parameters() if "merger" not in name}
        groups: dict[str, list[tuple[str, nn.Parameter]]] = {"vision": [], "projector": [], "decoder": []}
        for name, parameter in self.model.named_parameters():
            group = "decoder" if id(parameter) in decoder else "vision" if id(parameter) in tower else "projector"
            groups[group].append((name, parameter))
        return groups


def load_student(settings: StudentConfig) -> PreTrainedModel:
    """The VLM of `student.path`, in float32. Raises UserError when there is none."""
    assert settings.path is not None
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            settings.path,
            revision=settings.revision,
            dtype=torch.float32,
            trust_remote_code=settings.trust_remote_code,
            use_safetensors=True,
            attn_implementation="sdpa",
        )
    except (OSError, ValueError, KeyError) as error:
        why = why_not_loaded(settings.path, error)
        raise UserError(f"student.path: cannot be loaded as a VLM: {why}") from error
    use_exact_attention(model.get_decoder())
    return model


def load_processor(settings: StudentConfig) -> ProcessorMixin:
    """The processor that belongs to `student.path`."""
    assert settings.path is not None
    try:
        processor = AutoProcessor.from_pretrained(
            settings.path, revision=settings.revision, trust_remote_code=settings.trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        cure = " Install torchvision, which this processor needs." if "torchvision" in str(error) else ""
        why = why_not_loaded(settings.path, error)
        raise UserError(f"student.path: its processor cannot be loaded.{cure} {why}") from error
    if getattr(processor, "image_processor", None) is None:
        raise UserError(f"student.path={settings.path}: its processor handles no images ({type(processor).__name__})")
    return processor


def build_processor(tokenizer: PreTrainedTokenizerBase, vision: VisionConfig) -> ProcessorMixin:
    """The processor of a new VLM: the teacher's tokenizer with image tokens added, one square per image.

    Chat template: ChatML where the teacher has its tokens, else "User: …/Assistant: …<eos>".
    """
    tokenizer.add_special_tokens({"additional_special_tokens": list(_IMAGE_TOKENS)})
    side = {"longest_edge": vision.image_size}
    images = Idefics3ImageProcessorPil(size=side, max_image_size=side, do_image_splitting=False)
    chatml = {"<|im_start|>", "<|im_end|>"} <= tokenizer.get_vocab().keys()
    tokens = (vision.image_size // vision.patch_size // vision.pixel_shuffle) ** 2
    template = CHATML if chatml else PLAIN
    tokenizer.chat_template = template
    return Idefics3Processor(images, tokenizer, image_seq_len=tokens, chat_template=template)


def build_student(config: Config, processor: ProcessorMixin, seed: int) -> PreTrainedModel:
    """A new VLM in float32: the teacher's decoder and head, a random vision tower and projector (Idefics3 class)."""
    vision = config.student.from_teacher
    assert vision is not None
    kwargs = {"gguf_file": config.teacher.gguf_file} if config.teacher.gguf_file else {"use_safetensors": True}
    teacher = AutoModelForCausalLM.from_pretrained(
        config.teacher.path, revision=config.teacher.revision, dtype=torch.float32, **kwargs
    )
    torch.manual_seed(seed)
    model = Idefics3ForConditionalGeneration(_idefics3_config(teacher.config, processor, vision))
    decoder, vocabulary = model.get_decoder(), teacher.config.vocab_size
    states = teacher.get_decoder().state_dict()
    embedding_VD = states.pop("embed_tokens.weight")
    decoder.load_state_dict(states, strict=False)
    with torch.no_grad():
        for target_VD, source_VD in (
            (decoder.get_input_embeddings().weight, embedding_VD),
            (model.lm_head.weight, teacher.get_output_embeddings().weight),
        ):
            target_VD[:vocabulary] = source_VD
            # new tokens start at the mean of the old ones, so that their logits are no outliers
            target_VD[vocabulary:] = source_VD.mean(0)
    model.generation_config.eos_token_id = _turn_end(processor.tokenizer)
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return model


def _idefics3_config(teacher: PreTrainedConfig, processor: ProcessorMixin, vision: VisionConfig) -> Idefics3Config:
    tokenizer = processor.tokenizer
    settings = {name: value for name, value in teacher.to_dict().items() if name != "quantization_config"}  # of GGUF
    text = type(teacher).from_dict({**settings, "vocab_size": max(len(tokenizer), teacher.vocab_size)})
    return Idefics3Config(
        text_config=text,
        vision_config={
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
        },
        scale_factor=vision.pixel_shuffle,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=bool(teacher.tie_word_embeddings),
    )


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> int:
    token = "<|im_end|>" if "<|im_end|>" in tokenizer.get_vocab() else tokenizer.eos_token
    return cast(int, tokenizer.convert_tokens_to_ids(token))


def prepare_student(config: Config, folder: Path) -> None:
    """Write the starting point of a run: a new VLM's weights and processor, or the processor of an existing one."""
    if config.student.from_teacher is None:
        load_processor(config.student).save_pretrained(folder)
        return
    processor = build_processor(load_teacher_tokenizer(config), config.student.from_teacher)
    processor.save_pretrained(folder)
    build_student(config, processor, config.seed).save_pretrained(folder)
