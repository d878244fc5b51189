"""`kd_weight` of a source reaches the loss of its tokens, and of no others."""

from pathlib import Path

import pytest
import torch
from tiny import tiny_processor
from tinyrun import config, settings, write_pair_and_data

from lingu_ray.config import Config
from lingu_ray.corpus.encode import Encoder
from lingu_ray.corpus.row import Row
from lingu_ray.distill.student import Student
from lingu_ray.runtime.models.load import load_student, load_teacher
from lingu_ray.runtime.training.step import MicroBatches

pytestmark = pytest.mark.slow  # passes of a student for each source


def say(user, assistant):
    """One turn of each."""
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


@pytest.fixture(scope="module")
def gradient(tmp_path_factory):
    """A function from weights of the sources and of the KD term to the head's gradient after one step on both."""
    data = tmp_path_factory.mktemp("data")
    write_pair_and_data(data)

    def of(text, pictures, w_kd=1.0):
        tree = settings(data, data, distill={"policy": "all", "w_kd": w_kd})
        for source, weight in zip(tree["corpus"]["sources"], (text, pictures), strict=True):
            source["kd_weight"] = weight
        config = Config.model_validate(tree)
        student = Student(load_student(config.student))
        torch.manual_seed(0)
        with torch.no_grad():  # the pair is equal as it comes, and KD 0
            for parameter in student.decoder.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        teacher = load_teacher(config.teacher, torch.float32, torch.device("cpu"))
        micro_batches = MicroBatches(config, student, teacher, torch.device("cpu"))
        encoder = Encoder(tiny_processor(), 160)
        image = (data / "0.png").read_bytes()
        rows = [
            Row("text", 0, say("Tell me.", "A longer story."), [], True),
            Row("pictures", 1, say("<image>Even?", "It is odd."), [image], True),
        ]
        batches = micro_batches.make([encoder.encode(row) for row in rows], encoder.pad_id)
        plans = [micro_batches.plan(batch) for batch in batches]
        micro_batches.run(batches, plans, micro_batches.weights(0.0, batches, plans))
        return student.output_head.weight_VD.grad

    return of


def test_a_weight_on_all_sources_is_the_weight_of_the_term(gradient):
    """0 and 3 on both sources are `w_kd` 0 and 3."""
    for weight in (0.0, 3.0):
        torch.testing.assert_close(gradient(weight, weight), gradient(1, 1, w_kd=weight), rtol=1e-4, atol=1e-7)


def test_a_weight_of_zero_is_a_source_that_is_not_chosen():
    """No KD, no factor on its CE, no sampled answers: `kd_weight: 0` on one source is the policy that leaves it out."""
    distill = {"ce_on_distilled": 0.2, "on_policy": 0.5}
    tree = settings(Path("data"), Path("out"), distill={"policy": "all", **distill})
    tree["corpus"]["sources"][1]["kd_weight"] = 0
    by_weight = Config.model_validate(tree)
    by_policy = config(Path("data"), Path("out"), distill={"policy": "selective", **distill})
    assert by_weight.distilled_sources() == by_policy.distilled_sources() == {"text"}
    for one, other in zip(by_weight.corpus.sources, by_policy.corpus.sources, strict=True):
        assert by_weight.ce_weight(one) == by_policy.ce_weight(other)


def test_each_source_has_its_own(gradient):
    """What both sources' KD adds to the gradient is what each adds by itself."""
    ce = gradient(0, 0)
    text, pictures, both = (gradient(*weights) - ce for weights in ((1, 0), (0, 1), (1, 1)))
    assert text.abs().max() > 1e-4 and pictures.abs().max() > 1e-4
    torch.testing.assert_close(text + pictures, both, rtol=1e-3, atol=1e-6)
