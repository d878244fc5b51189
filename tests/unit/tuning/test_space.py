"""A space says what is wrong with it before anything starts, and gives the trials that it means."""

from contextlib import nullcontext

import pytest
import yaml
from ray.tune.search.variant_generator import generate_variants
from tinyrun import write_settings

from lingu_ray.config import strict_yaml
from lingu_ray.config.flat import flat
from lingu_ray.errors import UserError
from lingu_ray.train import planned
from tuning.check import check, check_held_out
from tuning.search import parameters
from tuning.space import (
    SEED,
    Domain,
    Space,
    configure,
    corner_values,
    decode,
    drawn_seed,
    is_whole,
    read_space,
    shipped,
)
from tuning.sweep import load, open_folder

W_KD = "distill.w_kd"


def space(**keys) -> Space:
    return Space.model_validate({"name": "s", "base": "demo", "search": {"distill.w_kd": {"grid": [1, 2]}}} | keys)


def test_cases_of_the_ablation_differ_in_one_thing():
    """Each from `selective`, or else from `kd_alone`: what a case shows is the effect of one setting."""
    ablation, base = load(["ablation"])
    cases = {name: flat(configure(base, values, "ablation")) for name, values in ablation.cases.items()}
    for name, own in cases.items():
        others = [cases["selective"], *([cases["kd_alone"]] if name.startswith("kd_alone_") else [])]
        least = min(sum(own[key] != other[key] for key in own) for other in others)
        assert least == (name != "selective"), name


@pytest.mark.parametrize("name", shipped())
def test_shipped_spaces_fit_their_bases(name):
    """Every space of the package loads, and every value of it is one that the configuration takes."""
    loaded, base = load([name])
    assert loaded.size > 1 and base.evaluation is not None


def test_sizes():
    """Grid values, cases and seeds multiply; draws multiply them; optuna counts its draws alone."""
    assert space().size == 2
    assert space(seeds=3, cases={"a": {"distill.policy": "all"}, "b": {"distill.policy": "none"}}).size == 12
    drawn = {"distill.w_kd": {"grid": [1, 2]}, "distill.temperature": {"uniform": [1, 2]}}
    assert space(search=drawn).size == 32 and space(search=drawn, trials=5).size == 10
    one = {"distill.temperature": {"uniform": [1, 2]}}
    assert space(search=one, algorithm="optuna", trials=7, cases={"a": {}, "b": {}}).size == 7


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"search": {}}, "nothing to search"),
        ({"search": {"distill.w_kd": {"grid": [1], "choice": [1]}}}, "exactly one"),
        ({"search": {"distill.w_kd": {}}}, "exactly one"),
        ({"search": {"distill.w_kd": {"grid": [1, 2, 1.0]}}}, "1 is there twice, and would run alike; `seeds` repeats"),
        ({"search": {"distill.w_kd": {"uniform": [2, 1]}}}, "low must be below high"),
        ({"search": {"distill.w_kd": {"loguniform": [0, 1]}}}, "above 0"),
        ({"search": {"teacher.path": {"choice": ["a", "b"]}}}, "teacher.path cannot be searched"),
        ({"search": {"output_dir": {"choice": ["a", "b"]}}}, "cannot be searched"),
        ({"cases": {"a": {"evaluation.bootstrap": 3}}}, "cannot be searched"),
        ({"cases": {"w_kd=0": {"distill.w_ce": 1}}}, "cases: MLflow takes no name 'w_kd=0'"),
        ({"algorithm": "optuna"}, "use `choice` in place of `grid`"),
        ({"search": {"distill.w_kd": {"choice": [1]}}, "algorithm": "optuna", "seeds": 2}, "seeds: 1"),
        ({"objectives": ["recovery", "retention"]}, "need `algorithm: optuna`"),
        ({"objectives": ["recovery", "recovery"]}, "objectives: recovery is there twice; keep one"),
        ({"pbt": {"interval": 5}}, "in place of grid"),
        ({"pbt": {"interval": 5}, "search": {"distill.w_kd": {"choice": [1, 2]}}, "trials": 1}, "2 trials or more"),
        ({"trials": 4, "seeds": 2}, "each of the 4 settings would run 4 times alike; leave `trials` out"),
        ({"pbt": {"interval": 5}, "search": {"train.steps": {"choice": [1]}}}, "found train.steps"),
        ({"name": "a/b"}, "name"),
        ({"search": {"distill.w_kd": {"uniform": [1, float("inf")]}}}, "finite number"),
    ],
)
def test_mistakes_are_told(keys, words):
    """Each mistake of a space is refused with the key and the cure."""
    with pytest.raises(ValueError, match=words):
        space(**keys)


@pytest.fixture
def base(tmp_path):
    return write_settings(tmp_path / "base.yaml", tmp_path, tmp_path)


def write(tmp_path, **keys):
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump({"name": "s", "base": str(tmp_path / "base.yaml")} | keys))
    return str(path)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"search": {"distill.temprature": {"grid": [1]}}}, "did you mean distill.temperature"),
        ({"search": {"distill.divergence": {"grid": ["forward_kl", "kl"]}}}, "kl does not fit"),
        ({"search": {"distill.temperature": {"uniform": [-1, 1]}}}, "distill.temperature"),
        ({"search": {"distil.w_kd": {"grid": [1]}}}, "cannot be searched"),
        ({"cases": {"a": {"train.rows_per_step": "many"}}}, "many does not fit"),
        ({"search": {"train.stepz": {"choice": [1]}}, "settings": {}}, "did you mean train.steps"),
        ({"search": {"distill.w_kd": {"grid": [1]}}, "settings": {"train.stepps": 3}}, "did you mean train.steps"),
        ({"search": {"distill.w_kd": {"grid": [1]}}, "asha": {}, "settings": {"train.validate_every": 0}}, "validate"),
        ({"search": {"distill.w_kd": {"grid": [1]}}, "asha": {"grace": 999}}, "compare trials at step 999 first"),
        ({"search": {"train.steps": {"choice": [40, 80]}}, "asha": {"grace": 2}}, "elsewhere in their schedules"),
        ({"search": {"distill.w_kd": {"choice": [1]}}, "pbt": {"interval": 999}}, "pbt.interval=999 leaves nothing"),
        (
            {"search": {"distill.w_kd": {"choice": [1, {"start": 2, "end": 1}]}}, "pbt": {"interval": 2}},
            "s: pbt makes the schedules itself: give numbers",
        ),
        (
            {
                "search": {"distill.w_kd": {"choice": [1]}},
                "pbt": {"interval": 2},
                "settings": {"corpus.validation_rows": 0},
            },
            "pbt compares trials by validation: set corpus.validation_rows above 0",
        ),
        ({"search": {"distill.w_kd": [1, 2]}}, "give a section with choice, grid, uniform, loguniform"),
        ({"searches": {}}, "did you mean search"),
        ({"search": {"distill": {"w_kd": {"choice": [1]}}}}, r"search: distill is a section: .* dots, distill.w_kd: …"),
        ({"cases": {"a": {"train": {"steps": 3}}}}, r"cases.a: train is a section: .* dots, train.steps: …"),
        ({"search": {"distill.w_kd": {"unifor": [1, 2]}}}, "did you mean search.distill.w_kd.uniform"),
        ({"search": {"distill.top_k": {"uniform": [8.5, 64]}}}, "distill.top_k: 8.5 does not fit; give a whole number"),
        ({"search": {"distill.top_k": {"loguniform": [0.1, 64]}}}, "distill.top_k: 0.1 does not fit"),
        ({"search": {"distill.divergence": {"uniform": [0, 1]}}}, "distill.divergence: 0.0 does not fit"),
        ({"search": {"train.packing": {"uniform": [0, 1]}}}, "train.packing is true or false, not a range"),
        ({"search": {"distill.policy": {"choice": ["all", "everything"]}}}, "distill.policy: everything does not fit"),
        ({"search": {"corpus.max_length": {"uniform": [64, 512]}}}, "above train.tokens_per_micro_batch"),
        (
            {
                "settings": {"student": {"path": None, "from_teacher": {"patch_size": 16, "pixel_shuffle": 2}}},
                "search": {"student.from_teacher.image_size": {"uniform": [64, 512]}},
            },
            r"image_size \d+ must be a multiple of .*, as a draw from search: list what fits by `choice`",
        ),
        ({"search": {W_KD: {"grid": [1]}}, "cases": {"a": {W_KD: 3}}}, "distill.w_kd: set twice"),
        (
            {"settings": {W_KD: 4}, "cases": {"a": {W_KD: 1}, "b": {}, "c": {W_KD: 4.0}}},
            "cases: b and c are the same settings, and would run alike",
        ),
        (
            {"search": {W_KD: {"grid": [1]}}, "cases": {"a": {f"{W_KD}.start": 3}}},
            f"{W_KD} and {W_KD}.start: set twice",
        ),
        (
            {"search": {"distill.temperature.end": {"grid": [1]}, "distill.temperature": {"grid": [2]}}},
            "distill.temperature and distill.temperature.end: set twice",
        ),
        (
            {"search": {"corpus.sources.0.limit": {"grid": [1]}, "corpus.sources.text.limit": {"grid": [2]}}},
            "corpus.sources.0.limit and corpus.sources.text.limit: set twice",
        ),
    ],
)
def test_keys_are_checked_against_the_configuration(tmp_path, base, keys, words):
    """Key and value of every searched, bundled and fixed setting must be the configuration's."""
    with pytest.raises(UserError, match=words):
        load([write(tmp_path, **keys)])


@pytest.mark.parametrize(
    ("search", "differs"),
    [
        ({"distill.policy": {"choice": ["selective", "language_only"]}}, "source pictures"),
        ({"corpus.max_length": {"uniform": [100, 200]}}, "corpus.max_length"),
        ({"corpus.sources.text.limit": {"grid": [30, 40]}}, "source text"),
        ({"corpus.sources.text.weight": {"grid": [0.5, 1]}, "distill.policy": {"choice": ["all", "none"]}}, None),
        ({"corpus.seed": {"choice": [1, 2]}, "corpus.rows": {"choice": [50, 60]}}, None),
    ],
)
def test_trials_that_asha_compares_hold_out_the_same_rows(tmp_path, base, search, differs):
    """What would be validated on other sources, or on other rows of one, is refused by name; without asha it is not."""
    words = rf"of other rows in some, since they differ in {differs}: leave asha out"
    with pytest.raises(UserError, match=words) if differs else nullcontext():
        check_held_out(*load([write(tmp_path, search=search, asha={}, seeds=2)]))
    check_held_out(*load([write(tmp_path, search=search, seeds=2)]))


def test_the_sources_of_the_demo_count_too(tmp_path):
    """They are known once they are filled in: a policy that leaves some out is refused."""
    search = {"distill.policy": {"choice": ["all", "language_only"]}}
    settings = {"train.validate_every": 40}
    space, base = load([write(tmp_path, base="demo", search=search, settings=settings, asha={})])
    with pytest.raises(UserError, match="since they differ in source "):
        check_held_out(space, planned(base))


def test_overrides_reach_space_and_base(tmp_path, base, monkeypatch):
    """`trials=` is the space's, `train.steps=` every trial's; the base may lie in the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write(tmp_path, base="~/base.yaml", search={"distill.w_kd": {"uniform": [1, 2]}})
    loaded, config = load([path, "trials=3", "train.steps=2", "name=other", "search.distill.w_kd.uniform=[1, 3]"])
    assert loaded.search["distill.w_kd"].uniform == (1, 3)
    assert (loaded.trials, config.train.steps, loaded.name, config.name) == (3, 2, "other", "tiny")
    for misspelled, meant in (("trialss", "trials"), ("objectivs", "objectives"), ("trai", "train")):
        with pytest.raises(UserError, match=rf"{misspelled}: no such setting; did you mean {meant}\?"):
            load([path, f"{misspelled}=1"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.rows_per_step", 16),
        ("train.learning_rates.vision", 0.5),
        ("distill.temperature", {"start": 4, "end": 2}),
        ("corpus.sources.text.limit", 7),
        ("ray.num_workers", {"min": 1, "max": 2}),
        ("align.epochs", 2),
        ("align", {}),
        ("teacher.scope", "visual"),
    ],
)
def test_settings_mean_the_same_with_dots_and_as_sections(tmp_path, base, key, value):
    """Either way, in the file and on the command line, one setting changes and the rest of its section stays."""
    search = {"distill.w_kd": {"grid": [1]}}
    nested = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    _, before = load([write(tmp_path, search=search)])
    _, dotted = load([write(tmp_path, search=search, settings={key: value})])
    _, sections = load([write(tmp_path, search=search, settings=nested)])
    _, given = load([write(tmp_path, search=search), f"settings.{key}={strict_yaml.dump(value, inline=True)}"])
    assert dotted == sections == given
    now, then = flat(dotted), flat(before)
    changed = {name for name in then if now.get(name) != then[name]}
    assert changed and all(name.startswith(key) or key.startswith(name) for name in changed)


@pytest.mark.parametrize(
    ("given", "settings", "words"),
    [
        (["distill.w_kd=3"], {}, r"distill.w_kd=3: no trial has this value: search.distill.w_kd gives each its own"),
        (["distill.w_kd={start: 3, end: 1}"], {}, "no trial has this value: search.distill.w_kd"),
        ([], {"distill.w_kd": 3}, "settings: distill.w_kd: no trial has this value"),
        ([], {"distill": {"w_kd": 3}}, "settings: distill: no trial has this value"),
        (["train.steps=3"], {}, "train.steps=3: no trial has this value: every one of the `cases` sets train.steps"),
        (["corpus.sources.0.weight=3"], {}, "corpus.sources.0.weight=3: no trial has this value"),
        (["search.distill.w_kd.grid=[3]", "distill.policy=all", "distill={w_ce: 2}"], {"train.rows_per_step": 8}, None),
    ],
)
def test_a_setting_that_no_trial_has_is_refused(tmp_path, base, given, settings, words):
    """What every trial has a value of its own of, searched or of its case, cannot be set for all."""
    cases = {"short": {"train.steps": 2, "distill.policy": "none"}, "long": {"train.steps": 4}}
    search = {"distill.w_kd": {"grid": [1, 2]}, "corpus.sources.text.weight": {"grid": [0.5, 1]}}
    arguments = [write(tmp_path, search=search, cases=cases, settings=settings), *given]
    with pytest.raises(UserError, match=words) if words else nullcontext():
        load(arguments)


def test_controls_are_refused_or_said_to_be_left_out(tmp_path, base, caplog):
    """A sweep trains none: who asks it for them is told what cases are controls; the base may have some."""
    search = {"distill.w_kd": {"grid": [1]}}
    asked = r"controls.*: a sweep trains no controls beside its trials: leave it out; a case with distill.policy: none"
    for settings, given in (({"controls": ["same_ce"]}, []), ({}, ["controls=[plain_ce]"])):
        with pytest.raises(UserError, match=asked):
            load([write(tmp_path, search=search, settings=settings), *given])
    write_settings(tmp_path / "base.yaml", tmp_path, tmp_path, controls=["plain_ce"])
    with caplog.at_level("INFO", "tuning"):
        _, config = load([write(tmp_path, search=search)])
        load([write(tmp_path, search=search), "controls=[]"])
    assert config.controls == ("plain_ce",)
    [said] = caplog.messages
    assert said.startswith("controls: none is trained beside the trials")


TWO = {"a": {}, "b": {"distill.policy": "all"}}


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"search": {"distill.w_kd": {"choice": [1, 2, 2]}}}, "16 draws, of which 2 at most differ"),
        ({"search": {"distill.w_kd": {"choice": [1, 2]}}, "algorithm": "optuna", "cases": TWO}, "4 at"),
        ({"search": {"distill.w_kd": {"choice": [1, 2]}}, "trials": 2}, None),
        ({"search": {"distill.w_kd": {"choice": [1, 2]}, "distill.w_ce": {"uniform": [0, 1]}}}, None),
        ({"search": {"distill.w_kd": {"grid": [1, 2]}}}, None),
    ],
)
def test_more_draws_than_there_are_settings_are_told(tmp_path, base, caplog, keys, told):
    """Of a few listed values trials are bound to be alike; ranges are never, and a grid has each once."""
    load([write(tmp_path, **keys)])
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [told in text for text in warned] == ([] if told is None else [True])


BETA, TEMPERATURE = {"distill.beta": {"grid": [0.2, 0.5]}}, {"distill.temperature": {"uniform": [1, 2]}}


@pytest.mark.parametrize(
    ("keys", "refused", "told"),
    [
        ({"search": BETA}, r"distill\.beta has no effect in any trial: it is read by distill\.divergence=jsd", None),
        ({"search": {}, "cases": {"a": {"distill.beta": 0.2}, "b": {}}}, r"distill\.beta has no effect in any", None),
        ({"search": TEMPERATURE, "settings": {W_KD: 0}}, r"temperature has no effect in any trial: it needs a", None),
        ({"search": {"teacher.scope": {"grid": ["full", "visual"]}}, "settings": {W_KD: 0}}, "scope has", None),
        ({"search": {"corpus.sources.pictures.kd_weight": {"grid": [1, 2]}}}, "kd_weight has no effect in any", None),
        ({"search": TEMPERATURE | {W_KD: {"grid": [0, 1]}}}, None, "distill.temperature has no effect in some trials"),
        ({"search": BETA | {"distill.divergence": {"grid": ["jsd", "tv"]}}}, None, "distill.beta has no effect in"),
        ({"search": {W_KD: {"grid": [1, 2]}}, "cases": {"a": {"distill.policy": "none"}, "b": {}}}, None, "w_kd has"),
        ({"search": TEMPERATURE | {W_KD: {"uniform": [0, 1]}}}, None, None),
        ({"search": BETA, "settings": {"distill.divergence": "jsd"}}, None, None),
    ],
)
def test_keys_without_effect_are_told(tmp_path, base, caplog, keys, refused, told):
    """Trials would train alike: refused where all of them do, and said where some do; no draw is the end of a range."""
    with pytest.raises(UserError, match=refused) if refused else nullcontext():
        load([write(tmp_path, **keys)])
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [told in text for text in warned] == ([] if told is None else [True])


def test_a_mapping_of_own_names_is_set_by_its_dotted_key(tmp_path, base):
    """Inside a section it would be open whether the names that are there stay: refused, with both spellings."""
    search = {"distill.w_kd": {"grid": [1]}}
    words = r"settings: tracking: tracking.tags holds names of your own: give tracking.tags.team to set one of them, or"
    with pytest.raises(UserError, match=words):
        load([write(tmp_path, search=search, settings={"tracking": {"tags": {"team": "a"}}})])
    _, config = load([write(tmp_path, search=search, settings={"tracking.tags.team": "a"}), "tracking.tags.set=b"])
    assert config.tracking.tags == {"team": "a", "set": "b"}


def test_unknown_space_and_file(tmp_path):
    """A name that is none of the package's, and a file that is not there."""
    with pytest.raises(UserError, match="there are ablation, demo"):
        read_space("nothing")
    with pytest.raises(UserError, match="no such file"):
        read_space(str(tmp_path / "nothing.yaml"))


def test_settings_of_a_run_are_no_space(tmp_path):
    """Named in place of a space: the error says where they belong."""
    (file := tmp_path / "my.yaml").write_text("name: mine\nteacher: {path: lm}\n", encoding="utf-8")
    with pytest.raises(UserError, match=f"{file}: settings of a run, .* sweep kd base={file}$"):
        read_space(str(file))


def test_corners_are_all_combinations_or_each_value_once():
    """Few combinations are all checked; of very many, each value beside the first of the others."""
    cases = {"a": {"distill.policy": "all"}, "b": {"distill.policy": "none"}}
    corners = list(corner_values(space(cases=cases)))
    assert len(corners) == 4 and {"distill.policy": "none", "distill.w_kd": 2} in corners
    many = {f"distill.w_{name}": {"grid": list(range(60))} for name in ("kd", "ce", "x")}
    corners = list(corner_values(space(search=many)))
    assert len(corners) == 181 and {key: 0 for key in many} in corners
    assert {value for corner in corners for value in corner.values()} == set(range(60))


def test_decoding_turns_a_draw_into_settings():
    """Listed values are drawn by position, so that they may be sections; a case brings its bundle."""
    drawn = {"distill.temperature": {"choice": [1, {"start": 4, "end": 1}]}, "distill.w_kd": {"uniform": [0, 1]}}
    found = decode(
        space(search=drawn, cases={"a": {"distill.policy": "all"}}),
        {"distill.temperature": 1, "distill.w_kd": 0.25, "case": "a", "seed": 3},
    )
    assert found == {
        "distill.policy": "all",
        "distill.temperature": {"start": 4, "end": 1},
        "distill.w_kd": 0.25,
    }


def test_seeds_of_one_setting_run_next_to_one_another(tmp_path, base):
    """Few settings are then half done at a time: their models are kept until all their seeds have ended."""
    loaded, config = load(
        [
            write(
                tmp_path,
                seeds=3,
                search={
                    "align.epochs": {"grid": [1, 2]},
                    "train.steps": {"grid": [3, 4]},
                    "distill.w_kd": {"choice": [1]},
                },
                cases={"a": {"distill.policy": "all"}, "b": {"distill.policy": "none"}},
            )
        ]
    )
    variants = generate_variants({"config": parameters(loaded, config)}, constant_grid_search=True)
    drawn = [spec["config"] for _, spec in variants]
    seeds = [drawn_seed(one, config) for one in drawn]
    settings = [(one["case"], *decode(loaded, one).items()) for one in drawn]
    assert seeds == [0, 1, 2] * 8 and len(set(settings)) == 8
    assert all(len(set(settings[start : start + 3])) == 1 for start in range(0, 24, 3))


def test_the_seed_of_a_trial(tmp_path, base):
    """The drawn one, also under the key that it has in sweeps of an earlier version; the base's where none is drawn."""
    _, config = load([write(tmp_path, search={"distill.w_kd": {"grid": [1]}}), "seed=5"])
    assert [drawn_seed(drawn, config) for drawn in ({SEED: 7}, {}, {"seed": 6})] == [7, 5, 6]


def test_configure_changes_what_it_is_told(tmp_path, base):
    """The typed configuration with values put in; the rest stays."""
    _, config = load([write(tmp_path, search={"distill.w_kd": {"grid": [1]}})])
    changed = configure(config, {"distill.temperature": {"start": 4, "end": 1}, "train.steps": 3}, "trial")
    assert changed.distill.temperature.at(0) == 4 and changed.train.steps == 3
    assert changed.model_copy(update={"distill": config.distill, "train": config.train}) == config
    check(space(), config)


@pytest.mark.parametrize(
    ("key", "domain", "whole"),
    [
        ("distill.top_k", {"uniform": [8, 16]}, True),
        ("train.rows_per_step", {"loguniform": [1, 8]}, True),
        ("corpus.sources.text.limit", {"uniform": [1, 3]}, True),
        ("corpus.sources.0.ce_weight", {"uniform": [1, 3]}, False),
        ("distill.w_kd", {"uniform": [1, 3]}, False),
        ("distill.temperature.end", {"loguniform": [1, 3]}, False),
        ("distill.top_k", {"choice": [8, 64]}, False),
    ],
)
def test_ranges_of_whole_numbers_give_whole_numbers(tmp_path, base, key, domain, whole):
    """Where the setting is a whole number, what is drawn is one, both ends included; every draw fits the base."""
    loaded, config = load([write(tmp_path, search={key: domain}, trials=4)])
    assert is_whole(key, loaded.search[key], config) == whole
    if loaded.search[key].listed is None:
        ranged = parameters(loaded, config)[key]
        drawn = [ranged.sample() for _ in range(300)]
        low, high = domain.get("uniform") or domain["loguniform"]
        assert all(low <= value <= high and isinstance(value, int) == whole for value in drawn)
        assert not whole or {low, high} <= set(drawn)
        for value in drawn[:20]:
            configure(config, {key: value}, "trial")


def test_domain_extremes():
    """Ends of a range, or all that is listed."""
    assert Domain(uniform=(1, 2)).extremes == (1, 2) and Domain(choice=(1, 5, 2)).extremes == (1, 5, 2)


@pytest.mark.parametrize(
    ("override", "resumes"),
    [
        ("train.tokens_per_micro_batch=512", True),  # what an error about memory says to change
        ("ray.cpus_per_worker=2", True),
        ("teacher.placement=in_process", True),
        ("evaluation.tokens_per_batch=1024", True),
        ("train.steps=9", False),
        ("evaluation.engine=vllm", False),
        ("teacher.path=/elsewhere", False),
        ("distill.temperature=3", False),
        ("seeds=2", False),
    ],
)
def test_a_sweep_is_resumed_by_other_means_but_not_to_other_ends(tmp_path, base, override, resumes):
    """After trials have ended, what makes failed ones fit the machine may change; what all of them share may not."""
    command = [write(tmp_path, search={"distill.w_kd": {"grid": [1]}}), f"output_dir={tmp_path / 'runs'}"]
    (open_folder(*load(command)).trials / "trial-0").mkdir()
    with nullcontext() if resumes else pytest.raises(UserError, match="cannot be resumed"):
        open_folder(*load([*command, override]))


@pytest.mark.parametrize("key", ["", "train.steps."])
def test_a_setting_without_a_name_is_refused(tmp_path, base, key):
    """A key of a space may be any text."""
    with pytest.raises(UserError, match=f"settings: {key}: the name of the setting is missing"):
        load([write(tmp_path, settings={key: 3}, search={"distill.w_kd": {"grid": [1]}})])


def test_a_record_of_a_sweep_that_was_cut_off(tmp_path, base):
    """It is told before the demo's models or the baseline are made."""
    command = [write(tmp_path, search={"distill.w_kd": {"grid": [1]}}), f"output_dir={tmp_path / 'runs'}"]
    pointer = open_folder(*load(command)).root / "mlflow.json"
    pointer.write_text("{")
    with pytest.raises(UserError, match=f"{pointer} is cut off"):
        open_folder(*load(command))
