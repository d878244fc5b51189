"""The engine on Transformers: a causal LM (the teacher) or an image-text-to-text model (the students).

Text is scored as lm-evaluation-harness does: raw text, trailing spaces of the context moved to the continuation, a BOS
token where the tokenizer adds one by itself, texts beyond the model's context in windows. Both kinds of model are
scored by the same code, through text decoder and output head: teacher and students are compared on the same tokens.
Questions about images are put as they are in training, by the corpus's encoder.

Shape suffixes: B batch, T tokens of a sequence, N scored tokens, D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from lingu_ray.corpus.encode import Encoder, PromptTooLong, Sample, join_vision
from lingu_ray.corpus.row import PLACEHOLDER, Row
from lingu_ray.distill.decoder import use_exact_attention
from lingu_ray.distill.generate import Prompt, generate_answers
from lingu_ray.distill.head import output_head
from lingu_ray.errors import UserError
from lingu_ray.evaluation.engine import GenerateRequest, Score, ScoreRequest

HEAD_CHUNK = 1024  # scored tokens whose logits exist at one time
ENCODED_AT_ONCE = 64  # questions whose images are decoded at one time


@dataclass(frozen=True)
class Window:
    """One forward pass's share of a request: the last `scored` of `ids` are predicted from those before them."""

    request: int
    ids: tuple[int, ...]
    scored: int


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, requests: Sequence[ScoreRequest]
) -> list[tuple[list[int], list[int]]]:
    """Token ids of each context and continuation, cut where the context's own tokens end.

    As lm-evaluation-harness does: spaces that end the context go to the continuation, BOS leads where the tokenizer
    adds it by itself. An empty context becomes BOS (EOS where there is none), so that the first token is predicted too.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    lead = [bos] if bos is not None and tokenizer("a").input_ids[:1] == [bos] else []
    first = [token for token in (bos, eos) if token is not None][:1]
    if not first:
        raise UserError("the tokenizer has neither a BOS nor an EOS token to start a text from")
    bare = [request.context.rstrip() for request in requests]
    whole = [request.context + request.continuation for request in requests]
    pairs = []
    for context_ids, whole_ids in zip(_tokenize(tokenizer, bare), _tokenize(tokenizer, whole), strict=True):
        pairs.append((lead + context_ids or first, whole_ids[len(context_ids) :]))
    return pairs


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False).input_ids if texts else []


def windows(request: int, context_ids: list[int], continuation_ids: list[int], max_length: int) -> Iterator[Window]:
    """Cut a request into forward passes of at most `max_length` input tokens; each token is scored exactly once.

    What fits is one window. A long context loses its beginning; a long continuation is cut, and each piece sees as many
    of the tokens before it as fit.
    """
    ids = context_ids + continuation_ids
    for begin in range(len(context_ids), len(ids), max_length):
        end = min(begin + max_length, len(ids))
        yield Window(request, tuple(ids[max(0, end - 1 - max_length) : end]), end - begin)


def cut(lengths: list[int], token_budget: int) -> Iterator[list[int]]:
    """Indices in batches, longest first, padded tokens of each at most `token_budget` (a longer one goes alone)."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    begin = 0
    while begin < len(order):
        size = max(1, token_budget // max(1, lengths[order[begin]]))
        yield order[begin : begin + size]
        begin += size


class TransformersEngine:
    """A model folder or hub id, loaded in float32 on the GPU where there is one. See `engine.Engine`."""

    def __init__(self, path: Path | str, tokens_per_batch: int) -> None:
        """Load the model. A path that ends in `.gguf` is that file of its folder.

        Raises:
            UserError: nothing at `path` that Transformers can load, or a head this engine does not score.
        """
        self.path = str(path)
        self.tokens_per_batch = tokens_per_batch
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model, self.tokenizer, self.processor = _load(Path(path))
        self.model = model.eval().to(self.device)
        text = model.config.get_text_config(decoder=True)
        self.max_length: int = text.max_position_embeddings
        self.head = output_head(self.model)

    @property
    def sees(self) -> bool:
        """Whether the model takes images."""
        return self.processor is not None

    @torch.inference_mode()
    def loglikelihoods(self, requests: list[ScoreRequest], label: str) -> list[Score]:
        """Log-likelihood of every continuation, fp32 softmax, summed in float64.

        Raises:
            UserError: a continuation has no token of its own, or a likelihood is not finite (a model that diverged).
        """
        cuts: list[Window] = []
        tokens = [0] * len(requests)
        for index, (context_ids, continuation_ids) in enumerate(encode_pairs(self.tokenizer, requests)):
            if not continuation_ids:
                raise UserError(f"{label}: the continuation {requests[index].continuation!r} has no token to score")
            tokens[index] = len(continuation_ids)
            cuts.extend(windows(index, context_ids, continuation_ids, self.max_length))
        logliks = [0.0] * len(requests)
        with tqdm(total=len(cuts), desc=label, unit="text", disable=None, leave=False) as bar:
            for batch in cut([len(w.ids) - 1 for w in cuts], self.tokens_per_batch):
                chosen = [cuts[i] for i in batch]
                for window, loglik in zip(chosen, self._score(chosen), strict=True):
                    logliks[window.request] += loglik
                bar.update(len(chosen))
        if not all(torch.isfinite(torch.tensor(logliks))):
            raise UserError(f"{label}: {self.path} gives likelihoods that are not finite; its training has diverged")
        return [Score(loglik, n) for loglik, n in zip(logliks, tokens, strict=True)]

    def _score(self, chosen: list[Window]) -> list[float]:
        """Log-likelihood of each window, in one right-padded forward pass; logits at the scored positions alone."""
        longest = max(len(w.ids) for w in chosen) - 1
        input_ids_BT = torch.zeros(len(chosen), longest, dtype=torch.long)
        attention_mask_BT = torch.zeros_like(input_ids_BT)
        scored_BT = torch.zeros_like(input_ids_BT, dtype=torch.bool)
        targets_BT = torch.zeros_like(input_ids_BT)
        for row, window in enumerate(chosen):
            length = len(window.ids) - 1
            input_ids_BT[row, :length] = torch.tensor(window.ids[:-1])
            targets_BT[row, :length] = torch.tensor(window.ids[1:])
            attention_mask_BT[row, :length] = 1
            scored_BT[row, length - window.scored : length] = True
        hidden_BTD = self.model.get_decoder()(
            input_ids=input_ids_BT.to(self.device), attention_mask=attention_mask_BT.to(self.device), use_cache=False
        ).last_hidden_state
        hidden_ND, targets_N = hidden_BTD[scored_BT.to(self.device)], targets_BT[scored_BT].to(self.device)
        logliks_N = torch.cat(
            [
                self._token_logliks(h, t)
                for h, t in zip(hidden_ND.split(HEAD_CHUNK), targets_N.split(HEAD_CHUNK), strict=True)
            ]
        )
        return [part.sum().item() for part in logliks_N.double().cpu().split([w.scored for w in chosen])]

    def _token_logliks(self, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        return -F.cross_entropy(self.head.logits(hidden_ND), targets_N, reduction="none")

    @torch.inference_mode()
    def generate(self, requests: list[GenerateRequest], max_new_tokens: int, label: str) -> list[str]:
        """Greedy answers in left-padded batches, each up to its end-of-turn token.

        Raises:
            UserError: the model takes no images, or a question does not fit its context.
        """
        if self.processor is None:
            raise UserError(f"{label}: {self.path} takes no images")
        encoder = Encoder(self.processor, self.max_length)
        answers = [""] * len(requests)
        with tqdm(total=len(requests), desc=label, unit="answer", disable=None, leave=False) as bar:
            for begin in range(0, len(requests), ENCODED_AT_ONCE):
                chosen = requests[begin : begin + ENCODED_AT_ONCE]
                samples = [self._encode(encoder, request, max_new_tokens, label) for request in chosen]
                for batch in cut([len(sample) + max_new_tokens for sample in samples], self.tokens_per_batch):
                    texts = self._answer([samples[i] for i in batch], max_new_tokens, encoder)
                    for index, text in zip(batch, texts, strict=True):
                        answers[begin + index] = text
                    bar.update(len(batch))
        return answers

    def _encode(self, encoder: Encoder, request: GenerateRequest, max_new_tokens: int, label: str) -> Sample:
        sample = None
        with suppress(PromptTooLong):
            sample = encoder.encode_question(_row(request))
        if sample is None or len(sample) + max_new_tokens > self.max_length:
            raise UserError(
                f"{label}: the question {request.question[:80]!r} and {max_new_tokens} new tokens do not fit "
                f"the model's context of {self.max_length} tokens"
            )
        return sample

    def _answer(self, samples: list[Sample], max_new_tokens: int, encoder: Encoder) -> list[str]:
        answers = generate_answers(
            self.model,
            [Prompt(sample.input_ids_T, sample.visual_T) for sample in samples],
            join_vision([sample.vision for sample in samples if sample.vision]),
            ends=self._ends(encoder),
            pad_id=encoder.pad_id,
            max_new_tokens=max_new_tokens,
        )
        texts = self.tokenizer.batch_decode([a.tolist() for a in answers], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _ends(self, encoder: Encoder) -> list[int]:
        """Tokens that end an answer: the model's own, and the one its chat template ends a turn with."""
        own = self.model.generation_config.eos_token_id
        ends = set(own if isinstance(own, list) else [own]) | {self.tokenizer.eos_token_id}
        turn = encoder.turns(_row(GenerateRequest("?", ())).messages)[0]
        last = self.tokenizer(turn.answer, add_special_tokens=False).input_ids[-1]
        if last in self.tokenizer.all_special_ids:
            ends.add(last)
        return sorted(ends - {None})


def _load(path: Path) -> tuple[Any, PreTrainedTokenizerBase, ProcessorMixin | None]:
    folder, origin = (path.parent, {"gguf_file": path.name}) if path.suffix == ".gguf" else (path, {})
    try:
        config = AutoConfig.from_pretrained(folder, **origin)
        sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        loader = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        # One precision for all models: what differs in the scores is the weights alone.
        model = loader.from_pretrained(folder, dtype=torch.float32, **(origin or {"use_safetensors": True}))
        tokenizer = AutoTokenizer.from_pretrained(folder, **origin)
        processor = AutoProcessor.from_pretrained(folder) if sees else None
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot load the model {path} for evaluation: {error}") from error
    assert tokenizer is not None  # Transformers' annotation allows it, its code raises
    use_exact_attention(model.get_decoder())
    return model, tokenizer, processor


def _row(request: GenerateRequest) -> Row:
    """The question as a row of a corpus; its answer is a stand-in, which the encoder leaves out."""
    marked = PLACEHOLDER in request.question
    question = request.question if marked else PLACEHOLDER * len(request.images) + request.question
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "answer"}]
    images = [path.read_bytes() for path in request.images]
    return Row("evaluation", 0, messages, images, distill=False)
