"""The demo's teacher: a small Llama, trained from scratch on the text of the training split."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lingu_ray.config import DemoConfig
from lingu_ray.demo.chats import Chat
from lingu_ray.runtime.run_folder.records import Record
from lingu_ray.runtime.tracking.progress import Progress

CONTEXT = 512  # positions of the model
PASSAGE = 96  # tokens of a training passage
PASSAGES_PER_STEP = 8
MATRIX_RATE = 0.02
EMBEDDING_RATE = 6e-3


def build_teacher(settings: DemoConfig, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """An untrained Llama with tied embeddings; head dimension = hidden_size / heads."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.hidden_size,
            intermediate_size=settings.hidden_size * 27 // 10,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


@dataclass(frozen=True)
class Stream:
    """The teacher's training text as one sequence: `ids_T` int64, an end-of-text token after each text.

    A training passage drawn at `t` begins at `begin_T[t]` (int64): anywhere in running text, but never inside a chat. A
    model that reads half chats learns that "Assistant:" may come at any time, and writes it.
    """

    ids_T: Tensor
    begin_T: Tensor


def token_stream(tokenizer: PreTrainedTokenizerFast, texts: list[str], chats: list[Chat]) -> Stream:
    """Tokenize running texts, then chats in the tokenizer's template."""
    ids: list[int] = []
    begin: list[int] = []
    for one in tokenizer(texts).input_ids:
        ids += [*one, tokenizer.eos_token_id]
        begin += range(len(begin), len(ids))
    for one in tokenizer(chat_texts(tokenizer, chats)).input_ids:
        begin += [len(ids)] * len(one)
        ids += one
    return Stream(torch.tensor(ids), torch.tensor(begin))


def chat_texts(tokenizer: PreTrainedTokenizerFast, chats: list[Chat]) -> list[str]:
    """Render each chat by the tokenizer's template, its end of turn included."""
    return [str(tokenizer.apply_chat_template(chat.messages(), tokenize=False)) for chat in chats]


def train_teacher(model: LlamaForCausalLM, stream: Stream, steps: int, seed: int) -> list[float]:
    """Train on random passages of the stream; returns the loss of every step, nats per token.

    Muon trains the layers' matrices and AdamW the rest: in a few hundred steps this gets about twice as far as AdamW
    alone. Both rates decay linearly to 0.
    """
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "layers" not in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=0.1),
        torch.optim.AdamW(others, lr=EMBEDDING_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    decays = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 - step / steps) for o in optimizers]
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    progress = Progress("teacher", steps)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more threads do not help matrices this small; on a busy machine they wait for each other
    model.train()
    for step in range(steps):
        begin = time.perf_counter()
        start_B1 = torch.randint(len(stream.ids_T) - PASSAGE, (PASSAGES_PER_STEP, 1), generator=generator)
        ids_BT = stream.ids_T[stream.begin_T[start_B1] + torch.arange(PASSAGE)]
        loss = model(input_ids=ids_BT, labels=ids_BT).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, decay in zip(optimizers, decays, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            decay.step()
        losses.append(loss.item())
        progress.show(_record(step + 1, losses[-1], ids_BT.numel() / (time.perf_counter() - begin)))
    progress.close()
    torch.set_num_threads(threads)
    model.eval()
    return losses


def _record(step: int, loss: float, tokens_per_s: float) -> Record:
    """A record for the live line; there is no teacher and no data to wait for."""
    return {
        "step": step,
        "loss": loss,
        "ce": loss,
        "kd": None,
        "tokens_per_s": tokens_per_s,
        "data_wait": 0.0,
        "teacher_wait": 0.0,
        "time": time.time(),
    }
