from pathlib import Path

from deploy.rollout import files


def test_written_directory_holds_exactly_the_files(tmp_path: Path) -> None:
    files.write(tmp_path, {"a": "1\n", "d/b": "2\n"})
    files.write(tmp_path, {"d/b": "3\n"})
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["b"]
    assert (tmp_path / "d" / "b").read_text() == "3\n"


def test_changes_count_lines_and_name_new_and_old_files(tmp_path: Path) -> None:
    files.write(tmp_path, {"same": "x\n", "old": "x\n", "edited": "1\n2\n"})
    changes = files.changes(tmp_path, {"same": "x\n", "new": "y\n", "edited": "1\n3\n4\n"})
    assert [c.summary for c in changes] == ["edited  +2 −1", "new  +1 −0", "old  +0 −1"]


def test_a_line_that_changes_for_every_worker_is_shown_once(tmp_path: Path) -> None:
    files.write(tmp_path, {"conf": "# old\nsize=1\nkeep\nsize=1\n"})
    [change] = files.changes(tmp_path, {"conf": "# new\nsize=2\nkeep\nsize=2\n"})
    assert change.shown == ["-size=1   (× 2)", "+size=2   (× 2)"]


def test_what_changes_for_every_worker_is_shown_once(tmp_path: Path) -> None:
    before = {f"workers/w{n}-00000000{n}a.json": "steps 8\n" for n in (1, 2)}
    files.put(tmp_path, before)
    [change] = files.changes(
        tmp_path, {f"workers/w{n}-00000000{n}b.json": "steps 4\n" for n in (1, 2)}
    )
    assert (change.summary, change.shown) == (
        "workers/  +2 −2",
        ["-steps 8   (× 2)", "+steps 4   (× 2)"],
    )


def test_what_was_put_is_compared_with_the_newest_before_it(tmp_path: Path) -> None:
    for number, steps in enumerate("123"):
        files.put(tmp_path, {f"workers/w1-000000000{number}.json": f"{steps}\n"})
    assert files.changes(tmp_path, {"workers/w1-0000000002.json": "3\n"}) == []


def test_files_are_for_their_user_alone(tmp_path: Path) -> None:
    files.put(tmp_path, {"d/secret": "x"})
    assert (tmp_path / "d" / "secret").stat().st_mode & 0o077 == 0


def test_the_name_of_a_workers_document_is_not_shown(tmp_path: Path) -> None:
    files.write(tmp_path, {"conf": '    ZIMAGE_SETTINGS="w1-a.json"\n'})
    [change] = files.changes(tmp_path, {"conf": '    ZIMAGE_SETTINGS="w1-b.json"\n'})
    assert (change.summary, change.shown) == ("conf  +1 −1", [])
