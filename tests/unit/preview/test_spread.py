"""Items spread over a stream of unknown length."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lingu_ray.config import SourceConfig
from lingu_ray.corpus.splits import split_source
from lingu_ray.preview.spread import MatchingSplit, Spread, SpreadSplit


@given(length=st.integers(0, 400), count=st.integers(0, 30))
def test_items_are_spread_over_the_whole_stream(length: int, count: int) -> None:
    """In order, as many as wanted or all, the first among them, no gap wider than three of an even spread."""
    spread: Spread[int] = Spread(count)
    for item in range(length):
        spread.add(item)
    items = spread.items()
    assert len(items) == min(length, count) and items == sorted(set(items))
    assert spread.complete == (length <= count)
    if count > 1 and length:
        ends = [*items, length]
        assert items[0] == 0
        assert max(after - before for before, after in pairwise(ends)) <= 3 * length / count + 1


def test_splits_read_some_records_with_their_own_numbers(tmp_path: Path) -> None:
    """Spread over a file, or found by the end of their origin, records keep the line that they stand in."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"n": n}) + "\n" for n in range(1, 101)))
    [split] = split_source(SourceConfig(name="a", format="template", path=str(path), prompt="{n}", answer="{n}"))
    begun: list[int] = []
    records = list(SpreadSplit(**vars(split), spread=Spread(5), begin=begun.append).records())
    assert begun == [0, 1, 2, 3, 4] and len(records) == 5 and records[0][0] == 1 and records[-1][0] > 90
    assert all(record == {"n": number} for number, record in records)
    for end in (f"{path}:7", "a.jsonl:7", "7"):
        assert list(MatchingSplit(**vars(split), end=end).records()) == [(7, {"n": 7})]
    assert not list(MatchingSplit(**vars(split), end="b.jsonl:7").records())
