"""Becoming somebody else: user and group of the processes that run application code.

    "www-data", "33", None ─ resolve ─▶ (uid, gid) ─ drop ─▶ real, effective and saved ids, supplementary groups

Promises: names and numbers are understood, an unknown one is one clear line; after :func:`drop` there is no way back to
the privileges given up, which is tried before it returns.

Left to others: when (a zygote drops before it imports the application, so no application code ever runs with more).
"""

from __future__ import annotations

import grp
import os
import pwd

from forkserve.errors import PrivilegeError

_ID_MAX = 2**32 - 2
"""credentials(7): ids are 32 bits wide and -1 means "leave unchanged" in setresuid(2)."""


def resolve(user: str | None, group: str | None) -> tuple[int, int]:
    """The ids behind two settings, each a name or a number.

    None leaves what this process has; a user without a group brings its primary group along.

    Raises:
        PrivilegeError: there is no such user or group, or the user's primary group is not known.
    """
    uid = os.geteuid() if user is None else _user_id(user)
    if group is not None:
        return uid, _group_id(group)
    if uid == os.geteuid():
        return uid, os.getegid()
    try:
        return uid, pwd.getpwuid(uid).pw_gid
    except KeyError:
        raise PrivilegeError(
            f"user {user!r} has no entry in the system's user database, so its group is not known: set group too"
        ) from None


def _number(text: str) -> int | None:
    if text.isascii() and text.isdigit() and int(text) <= _ID_MAX:
        return int(text)
    return None


def _user_id(text: str) -> int:
    try:
        return pwd.getpwnam(text).pw_uid
    except (KeyError, ValueError):
        number = _number(text)
    if number is None:
        raise PrivilegeError(f"there is no user {text!r} on this system: correct user, or create it (adduser --system)")
    return number


def _group_id(text: str) -> int:
    try:
        return grp.getgrnam(text).gr_gid
    except (KeyError, ValueError):
        number = _number(text)
    if number is None:
        raise PrivilegeError(
            f"there is no group {text!r} on this system: correct group, or create it (addgroup --system)"
        )
    return number


def drop(uid: int, gid: int, *, initgroups: bool) -> None:
    """Become ``uid`` and ``gid`` for good; nothing happens when this process is both already.

    Args:
        initgroups: also join every group of which the user is a member; otherwise ``gid`` is the only group, so that
            root's own supplementary groups are never kept.

    Raises:
        PrivilegeError: the system refuses, or the change could be undone.
    """
    if os.getresuid() == (uid, uid, uid) and os.getresgid() == (gid, gid, gid):
        return
    try:
        os.setgroups(_groups_of(uid, gid) if initgroups else [gid])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise PrivilegeError(
            f"cannot change to user {uid} and group {gid} ({(error.strerror or str(error)).lower()}): "
            "start as root, or leave out user and group"
        ) from error
    if uid != 0:
        _check_that_root_is_gone(uid)


def _groups_of(uid: int, gid: int) -> list[int]:
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return [gid]  # a number without an entry is a member of nothing
    return os.getgrouplist(name, gid)


def _check_that_root_is_gone(uid: int) -> None:
    try:
        os.setresuid(-1, 0, -1)
    except PermissionError:
        return
    raise PrivilegeError(
        f"changed to user {uid} but could change back to root: this process holds CAP_SETUID; start it without"
    )
