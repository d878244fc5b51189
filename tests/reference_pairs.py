"""Two ways to compute a student and its teacher for the reference of the method, in float64, a sample at a time.

`ByHand`: the Llama of the textbooks, run token by token over a memory of keys and values: the student fills an empty
memory, the teacher continues from one that the student has filled in part. Transformers' model holds the weights and
maps images to features, and does nothing else.

`ByTransformers`, for any family: the student reads the whole sample, alone and unpadded. The teacher reads the whole
sample, too, and in every layer the student's keys and values are put in the place of those that are donated, so what it
computes there has no effect. Positions after images (M-RoPE) are counted here.

Shape suffixes: D hidden, E head dimension, F inner width of the MLP, H key heads, K keys seen, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from reference_method import Example, Logits
from torch import Tensor
from transformers import DynamicCache

Memory = list[dict[int, list[tuple[Tensor, Tensor]]]]
"""By layer and position: key (after RoPE) and value [E] of each KV head."""


class Decoder:
    """Llama by hand. `prefix` is where its parameters stand in `model`; an untied head is `lm_head.weight`."""

    def __init__(self, model: torch.nn.Module, prefix: str, config: Any) -> None:
        parameters = dict(model.named_parameters())
        self.embedding_VD = parameters[prefix + "embed_tokens.weight"]
        self.head_VD = parameters.get("lm_head.weight", self.embedding_VD)
        self.final_norm_D = parameters[prefix + "norm.weight"]
        self.layers = [
            {
                name.removeprefix(start).removesuffix(".weight"): tensor
                for name, tensor in parameters.items()
                if name.startswith(start)
            }
            for start in (f"{prefix}layers.{index}." for index in range(config.num_hidden_layers))
        ]
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.eps = config.head_dim, config.rms_norm_eps
        self.theta = config.rope_parameters["rope_theta"]

    def empty_memory(self) -> Memory:
        """Nothing read yet."""
        return [{} for _ in self.layers]

    def read(self, inputs: dict[int, Tensor], memory: Memory) -> dict[int, Tensor]:
        """Final hidden states [D] by position, of the input embeddings [D] by position.

        Each position attends to what the memory holds at positions up to its own, and adds its own key and value.
        """
        hidden = {}
        for position in sorted(inputs):
            x_D = inputs[position]
            for weights, cells in zip(self.layers, memory, strict=True):
                y_D = self._norm(x_D, weights["input_layernorm"])
                x_D = x_D + self._attend(y_D, position, weights, cells)
                y_D = self._norm(x_D, weights["post_attention_layernorm"])
                x_D = x_D + self._mlp(y_D, weights)
            hidden[position] = self._norm(x_D, self.final_norm_D)
        return hidden

    def _attend(self, x_D: Tensor, position: int, weights: dict[str, Tensor], cells: dict[int, Any]) -> Tensor:
        """Grouped-query attention: `heads / kv_heads` consecutive query heads read one KV head."""
        queries = [self._rotate(q_E, position) for q_E in self._split(weights["self_attn.q_proj"] @ x_D)]
        keys = [self._rotate(k_E, position) for k_E in self._split(weights["self_attn.k_proj"] @ x_D)]
        values = self._split(weights["self_attn.v_proj"] @ x_D)
        cells[position] = list(zip(keys, values, strict=True))
        seen = [cells[p] for p in sorted(cells) if p <= position]
        outputs = []
        for head, q_E in enumerate(queries):
            group = head // (self.heads // self.kv_heads)
            score_K = torch.stack([q_E @ cell[group][0] for cell in seen]) / math.sqrt(self.head_dim)
            weight_K = torch.exp(score_K - score_K.max())
            weight_K = weight_K / weight_K.sum()
            outputs.append(weight_K @ torch.stack([cell[group][1] for cell in seen]))
        return weights["self_attn.o_proj"] @ torch.cat(outputs)

    def _split(self, x: Tensor) -> list[Tensor]:
        return [x[start : start + self.head_dim] for start in range(0, len(x), self.head_dim)]

    def _rotate(self, x_E: Tensor, position: int) -> Tensor:
        """RoPE: dimensions i and i + E/2 are a plane, turned by position · θ^(−2i/E)."""
        half = self.head_dim // 2
        angle = torch.tensor([position * self.theta ** (-2 * i / self.head_dim) for i in range(half)]).double()
        first, second = x_E[:half], x_E[half:]
        return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()])

    def _norm(self, x_D: Tensor, weight_D: Tensor) -> Tensor:
        return x_D / torch.sqrt((x_D * x_D).mean() + self.eps) * weight_D

    @staticmethod
    def _mlp(x_D: Tensor, weights: dict[str, Tensor]) -> Tensor:
        gate_F = weights["mlp.gate_proj"] @ x_D
        return weights["mlp.down_proj"] @ (gate_F / (1 + torch.exp(-gate_F)) * (weights["mlp.up_proj"] @ x_D))


def student_inputs(vlm: Any, decoder: Decoder, example: Example) -> dict[int, Tensor]:
    """What the student reads at each position: its token's embedding, or the next image feature."""
    features = iter(())
    if example.vision:
        found = vlm.get_image_features(**_double(example.vision)).pooler_output
        features = iter([feature_D for image in found for feature_D in image])
    inputs = {
        position: next(features) if example.visual[position] else decoder.embedding_VD[token]
        for position, token in enumerate(example.ids)
    }
    assert next(features, None) is None, "more image features than visual positions"
    return inputs


class ByHand:
    """A `Pair` of an Idefics3 with a Llama decoder and a Llama, both in float64."""

    def __init__(self, vlm: Any, lm: Any) -> None:
        self.vlm = vlm
        self.decoder = Decoder(vlm, "model.text_model.", vlm.config.text_config)
        self.teacher_decoder = Decoder(lm, "model.", lm.config)
        self.teacher_vocabulary = len(self.teacher_decoder.embedding_VD)

    def student(self, example: Example) -> tuple[Logits, Memory]:
        """The sample is read from its start."""
        memory = self.decoder.empty_memory()
        hidden = self.decoder.read(student_inputs(self.vlm, self.decoder, example), memory)
        return {p: self.decoder.head_VD @ hidden_D for p, hidden_D in hidden.items()}, memory

    def teacher(self, example: Example, memory: Memory, queries: list[int]) -> Logits:
        """The queries are read, over a memory of all other positions."""
        donated = [
            {p: [(key_E.detach(), value_E.detach()) for key_E, value_E in cells[p]] for p in cells if p not in queries}
            for cells in memory
        ]
        return self._read({p: example.ids[p] for p in queries}, donated)

    def teacher_alone(self, ids: list[int]) -> Logits:
        """Nothing is donated."""
        return self._read(dict(enumerate(ids)), self.teacher_decoder.empty_memory())

    @torch.no_grad()
    def _read(self, ids: dict[int, int], memory: Memory) -> Logits:
        decoder = self.teacher_decoder
        hidden = decoder.read({p: decoder.embedding_VD[i] for p, i in ids.items()}, memory)
        return {p: decoder.head_VD @ hidden_D for p, hidden_D in hidden.items()}


class ByTransformers:
    """A `Pair` of any family, both models in float64."""

    def __init__(self, vlm: Any, lm: Any) -> None:
        self.vlm, self.lm = vlm, lm
        self.teacher_vocabulary = lm.config.vocab_size
        self.first_position = int(vlm.config.model_type == "paligemma")  # which counts from 1

    def student(self, example: Example) -> tuple[Logits, list[tuple[Tensor, Tensor]]]:
        """As at inference; the memory is what its KV cache holds, a layer's keys and values `[H, T, E]`."""
        cache = DynamicCache()  # of no configuration: it keeps what lies outside of a sliding window, too
        inputs = _double(example.vision) | _token_types(self.vlm.config.model_type, example)
        ids_1T = torch.tensor([example.ids])
        output = self.vlm.model(
            input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T), past_key_values=cache, use_cache=True, **inputs
        )
        memory = [(layer.keys[0].detach(), layer.values[0].detach()) for layer in cache.layers]
        return _logits(self.vlm, output.last_hidden_state[0]), memory

    def teacher(self, example: Example, memory: list[tuple[Tensor, Tensor]], queries: list[int]) -> Logits:
        """All positions are read; a donated one's keys and values are the student's."""
        donated = [p for p in range(len(example.ids)) if p not in queries]
        ids = [0 if p in donated else i for p, i in enumerate(example.ids)]
        logits = self._read(ids, text_positions(example, self.first_position), _Replacing(memory, donated))
        return {p: logits[p] for p in queries}

    def teacher_alone(self, ids: list[int]) -> Logits:
        """As at inference."""
        return self._read(ids, list(range(len(ids))), DynamicCache())

    @torch.no_grad()
    def _read(self, ids: list[int], positions: list[int], cache: DynamicCache) -> Logits:
        ids_1T = torch.tensor([ids])
        output = self.lm.model(
            input_ids=ids_1T,
            attention_mask=torch.ones_like(ids_1T),
            position_ids=torch.tensor([positions]),
            past_key_values=cache,
            use_cache=True,
        )
        return _logits(self.lm, output.last_hidden_state[0])


class _Replacing(DynamicCache):
    """A cache that takes the keys and values of donated positions from the memory, in every layer."""

    def __init__(self, memory: list[tuple[Tensor, Tensor]], donated: list[int]) -> None:
        super().__init__()
        self.memory, self.donated = memory, donated

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """`[1, H, T, E]` of all positions in and out."""
        replaced = (key_states.clone(), value_states.clone())
        for tensor_1HTE, memory_HTE in zip(replaced, self.memory[layer_idx], strict=True):
            for position in self.donated:
                tensor_1HTE[0, :, position] = memory_HTE[:, position]
        return super().update(*replaced, layer_idx, *args, **kwargs)


def text_positions(example: Example, first: int) -> list[int]:
    """RoPE position of every text token. Under M-RoPE an image takes as many as its longer side has features."""
    if "image_grid_thw" not in example.vision:
        return list(range(first, first + len(example.ids)))
    grids = iter(example.vision["image_grid_thw"].tolist())
    positions, following = [], first
    for position, visual in enumerate(example.visual):
        if not visual:
            positions.append(following)
            following += 1
            continue
        positions.append(-1)  # an image's own are not the teacher's concern
        if not example.visual[position + 1]:
            _, height, width = next(grids)
            following += max(height, width) // 2  # four patches make a feature
    return positions


def _token_types(model_type: str, example: Example) -> dict[str, Tensor]:
    """What the family's processor returns beside the ids: where images are, or where the prompt ends."""
    visual_1T = torch.tensor([example.visual]).long()
    if model_type == "paligemma":
        first = example.supervised.index(True) if any(example.supervised) else len(example.ids)
        return {"token_type_ids": (torch.arange(len(example.ids)) >= first).long()[None]}
    if model_type == "gemma3":
        return {"token_type_ids": visual_1T}
    return {"mm_token_type_ids": visual_1T} if model_type.startswith("qwen") and "audio" not in model_type else {}


def _logits(model: Any, hidden_TD: Tensor) -> Logits:
    """Logits at every position, soft-capped where the decoder's configuration has a cap."""
    head_VD = model.get_output_embeddings().weight
    cap = getattr(model.config.get_text_config(decoder=True), "final_logit_softcapping", None)
    logits = {p: head_VD @ hidden_D for p, hidden_D in enumerate(hidden_TD)}
    return logits if cap is None else {p: cap * torch.tanh(logits_V / cap) for p, logits_V in logits.items()}


def _double(vision: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.double() if x.is_floating_point() else x for name, x in vision.items()}
