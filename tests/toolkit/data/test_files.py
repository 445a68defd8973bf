from __future__ import annotations

import os
from pathlib import Path

import pytest

from rdrop.errors import UserError
from rdrop.toolkit.data.files import inside, opened
from rdrop.toolkit.data.rows import BadValue


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "plants"
    (made / "train").mkdir(parents=True)
    (made / "train" / "1.png").write_bytes(b"image")
    (tmp_path / "secret.txt").write_text("secret")
    return made


@pytest.mark.parametrize("name", ["train/1.png", "./train//1.png", "train/../train/1.png", "train/1.png/../1.png"])
def test_a_path_below_the_folder_is_resolved(folder: Path, name: str) -> None:
    assert inside(folder, name) == (folder / "train" / "1.png").resolve()


def test_an_absolute_path_below_the_folder_is_one_of_its_files(folder: Path) -> None:
    assert inside(folder, str(folder / "train" / "1.png")) == (folder / "train" / "1.png").resolve()


def test_the_folder_may_be_named_from_the_current_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert inside(Path("plants"), "train/1.png").read_bytes() == b"image"


def test_the_folder_itself_may_be_reached_by_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert inside(tmp_path / "link", "train/1.png").read_bytes() == b"image"


@pytest.mark.parametrize("name", ["../secret.txt", "train/../../secret.txt", "/etc/passwd", "train/../../plants2/x"])
def test_a_path_that_leaves_the_folder_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(BadValue) as caught:
        inside(folder, name)
    assert str(caught.value) == f"the path '{name}' leads out of the data folder {folder}; expected a file below it"


@pytest.mark.parametrize("name", ["link.txt", "linked/secret.txt"])
def test_a_link_that_leads_out_is_refused(folder: Path, name: str) -> None:
    (folder / "link.txt").symlink_to("../secret.txt")
    (folder / "linked").symlink_to(folder.parent)
    with pytest.raises(BadValue, match="leads out of the data folder"):
        inside(folder, name)


def test_a_link_within_the_folder_is_followed(folder: Path) -> None:
    (folder / "first.png").symlink_to("train/1.png")
    assert inside(folder, "first.png") == (folder / "train" / "1.png").resolve()


@pytest.mark.parametrize("name", ["", ".", "train/.."])
def test_the_folder_is_none_of_its_files(folder: Path, name: str) -> None:
    with pytest.raises(BadValue, match=r"names no file; expected a file below the data folder"):
        inside(folder, name)


def test_a_path_that_cannot_be_followed_is_refused(folder: Path) -> None:
    (folder / "loop").symlink_to("loop")
    for name in ("a\0b", "loop"):
        with pytest.raises(BadValue, match=r"^the path .* cannot be followed: "):
            inside(folder, name)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        opened(path)
    return str(caught.value)


def test_a_file_is_opened(folder: Path) -> None:
    with opened(folder / "train" / "1.png") as file:
        assert file.read() == b"image"


def test_a_missing_file_is_answered_with_the_nearest_name(folder: Path) -> None:
    (folder / "train.csv").write_text("")
    (folder / "test.csv").write_text("")
    assert refusal(folder / "trian.csv") == f"there is no file {folder}/trian.csv; did you mean train.csv?"
    assert refusal(folder / "other.csv.gz") == f"there is no file {folder}/other.csv.gz; check the path"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    message = refusal(tmp_path / "no" / "train.csv")
    assert message == f"there is no file {tmp_path}/no/train.csv, and no folder {tmp_path}/no; check the path"


def test_a_broken_link_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.csv").symlink_to("gone.csv")
    message = refusal(tmp_path / "train.csv")
    assert message == f"{tmp_path}/train.csv is a link to gone.csv, which is not there; repair the link"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path} is a folder; expected a file"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes on this system")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.csv")
    assert refusal(tmp_path / "train.csv") == f"{tmp_path}/train.csv is neither a file nor a folder; expected a file"


def test_what_the_system_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "File name too long" in refusal(tmp_path / ("x" * 5000))
    assert "null" in refusal(tmp_path / "a\0b")

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "train.csv").write_text("")
    monkeypatch.setattr(Path, "open", denied)  # a superuser is denied nothing, so permissions alone do not show it
    message = refusal(tmp_path / "train.csv")
    assert message == f"cannot read '{tmp_path}/train.csv': Permission denied; expected a file that this user may read"


@pytest.mark.parametrize("name", ["x" * 256, "ä" * 128, "train/" + "x" * 300 + "/1.png", "train/" * 1000])
def test_a_path_longer_than_any_file_has_is_one_short_message(folder: Path, name: str) -> None:
    with pytest.raises(BadValue, match=f"has {len(name):,} characters, more than any file may have") as caught:
        inside(folder, name)
    assert len(str(caught.value)) < 200
