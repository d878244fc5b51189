"""The engine on Transformers: a causal LM (the teacher) or an image-text-to-text model (the students).

Both kinds of model are scored by the same code, through text decoder and output head, so that teacher and students are
compared on the same tokens. Questions about images are encoded as in training, by the corpus's encoder.

Shape suffixes: B batch, T tokens of a sequence, N scored tokens, D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from lingu_ray.corpus.batch import join_vision
from lingu_ray.corpus.encode import Sample
from lingu_ray.distill.decoder import use_exact_attention
from lingu_ray.distill.generate import Prompt, generate_answers
from lingu_ray.distill.head import check_head, output_head
from lingu_ray.errors import UserError
from lingu_ray.evaluation.engines.engine import Answer, GenerateRequest, Score, ScoreRequest
from lingu_ray.evaluation.engines.load import ModelFiles, cannot_load, load_model_files, loader_of
from lingu_ray.evaluation.engines.prompts import ENCODED_AT_ONCE, Prompts
from lingu_ray.evaluation.engines.scoring import Window, WindowScore, all_windows, join_windows
from lingu_ray.paths import model_origin
from lingu_ray.runtime.models.weights import NOT_LOADABLE, load_whole

HEAD_CHUNK = 1024  # scored tokens whose logits are computed at once


def batches_within(lengths: list[int], token_budget: int) -> Iterator[list[int]]:
    """Indices in batches, longest first, padded tokens of each at most `token_budget` (a longer one goes alone)."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    begin = 0
    while begin < len(order):
        size = max(1, token_budget // max(1, lengths[order[begin]]))
        yield order[begin : begin + size]
        begin += size


class TransformersEngine:
    """A model (folder or hub id) on the GPU where there is one. See `engine.Engine`."""

    def __init__(self, path: Path | str, tokens_per_batch: int, dtype: torch.dtype = torch.float32) -> None:
        """Load the model. A path that ends in `.gguf` is that file in its folder.

        Raises:
            UserError: Transformers cannot load what is at `path`, or this engine does not know its output head.
        """
        self.tokens_per_batch = tokens_per_batch
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.files = load_model_files(path)
        self.prompts = Prompts(self.files)
        self.model = load_model(self.files, dtype).eval().to(self.device)
        self.max_length = self.files.max_length
        check_head(self.model)
        self.head = output_head(self.model)
        self.embedded = len(self.model.get_input_embeddings().weight)

    @torch.inference_mode()
    def loglikelihoods(self, requests: list[ScoreRequest]) -> list[Score]:
        """Score every continuation: fp32 softmax, summed in float64.

        Windows that differ in their last token alone, as options of a letter do, are computed once.

        Raises:
            UserError: a continuation has no token of its own, or a likelihood is not finite (a model that diverged).
        """
        cuts = all_windows(self.files.tokenizer, requests, self.max_length)
        read: dict[tuple[int, ...], list[int]] = defaultdict(list)  # windows by what is read for them
        for index, window in enumerate(cuts):
            read[window.ids[:-1]].append(index)
        inputs, scored = list(read), dict[int, WindowScore]()
        for batch in batches_within([len(ids) for ids in inputs], self.tokens_per_batch):
            rows = {index: row for row, place in enumerate(batch) for index in read[inputs[place]]}
            scores = self._score([inputs[place] for place in batch], [(row, cuts[i]) for i, row in rows.items()])
            scored.update(zip(rows, scores, strict=True))
        return join_windows(self.files.path, cuts, [scored[i] for i in range(len(cuts))], len(requests))

    def _score(self, inputs: list[tuple[int, ...]], chosen: list[tuple[int, Window]]) -> list[WindowScore]:
        """Score windows, each with its row of `inputs`, in one right-padded forward pass; logits only where scored."""
        input_ids_BT = torch.zeros(len(inputs), max(map(len, inputs)), dtype=torch.long)
        attention_mask_BT = torch.zeros_like(input_ids_BT)
        for row, ids in enumerate(inputs):
            input_ids_BT[row, : len(ids)] = torch.tensor(ids)
            attention_mask_BT[row, : len(ids)] = 1
        sizes = [window.scored for _, window in chosen]
        row_N = torch.tensor([row for row, _ in chosen]).repeat_interleave(torch.tensor(sizes))
        place_N = torch.cat([torch.arange(-window.scored, 0) + len(window.ids) - 1 for _, window in chosen])
        targets_N = torch.tensor([token for _, window in chosen for token in window.ids[-window.scored :]])
        hidden_BTD = self.model.get_decoder()(
            input_ids=input_ids_BT.to(self.device), attention_mask=attention_mask_BT.to(self.device), use_cache=False
        ).last_hidden_state
        hidden_ND = hidden_BTD[row_N.to(self.device), place_N.to(self.device)]
        chunks = zip(hidden_ND.split(HEAD_CHUNK), targets_N.to(self.device).split(HEAD_CHUNK), strict=True)
        logliks, hits = zip(*(self._score_tokens(*chunk) for chunk in chunks), strict=True)
        return [
            WindowScore(loglik_N.sum().item(), bool(hit_N.all()))
            for loglik_N, hit_N in zip(torch.cat(logliks).split(sizes), torch.cat(hits).split(sizes), strict=True)
        ]

    def _score_tokens(self, hidden_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        """Log-likelihood of each target, float64, and whether it is the most likely token; both on the CPU."""
        logits_NV = self.head.logits(hidden_ND)
        logliks_N = -F.cross_entropy(logits_NV, targets_N, reduction="none")
        return logliks_N.double().cpu(), (logits_NV.argmax(-1) == targets_N).cpu()

    @torch.inference_mode()
    def generate(self, requests: list[GenerateRequest]) -> list[Answer]:
        """Greedy answers in left-padded batches, each up to its end-of-turn token, its length or a stop text.

        Raises:
            UserError: the model takes no images, or a prompt does not fit its context or has a token that it lacks.
        """
        alike: dict[int, list[int]] = defaultdict(list)  # requests that can share a batch
        for index, request in enumerate(requests):
            alike[request.max_new_tokens].append(index)
        answers: dict[int, Answer] = {}
        for max_new_tokens, indices in alike.items():
            for begin in range(0, len(indices), ENCODED_AT_ONCE):
                chosen = indices[begin : begin + ENCODED_AT_ONCE]
                samples = [self._encode(requests[i]) for i in chosen]
                for batch in batches_within(
                    [len(sample) + max_new_tokens for sample in samples], self.tokens_per_batch
                ):
                    found = self._answer([requests[chosen[i]] for i in batch], [samples[i] for i in batch])
                    answers.update(zip((chosen[i] for i in batch), found, strict=True))
        return [answers[i] for i in range(len(requests))]

    def _encode(self, request: GenerateRequest) -> Sample:
        sample = self.prompts.encode(request)
        unknown = sample.input_ids_T[(sample.input_ids_T >= self.embedded) & ~sample.visual_T]
        if len(unknown):
            token = self.files.tokenizer.convert_ids_to_tokens(int(unknown[0]))
            raise UserError(
                f"{self.files.path}: the prompt {request.prompt[:80]!r} has the token {token!r} of its tokenizer, "
                f"beyond the {self.embedded} rows of its embeddings: enlarge them by "
                "model.resize_token_embeddings(len(tokenizer)), or take the tokenizer of this model"
            )
        return sample

    def _answer(self, requests: list[GenerateRequest], samples: list[Sample]) -> list[Answer]:
        """Answer requests with one `max_new_tokens`."""
        pad = self.prompts.encoder.pad_id
        answers = generate_answers(
            self.model,
            [Prompt(sample.input_ids_T, sample.visual_T) for sample in samples],
            self._vision(samples),
            ends=self.prompts.ends,
            pad_id=pad if pad < self.embedded else 0,  # a token that was added to the tokenizer alone
            max_new_tokens=requests[0].max_new_tokens,
            stopping=StoppingCriteriaList([_StopTexts(self.prompts, requests, max(map(len, samples)))]),
        )
        return [self.prompts.answer(r, ids_T.tolist()) for r, ids_T in zip(requests, answers, strict=True)]

    def _vision(self, samples: list[Sample]) -> dict[str, Tensor]:
        """The vision tensors of all samples, pixels in the model's dtype."""
        joined = join_vision([sample.vision for sample in samples if sample.vision])
        return {name: t.to(self.model.dtype) if t.is_floating_point() else t for name, t in joined.items()}


class _StopTexts(StoppingCriteria):
    """Ends answers that contain a stop text of their request; `begin` is where answers begin in a row."""

    def __init__(self, prompts: Prompts, requests: list[GenerateRequest], begin: int) -> None:
        self.prompts, self.begin = prompts, begin
        self.stops = [prompts.stops(request) for request in requests]

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Which rows are done, `[B]` bool."""
        if not any(self.stops):
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        texts = self.prompts.tokenizer.batch_decode(input_ids[:, self.begin :], skip_special_tokens=True)
        done = [any(stop in text for stop in stops) for stops, text in zip(self.stops, texts, strict=True)]
        return torch.tensor(done, device=input_ids.device)


def load_model(files: ModelFiles, dtype: torch.dtype = torch.float32) -> Any:
    """Load the weights on the CPU; raises UserError where Transformers cannot, or finds not all of them."""
    place, origin = model_origin(files.path)
    loader = loader_of(files.processor is not None)
    weights: dict[str, Any] = origin or {"use_safetensors": True}
    try:
        # One precision for all models, so that scores differ by their weights alone.
        model = load_whole(loader, f"model {files.path}", place, dtype=dtype, **weights)
    except NOT_LOADABLE as error:
        raise cannot_load(files.path, error) from error
    use_exact_attention(model.get_decoder())
    return model
