import itertools

import pytest
import torch

from lingu_ray.corpus.batch import PASS_TOKENS, collate, cut, pack
from lingu_ray.corpus.encode import Sample, join_vision


def sample(length: int, position: int = 0, images: int = 0) -> Sample:
    vision = {
        "pixel_values": torch.full((1, images, 3, 4, 4), float(position)),
        "pixel_attention_mask": torch.ones(1, images, 4, 4, dtype=torch.long),
    }
    supervised = torch.zeros(length, dtype=torch.bool)
    supervised[-1] = True
    ids = torch.arange(1, length + 1)
    return Sample("s", position, ids, supervised, ids == 2, vision if images else {})


def test_cut_keeps_every_sample_once_and_the_budget():
    """Any lengths: each sample is in one group, no group's padded tokens exceed the budget, order does not matter."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        lengths = torch.randint(1, 65, (40,), generator=generator).tolist()
        samples = [sample(length, position) for position, length in enumerate(lengths)]
        groups = cut(samples, 64)
        assert sorted(s.position for group in groups for s in group) == list(range(40))
        assert all(len(group) * max(len(s) for s in group) <= 64 for group in groups)
        shuffled = [samples[i] for i in torch.randperm(40, generator=generator)]
        assert [[s.position for s in g] for g in cut(shuffled, 64)] == [[s.position for s in g] for g in groups]


def test_cut_refuses_a_sample_over_budget():
    """A sample that fits no micro-batch is named."""
    with pytest.raises(ValueError, match=r"row 3 \(source s\) has 9 tokens"):
        cut([sample(9, 3)], 8)


def test_cut_of_nothing_is_nothing():
    """No samples, no groups."""
    assert cut([], 8) == []


def test_collate_pads_on_the_right():
    """Ragged samples: all stands at the left, and padding is neither attended, supervised nor visual."""
    batch = collate([sample(3, 0), sample(5, 1)], pad_id=9)
    assert batch.input_ids_BT.tolist() == [[1, 2, 3, 9, 9], [1, 2, 3, 4, 5]]
    assert batch.attention_mask_BT.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch.attention_mask_BT.dtype == torch.int64
    assert batch.supervised_BT.tolist() == [[False, False, True, False, False], [False, False, False, False, True]]
    assert batch.visual_BT.tolist() == [[False, True, False, False, False]] * 2
    assert batch.sample_BT.tolist() == [[0, 0, 0, -1, -1], [1, 1, 1, 1, 1]]
    assert batch.tokens == 8
    assert (batch.sources, batch.positions) == (["s", "s"], [0, 1])
    assert batch.vision == {}


def test_pack_keeps_every_sample_once_and_fills_the_budget():
    """Any lengths: each sample is in one group of at most the budget, and no two groups would fit into one."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        lengths = torch.randint(1, 65, (40,), generator=generator).tolist()
        groups = pack([sample(length, position) for position, length in enumerate(lengths)], 64)
        assert sorted(s.position for group in groups for s in group) == list(range(40))
        sizes = sorted(sum(len(s) for s in group) for group in groups)
        assert sizes[-1] <= 64 and (len(sizes) == 1 or sizes[0] + sizes[1] > 64)
    with pytest.raises(ValueError, match=r"row 3 \(source s\) has 9 tokens"):
        pack([sample(9, 3)], 8)


def test_packed_samples_stand_one_after_another():
    """One row without padding; every position knows its sample."""
    batch = collate([sample(3, 0), sample(5, 1)], pad_id=9, packing=True)
    assert batch.input_ids_BT.tolist() == [[1, 2, 3, 1, 2, 3, 4, 5]]
    assert batch.sample_BT.tolist() == [[0] * 3 + [1] * 5]
    assert batch.supervised_BT[0].nonzero().flatten().tolist() == [2, 7]


def test_tiles_are_padded_to_the_most():
    """LLaVA-NeXT's `[images, tiles, C, H, W]`: the image with fewer tiles is filled up with zeros."""
    parts = [{"pixel_values": torch.ones(1, n, 3, 4, 4), "image_sizes": torch.ones(1, 2)} for n in (2, 3)]
    joined = join_vision(parts)["pixel_values"]
    assert joined.shape == (2, 3, 3, 4, 4) and joined[0, 2].abs().sum() == 0 and joined[1].min() == 1


def test_collate_joins_vision_in_order():
    """Images of all samples stand one after another along the image dimension; text samples add none."""
    batch = collate([sample(3, 1, images=2), sample(3, 2), sample(3, 3, images=1)], pad_id=0)
    assert batch.vision["pixel_values"].shape == (1, 3, 3, 4, 4)
    assert batch.vision["pixel_values"][0, :, 0, 0, 0].tolist() == [1.0, 1.0, 3.0]
    assert batch.vision["pixel_attention_mask"].shape == (1, 3, 4, 4)


def test_vision_of_other_families_is_joined_along_the_first_dimension():
    """LLaVA's `[images, C, H, W]` and Qwen's `[patches, D]` and grids are stacked along dimension 0."""
    parts = [{"pixel_values": torch.zeros(n, 3, 4, 4), "image_grid_thw": torch.ones(n, 3)} for n in (1, 2)]
    joined = join_vision(parts)
    assert joined["pixel_values"].shape == (3, 3, 4, 4)
    assert joined["image_grid_thw"].shape == (3, 3)


def test_cut_is_the_cheapest():
    """Against all ways to cut the ordered samples: none has fewer padded tokens, passes counted in."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        lengths = sorted(torch.randint(1, 300, (8,), generator=generator).tolist(), reverse=True)
        price = lambda groups: sum(max(g) * len(g) + PASS_TOKENS for g in groups)  # noqa: E731
        cuts = [split(lengths, bars) for bars in itertools.product((False, True), repeat=7)]
        best = min(price(groups) for groups in cuts if all(max(g) * len(g) <= 900 for g in groups))
        chosen = cut([sample(length, position) for position, length in enumerate(lengths)], 900)
        assert price([[len(s) for s in group] for group in chosen]) == best


def split(lengths: list[int], bars: tuple[bool, ...]) -> list[list[int]]:
    """The list, cut behind each element whose bar is set."""
    groups = [[lengths[0]]]
    for length, bar in zip(lengths[1:], bars, strict=True):
        if bar:
            groups.append([])
        groups[-1].append(length)
    return groups
