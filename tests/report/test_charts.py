from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from rdrop.report.charts import (
    Chart,
    difference_chart,
    learning_chart,
    learning_charts,
    reliability_chart,
    training_chart,
    value_chart,
)
from rdrop.toolkit.summary import Curve, Difference, Interval, Summary

MakeSummary = Callable[..., Summary]


def all_charts(summary: Summary) -> list[Chart]:
    charts = [
        *(learning_chart(summary, metric) for metric in summary.metrics),
        training_chart(summary, "divergence", "Divergence", "Between the passes."),
        training_chart(summary, "task_loss", "Task loss", "Without the divergence."),
        *(difference_chart(summary, metric) for metric in summary.metrics),
        reliability_chart(summary),
        *(value_chart(summary, metric, summary.metrics[:2], "") for metric in summary.metrics),
    ]
    return [chart for chart in charts if chart]


def with_curve(summary: Summary, name: str, change: Callable[[Curve], Curve | None]) -> Summary:
    """The same summary with one curve of every run changed or dropped."""
    runs = []
    for run in summary.runs:
        changed = {key: change(curve) if key == name else curve for key, curve in run.curves.items()}
        runs.append(run.model_copy(update={"curves": {key: each for key, each in changed.items() if each}}))
    return summary.model_copy(update={"runs": runs})


def test_every_chart_of_a_full_summary(summary: Summary) -> None:
    charts = all_charts(summary)
    assert len(charts) == 2 + 2 + 7 + 1 + 7
    assert len({chart.key for chart in charts}) == len(charts)
    for chart in charts:
        assert chart.finding.endswith(".")
        assert all(len(row) == len(chart.table.columns) for row in chart.table.rows)
        assert chart.table.rows
        for panel in chart.panels:
            assert "nan" not in panel.lower()


def test_the_learning_curve_of_longer_goes_further_right(summary: Summary) -> None:
    chart = learning_chart(summary, summary.metrics[0])
    assert chart is not None
    assert chart.table.columns == ["Step", "plain", "twice", "rdrop", "longer"]
    assert chart.table.rows[-1][0] == "1,200"
    assert chart.table.rows[-1][1:4] == ["\N{EN DASH}"] * 3
    ends = [run.curves["eval_accuracy"].values[-1] for run in summary.runs if run.arm == "longer"]
    assert chart.table.rows[-1][4].startswith(f"{100 * sum(ends) / len(ends):.2f} [")


def test_a_single_evaluation_is_no_curve(summary: Summary) -> None:
    last = with_curve(summary, "eval_accuracy", lambda curve: Curve(steps=curve.steps[-1:], values=curve.values[-1:]))
    assert learning_chart(last, summary.metrics[0]) is None
    assert learning_chart(last, summary.metrics[1]) is not None


def test_one_arm_with_a_curve_among_points_is_no_comparison(summary: Summary) -> None:
    """Longer training is evaluated twice where the others are evaluated once."""
    one, key = summary.metrics[0], f"eval_{summary.metrics[0].name}"
    points = [
        run
        if run.arm == "longer" or key not in run.curves
        else run.model_copy(
            update={"curves": {key: Curve(steps=run.curves[key].steps[-1:], values=run.curves[key].values[-1:])}}
        )
        for run in summary.runs
    ]
    assert learning_chart(summary.model_copy(update={"runs": points}), one) is None
    alone = summary.model_copy(update={"runs": [run for run in summary.runs if run.arm == "longer"]})
    assert learning_chart(alone, one) is not None


def test_the_best_end_depends_on_the_direction_of_the_metric(summary: Summary) -> None:
    for metric, best in ((summary.metrics[0], max), (summary.metrics[1], min)):
        chart = learning_chart(summary, metric)
        assert chart is not None
        ends = {
            arm.name: sum(run.curves[f"eval_{metric.name}"].values[-1] for run in summary.runs if run.arm == arm.name)
            for arm in summary.arms
        }
        assert chart.finding.endswith(f" {best(ends, key=ends.__getitem__)} ended best.")


def test_an_axis_that_leaves_values_out_says_so(summary: Summary) -> None:
    metric = summary.metrics[0]
    chart = learning_chart(summary, metric)
    assert chart is not None
    assert "outside the axis" in chart.reading
    calm = with_curve(
        summary,
        "eval_accuracy",
        lambda curve: Curve(steps=curve.steps, values=[0.5 + step / 10_000 for step in curve.steps]),
    )
    chart = learning_chart(calm, metric)
    assert chart is not None
    assert "outside the axis" not in chart.reading


def test_every_evaluated_curve_is_drawn_those_of_no_metric_last(make_summary: MakeSummary) -> None:
    summary = make_summary(seeds=[0, 1, 2], task="translation")
    charts = learning_charts(summary)
    assert [chart.title for chart in charts] == [
        "BLEU while training",
        "NLL while training",
        "Loss in evaluations while training",
    ]
    assert len({chart.key for chart in charts}) == 3
    assert charts[0].finding.endswith(" ended best.")
    assert "best" not in charts[2].finding
    end = [run.curves["eval_loss"].values[-1] for run in summary.runs if run.arm == "plain"]
    assert f"plain {sum(end) / 3:.3f}," in charts[2].finding


def test_a_single_line_is_not_called_the_best(make_summary: MakeSummary) -> None:
    summary = make_summary(seeds=[0], task="language")
    alone = summary.model_copy(update={"arms": summary.arms[:1]})
    assert all("best" not in chart.finding for chart in learning_charts(alone))
    assert len(learning_charts(alone)) == 2


def test_a_perplexity_that_falls_from_thousands_is_read_at_its_end(make_summary: MakeSummary) -> None:
    summary = make_summary(seeds=[0, 1, 2], task="language")
    chart = learning_charts(summary)[0]
    assert chart.title == "Perplexity while training"
    assert "outside the axis" in chart.reading
    assert re.search(r"plain \d\d\.\d\d,", chart.finding)


def test_arms_without_any_divergence_are_left_out(summary: Summary) -> None:
    chart = training_chart(summary, "divergence", "Divergence", "Between the passes.")
    assert chart is not None
    assert chart.legend == [1, 2]
    assert "logarithmic" in chart.reading


def test_a_curve_with_a_zero_is_drawn_on_a_linear_axis(summary: Summary) -> None:
    zeros = with_curve(
        summary,
        "divergence",
        lambda curve: Curve(steps=curve.steps, values=[0.0] * (len(curve.values) - 1) + curve.values[-1:]),
    )
    chart = training_chart(zeros, "divergence", "Divergence", "Between the passes.")
    assert chart is not None
    assert "logarithmic" not in chart.reading


def test_training_curves_are_averaged_over_equal_stretches(summary: Summary) -> None:
    steps = list(range(1, 1201))
    flat = with_curve(summary, "task_loss", lambda curve: Curve(steps=steps, values=[float(step) for step in steps]))
    chart = training_chart(flat, "task_loss", "Task loss", "")
    assert chart is not None
    assert [row[0] for row in chart.table.rows[:2]] == ["30", "60"]
    assert chart.table.rows[0][1].startswith("15.5")


def test_missing_curves_give_no_chart(summary: Summary) -> None:
    bare = summary.model_copy(update={"runs": [run.model_copy(update={"curves": {}}) for run in summary.runs]})
    assert learning_chart(bare, bare.metrics[0]) is None
    assert training_chart(bare, "divergence", "Divergence", "") is None


def test_values_that_are_not_finite_are_left_out(summary: Summary) -> None:
    broken = with_curve(
        summary,
        "task_loss",
        lambda curve: Curve(steps=curve.steps, values=[float("nan"), float("inf"), *curve.values[2:]]),
    )
    chart = training_chart(broken, "task_loss", "Task loss", "")
    assert chart is not None
    assert "nan" not in chart.panels[0].lower()
    assert "inf" not in re.sub(r"<desc.*?</desc>", "", chart.panels[0])
    assert all(re.match(r"[0-9]", cell) for cell in chart.table.rows[0])


def test_means_are_over_the_steps_that_every_seed_has(summary: Summary) -> None:
    runs = [
        run.model_copy(update={"curves": {"eval_nll": Curve(steps=[50, 60, 100 + run.seed], values=[1.0, 0.8, 0.5])}})
        for run in summary.runs
    ]
    chart = learning_chart(summary.model_copy(update={"runs": runs}), summary.metrics[1])
    assert chart is not None
    assert [row[0] for row in chart.table.rows] == ["50", "60"]


def test_differences_count_the_seeds_that_were_better(summary: Summary) -> None:
    for metric in summary.metrics[:2]:
        chart = difference_chart(summary, metric)
        assert chart is not None
        per_seed = summary.arms[2].differences[metric.name].per_seed
        better = sum((value > 0) == metric.higher_is_better for value in per_seed.values())
        assert f"rdrop was better in {better} of 10 seeds" in chart.finding
        assert len(chart.table.columns) == 12
        side = "right" if metric.higher_is_better else "left"
        assert chart.reading.endswith(f"Better is to the {side}.")
        marks = re.findall(r'<use href="#[^"]+" x="[^"]+" y="[^"]+" style="fill: var\(--arm-2\)', chart.panels[0])
        assert len(marks) == 10


def test_a_difference_that_is_not_finite_is_listed_but_not_drawn(summary: Summary) -> None:
    nothing = Difference(
        mean=float("nan"),
        low=float("nan"),
        high=float("nan"),
        p_value=None,
        per_seed={0: float("nan"), 1: 0.1},
    )
    arms = [
        arm.model_copy(update={"differences": arm.differences | {"nll": nothing}}) if arm.name == "twice" else arm
        for arm in summary.arms
    ]
    chart = difference_chart(summary.model_copy(update={"arms": arms}), summary.metrics[1])
    assert chart is not None
    assert [row[0] for row in chart.table.rows] == ["twice", "rdrop", "longer"]
    assert chart.table.rows[0][1] == "not a number"
    assert "twice</text>" not in chart.panels[0]


def test_reliability_pools_the_counts_of_all_seeds(summary: Summary) -> None:
    chart = reliability_chart(summary)
    assert chart is not None
    assert len(chart.panels) == 4
    last = [row for row in chart.table.rows if row[0] == "plain"][-1]
    assert last[1] == "90\N{EN DASH}100%"
    assert last[2] == "13,220"
    bins = [run.reliability[-1] for run in summary.runs if run.arm == "plain"]
    right = sum(each.count * (each.accuracy or 0) for each in bins) / sum(each.count for each in bins)
    assert last[4] == f"{100 * right:.1f}%"
    empty = next(row for row in chart.table.rows if row[0] == "plain")
    assert empty[2:] == ["0", "\N{EN DASH}", "\N{EN DASH}"]


def test_value_chart_names_the_lowest_gap(summary: Summary) -> None:
    by_name = {metric.name: metric for metric in summary.metrics}
    chart = value_chart(summary, by_name["consistency_kl"], [by_name["agreement"]], "Gap.")
    assert chart is not None
    assert chart.finding.endswith("rdrop has the lowest mean.")
    assert chart.table.columns == ["Arm", "Consistency gap", "Agreement (%)"]
    assert len(chart.table.rows) == 4


@pytest.mark.parametrize("failed", [[("rdrop", 0)], [("plain", 0)], [(arm, 0) for arm in ("plain", "rdrop")]])
def test_one_seed_and_failed_arms(make_summary: MakeSummary, failed: list[tuple[str, int]]) -> None:
    summary = make_summary(seeds=[0], failed=failed)
    charts = all_charts(summary)
    assert charts
    for chart in charts:
        for arm, _ in failed:
            assert all(row[0] != arm for row in chart.table.rows)
            assert arm not in chart.table.columns
        assert "95% intervals" not in chart.reading
        assert "the bar is" not in chart.reading


def test_more_arms_than_colours(make_summary: MakeSummary) -> None:
    arms = ["plain", "twice", "rdrop", "longer", *(f"x{i}" for i in range(6))]
    chart = learning_chart(make_summary(seeds=[0, 1], arms=arms), make_summary().metrics[0])
    assert chart is not None
    assert chart.legend == list(range(10))


def test_an_interval_without_width_is_drawn(summary: Summary) -> None:
    same = Interval(mean=0.5, low=0.5, high=0.5)
    arms = [arm.model_copy(update={"metrics": dict.fromkeys(arm.metrics, same)}) for arm in summary.arms]
    runs = [run.model_copy(update={"metrics": dict.fromkeys(run.metrics, 0.5)}) for run in summary.runs]
    chart = value_chart(summary.model_copy(update={"arms": arms, "runs": runs}), summary.metrics[3], [], "")
    assert chart is not None
    assert "nan" not in chart.panels[0].lower()


def test_bands_start_at_three_seeds_and_numbers_at_two(make_summary: MakeSummary) -> None:
    for seeds, banded in ((1, False), (2, False), (3, True)):
        summary = make_summary(seeds=range(seeds))
        chart = learning_chart(summary, summary.metrics[0])
        assert chart is not None
        assert ("fill-opacity" in chart.panels[0]) == banded
        assert ("bands" in chart.reading) == banded
        assert ("[" in chart.table.rows[0][1]) == (seeds > 1)
