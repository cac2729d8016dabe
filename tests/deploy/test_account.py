import os
import pwd
from pathlib import Path

from deploy import account

ME = pwd.getpwuid(os.getuid())


def test_a_state_directory_that_is_missing_is_made_for_the_user_of_the_cell(tmp_path: Path) -> None:
    var_dir = tmp_path / "cell" / "var"
    account._hand_over(var_dir, ME, create=False)
    assert var_dir.stat().st_uid == ME.pw_uid
    assert var_dir.stat().st_mode & 0o777 == 0o700


def test_only_up_takes_over_a_state_directory_that_is_there(tmp_path: Path) -> None:
    account._hand_over(tmp_path, pwd.getpwnam("nobody"), create=False)
    assert tmp_path.stat().st_uid == ME.pw_uid
