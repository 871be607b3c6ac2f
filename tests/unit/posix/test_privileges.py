"""Users, groups, and giving root up."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys

import pytest

from forkserve.errors import PrivilegeError
from forkserve.posix import privileges

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
NOBODY = pwd.getpwnam("nobody")


def test_nothing_named_leaves_the_process_as_it_is() -> None:
    assert privileges.resolve(None, None) == (os.geteuid(), os.getegid())


def test_names_and_numbers_mean_the_same() -> None:
    by_name = privileges.resolve("nobody", "nogroup" if NOBODY.pw_gid == 65534 else "nobody")
    assert privileges.resolve(str(NOBODY.pw_uid), str(NOBODY.pw_gid)) == by_name


def test_a_user_brings_its_primary_group() -> None:
    assert privileges.resolve("nobody", None) == (NOBODY.pw_uid, NOBODY.pw_gid)


def test_a_group_alone_keeps_the_user() -> None:
    assert privileges.resolve(None, "54321") == (os.geteuid(), 54321)


@pytest.mark.parametrize(
    ("user", "group", "line"),
    [
        ("nobdy", None, "there is no user 'nobdy' on this system: correct user"),
        (None, "nogrp", "there is no group 'nogrp' on this system: correct group"),
        ("54321", None, "user '54321' has no entry .* set group too"),
        ("", None, "there is no user ''"),
        ("-1", None, "there is no user '-1'"),
        (str(2**32 - 1), "0", "there is no user '4294967295'"),
        ("a\0b", None, "there is no user"),
        (None, "²", "there is no group"),
    ],
)
def test_an_unknown_name_is_one_clear_line(user: str | None, group: str | None, line: str) -> None:
    with pytest.raises(PrivilegeError, match=line) as caught:
        privileges.resolve(user, group)
    assert caught.value.exit_code == 1


def test_becoming_what_one_is_does_nothing() -> None:
    privileges.drop(os.geteuid(), os.getegid(), initgroups=True)


def run(code: str) -> str:
    """Run ``code`` in a process of its own, for it cannot come back."""
    prelude = "import os\nfrom forkserve.posix import privileges\nfrom forkserve.errors import PrivilegeError\n"
    done = subprocess.run(
        [sys.executable, "-c", prelude + code], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stderr == ""
    return done.stdout.strip()


@needs_root
def test_a_drop_changes_all_ids_and_groups() -> None:
    drop = "privileges.drop(54321, 54322, initgroups=%s)\nprint(os.getresuid(), os.getresgid(), os.getgroups())"
    for initgroups in (True, False):
        assert run(drop % initgroups) == "(54321, 54321, 54321) (54322, 54322, 54322) [54322]"


@needs_root
def test_a_named_user_joins_its_groups_when_asked() -> None:
    expected = sorted(os.getgrouplist("daemon", 1))
    uid = pwd.getpwnam("daemon").pw_uid
    assert run(f"privileges.drop({uid}, 1, initgroups=True)\nprint(sorted(os.getgroups()))") == str(expected)


@needs_root
def test_a_drop_that_the_system_refuses_is_one_clear_line() -> None:
    line = run(
        "privileges.drop(54321, 54321, initgroups=False)\n"
        "try:\n privileges.drop(0, 0, initgroups=False)\nexcept PrivilegeError as error:\n print(error)"
    )
    assert line == (
        "cannot change to user 0 and group 0 (operation not permitted): start as root, or leave out user and group"
    )


@needs_root
def test_a_drop_that_could_be_undone_is_an_error() -> None:
    line = run(
        "os.setresuid = lambda *ids: None\n"
        "try:\n privileges.drop(54321, 54321, initgroups=False)\nexcept PrivilegeError as error:\n print(error)"
    )
    assert line.startswith("changed to user 54321 but could change back to root")
