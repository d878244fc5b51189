import itertools
from functools import partial
from random import Random
from time import process_time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lingu_ray.corpus.batch import MicroBatch, collate, cut, join_vision, make_micro_batches, pack
from lingu_ray.corpus.encode import Sample
from lingu_ray.passes import PASS_TOKENS, cheapest_cut, tokens_of_a_pass


def sample(length: int, position: int = 0, images: int = 0) -> Sample:
    vision = {
        "pixel_values": torch.full((1, images, 3, 4, 4), float(position)),
        "pixel_attention_mask": torch.ones(1, images, 4, 4, dtype=torch.long),
    }
    supervised = torch.zeros(length, dtype=torch.bool)
    supervised[-1] = True
    ids = torch.arange(1, length + 1)
    return Sample("s", position, ids, supervised, ids == 2, vision if images else {})


PAD = 99
BUDGET = 64
PADDED = partial(cut, pass_tokens=PASS_TOKENS)


@st.composite
def drawn_samples(draw: st.DrawFn) -> list[Sample]:
    """Up to thirty samples, none over `BUDGET`, with any ids, masks and positions, in any order."""
    samples = []
    for position in draw(st.lists(st.integers(0, 10**6), unique=True, max_size=30)):
        length = draw(st.integers(1, BUDGET))
        ids, supervised, visual = torch.randint(0, 50, (3, length), generator=torch.Generator().manual_seed(position))
        source = draw(st.sampled_from("ab"))
        samples.append(
            Sample(source, position, ids, supervised > 24, visual > 40, {}, draw(st.none() | st.integers(0, length)))
        )
    return samples


def content(batches: list[MicroBatch]) -> dict[int, tuple]:
    """What the micro-batches hold of each sample, by its position; each may come once only."""
    found: dict[int, tuple] = {}
    for batch in batches:
        for index, position in enumerate(batch.positions):
            of_sample = batch.sample_BT == index
            tensors = (batch.input_ids_BT, batch.supervised_BT, batch.visual_BT, batch.sampled_BT)
            parts = (tensor[of_sample].tolist() for tensor in tensors)
            assert position not in found
            found[position] = (*parts, batch.sources[index])
    return found


@given(drawn_samples(), st.booleans())
def test_micro_batches_hold_every_sample_once_and_keep_the_budget(samples: list[Sample], packing: bool):
    """Any samples, padded and packed: each comes once and unchanged, numbered in row-major order; padding is right."""
    batches = make_micro_batches(samples, BUDGET, PAD, packing, PASS_TOKENS)
    assert content(batches) == {
        s.position: (
            s.input_ids_T.tolist(),
            s.supervised_T.tolist(),
            s.visual_T.tolist(),
            [s.sampled_from is not None and index >= s.sampled_from for index in range(len(s))],
            s.source,
        )
        for s in samples
    }
    for batch in batches:
        assert batch.sample_BT.numel() <= BUDGET
        real = batch.sample_BT >= 0
        numbers = batch.sample_BT[real]
        assert (numbers.diff() >= 0).all() and numbers.unique().tolist() == list(range(len(batch.positions)))
        assert not (real[:, 1:] & ~real[:, :-1]).any() and real.any(dim=0).all()
        assert (batch.input_ids_BT[~real] == PAD).all()
        assert not batch.supervised_BT[~real].any() and not batch.visual_BT[~real].any()
        assert not packing or (len(batch.sample_BT) == 1 and real.all())


@given(drawn_samples(), st.randoms(use_true_random=False))
def test_groups_do_not_depend_on_the_order_of_samples(samples: list[Sample], random: Random):
    """Shuffled samples are cut and packed into the same groups, so they do not depend on which thread was first."""
    shuffled = random.sample(samples, len(samples))
    for group in (PADDED, pack):
        assert group(shuffled, BUDGET) == group(samples, BUDGET)


@given(drawn_samples())
def test_pack_fills_the_budget(samples: list[Sample]):
    """No two groups would fit into one."""
    sizes = sorted(sum(len(s) for s in group) for group in pack(samples, BUDGET))
    assert len(sizes) < 2 or sizes[0] + sizes[1] > BUDGET


@pytest.mark.parametrize("group", [PADDED, pack], ids=["cut", "pack"])
def test_a_sample_over_budget_is_refused(group):
    """A sample that fits no micro-batch is named."""
    with pytest.raises(ValueError, match=r"row 3 \(source s\) has 9 tokens"):
        group([sample(9, 3)], 8)


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
        chosen = PADDED([sample(length, position) for position, length in enumerate(lengths)], 900)
        assert price([[len(s) for s in group] for group in chosen]) == best


@pytest.mark.parametrize("budget", [64, 2**13, 2**30])
def test_thousands_of_samples_are_cut_at_once(budget: int):
    """A worker's rows of a large step, and the teacher's parts of one call: no second of the processor's."""
    lengths = [length for length in range(60, 0, -1) for _ in range(70)]
    begin = process_time()
    groups = cheapest_cut(lengths, budget, PASS_TOKENS)
    assert process_time() - begin < 1
    assert [length for group in groups for length in lengths[group]] == lengths


def test_a_gpu_takes_more_padding_for_fewer_passes():
    """Rows of mixed lengths: on a GPU a pass costs as much as thousands of tokens, on a CPU as some hundred."""
    samples = [sample(length, position) for position, length in enumerate([40, 90, 250, 400, 900, 1400] * 4)]
    cpu, gpu = (
        make_micro_batches(samples, 8192, PAD, False, tokens_of_a_pass(torch.device(device)))
        for device in ("cpu", "cuda")
    )
    assert len(gpu) < len(cpu) and content(gpu) == content(cpu)


def split(lengths: list[int], bars: tuple[bool, ...]) -> list[list[int]]:
    """The list, cut behind each element whose bar is set."""
    groups = [[lengths[0]]]
    for length, bar in zip(lengths[1:], bars, strict=True):
        if bar:
            groups.append([])
        groups[-1].append(length)
    return groups
