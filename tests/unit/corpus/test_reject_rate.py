"""What is said of a source with too many bad rows."""

import pyarrow as pa
import pytest

from lingu_ray.config import CorpusConfig, SourceConfig
from lingu_ray.corpus.counts import checked_counts
from lingu_ray.errors import UserError

TALLIES = {
    **{"source": ["pics"] * 2, "split": [0, 0], "rows": [3, 1], "truncated": [0, 0], "key": [0, 1]},
    **{"reason": ["missing_image", None], "origin": ["/rows.json:1", "/rows.json:2"]},
}


@pytest.mark.parametrize(
    ("root", "detail", "said"),
    [
        ("/imgs", "/imgs/0.png: No such file or directory", "looked for in corpus.sources.pics.image_root=/imgs. Fix"),
        (None, "/0.png: No such file or directory", "the folder of the rows' file (corpus.sources.pics.image_"),
        (None, "the image is empty", "is empty\nFix the data"),
    ],
)
def test_it_is_said_where_images_were_looked_for(root: str | None, detail: str, said: str):
    """Where one is not there, and where relative paths start is what may be wrong."""
    source = SourceConfig.model_validate({"name": "pics", "format": "llava", "path": "/rows.json", "image_root": root})
    with pytest.raises(UserError) as caught:
        checked_counts(pa.table(TALLIES | {"excerpt": [detail, None]}), CorpusConfig(sources=(source,)), (source,))
    assert said in str(caught.value)
