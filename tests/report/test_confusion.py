from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from rdrop.report.confusion import LONGEST_NAME, MOST_MISTAKES, STRONGEST_TINT, Matrices, matrices
from rdrop.report.templates import resource
from rdrop.toolkit.summary import Confusion

MakeConfusion = Callable[..., Confusion]


def confusion(counts: list[list[int]], labels: list[str] | None = None) -> Confusion:
    return Confusion(title="Which", labels=labels or [f"c{i}" for i in range(len(counts))], counts=counts)


def numbers(told: Matrices, panel: int = 0) -> list[list[int]]:
    return [[int(cell.text.replace(",", "")) for cell in row.cells] for row in told.panels[panel]]


def test_a_small_matrix_is_shown_as_it_is(make_confusion: MakeConfusion) -> None:
    given = make_confusion(0, [f"class {i}" for i in range(12)])
    told = matrices(["plain"], [given])
    assert numbers(told) == given.counts
    assert told.columns == given.labels
    assert [row.label for row in told.panels[0]] == given.labels
    assert not told.folded
    assert "counted as one" not in told.reading


def test_the_share_of_each_class_that_was_right() -> None:
    told = matrices([""], [confusion([[3, 1, 0], [0, 0, 0], [0, 0, 5]])])
    assert [row.right for row in told.panels[0]] == ["75%", "\N{EN DASH}", "100%"]


def test_with_many_classes_the_most_confused_ones_stay_and_no_count_is_lost(make_confusion: MakeConfusion) -> None:
    labels = [f"class {i}" for i in range(100)]
    given = [make_confusion(seed, labels, accuracy=0.8 + 0.1 * seed) for seed in (0, 1)]
    told = matrices(["plain", "rdrop"], given)
    errors = sum(np.array(each.counts) - np.diag(np.diag(each.counts)) for each in given)
    part_of = errors.sum(axis=0) + errors.sum(axis=1)
    kept = [labels.index(column) for column in told.columns[:-1]]
    assert len(kept) == 11
    assert kept == sorted(kept)
    assert min(part_of[kept]) >= max(np.delete(part_of, kept))
    assert told.columns[-1] == "89 others"
    assert told.folded
    assert "Of 100 classes, the 11 that are part of most confusions are shown" in told.reading
    for panel, each in enumerate(given):
        counts, shown = np.array(each.counts), np.array(numbers(told, panel))
        assert (shown[:11, :11] == counts[np.ix_(kept, kept)]).all()
        assert (shown[:11].sum(axis=1) == counts[kept].sum(axis=1)).all()
        assert (shown[:, :11].sum(axis=0) == counts[:, kept].sum(axis=0)).all()
        assert shown.sum() == counts.sum()
        others = np.delete(np.arange(100), kept)
        right = 100 * np.diag(counts)[others].sum() / counts[others].sum()
        assert told.panels[panel][-1].right == f"{right:.0f}%"


def test_errors_are_tinted_by_their_share_of_the_row_and_zeros_not_at_all() -> None:
    told = matrices([""], [confusion([[90, 9, 1], [0, 10, 0], [0, 1000, 0]])])
    looks = [[(cell.tone, cell.tint) for cell in row.cells] for row in told.panels[0]]
    assert [[tone for tone, _ in row] for row in looks] == [
        ["right", "wrong", "wrong"],
        ["", "right", ""],
        ["", "wrong", ""],
    ]
    assert [tint for _, tint in looks[0]] == [40, 22, 15]  # 45 * 0.9; 12 + 33 * sqrt(0.09); 12 + 33 * sqrt(0.01)
    assert looks[1][1][1] == looks[2][1][1] == STRONGEST_TINT
    assert told.panels[0][2].cells[1].text == "1,000"


def test_the_finding_names_each_run_and_its_mistake() -> None:
    runs = [confusion([[8, 2], [0, 5]], ["cat", "dog"]), confusion([[10, 0], [1, 4]], ["cat", "dog"])]
    assert matrices(["plain", "rdrop"], runs).finding == (
        "Right: plain 13 of 15, rdrop 14 of 15. Most frequent mistake: plain: cat taken for dog (2 times); "
        "rdrop: dog taken for cat (1 time)."
    )


def test_mistakes_are_listed_with_the_count_of_each_run() -> None:
    runs = [confusion([[8, 2], [0, 5]], ["cat", "dog"]), confusion([[10, 0], [3, 2]], ["cat", "dog"])]
    table = matrices(["plain", "rdrop"], runs).mistakes
    assert table is not None
    assert table.columns == ["Mistake", "plain", "rdrop"]
    assert table.rows == [["dog taken for cat", "0", "3"], ["cat taken for dog", "2", "0"]]
    assert table.caption == "All kinds of mistake"


def test_only_the_most_frequent_mistakes_are_listed() -> None:
    counts = np.arange(64).reshape(8, 8)
    table = matrices([""], [confusion(counts.tolist())]).mistakes
    assert table is not None
    assert len(table.rows) == MOST_MISTAKES
    assert table.rows[0] == ["c7 taken for c6", "62"]
    assert table.caption == "The 20 most frequent of 56 kinds of mistake"


def test_without_a_mistake_there_is_no_list() -> None:
    told = matrices([""], [confusion([[3, 0], [0, 4]])])
    assert told.mistakes is None
    assert told.finding == "Right: 7 of 7. Most frequent mistake: none."


def test_names_of_classes_are_cut_where_they_are_headings_and_whole_in_the_list() -> None:
    long = "a" * 100
    told = matrices([""], [confusion([[1, 1], [0, 1]], [long, "b"])])
    assert len(told.columns[0]) == LONGEST_NAME
    assert told.mistakes is not None
    assert told.mistakes.rows[0][0] == f"{long} taken for b"


def test_short_names_are_not_turned() -> None:
    assert not matrices([""], [confusion([[1, 1], [0, 1]], ["0", "1"])]).upright
    assert matrices([""], [confusion([[1, 1], [0, 1]], ["cats", "dogs"])]).upright


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([[1, 2]], r"2 labels and rows of \[2\] counts; expected 2 rows of 2"),
        ([[1, 2], [3]], r"rows of \[2, 1\] counts"),
        ([[1, 2, 3], [1, 2, 3]], r"rows of \[3, 3\] counts"),
        ([[1, -2], [3, 4]], "holds -2; expected counts from 0 on"),
    ],
)
def test_a_matrix_that_is_none_is_refused(counts: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        matrices([""], [confusion(counts, ["a", "b"])])


def test_no_class_at_all() -> None:
    told = matrices([""], [confusion([], [])])
    assert told.panels == [[]]
    assert told.finding == "Right: 0 of 0. Most frequent mistake: none."


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_numbers_have_enough_contrast_on_the_strongest_tint(
    mode: str,
    themes: dict[str, dict[str, tuple[int, ...]]],
    contrast: Callable[..., float],
) -> None:
    colours = themes[mode]
    share = STRONGEST_TINT / 100
    for tone, variable in (("right", "--muted"), ("wrong", "--worse")):
        pairs = zip(colours[variable], colours["--card"], strict=True)
        tint = [share * over + (1 - share) * under for over, under in pairs]
        assert contrast(colours["--ink"], tint) >= 4.5, (mode, variable)
        mixed = f"color-mix(in srgb, var({variable}) var(--tint), var(--card))"
        assert f".matrix .{tone} {{ background: {mixed}; }}" in resource("page.css")
