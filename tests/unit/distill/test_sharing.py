"""KV sharing: what is donated, what the teacher computes, and that both agree with the student's own forward pass."""

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES
from tiny import ADDED, IMAGE_TOKENS, VOCABULARY, tiny_student, tiny_teacher, tiny_tokenizer

from lingu_ray.cost.trace import LiveBytes
from lingu_ray.distill import continuation
from lingu_ray.distill.continuation import (
    CALL_ELEMENTS,
    TeacherRequest,
    continue_from_kv,
    make_request,
    merge_requests,
)
from lingu_ray.distill.donation import plan_donation, predicting
from lingu_ray.distill.head import output_head
from lingu_ray.distill.inputs import ModelInputs
from lingu_ray.distill.student import Student
from lingu_ray.distill.teacher import Teacher
from lingu_ray.passes import PASS_TOKENS, cheapest_cut

LAYERS, KV_HEADS, HEAD_DIM = 3, 2, 32


@pytest.fixture(scope="module")
def pair():
    """Teacher, and a student whose decoder holds the teacher's weights."""
    teacher = tiny_teacher()
    return teacher, Student(tiny_student(teacher))


def batch(answers, length, seed=0):
    """Random text rows, right-padded; `answers[row]` lists the (start, end) spans of its answers."""
    g = torch.Generator().manual_seed(seed)
    widths = [spans[-1][1] for spans in answers]
    ids = torch.randint(3, VOCABULARY, (len(answers), length), generator=g)
    sample = torch.arange(len(answers))[:, None].where(torch.arange(length) < torch.tensor(widths)[:, None], -1)
    supervised = torch.zeros_like(ids, dtype=torch.bool)
    for row, spans in enumerate(answers):
        for start, end in spans:
            supervised[row, start:end] = True
    return ids.masked_fill(sample < 0, 2), sample, supervised


def with_images(ids, columns, seed=3):
    """Put an image's placeholder tokens at each (row, column); returns ids, visual mask and pixels."""
    image = tiny_tokenizer().convert_tokens_to_ids("<image>")
    ids = ids.clone()
    for row, column in columns:
        ids[row, column : column + IMAGE_TOKENS] = image
    pixels = torch.randn(1, len(columns), 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return ids, ids == image, {"pixel_values": pixels}


def ask(pair, ids, sample, supervised, visual=None, vision=None, distill=None, **plan_options):
    """The plan, the teacher's hidden states and the student's own at the same positions."""
    teacher, student = pair
    visual = torch.zeros_like(supervised) if visual is None else visual
    distill = torch.ones(len(ids), dtype=torch.bool) if distill is None else torch.tensor(distill)
    plan = plan_donation(ids, sample, supervised, visual, distill, VOCABULARY, **plan_options)
    shared = plan if plan_options.get("context") != "prompt_text" else None
    with torch.no_grad():
        hidden, capture = student.hidden_states(ModelInputs(ids, sample, supervised, visual, vision or {}), shared)
    teachers = Teacher(teacher).hidden_states(make_request(plan, capture))
    return plan, teachers, hidden[predicting(supervised, sample)][plan.kd_mask_N]


RAGGED = [[(30, 38)], [(5, 9)], [(2, 3), (10, 14), (20, 31)], [(1, 40)]]


@pytest.fixture(scope="module")
def exact_pair():
    """The pair in float64."""
    teacher, student = tiny_teacher(), Student(tiny_student(tiny_teacher()))
    student.model.double()
    return teacher.double(), student


LENGTHS = [[[(9, 9 + length)]] for length in (1, 2, 3, 5, 8, 13, 20)]


@pytest.mark.parametrize("scope", ["full", "visual"])
@pytest.mark.parametrize("answers", [*LENGTHS, RAGGED])
def test_text_only_identity(pair, exact_pair, answers, scope):
    """Text only and equal weights: the continued hidden states are the student's own, up to the last digits.

    A matrix product rounds by its number of rows, by processor and by threads, so equal bits cannot be had everywhere.
    """
    of_batch = batch(answers, max(spans[-1][1] for spans in answers))
    for one, tolerance in ((exact_pair, 1e-13), (pair, 2e-5)):
        _, teachers, students = ask(one, *of_batch, scope=scope)
        torch.testing.assert_close(teachers, students, rtol=0, atol=tolerance)


def test_divergence_of_equal_models_is_nothing(pair):
    """KD between equal decoders is 0 within float32: below a billionth of a nat a token."""
    _, teachers, students = ask(pair, *batch(RAGGED, 40))
    weight_VD = output_head(pair[0]).weight_VD.detach().double()
    log_s_NV, log_t_NV = ((hidden_ND.double() @ weight_VD.T).log_softmax(-1) for hidden_ND in (students, teachers))
    assert F.kl_div(log_s_NV, log_t_NV, reduction="none", log_target=True).sum(-1).max() < 1e-9


def test_prompt_text_reads_everything_itself(exact_pair):
    """Without sharing, on text alone, the teacher still agrees, and nothing is donated."""
    plan, teachers, students = ask(exact_pair, *batch(RAGGED, 40), context="prompt_text")
    torch.testing.assert_close(teachers, students, rtol=0, atol=1e-13)
    assert len(plan.donated_row_C) == 0


def test_first_answer_token_is_judged_from_the_last_prompt_position():
    """Query 0 is the last prompt token, at its own position; all before it is donated; the last answer token is not."""
    ids, sample, supervised = batch([[(7, 10)]], 12)
    plan = plan_donation(ids, sample, supervised, torch.zeros_like(supervised), torch.tensor([True]), VOCABULARY)
    assert plan.query.query_index_Q.tolist() == [6, 7, 8]
    assert plan.query.query_id_Q.tolist() == ids[0, 6:9].tolist()
    assert plan.query.donated_index_P.tolist() == list(range(6))


@pytest.mark.parametrize(
    ("earlier_turns", "donated", "counts"),
    [("student", [[0, 1], [0, 1, 2, 3, 4, 5, 6, 7]], [2, 2]), ("teacher", [[0, 1, 4, 5, 6, 7]], [4])],
)
def test_multi_turn_donates_what_precedes_an_answer(earlier_turns, donated, counts):
    """Each answer's queries start at its own last prompt token; an earlier answer is prompt, or the teacher's own."""
    ids, sample, supervised = batch([[(3, 5), (9, 11)]], 11)
    nothing = torch.zeros_like(supervised)
    plan = plan_donation(
        ids, sample, supervised, nothing, torch.tensor([True]), VOCABULARY, earlier_turns=earlier_turns
    )
    assert plan.query.query_index_Q.tolist() == [2, 3, 8, 9] and plan.query.query_count_R.tolist() == counts
    every = [index for part in donated for index in part]
    assert plan.query.donated_index_P.tolist() == every
    captured = sorted(set(every))
    assert plan.donated_column_C.tolist() == captured  # once, however many parts read it
    assert [captured[i] for i in plan.query.donated_kv_P.tolist()] == every


def test_images_identity_of_the_text_after_them(pair):
    """With images the donated KV carries them: the teacher's states equal the student's, as both decoders are equal."""
    ids, sample, supervised = batch([[(30, 38)], [(20, 24), (30, 36)]], 40)
    ids, visual, vision = with_images(ids, [(0, 4), (1, 2), (1, 12)])
    for scope in ("full", "visual"):
        _, teachers, students = ask(pair, ids, sample, supervised, visual, vision, scope=scope)
        torch.testing.assert_close(teachers, students, rtol=1e-5, atol=1e-5)


def test_the_image_reaches_the_teacher_through_kv_alone(pair):
    """Other pixels change the teacher's states with shared KV and leave them alone without."""
    ids, sample, supervised = batch([[(30, 38)]], 38)
    results = {}
    for context in ("shared_kv", "prompt_text"):
        for seed in (1, 2):
            with_pixels = with_images(ids, [(0, 4)], seed)
            _, results[context, seed], _ = ask(
                pair, with_pixels[0], sample, supervised, *with_pixels[1:], context=context
            )
    assert not torch.allclose(results["shared_kv", 1], results["shared_kv", 2], atol=1e-3)
    assert torch.equal(results["prompt_text", 1], results["prompt_text", 2])


def test_each_row_alone_gives_what_it_gives_in_a_batch(pair):
    """Ragged rows, with and without image, several answers: masks let nothing leak between rows or from padding."""
    ids, sample, supervised = batch(RAGGED, 40)
    ids, visual, vision = with_images(ids, [(0, 4), (2, 4)])
    plan, together, _ = ask(pair, ids, sample, supervised, visual, vision)
    start = 0
    for row, spans in enumerate(RAGGED):
        width = spans[-1][1]
        one = (slice(row, row + 1), slice(0, width))
        pixels = {0: vision["pixel_values"][:, :1], 2: vision["pixel_values"][:, 1:]}.get(row)
        lone = {} if pixels is None else {"pixel_values": pixels}
        _, alone, _ = ask(pair, ids[one], sample[one].clamp(max=0), supervised[one], visual[one], lone)
        torch.testing.assert_close(together[start : start + len(alone)], alone, rtol=1e-4, atol=1e-4)
        start += len(alone)
    assert start == len(together) == plan.tokens


def test_only_distilled_rows_are_captured(pair):
    """Rows without KD weight are neither donated nor asked about; a batch without any has no plan."""
    ids, sample, supervised = batch(RAGGED, 40)
    plan, _, _ = ask(pair, ids, sample, supervised, distill=[True, False, False, True])
    assert plan.donated_row_C.tolist() == [0] * 29  # row 3's answer begins after its first token: nothing to donate
    assert plan.query.query_count_R.tolist() == [8, 39] and plan.kd_mask_N.sum() == 8 + 39
    nothing = torch.zeros(4, dtype=torch.bool)
    assert plan_donation(ids, sample, supervised, torch.zeros_like(supervised), nothing, VOCABULARY) is None


def test_tokens_that_the_teacher_does_not_know_are_donated():
    """An added token inside an answer is no query: it is donated, and the token after it gets no KD term."""
    ids, sample, supervised = batch([[(5, 10)]], 10)
    ids[0, 7] = tiny_tokenizer().convert_tokens_to_ids(ADDED[-1])
    plan = plan_donation(ids, sample, supervised, torch.zeros_like(supervised), torch.tensor([True]), VOCABULARY)
    assert plan.query.query_index_Q.tolist() == [4, 5, 6, 8]
    assert plan.query.donated_index_P.tolist() == [0, 1, 2, 3, 7]
    assert plan.kd_mask_N.tolist() == [True, True, True, False, True]


def test_capture_changes_no_number_and_carries_no_gradient(pair):
    """With capture on, gradient checkpointing too, hidden states are the same; the KV is detached."""
    _, student = pair
    ids, sample, supervised = batch(RAGGED, 40)
    visual = torch.zeros_like(supervised)
    plan = plan_donation(ids, sample, supervised, visual, torch.ones(4, dtype=torch.bool), VOCABULARY)
    inputs = ModelInputs(ids, sample, supervised, visual, {})
    without, nothing = student.hidden_states(inputs)
    captured, capture = student.hidden_states(inputs, plan)
    student.model.train()
    student.model.gradient_checkpointing_enable({"use_reentrant": False})
    checkpointed, capture_checkpointed = student.hidden_states(inputs, plan)
    checkpointed.sum().backward()
    student.model.gradient_checkpointing_disable()
    student.model.eval().zero_grad()
    assert nothing is None and torch.equal(without, captured) and torch.equal(captured, checkpointed)
    kv, kv_checkpointed = capture.kv_L2CHE, capture_checkpointed.kv_L2CHE
    assert torch.equal(kv, kv_checkpointed) and not kv.requires_grad


OPTIONS = [{}, {"earlier_turns": "teacher"}, {"scope": "visual"}, {"context": "prompt_text"}]


def request_of(pair, answers, seed=0, **options):
    """The request about these rows, of 40 tokens at most, all distilled."""
    ids, sample, supervised = batch(answers, 40, seed)
    visual = torch.zeros_like(supervised)
    distill = torch.ones(len(ids), dtype=torch.bool)
    plan = plan_donation(ids, sample, supervised, visual, distill, VOCABULARY, **options)
    with torch.no_grad():
        shared = None if options.get("context") == "prompt_text" else plan
        _, capture = pair[1].hidden_states(ModelInputs(ids, sample, supervised, visual, {}), shared)
    return make_request(plan, capture)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_large_request_is_run_in_parts_with_the_same_numbers(exact_pair, options, monkeypatch):
    """Parts are independent: with a mask of few elements the decoder is called several times, and says the same.

    No call's mask has more elements than that, unless one part's alone has.
    """
    monkeypatch.setattr(continuation, "tokens_of_a_pass", lambda device: 10**6)  # no cut but for memory
    request = request_of(exact_pair, [*RAGGED, [(2, 3), (6, 9)]], **options)
    decoder, masks = Teacher(exact_pair[0]).decoder, []
    hook = decoder.register_forward_pre_hook(
        lambda _, __, named: masks.append(named["attention_mask"].shape), with_kwargs=True
    )
    whole, widest = continue_from_kv(decoder, request), int(request.query_count_R.max()) * 2 * int(request.width)
    assert len(masks) == 1 and masks.pop().numel() > 2 * widest
    for most in (0, widest, 2 * widest):
        torch.testing.assert_close(continue_from_kv(decoder, request, most), whole, rtol=0, atol=1e-13)
        assert all(mask.numel() <= most or mask[0] == 1 for mask in masks)
        assert 1 < len(masks) <= len(request.query_count_R) and (most or len(masks) == len(request.query_count_R))
        masks.clear()
    hook.remove()


def test_masks_for_each_kind_of_layer_count_together(monkeypatch):
    """A decoder some of whose layers slide takes two masks at a time; the numbers stay the same."""
    monkeypatch.setattr(continuation, "tokens_of_a_pass", lambda device: 10**6)
    ids, sample, supervised = batch([*RAGGED, [(2, 3), (6, 9)]], 40)
    plan = plan_donation(ids, sample, supervised, torch.zeros_like(supervised), torch.ones(5, dtype=torch.bool),
                         VOCABULARY, context="prompt_text")  # fmt: skip
    request, elements = make_request(plan, None), []
    decoder = Teacher(FAMILIES["gemma3"].teacher().double()).decoder
    decoder.register_forward_pre_hook(
        lambda _, __, named: elements.append([mask.numel() for mask in named["attention_mask"].values()]),
        with_kwargs=True,
    )
    whole = continue_from_kv(decoder, request)
    ((of_one, of_other),) = elements
    elements.clear()
    torch.testing.assert_close(continue_from_kv(decoder, request, of_one), whole, rtol=0, atol=1e-13)
    assert of_one == of_other and all(sum(masks) <= of_one for masks in elements) and len(elements) > 1


def test_keys_of_short_rows_beside_a_long_one_are_within_the_limit(pair):
    """Keys have room for the longest sample in every part: with short answers they take more than any mask."""
    lengths = torch.tensor([900] + [12] * 99)
    sample = torch.repeat_interleave(lengths)[None]
    supervised = torch.zeros_like(sample, dtype=torch.bool)
    supervised[0, lengths.cumsum(0) - 1] = True
    ids, visual, distill = sample + 3, torch.zeros_like(supervised), torch.ones(100, dtype=torch.bool)
    plan = plan_donation(ids, sample, supervised, visual, distill, VOCABULARY)
    kv_L2CHE = torch.zeros(LAYERS, 2, len(plan.donated_row_C), KV_HEADS, HEAD_DIM)
    query = plan.query
    request = TeacherRequest(**vars(query), kv_L2CHE=kv_L2CHE, query_position_Q=query.query_index_Q)
    decoder, most = Teacher(pair[0]).decoder, 2**20
    with LiveBytes() as live:
        continue_from_kv(decoder, request, most)
    assert live.peak < 2 * most * kv_L2CHE.itemsize


def test_short_answers_are_not_padded_to_long_ones(exact_pair, monkeypatch):
    """Where padding would cost more than a call, parts of about as many queries share one; the order stays theirs."""
    request = request_of(exact_pair, [[(3, 5)], [(2, 38)], [(20, 23)], [(4, 39)], [(9, 11)], [(7, 10)]])
    decoder, shapes = Teacher(exact_pair[0]).decoder, []
    hook = decoder.register_forward_pre_hook(
        lambda _, __, named: shapes.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    dear, cheap = 10**6, 20
    answers = []
    for tokens in (dear, cheap):
        monkeypatch.setattr(continuation, "tokens_of_a_pass", lambda device, tokens=tokens: tokens)
        answers.append(continue_from_kv(decoder, request))
    hook.remove()
    whole, parts = answers
    assert shapes == [(6, 36), (2, 36), (4, 3)]
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-13)


@pytest.mark.parametrize("options", OPTIONS)
def test_one_call_for_several_micro_batches(exact_pair, options):
    """Requests joined are answered as each alone, one after another, whatever is donated and however long they are."""
    rows = ([*RAGGED, [(2, 3), (6, 9)]], [[(5, 8)]], [[(1, 2)], [(3, 30)]])
    requests = [request_of(exact_pair, answers, seed, **options) for seed, answers in enumerate(rows)]
    decoder = Teacher(exact_pair[0]).decoder
    joined = continue_from_kv(decoder, merge_requests(requests))
    alone = torch.cat([continue_from_kv(decoder, request) for request in requests])
    torch.testing.assert_close(joined, alone, rtol=0, atol=1e-13)
    assert merge_requests(requests[:1]) is requests[0]


@pytest.mark.parametrize("groups", [3, 6])
def test_long_rows_are_run_a_few_at_a_time(groups):
    """32 answers of 2048 tokens in rows of 8192: no mask has more than 2**27 elements, and each row comes once."""
    parts = cheapest_cut([2048] * 32, CALL_ELEMENTS // groups // 8192, PASS_TOKENS)
    assert [row for part in parts for row in range(32)[part]] == list(range(32))
    assert max(part.stop - part.start for part in parts) * 2048 * 8192 * groups <= 2**27
