"""The rows of the experiment as data: their recipes, starts, seeds and durations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from lingu_ray.evaluation.roles import ADAPTED, DISTILLED

RECIPES = Path(__file__).parent / "recipes"
MERGE = "merge"  # a command, in place of a recipe
SWEEP, SWEEP_PICTURES = SWEEPS = ("sweep", "sweep_pictures")  # spaces
LIGHT, MEDIUM, HEAVY = DAMAGES = ("light", "medium", "heavy")
NARROW, NATURAL, NATURAL_300 = "narrow", "natural", "natural_300"
DATA = {NARROW: "narrow", NATURAL: "natural", NATURAL_300: "natural, 300 steps"}  # as pages name them

SizeName = Literal["cores", "gpu"]


@dataclass(frozen=True, eq=False)
class Size:
    """A size of the experiment. `settings`: of a row, or of all rows with a recipe, besides those of the recipe.

    `folder`: folder of the runs; `page`: folder of the published page. `evaluate_minutes`: minutes to measure a VLM;
    `train_minutes`: minutes of a row's training; None: those of the row.
    """

    name: SizeName
    about: str
    folder: Path
    page: Path
    evaluate_minutes: float
    train_minutes: float | None = None
    settings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    measure: tuple[str, ...] = ()

    def of(self, row: Row) -> tuple[str, ...]:
        """The settings of a row in this size; of several values of a setting the last one counts."""
        said = (*self.settings.get(row.recipe, ()), *row.settings, *self.settings.get(row.name, ()))
        return tuple({one.partition("=")[0]: one for one in said}.values())


CORES = Size(
    "cores",
    "short trainings, for two cores: the recipes as they are",
    Path("runs/result"),
    Path("docs/results"),
    evaluate_minutes=4,
    measure=("models_at_once=2",),  # an engine keeps one core busy
)
_ON_GPU = ("output_dir=runs/result/gpu", "train.tokens_per_micro_batch=8192", "teacher.placement=in_process")
_DISTILL = (
    *_ON_GPU,
    "ray.gpus_per_worker=0.5",
    "train.steps=400",
    "train.rows_per_step=48",
    "corpus.rows=19200",
    "train.validate_every=50",
    "train.checkpoint_every=400",
)
GPU = Size(
    "gpu",
    "ten times as many rows, for one GPU",
    Path("runs/result/gpu"),
    Path("docs/results/gpu"),
    evaluate_minutes=1,
    train_minutes=1,
    settings={
        "align": _ON_GPU,
        "adapt": (*_ON_GPU, "train.checkpoint_every=400"),
        ADAPTED: ("train.steps=400",),
        NARROW: _DISTILL,
        NATURAL: _DISTILL,
        "prevented_natural": ("train.steps=800", "corpus.rows=38400"),
        "selective_natural_300": ("corpus.rows=14400",),
        "prompt_text_natural_300": ("corpus.rows=14400",),
        SWEEP: (*_DISTILL, "train.steps=200", "train.validate_every=0", "train.checkpoint_every=200"),
        SWEEP_PICTURES: (
            *_DISTILL,
            "train.validate_every=400",
            "ray.gpus_per_worker=0.125",
            "search={train.learning_rates.decoder: {grid: [2e-4, 4e-4]}, distill.w_kd: {grid: [1, 4]}}",
        ),
    },
    measure=("tokens_per_batch=32768", "models_at_once=4", "ray.gpus_per_worker=0.25"),
)
SIZES: dict[SizeName, Size] = {size.name: size for size in (CORES, GPU)}

SEEDS = range(10)  # seeds that a row can be run with, planned or not

Group = Literal["main", "others", "map", "sweep"]
GROUPS: dict[Group, str] = {
    "main": "the claim and its controls, three seeds",
    "others": "variants and baselines, on natural data, one seed",
    "map": "where the teacher is worth it: other damage, other data",
    "sweep": "what the recipes have, chosen on validation data",
}


@dataclass(frozen=True)
class Row:
    """A row of the table.

    `recipe`: a file of `recipes/` (a search space for those in `SWEEPS`), or the command `merge`. `start`: the row
    whose model it starts from. `seeds`: number of planned seeds. `model`: its model's name in comparisons; None: it is
    not measured. `minutes`: of training one seed, on two cores with AMX. `damage`, `data`: its comparison; without
    `data` it belongs to all comparisons of its damage.
    """

    name: str
    about: str
    group: Group
    recipe: str
    minutes: float
    start: str | None = None
    settings: tuple[str, ...] = ()
    seeds: int = 1
    model: str | None = None
    damage: str | None = None
    data: str | None = None


LANGUAGE_ONLY = "distill.policy=language_only"
PROMPT_TEXT, KD_ALONE = "teacher.context=prompt_text", "distill.ce_on_distilled=0"
TEXT_ALONE = "KD without shared KV"
LONGER = ("train.steps=300", "corpus.rows=7200")
PREVENT = ("train.steps=300", "train.rows_per_step=32", "corpus.rows=9600", "train.learning_rates.decoder=4e-4")


def _adapted(name: str, group: Group, damage: str, steps: int, minutes: float, seeds: int = 1) -> Row:
    about = f"{steps} steps of cross-entropy on pictures, which cost language"
    return Row(name, about, group, "adapt", minutes, "align", (f"train.steps={steps}",), seeds, ADAPTED, damage)


def _method(name: str, group: Group, start: str, damage: str, data: str, seeds: int = 1) -> Row:
    """The method, with its controls."""
    about = f"CE on all sources, KD on language-heavy ones, and its controls: {DATA[data]} data, {damage} damage"
    return Row(name, about, group, data, 20 if data == NARROW else 26, start, (), seeds, DISTILLED, damage, data)


def _variant(model: str, about: str, *settings: str, data: str = NATURAL, minutes: float = 10) -> Row:
    """The method with other settings."""
    name, own = f"{model}{'' if data == NARROW else f'_{data}'}", (*settings, "controls=[]")
    return Row(name, f"{about}: {DATA[data]} data", "others", data, minutes, ADAPTED, own, 1, model, MEDIUM, data)


def _longer(one: Row) -> Row:
    """A row on natural data, with as many steps as the adaptation had."""
    about, settings = f"{one.about}, 300 steps", (*LONGER, *one.settings)
    return replace(
        one, name=f"{one.name}_300", about=about, data=NATURAL_300, settings=settings, minutes=3 * one.minutes, seeds=3
    )


ROWS = (
    Row("align", "the VLM before it learns: a pretrained tower, aligned to the language model", "main", "align", 6),
    _adapted(ADAPTED, "main", MEDIUM, steps=300, minutes=30, seeds=3),
    _method("selective", "main", ADAPTED, MEDIUM, NARROW, seeds=3),
    replace(_variant("prompt_text", TEXT_ALONE, PROMPT_TEXT, data=NARROW), group="main", seeds=3),
    _variant("all", "KD on every source", "distill.policy=all"),
    _variant("language_only", "CE and KD on language-heavy sources alone", LANGUAGE_ONLY),
    _variant("ce_language_only", "CE on language-heavy sources alone", LANGUAGE_ONLY, "distill.w_kd=0", minutes=8),
    _variant("visual", "KV of the picture alone is shared", "teacher.scope=visual"),
    _variant("labels_half", "labels count half where the teacher speaks", "distill.ce_on_distilled=0.5"),
    _variant("kd_alone", "no labels where the teacher speaks", KD_ALONE),
    _variant("kd_alone_prompt_text", "no labels there, and no shared KV", KD_ALONE, PROMPT_TEXT),
    replace(_variant("prevented", "KD while the VLM learns, for as many steps", *PREVENT, minutes=50), start="align"),
    replace(
        _variant("merged", "half of the decoder is the teacher's", minutes=1), recipe=MERGE, settings=("weight=0.5",)
    ),
    _method("selective_natural", "map", ADAPTED, MEDIUM, NATURAL, seeds=3),
    replace(_variant("prompt_text", TEXT_ALONE, PROMPT_TEXT), group="map", seeds=3),
    _longer(_method("selective_natural", "map", ADAPTED, MEDIUM, NATURAL)),
    replace(_longer(_variant("prompt_text", TEXT_ALONE, PROMPT_TEXT)), group="map"),
    _adapted("adapted_light", "map", LIGHT, steps=100, minutes=11),
    _method("light_narrow", "map", "adapted_light", LIGHT, NARROW),
    _method("light_natural", "map", "adapted_light", LIGHT, NATURAL),
    _adapted("adapted_heavy", "map", HEAVY, steps=800, minutes=78),
    _method("heavy_narrow", "map", "adapted_heavy", HEAVY, NARROW),
    _method("heavy_natural", "map", "adapted_heavy", HEAVY, NATURAL),
    Row(SWEEP, "which temperature and weights, by validation data", "sweep", SWEEP, 25, ADAPTED),
    Row(SWEEP_PICTURES, "which rate, and how many pictures' answers", "sweep", SWEEP_PICTURES, 60, ADAPTED),
)


def row(name: str) -> Row:
    """The row of that name."""
    return next(one for one in ROWS if one.name == name)


@dataclass(frozen=True)
class Job:
    """A row with one seed, which has one command and one folder."""

    row: Row
    seed: int
    size: Size = CORES

    @property
    def name(self) -> str:
        """The run's name and folder."""
        return f"{self.row.name}-{self.seed}"

    @property
    def start(self) -> Job | None:
        """The job whose model this one starts from, of the same seed; all seeds share the alignment."""
        if self.row.start is None:
            return None
        before = row(self.row.start)
        return Job(before, 0 if before.start is None else self.seed, self.size)


@dataclass(frozen=True)
class Comparison:
    """Models that are measured together: teacher, start, and all rows from that start on one kind of data."""

    damage: str
    data: str
    seed: int
    size: Size = CORES

    @property
    def name(self) -> str:
        """Its folder: `medium-narrow-0`."""
        return f"{self.damage}-{self.data}-{self.seed}"

    def jobs(self) -> Iterator[Job]:
        """The jobs whose models are compared, planned or not, the start first."""
        for one in ROWS:
            if one.damage == self.damage and one.data in (None, self.data):
                yield Job(one, self.seed, self.size)


def minutes(job: Job) -> float:
    """Minutes of training and measuring a job, on two cores with AMX or on an H100."""
    measured = 0 if job.row.model is None else 1 + (job.row.model == DISTILLED)  # with a control
    trained = job.row.minutes if job.size.train_minutes is None else job.size.train_minutes
    return trained + measured * job.size.evaluate_minutes


def jobs(rows: Sequence[Row], size: Size = CORES) -> list[Job]:
    """All planned jobs of the rows, seed by seed, so that there is a first table early."""
    return [Job(one, seed, size) for seed in SEEDS for one in rows if seed < one.seeds]


def comparison(job: Job) -> Comparison | None:
    """The first comparison of a job's model; None if it is not measured."""
    if job.row.damage is None:
        return None
    return Comparison(job.row.damage, job.row.data or NARROW, job.seed, job.size)


def comparisons(size: Size = CORES) -> list[Comparison]:
    """All comparisons that the table's rows allow."""
    kinds = dict.fromkeys((one.damage, one.data) for one in ROWS if one.damage and one.data)
    return [Comparison(damage, data, seed, size) for seed in SEEDS for damage, data in kinds]
