"""The output head against the logits that Transformers itself makes."""

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    Cohere2Config,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    GPTJConfig,
    GraniteConfig,
    HyperCLOVAXConfig,
    LlamaConfig,
    MiniCPM3Config,
    PaliGemmaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from lingu_ray.distill.head import OutputHead, add_product_, check_head, output_head, scaling
from lingu_ray.errors import UserError

TINY = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
MLA = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8}
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**TINY),
    "gemma2": Gemma2Config(**TINY, final_logit_softcapping=0.5),
    "granite": GraniteConfig(**TINY, logits_scaling=8.0),
    "cohere": CohereConfig(**TINY, logit_scale=0.0625),
    "cohere2": Cohere2Config(**TINY, logit_scale=0.25),
    "falcon_h1": FalconH1Config(**TINY, lm_head_multiplier=0.4, mamba_d_ssm=16, mamba_n_heads=2, mamba_d_head=8),
    "hyperclovax": HyperCLOVAXConfig(**TINY, logits_scaling=0.125),
    "minicpm3": MiniCPM3Config(**TINY, **MLA, dim_model_base=4),
}


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_logits_are_those_of_transformers(config):
    """Scale and soft cap that the configuration names give the model's own logits, from its final hidden states."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    torch.nn.init.normal_(model.get_output_embeddings().weight)  # so large that a soft cap shows
    ids = torch.tensor([[3, 7, 9, 4]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits[0]
        hidden = model.get_decoder()(input_ids=ids).last_hidden_state[0]
    head = output_head(model)
    assert (head.scale, head.softcap) != (1.0, None) or config.model_type == "llama"
    torch.testing.assert_close(head.logits(hidden), expected, rtol=1e-5, atol=1e-5)


def test_the_decoder_of_a_vlm_says_what_its_head_does():
    """PaliGemma 2: the soft cap is the text configuration's."""
    config = PaliGemmaConfig(text_config=Gemma2Config(**TINY, final_logit_softcapping=30.0))
    assert scaling(config.get_text_config(decoder=True)) == (1.0, 30.0)


def test_a_bias_is_refused():
    """GPT-J's output head has a bias: a UserError that names the model."""
    model = AutoModelForCausalLM.from_config(GPTJConfig(vocab_size=50, n_embd=16, n_layer=1, n_head=2, rotary_dim=4))
    with pytest.raises(UserError, match="GPTJForCausalLM: the method needs an output head without bias"):
        output_head(model)


def test_no_head_is_refused():
    """A model without an output head: the same error."""
    with pytest.raises(UserError, match="LlamaModel: the method needs an output head without bias"):
        output_head(AutoModel.from_config(FAMILIES["llama"]))


class NormHead(torch.nn.Linear):
    """As Baichuan 2's: the rows of its weight have length 1."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(hidden, torch.nn.functional.normalize(self.weight))


def normed(model: PreTrainedModel) -> None:
    """Give the model such a head."""
    model.lm_head = NormHead(TINY["hidden_size"], TINY["vocab_size"], bias=False)


def hooked(model: PreTrainedModel) -> None:
    """Let a hook of the user's change the logits."""
    model.lm_head.register_forward_hook(lambda head, hidden, logits: logits * 2)


def quantized(model: PreTrainedModel) -> None:
    """The head in 8 bits, whose weight is no tensor."""
    model.lm_head = torch.ao.nn.quantized.dynamic.Linear(TINY["hidden_size"], TINY["vocab_size"], bias_=False)


def in_float8(model: PreTrainedModel) -> None:
    """The head in 8 bits, to be multiplied by scales of its own."""
    model.lm_head.weight.data = model.lm_head.weight.to(torch.float8_e4m3fn)


def of_two_tensors(model: PreTrainedModel) -> None:
    """The head's weight as torchao has it: one tensor around two, numbers and scales."""
    weight = model.lm_head.weight.detach()
    model.lm_head.weight = torch.nn.Parameter(TwoTensor(weight, weight.clone()))


def broken(model: PreTrainedModel) -> None:
    """bitsandbytes' head around the embedding matrix, which was not quantized: it cannot be called."""

    def fails(hidden: torch.Tensor) -> torch.Tensor:
        raise AssertionError

    model.lm_head.forward = fails


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (normed, "the output head, a NormHead, computes something else"),
        (hooked, "the output head, a Linear, computes something else .* remove its hooks"),
        (quantized, "the output head is quantized"),
        (in_float8, "the output head is quantized"),
        (of_two_tensors, "the output head is quantized"),
        (broken, "the output head is quantized"),
    ],
)
def test_a_head_that_is_more_than_its_weight_is_refused(change, message):
    """Of its weight alone other logits would be made than the model's, without a word."""
    model = AutoModelForCausalLM.from_config(LlamaConfig(**TINY, tie_word_embeddings=False))
    check_head(model)
    check_head(model.bfloat16())
    change(model.float())
    with pytest.raises(UserError, match=f"LlamaForCausalLM: {message}"):
        check_head(model)


def test_a_head_with_an_adapter_is_refused():
    """Its weight alone would leave out the adapter, which then never learns. Elsewhere, and a head's copy, are fine.

    A head that is the embedding matrix also has that of single tokens: the error names the setting.
    """
    peft = pytest.importorskip("peft")
    for settings, works in (
        ({"target_modules": ["q_proj"]}, True),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, True),
        ({"target_modules": ["q_proj", "lm_head"]}, False),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [3]}, False),
    ):
        lm = AutoModelForCausalLM.from_config(LlamaConfig(**TINY, tie_word_embeddings=True))
        model = peft.get_peft_model(lm, peft.LoraConfig(**settings))
        if works:
            assert output_head(model.get_base_model()).vocabulary == TINY["vocab_size"]
            continue
        with pytest.raises(UserError, match=r"the output head has an adapter.* trainable_token_indices"):
            output_head(model.get_base_model())


@pytest.mark.parametrize("head", [{}, {"scale": 0.3}, {"softcap": 2.0}, {"scale": 1.5, "softcap": 2.0}])
def test_pull_back_is_the_gradient(head):
    """From dL/dlogits to dL/d(hidden Wᵀ), as autograd has it."""
    raw = torch.randn(5, 7, requires_grad=True)
    scale, softcap = head.get("scale", 1.0), head.get("softcap")
    logits = scale * raw if softcap is None else softcap * torch.tanh(scale * raw / softcap)
    grad = torch.randn(5, 7)
    logits.backward(grad)
    pulled = OutputHead(torch.empty(7, 3), **head).pull_back_(grad.clone(), logits.detach().clone())
    torch.testing.assert_close(pulled, raw.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_products_add_up_in_float32(dtype, device):
    """`beta=0` overwrites what was undefined, any other adds; a bfloat16 product is off by its rounding at most."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    a, b = (torch.randn(6, 6, device=device).to(dtype) for _ in range(2))
    total = torch.full((6, 6), torch.nan, device=device)
    add_product_(total, a, b, beta=0)
    add_product_(total, a, b, beta=1)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(total, 2 * (a.float() @ b.float()), rtol=tolerance, atol=tolerance)
