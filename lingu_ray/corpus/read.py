"""Reading a corpus in training: the rows of each step, encoded ahead of need.

Optimizer step s takes the B = `rows_per_step` positions [s·B, (s + 1)·B) of the global order, and rank r of W those
from s·B + ⌊B·r / W⌋ on. These are neighbors, so few ranks read the same part of a file. Positions past the end of the
corpus begin a new pass. So the step number alone says where to resume, with any number of workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from lingu_ray.corpus.encode import Encoder, Sample
from lingu_ray.corpus.encoding_pool import encoding_pool
from lingu_ray.corpus.store import Corpus
from lingu_ray.errors import UserError
from lingu_ray.waiting import waiting

Step = TypeVar("Step")


def rows_of_rank(rows_per_step: int, rank: int, world_size: int) -> range:
    """Which of a step's rows a rank reads."""
    return range(rows_per_step * rank // world_size, rows_per_step * (rank + 1) // world_size)


@dataclass(eq=False)
class StepReader(Generic[Step]):
    """Iterates over steps `start_step` to `steps` − 1; each item is the result of `make` for this rank's samples.

    `threads` background threads decode and encode rows, at most `ahead` steps before they are needed; one more thread
    calls `make`. Use it as a context manager, or call `close`. `pool`: the encoding threads, which others may use, too.
    """

    corpus: Corpus
    encoder: Encoder
    make: Callable[[list[Sample]], Step]
    rows_per_step: int
    rank: int
    world_size: int
    start_step: int
    steps: int
    threads: int = 2
    ahead: int = 2

    def __post_init__(self) -> None:
        self.pool = encoding_pool(self.threads)
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="collate")
        self._submitted = map(self._submit, range(self.start_step, self.steps))
        self._pending = deque(islice(self._submitted, self.ahead))

    def positions(self, step: int) -> list[int]:
        """This rank's positions in the corpus at a step."""
        own = rows_of_rank(self.rows_per_step, self.rank, self.world_size)
        return self.corpus.positions(step, self.rows_per_step)[own.start : own.stop]

    def __iter__(self) -> Iterator[Step]:
        return self

    def __next__(self) -> Step:
        """The next step.

        Raises:
            UserError: a row cannot be encoded; names source and position.
        """
        self._pending.extend(islice(self._submitted, 1))
        if not self._pending:
            raise StopIteration
        with waiting("the next step's rows", f"the storage of {self.corpus.folder}, and the node's cores"):
            return self._pending.popleft().result()

    def _submit(self, step: int) -> Future[Step]:
        samples = [self.pool.submit(self._encode, position) for position in self.positions(step)]
        return self._maker.submit(lambda: self.make([sample.result() for sample in samples]))

    def _encode(self, position: int) -> Sample:
        row = self.corpus.row(position)
        try:
            return self.encoder.encode(row)
        except Exception as error:
            raise UserError(f"{row} of corpus {self.corpus.folder} cannot be encoded: {error}") from error

    def close(self) -> None:
        """Drop what was encoded ahead and stop the threads."""
        self.pool.shutdown(cancel_futures=True)
        self._maker.shutdown(cancel_futures=True)
        self._pending.clear()

    def __enter__(self) -> StepReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
