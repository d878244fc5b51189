"""The teacher's attention without repeated keys gives what attention with repeated keys gives."""

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_teacher

from lingu_ray.distill import grouped_attention
from lingu_ray.distill.continuation import TeacherRequest, continue_from_kv
from lingu_ray.distill.grouped_attention import GROUPED, use_grouped_attention


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_equals_softmax_over_repeated_keys(groups):
    """Any grouping of heads, any mask: the plain formula in float64."""
    torch.manual_seed(groups)
    query = torch.randn(2, 3 * groups, 5, 8, dtype=torch.float64)
    key, value = (torch.randn(2, 3, 11, 8, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(2, 1, 5, 11) < 0.6
    mask[..., 0] = True
    output, _ = grouped_attention._attention(torch.nn.Module(), query, key, value, mask, scaling=0.3)
    expected = torch.empty(2, 5, 3 * groups, 8, dtype=torch.float64)
    for row in range(2):
        for head in range(3 * groups):
            scores = 0.3 * query[row, head] @ key[row, head // groups].T
            weights = scores.masked_fill(~mask[row, 0], -torch.inf).softmax(-1)
            expected[row, :, head] = weights @ value[row, head // groups]
    torch.testing.assert_close(output, expected)


def test_a_whole_model_and_cases_left_to_sdpa():
    """A causal forward without a mask, and one with padding, are SDPA's to the bit; eager models stay eager."""
    teacher = tiny_teacher()
    ids = torch.randint(3, 300, (2, 9))
    padding = torch.ones_like(ids)
    padding[0, :3] = 0
    before = [teacher(ids).logits, teacher(ids, attention_mask=padding).logits]
    use_grouped_attention(teacher)
    assert teacher.config._attn_implementation == GROUPED
    after = [teacher(ids).logits, teacher(ids, attention_mask=padding).logits]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    teacher.set_attn_implementation("eager")
    use_grouped_attention(teacher)
    assert teacher.config._attn_implementation == "eager"


def test_the_mask_of_a_continuation_is_made_once(monkeypatch):
    """Every layer's attention gets the same tensor, with an aligned row for each head of a group and query."""
    teacher = tiny_teacher()
    use_grouped_attention(teacher)
    masks, plain = [], F.scaled_dot_product_attention

    def record(query, *arguments, attn_mask, **named):
        masks.append(attn_mask)
        assert attn_mask.shape[2:] == (query.shape[2], 7) and attn_mask.stride(2) % 8 == 0
        return plain(query, *arguments, attn_mask=attn_mask, **named)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    index_Q = torch.arange(7)
    request = TeacherRequest(
        donated_index_P=torch.arange(0),
        donated_count_R=torch.tensor([0]),
        donated_kv_P=torch.arange(0),
        query_id_Q=index_Q + 3,
        query_index_Q=index_Q,
        query_count_R=torch.tensor([7]),
        predicts_Q=torch.ones(7, dtype=torch.bool),
        width=torch.tensor(7),
        kv_L2CHE=torch.empty(0, 2, 0, 0, 0),
        query_position_Q=index_Q,
    )
    hidden = continue_from_kv(teacher.model, request)
    assert len(masks) == 3 and len({id(mask) for mask in masks}) == 1
    monkeypatch.undo()
    torch.testing.assert_close(hidden, teacher.model(request.query_id_Q[None]).last_hidden_state[0])
