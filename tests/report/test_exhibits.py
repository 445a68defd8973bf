from __future__ import annotations

import base64
import io
from collections.abc import Callable

import pytest
from PIL import Image

from rdrop.report.exhibits import (
    LONG_TEXT,
    ConfusionView,
    ExamplesView,
    GalleryView,
    ListingView,
    PictureView,
    Source,
    views,
)
from rdrop.report.svg import arm_style
from rdrop.report.templates import template
from rdrop.toolkit.summary import Confusion, Exhibit, Gallery, Listing, Picture

MakePicture = Callable[..., Picture]
MakeConfusion = Callable[..., Confusion]


def source(name: str, *exhibits: Exhibit) -> Source:
    return Source(name, arm_style(0) if name else None, exhibits)


def listing(*rows: list[str], title: str = "Texts", columns: tuple[str, ...] = ("Source", "Output")) -> Listing:
    return Listing(title=title, reading="In order.", columns=list(columns), rows=list(rows))


def gallery(*pictures: Picture) -> Gallery:
    return Gallery(title="Worst", reading="The worst first.", pictures=list(pictures))


def shown(picture: Picture) -> PictureView:
    [view] = views([source("plain", gallery(picture))])
    assert isinstance(view, GalleryView)
    return view.panels[0][0]


def raw(image: bytes) -> Picture:
    return Picture(image=base64.b64encode(image), caption=["name"])


def html(*sources: Source) -> str:
    macro = template("exhibits.html.jinja").module.exhibit  # type: ignore[attr-defined]
    return "".join(macro(view) for view in views(sources))


@pytest.mark.parametrize(("kind", "media_type"), [("PNG", "image/png"), ("JPEG", "image/jpeg")])
def test_a_picture_becomes_an_address_with_the_type_of_its_bytes(
    kind: str, media_type: str, make_picture: MakePicture
) -> None:
    # The name says the opposite, and is not asked.
    picture = make_picture(0, caption=["photo.gif", "sprout"], kind=kind)
    view = shown(picture)
    assert view.address is not None
    head, _, payload = view.address.partition(",")
    assert head == f"data:{media_type};base64"
    assert base64.b64decode(payload) == picture.image
    assert view.alternative == "photo.gif"
    assert view.caption == ["photo.gif", "sprout"]


def other_formats() -> list[bytes]:
    made = []
    for kind in ("GIF", "WEBP", "BMP", "TIFF"):
        file = io.BytesIO()
        Image.new("RGB", (4, 4)).save(file, kind)
        made.append(file.getvalue())
    return made


@pytest.mark.parametrize(
    "image",
    [
        *other_formats(),
        b"",
        b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
        b"<html><script>alert(1)</script></html>",
        b"\x89PNG\r\n\x1a\n<script>alert(1)</script>",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"%PDF-1.7",
    ],
)
def test_whatever_is_neither_png_nor_jpeg_is_not_embedded(image: bytes) -> None:
    assert shown(raw(image)).address is None
    text = html(source("plain", gallery(raw(image))))
    assert "<img" not in text
    assert "data:" not in text
    assert "Not shown: the file is neither a PNG nor a JPEG" in text


def test_a_picture_too_large_for_a_browser_is_not_embedded() -> None:
    file = io.BytesIO()
    Image.new("1", (12_000, 9_000)).save(file, "PNG")
    assert shown(raw(file.getvalue())).address is None


def test_a_photo_of_several_pictures_is_a_jpeg(make_picture: MakePicture) -> None:
    frames = [Image.open(io.BytesIO(make_picture(seed).image)) for seed in (0, 1)]
    file = io.BytesIO()
    frames[0].save(file, "MPO", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(file.getvalue())).format == "MPO"
    address = shown(raw(file.getvalue())).address
    assert address is not None
    assert address.startswith("data:image/jpeg;")


def test_only_small_pictures_keep_their_pixels(make_picture: MakePicture) -> None:
    assert shown(make_picture(0, size=(8, 8))).pixelated
    assert not shown(make_picture(0, size=(8, 300))).pixelated


@pytest.mark.parametrize("caption", [[], [""], ["  "]])
def test_a_picture_without_a_name_is_named_by_its_place(caption: list[str], make_picture: MakePicture) -> None:
    assert shown(make_picture(0, caption=caption)).alternative == "Worst, picture 1"


def test_exhibits_of_the_same_kind_and_title_stand_together(
    make_picture: MakePicture, make_confusion: MakeConfusion
) -> None:
    matrix = make_confusion(0, ["a", "b"])
    made = views(
        [
            source("plain", matrix, gallery(make_picture(0))),
            source("twice", gallery(make_picture(1), make_picture(2))),
            source("rdrop", gallery(), matrix, listing(["x", "y"], title="Worst")),
        ]
    )
    assert [view.kind for view in made] == ["confusion", "gallery", "listing"]
    assert len({view.key for view in made}) == 3
    confusions, galleries, texts = made
    assert isinstance(confusions, ConfusionView)
    assert isinstance(galleries, GalleryView)
    assert isinstance(texts, ListingView)
    assert [each.name for each in confusions.sources] == ["plain", "rdrop"]
    assert [len(panel) for panel in galleries.panels] == [1, 2, 0]
    assert [each.name for each in texts.sources] == ["rdrop"]


def test_matrices_of_other_classes_stand_apart(make_confusion: MakeConfusion) -> None:
    made = views([source("plain", make_confusion(0, ["a", "b"])), source("rdrop", make_confusion(0, ["a", "c"]))])
    assert [view.kind for view in made] == ["confusion", "confusion"]


def test_answers_to_the_same_examples_stand_under_each_other() -> None:
    columns = ("Source", "Reference", "Output")
    [view] = views(
        [
            source("plain", listing(["a", "A", "one"], ["b", "B", "same"], columns=columns)),
            source("twice", listing(["a", "A", "two"], ["b", "B", "same"], columns=columns)),
            source("rdrop", listing(["a", "A", "one"], ["b", "B", "same"], columns=columns)),
        ]
    )
    assert isinstance(view, ExamplesView)
    first, second = view.examples
    assert [(column, text.start) for column, text in first.given] == [("Source", "a"), ("Reference", "A")]
    told = [([each.name for each in answer.sources], [text.start for text in answer.texts]) for answer in first.answers]
    assert view.columns == ["Output"]
    assert told == [(["plain", "rdrop"], ["one"]), (["twice"], ["two"])]
    assert [[each.name for each in answer.sources] for answer in second.answers] == [["plain", "twice", "rdrop"]]


def test_a_column_after_one_that_differs_is_an_answer_even_where_all_agree() -> None:
    columns = ("Source", "Output", "Score")
    [view] = views([source(name, listing(["a", name, "0.5"], columns=columns)) for name in ("plain", "rdrop")])
    assert isinstance(view, ExamplesView)
    assert [column for column, _ in view.examples[0].given] == ["Source"]
    assert view.columns == ["Output", "Score"]
    assert [[text.start for text in answer.texts] for answer in view.examples[0].answers] == [
        ["plain", "0.5"],
        ["rdrop", "0.5"],
    ]


def test_runs_share_an_answer_only_if_they_agree_in_all_of_it() -> None:
    columns = ("Source", "Output", "Score")
    answers = {"plain": ["a", "same", "1"], "twice": ["a", "same", "2"], "rdrop": ["a", "same", "1"]}
    [view] = views([source(name, listing(row, columns=columns)) for name, row in answers.items()])
    assert isinstance(view, ExamplesView)
    assert [[each.name for each in answer.sources] for answer in view.examples[0].answers] == [
        ["plain", "rdrop"],
        ["twice"],
    ]


def test_the_last_column_is_an_answer_even_where_all_runs_say_the_same() -> None:
    [view] = views([source(name, listing(["a", "same"])) for name in ("plain", "rdrop")])
    assert isinstance(view, ExamplesView)
    assert [column for column, _ in view.examples[0].given] == ["Source"]
    assert [len(answer.sources) for answer in view.examples[0].answers] == [2]


@pytest.mark.parametrize(
    "other",
    [
        listing(["other", "one"]),
        listing(["a", "one"], ["b", "two"]),
        listing(["a", "one"], columns=("Text", "Output")),
        listing(),
    ],
)
def test_tables_about_other_examples_stand_one_after_the_other(other: Listing) -> None:
    [view] = views([source("plain", listing(["a", "one"])), source("rdrop", other)])
    assert isinstance(view, ListingView)
    assert [len(table.rows) for table in view.panels] == [1, len(other.rows)]
    assert view.panels[1].columns == other.columns


def test_only_columns_of_long_texts_may_wrap() -> None:
    [view] = views([source("", listing(["a long text " * 5, "0.5"], ["short", "0.25"]))])
    assert isinstance(view, ListingView)
    assert view.panels[0].wide == [True, False]


@pytest.mark.parametrize("text", ["word " * 500, "x" * 2500])
def test_a_long_text_is_cut_and_nothing_of_it_is_lost(text: str) -> None:
    [view] = views([source("", listing([text, "y" * LONG_TEXT]))])
    assert isinstance(view, ListingView)
    cut, whole = view.panels[0].rows[0]
    assert cut.start + cut.rest == text
    assert LONG_TEXT / 2 < len(cut.start) <= LONG_TEXT
    assert text.startswith("x") or not cut.start.endswith("wor")
    assert (whole.start, whole.rest) == ("y" * LONG_TEXT, "")
    assert f"{len(cut.rest):,} more characters" in html(source("", listing([text, ""])))


def test_a_ragged_listing_is_refused() -> None:
    with pytest.raises(ValueError, match="Row 1 of the listing 'Texts' has 1 texts; expected 2"):
        views([source("", listing(["a", "b"], ["c"]))])


def test_nothing_to_show_is_said() -> None:
    text = html(source("rdrop", gallery(), listing()))
    assert "No picture." in text
    assert "No row." in text


def test_hostile_text_stays_text(make_picture: MakePicture) -> None:
    evil = "\"'><script>alert(1)</script><img src=x onerror=alert(1)></td></table>&lt;\x00\u202e"
    names = [evil, f"{evil}2"]
    exhibits: list[Exhibit] = [
        Confusion(title=evil, labels=names, counts=[[1, 2], [3, 4]]),
        Gallery(title=evil, reading=evil, pictures=[make_picture(0, caption=names), raw(b"no image")]),
        Listing(title=evil, reading=evil, columns=names, rows=[[evil, evil * 20]]),
    ]
    for sources in ([source(evil, *exhibits)], [source(evil, *exhibits), source("rdrop", *exhibits)]):
        text = html(*sources)
        assert "<script" not in text
        assert text.count("<img") == len(sources)
        assert "onerror=alert(1)&gt;" in text
        assert text.count("<table") == text.count("</table>")
        assert text.count("<td") == text.count("</td>")


def test_a_page_about_one_run_has_no_names_of_runs(make_confusion: MakeConfusion, make_picture: MakePicture) -> None:
    text = html(source("", make_confusion(0, ["a", "b"]), gallery(make_picture(0)), listing(["x", "y"])))
    assert text.count("<figure") == 3
    assert "<h4" not in text
    assert "swatch" not in text
    assert 'aria-label="Which class was taken for which"' in text


def test_line_breaks_and_spaces_of_a_text_are_kept() -> None:
    assert '<td dir="auto">  First:\n  go!</td>' in html(source("", listing(["  First:\n  go!", ""])))
