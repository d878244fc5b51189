"""The settings that changed a run's result, in words, for its model card."""

from __future__ import annotations

from lingu_ray.config import AlignConfig, Config, DistillConfig, Schedule, StudentConfig, TeacherConfig, TrainConfig
from lingu_ray.report.origin import public_name

Rows = list[tuple[str, str]]
"""Settings and their values."""

POLICIES = {
    "selective": "selective: cross-entropy on all sources, KD on the language-heavy ones",
    "all": "all: cross-entropy and KD on all sources",
    "language_only": "language_only: the language-heavy sources alone, by cross-entropy and KD",
    "none": "none: cross-entropy alone",
}
DIVERGENCES = {
    "forward_kl": "forward KL, KL(teacher ‖ student)",
    "reverse_kl": "reverse KL, KL(student ‖ teacher)",
    "jsd": "Jensen–Shannon",
    "tv": "total variation",
}
PRECISIONS = {
    "fp32": "fp32",
    "bf16": "bf16 autocast, weights in fp32",
    "auto": "fp32 or bf16 autocast, as chosen at the start",  # only in the rehearsal, before it is chosen
}


def settings_rows(config: Config) -> Rows:
    """The settings that changed the result, the most important ones first."""
    distilled = config.uses_teacher
    teacher = _named(config.teacher.path, config.teacher.revision)
    return [
        ("student", _student(config.student)),
        *([("teacher", teacher)] if distilled or config.student.from_teacher else []),
        *([("alignment", _alignment(config.align))] if config.align else []),
        ("policy", POLICIES[config.distill.policy if distilled else "none"]),
        *(_distillation(config) if distilled else _weight_of_distilled(config)),
        ("weight of cross-entropy", in_words(config.distill.w_ce)),
        *_optimization(config.train),
        ("longest sample", f"{config.corpus.max_length} tokens"),
        ("precision and memory", _computation(config.train)),
        ("seeds", f"run {config.seed}, order of the data {config.corpus.seed}"),
    ]


def in_words(schedule: Schedule) -> str:
    """A schedule in words: `2`, or `from 4 to 1 along a cosine, over the first 50% of the steps`."""
    if schedule.points:
        return ", then ".join(f"{value:g} from {_percent(begin)} of the steps on" for begin, value in schedule.points)
    if schedule.start == schedule.end:
        return f"{schedule.start:g}"
    shape = "along a cosine" if schedule.shape == "cosine" else "linearly"
    span = "all steps" if schedule.until == 1 else f"the first {_percent(schedule.until)} of the steps"
    return f"from {schedule.start:g} to {schedule.end:g} {shape}, over {span}"


def _student(settings: StudentConfig) -> str:
    if settings.path is not None:
        return _named(settings.path, settings.revision)
    tower = settings.from_teacher
    assert tower is not None  # the settings have one of the two
    side = tower.image_size
    if settings.tower is not None:
        size = f"images of {side} × {side}" if side else "images of its own size"
        shuffle = f", pixel shuffle {tower.pixel_shuffle}" if tower.pixel_shuffle else ""
        return f"new: the teacher's decoder and the vision tower {_named(*settings.tower)}, for {size}{shuffle}"
    return (
        f"new: the teacher's decoder and a vision tower of {tower.layers} layers, {tower.hidden_size} wide "
        f"(MLP {tower.intermediate_size}, {tower.heads} heads), for images of {side} × {side} in patches of "
        f"{tower.patch_size}, pixel shuffle {tower.pixel_shuffle}"
    )


def _alignment(settings: AlignConfig) -> str:
    rates = settings.learning_rates
    return (
        f"to the decoder's token embeddings before training: {settings.epochs} passes, {settings.pictures_per_step} "
        f"pictures a step, learning rates {rates.projector:g} (projector) and {rates.vision:g} (last {settings.blocks} "
        "blocks of the vision tower)"
    )


def _named(path: str, revision: str | None) -> str:
    return public_name(path) + (f", revision {revision}" if revision else "")


def _distillation(config: Config) -> Rows:
    settings, teacher = config.distill, config.teacher
    rows = [
        ("teacher's context", _context(teacher)),
        ("divergence", _divergence(settings)),
        ("temperature", in_words(settings.temperature)),
        ("weight of KD", in_words(settings.w_kd)),
        ("KD is divided by", f"{settings.kd_normalizer} tokens"),
        *_weight_of_distilled(config),
    ]
    if settings.on_policy:
        share, length, warmth = _percent(settings.on_policy), settings.sampled_tokens, settings.sampling_temperature
        answers = f"of at most {length} tokens, sampled at temperature {warmth:g}"
        rows.append(("on-policy", f"{share} of the distilled rows have the student's own answers, {answers}"))
    return rows


def _weight_of_distilled(config: Config) -> Rows:
    """The factor `ce_on_distilled`, which also holds in a control without a teacher."""
    if config.distill.policy == "none":
        return []
    named = "distilled rows" if config.uses_teacher else "rows that the run distills"
    return [(f"cross-entropy on {named}", f"× {config.distill.ce_on_distilled:g}")]


def _context(teacher: TeacherConfig) -> str:
    if teacher.context == "prompt_text":
        return "prompt_text: it reads only the text of the prompt, without keys and values of the student"
    earlier = {
        "student": "earlier answers of a conversation are prompt",
        "teacher": "the teacher computes earlier answers of a conversation itself",
    }
    donated = {
        "full": f"the prompt (scope full); {earlier[teacher.earlier_turns]}",
        "visual": "the visual positions, and it reads the text itself (scope visual)",
    }
    return f"shared_kv: the student's keys and values of {donated[teacher.scope]}"


def _divergence(settings: DistillConfig) -> str:
    name = DIVERGENCES[settings.divergence]
    beta = f", beta {settings.beta:g}" if settings.divergence == "jsd" else ""
    tokens = f", over the teacher's {settings.top_k} most likely tokens and the rest as one" if settings.top_k else ""
    return name + beta + tokens


def _optimization(train: TrainConfig) -> Rows:
    rates = train.learning_rates
    groups = {"vision": rates.vision, "projector": rates.projector, "decoder": rates.decoder}
    by_group = [f"{name} {rate:g}" if rate else f"{name} frozen" for name, rate in groups.items()]
    rows = [
        ("steps × rows", f"{train.steps} × {train.rows_per_step}"),
        ("learning rates", ", ".join(by_group)),
        (
            "learning rate schedule",
            f"{_percent(train.warmup)} of the steps warm up, then a cosine to {_percent(train.min_lr)} of the rate",
        ),
        ("optimizer", f"AdamW, betas {train.betas[0]:g} and {train.betas[1]:g}, weight decay {train.weight_decay:g}"),
        ("gradient clipping", f"{train.grad_clip:g}"),
    ]
    if train.lora is not None:
        lora = train.lora
        layers = ", ".join(lora.targets) or "every linear layer"
        scale = f"rank {lora.rank}, alpha {lora.alpha:g}, dropout {lora.dropout:g}"
        rows.append(("LoRA", f"{scale}, on {layers} of the decoder; merged into the weights"))
    return rows


def _computation(train: TrainConfig) -> str:
    """Precision, and settings that change the result by rounding alone."""
    precision = PRECISIONS[train.precision]
    samples = "samples packed" if train.packing else "samples padded"
    parts = [
        precision,
        f"{samples} to at most {train.tokens_per_micro_batch} tokens a pass",
        *([train.attention.replace("_", " ")] if train.attention != "sdpa" else []),
        *(["decoder sharded (FSDP2)"] if train.parallelism == "fsdp2" else []),
        *(["layers compiled"] if train.compile else []),
        *(["activations recomputed"] if train.gradient_checkpointing else []),
    ]
    return ", ".join(parts)


def _percent(share: float) -> str:
    return f"{100 * share:.4g}%"
