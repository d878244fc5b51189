"""Ranking, spread, Pareto front, score, table and recipe, from made-up outcomes."""

import csv
import math
import re
from dataclasses import replace

import pytest
from matplotlib.figure import Figure

from lingu_ray.config import strict_yaml
from lingu_ray.config.command_line import load_config, load_yaml
from tuning.outcome import Outcome, read_outcome, read_outcomes, score
from tuning.pareto_plot import pareto
from tuning.results import (
    Stat,
    best_of,
    best_recipe,
    headline,
    keeps_vision,
    pareto_front,
    read_too_high,
    seeds_in_words,
    settings_of,
    why_no_best,
    write_table,
)
from tuning.settings_plots import heat_map, parallel_coordinates, searched_keys
from tuning.space import Space

SPACE = Space.model_validate({"name": "s", "base": "demo", "search": {"distill.w_kd": {"grid": [1, 2, 3, 4]}}})


def outcome(w_kd, recovery=None, retention=None, seed=0, state="finished", **rest) -> Outcome:
    named = {"trial": f"trial-{w_kd}-{seed}"} | rest
    return Outcome(
        values={"distill.w_kd": w_kd},
        case=None,
        seed=seed,
        state=state,
        recovery=recovery,
        retention=retention,
        **named,
    )


def test_ranking_puts_what_keeps_vision_first():
    """Good ones by recovery, then those below the constraint by retention, then by validation: measured ones first."""
    outcomes = [
        outcome(1, 0.5, 1.0),
        outcome(2, 0.9, 0.9),
        outcome(3, 0.7, 0.995),
        outcome(4, 0.99, 0.95),
        outcome(5, state="stopped", validation_ce=2.0),
        outcome(6, state="stopped", validation_ce=1.0),
        outcome(7, state="failed"),
        outcome(8, None, 0.9, validation_ce=2.5, scores={"digits": 0.8}),
        outcome(9, None, 1.0, validation_ce=3.0, scores={"digits": 0.9}),
    ]
    order = [setting.values["distill.w_kd"] for setting in settings_of(outcomes, SPACE)]
    assert order == [3, 1, 4, 2, 9, 8, 6, 5, 7]


def test_what_the_objective_does_not_tell_apart():
    """Equal ones are ranked by the other mean, then by validation, and not by name."""
    of_two = [outcome(1, 0.5, 0.99, validation_ce=1.0), outcome(2, 0.5, 1.0, validation_ce=2.0)]
    best = outcome(3, 0.5, 1.0, validation_ce=1.5)
    kept_less = [outcome(4, 0.1, 0.9), outcome(5, 0.2, 0.9)]
    order = [setting.values["distill.w_kd"] for setting in settings_of([*of_two, best, *kept_less], SPACE)]
    assert order == [3, 2, 1, 5, 4]


def test_labels_are_short():
    """A setting in words: last part of the key, three digits, schedules as their values."""
    values = {"train.learning_rates.decoder": 0.000443211, "distill.w_kd": [[0, 2], [0.5, 0.25]], "distill.top_k": None}
    (setting,) = settings_of([Outcome("trial-1", values, None, 0)], SPACE)
    assert setting.label == "lr.decoder=0.000443 w_kd=2→0.25 top_k=null"


def test_settings_of_a_case_are_told_apart():
    """Cases with something searched beside them: a label has both, and no two settings have the same; of cases alone it
    is the case."""
    cases = {"full": {"teacher.scope": "full"}, "visual": {"teacher.scope": "visual"}}
    space = SPACE.model_copy(update={"cases": cases})
    both = [Outcome(f"{n}{w}", own | {"distill.w_kd": w}, n, 0) for n, own in cases.items() for w in (1, 4)]
    labels = {setting.label for setting in settings_of(both, space)}
    assert labels == {"full w_kd=1", "full w_kd=4", "visual w_kd=1", "visual w_kd=4"}
    alone = [Outcome(name, own, name, 0) for name, own in cases.items()]
    assert {setting.label for setting in settings_of(alone, space)} == {"full", "visual"}


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        # draws that three digits do not tell apart
        ([{"distill.w_kd": 0.30012}, {"distill.w_kd": 0.30049}], ["w_kd=0.3001", "w_kd=0.3005"]),
        # schedules of the same values that begin at other places
        (
            [{"distill.w_kd": [[0, 4], [begin, 1]]} for begin in (0.5, 0.8)],
            ["w_kd=4→1", "w_kd=4→1@0.8"],
        ),
        # keys of which the last part is the same
        (
            [{"corpus.sources.a.weight": a, "corpus.sources.b.weight": 1 - a} for a in (0.25, 0.75)],
            ["a.weight=0.25 b.weight=0.75", "a.weight=0.75 b.weight=0.25"],
        ),
        ([{"align.learning_rates.decoder": 1, "distill.w_kd": 2}], ["lr.decoder=1 w_kd=2"]),
    ],
)
def test_settings_are_told_apart(values, labels, tmp_path):
    """No two have the same label, no two columns of a figure the same name, and the table has every digit."""
    settings = settings_of([Outcome(f"{i}", own, None, 0) for i, own in enumerate(values)], SPACE)
    assert [setting.label for setting in settings] == labels
    assert set(searched_keys(settings)) == (set(values[0]) if len(values) > 1 else set())
    write_table(settings, tmp_path / "table.csv")
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [{key: strict_yaml.load(row[key], "table")[0] for key in values[0]} for row in rows] == values


def test_seeds_are_one_setting_with_mean_and_spread():
    """Trials that differ in the seed alone are one row; the spread is the standard deviation of its seeds."""
    outcomes = [outcome(1, r, 1.0, seed) for seed, r in enumerate((0.8, 0.9, 1.0))] + [outcome(2, 0.5, 1.0)]
    first, second = settings_of(outcomes, SPACE)
    stat = first.stat("recovery")
    assert stat.mean == pytest.approx(0.9) and stat.spread == pytest.approx(0.1)
    assert second.stat("recovery").spread is None and first.state == "finished"


def test_a_seed_that_ran_twice_counts_once():
    """The same values drawn again under the same seed are no second measurement: neither a seed, nor a spread."""
    (setting,) = settings_of([outcome(1, 0.9, 1.0, trial=f"trial-{number}") for number in range(3)], SPACE)
    assert setting.stat("recovery") == Stat(0.9, None) and len(setting.trials) == 3
    assert headline([setting], SPACE)[1] == "w_kd=1 brings back 90.0% of the lost language and keeps 100.0% of vision"
    assert best_recipe(setting, load_config(["demo"]), SPACE).startswith(
        "# Best setting of the sweep s: w_kd=1 (recovery 90.0%, retention 100.0%; one seed).\n"
    )


def test_one_seed_has_its_interval_over_items():
    """Of one seed the interval over items stands where several have their spread, in words and as the figure's bars."""
    ends = {"recovery_ci": [0.85, 0.95], "retention_ci": [0.98, 1.03]}
    twice = [outcome(2, 0.8, 1.0, seed, **ends) for seed in (0, 1)]
    one, several = settings_of([outcome(1, 0.9, 1.0, **ends), *twice], SPACE)
    assert one.stat("recovery") == Stat(0.9, None, (0.85, 0.95)) and several.stat("recovery") == Stat(0.8, 0.0)
    found = "w_kd=1 brings back 90.0% [85.0, 95.0] of the lost language and keeps 100.0% [98.0, 103.0] of vision"
    assert headline([one], SPACE)[1] == found
    axis = Figure().subplots()
    pareto([one], SPACE)[0].draw(axis)
    bars = [line.get_segments()[0] for line in axis.containers[0].lines[2]]
    assert [(bar.min(axis=0).tolist(), bar.max(axis=0).tolist()) for bar in bars] == [
        ([0.85, 1.0], [0.95, 1.0]),
        ([0.9, 0.98], [0.9, 1.03]),
    ]


def test_what_was_chosen_by_its_scores_says_so():
    """Of several measured settings the best is so in part by luck: headline and recipe say that it was chosen."""
    settings = settings_of([outcome(1, 0.9, 1.0), outcome(2, 0.8, 1.0), outcome(3, state="failed")], SPACE)
    assert headline(settings, SPACE)[0] == "Best of 2"
    assert read_too_high(settings, SPACE).startswith("Its scores chose it among 2, so they read too high")
    recipe = best_recipe(settings[0], load_config(["demo"]), SPACE, read_too_high(settings, SPACE))
    assert recipe.splitlines()[1] == f"# {read_too_high(settings, SPACE)}"
    assert headline(settings[:1], SPACE)[0] == "Best" and read_too_high(settings[:1], SPACE) == ""


def test_a_setting_that_lacks_seeds_comes_after_those_that_do_not():
    """Seeds that failed or were stopped are in no mean, and what is left of a setting does not win by luck."""
    three = SPACE.model_copy(update={"seeds": 3})
    all_seeds = [outcome(1, recovery, 1.0, seed) for seed, recovery in enumerate((0.80, 0.82, 0.81))]
    survivor = [outcome(2, 0.83, 1.0, 0), outcome(2, state="stopped", seed=1), outcome(2, state="failed", seed=2)]
    best, other = settings_of([*survivor, *all_seeds], three)
    assert best.values == {"distill.w_kd": 1} and [seeds_in_words(one, three) for one in (best, other)] == [
        "3",
        "1 of 3",
    ]
    assert headline([best, other], three)[1].endswith("keeps 100.0% ± 0.0% of vision")
    base = load_config(["demo"])
    assert "retention 100.0%; 3 seeds)" in best_recipe(best, base, three)
    assert headline([other], three)[1].endswith(
        "brings back 83.0% of the lost language and keeps 100.0% of vision, on 1 of 3 seeds"
    )
    assert "retention 100.0%; 1 of 3 seeds)" in best_recipe(other, base, three)


def test_one_lucky_seed_does_not_keep_vision():
    """A setting with all seeds comes first even where it alone fails the constraint, and the headline says which do."""
    two = SPACE.model_copy(update={"seeds": 2})
    outcomes = [outcome(1, 0.9, 0.9, 0), outcome(1, 0.9, 0.9, 1), outcome(2, 0.6, 1.0, 0), outcome(3, 0.8, 0.8, 0)]
    settings = settings_of(outcomes, two)
    assert [setting.values["distill.w_kd"] for setting in settings] == [1, 2, 3]
    assert headline(settings, two)[0] == "No setting with all its seeds keeps 99.0% of vision"
    assert headline(settings[:1], two)[0] == "No setting keeps 99.0% of vision"


def test_without_the_objective_the_measured_seeds_count():
    """Where recovery has no value, a setting that was measured with all seeds lacks none."""
    two = SPACE.model_copy(update={"seeds": 2})
    whole = [outcome(1, None, 1.0, seed, validation_ce=3.0, scores={"a": 1.0}) for seed in (0, 1)]
    half = [outcome(2, None, 1.0, 0, validation_ce=2.0, scores={"a": 1.0}), outcome(2, state="failed", seed=1)]
    assert [seeds_in_words(one, two) for one in settings_of([*half, *whole], two)] == ["2", "1 of 2"]


def test_the_constraint_holds_for_the_mean_over_seeds():
    """One lucky seed does not make a setting good."""
    outcomes = [outcome(1, 0.9, 1.0, 0), outcome(1, 0.9, 0.9, 1), outcome(2, 0.6, 0.99, 0)]
    assert best_of(settings_of(outcomes, SPACE), SPACE).values == {"distill.w_kd": 2}
    (on_it,) = settings_of([outcome(1, 0.9, 0.99, seed) for seed in range(3)], SPACE)
    assert on_it.stat("retention") == Stat(0.99, 0.0) and keeps_vision(on_it, SPACE)  # 3 × 0.99 / 3 < 0.99 in doubles


def test_a_mean_without_a_value_is_not_in_the_headline():
    """As of a sweep whose tasks are all of one kind."""
    assert headline(settings_of([outcome(1, 0.9)], SPACE), SPACE)[1] == "w_kd=1 brings back 90.0% of the lost language"
    seeing = SPACE.model_copy(update={"objectives": ("retention",)})
    assert headline(settings_of([outcome(1, None, 1.0)], seeing), seeing)[1] == "w_kd=1 keeps 100.0% of vision"


def test_a_trial_that_diverged_leaves_the_others_their_scale():
    """Figures of what others bring back have the scale of these; of the diverged one they say that it lies beyond."""
    tried = [
        replace(outcome(i, 0.5 + i / 100, 1 - i / 1000), values={"distill.w_kd": i, "distill.temperature": 1 + i % 2})
        for i in range(6)
    ]
    lost = replace(outcome(9, -350.0, 0.01), values={"distill.w_kd": 9, "distill.temperature": 1})
    settings = settings_of([*tried, lost], SPACE)
    axes = []
    for (panel,) in (f(settings, SPACE) for f in (pareto, heat_map, parallel_coordinates)):
        axes.append(Figure(panel.size).subplots())
        panel.draw(axes[-1])
    front, heat, lines = axes
    assert front.get_xlim()[0] > 0.4 and front.get_ylim()[0] > 0.9
    assert "<" in [line.get_marker() for line in front.get_lines()]
    assert heat.images[0].norm.vmin > 0.4
    assert next(text.get_text() for text in lines.texts if "%" in text.get_text()).startswith("≤ 4")


def test_axes_over_decades_have_plain_numbers():
    """Ticks of a logarithmic axis, where labels are not read as mathematics: 0.1, and not a formula of 10."""
    values = [(0.1, 0.5), (0.4, 3), (1.3, 1.1), (9.5, 5)]
    tried = [
        replace(outcome(i, 0.5 + i / 10, 1.0), values={"distill.w_kd": w, "distill.temperature": t})
        for i, (w, t) in enumerate(values)
    ]
    (heat,) = heat_map(settings_of(tried, SPACE), SPACE)
    found = re.findall(r"<text[^>]*>([^<]+)</text>", heat.svg())
    assert {"0.1", "0.5", "1", "2", "5"} <= set(found) and not [text for text in found if "$" in text]


@pytest.mark.parametrize(
    ("outcomes", "why"),
    [
        (
            [outcome(1, None, 1.0, scores={"a": 1.0}, reasons={"recovery": "a: no loss"})],
            "recovery has no value (a: no loss)",
        ),
        ([outcome(1, state="failed", error="disk is full")], "every trial failed, the first with: disk is full"),
        ([outcome(1, state="stopped"), outcome(2, state="failed", error="x")], "no trial was measured"),
        ([], "no trial was measured"),
    ],
)
def test_without_a_best_setting_there_is_a_reason(outcomes, why):
    """Where the objective is known of no trial, no setting is the best, and the reason is the trials' own."""
    settings = settings_of(outcomes, SPACE)
    assert best_of(settings, SPACE) is None and why_no_best(settings, SPACE).startswith(why)


def test_pareto_front():
    """Only what nothing else beats in both."""
    points = [(0.5, 1.0), (0.9, 0.9), (0.7, 0.95), (0.6, 0.95), (0.4, 0.99)]
    settings = settings_of([outcome(i, *point) for i, point in enumerate(points)], SPACE)
    assert [setting.values["distill.w_kd"] for setting in pareto_front(settings)] == [0, 2, 1]


def test_settings_beside_the_diagram_leave_it_its_width():
    """The longer the settings in the legend, the wider the figure: the diagram stays as wide as with short ones."""
    search = {"distill.w_kd": {"grid": [1, 2]}, "distill.divergence": {"choice": ["reverse_kl", "forward_kl"]}}
    search |= {f"train.learning_rates.{part}": {"grid": [1e-4, 1e-3]} for part in ("vision", "projector", "decoder")}
    long = Space.model_validate({"name": "s", "base": "demo", "search": search})
    values = {"distill.w_kd": 1, "distill.divergence": "reverse_kl"} | {key: 0.000123 for key in list(search)[2:]}
    trials = [Outcome(f"trial-{i}", values | {"distill.w_kd": i}, None, 0, "finished") for i in (1, 2)]
    measured = [replace(one, recovery=0.8, retention=1.0) for one in trials]
    assert _diagram_inches(long, measured) >= 3.5 and _diagram_inches(SPACE, [outcome(1, 0.8, 1.0)]) >= 3.5


def _diagram_inches(space, outcomes) -> float:
    (panel,) = pareto(settings_of(outcomes, space), space)
    figure = Figure(panel.size, layout="constrained")
    axis = figure.subplots()
    panel.draw(axis)
    figure.draw_without_rendering()
    return axis.get_window_extent().width / figure.dpi


def test_score_is_the_objective_less_the_shortfall():
    """At or above the constraint recovery alone; below, ten times what is missing is taken off."""
    assert score(outcome(1, 0.8, 1.02), SPACE) == 0.8
    assert score(outcome(1, 0.8, 0.94), SPACE) == pytest.approx(0.8 - 0.5)
    assert score(outcome(1, 0.8, None), SPACE) == 0.8 and math.isnan(score(outcome(1), SPACE))


def test_outcomes_survive_the_disk(tmp_path):
    """What is written is read again; folders without an outcome are passed over, and so are copies of a trial's."""
    one = outcome(1, 0.8, 1.0, scores={"cloze": 0.5}, error=None)
    for folder in (one.trial, f"{one.trial} copy"):
        one.write(tmp_path / folder)
    (tmp_path / "empty").mkdir()
    assert read_outcomes(tmp_path) == [one] and read_outcome(tmp_path / "empty") is None


def test_table_has_a_line_a_trial(tmp_path):
    """Settings, numbers and scores of every trial, failed ones with their error."""
    outcomes = [outcome(1, 0.8, 1.0, scores={"cloze": 0.5}), outcome(2, state="failed", error="out of memory")]
    write_table(settings_of(outcomes, SPACE), tmp_path / "table.csv")
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [row["distill.w_kd"] for row in rows] == ["1", "2"]
    assert rows[0]["cloze"] == "0.5" and rows[1]["error"] == "out of memory" and rows[1]["state"] == "failed"


def test_best_recipe_is_one_that_training_takes(tmp_path):
    """The recipe reads back as the base with the best values."""
    base = load_config(["demo"])
    (setting,) = settings_of([outcome(2, 0.8, 1.0)], SPACE)
    path = tmp_path / "best.yaml"
    path.write_text(best_recipe(setting, base, SPACE))
    config = load_yaml(path)
    assert config.distill.w_kd.at(0.5) == 2 and config.name == "s-best"
    assert config.model_copy(update={"distill": base.distill, "name": base.name}) == base
