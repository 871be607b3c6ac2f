"""The command line's options, made from the declarations of the settings.

    options()            click options: one for each flag of each setting, and hidden ones for gunicorn's other flags
    given(parameters)    what click parsed ─▶ {setting: value}, and the flags of gunicorn's that do nothing here
    parse(arguments)     the same from a list of words, for GUNICORN_CMD_ARGS

Values stay the texts that were typed; :mod:`forkserve.values` reads them as it reads those of every other source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

import click

from forkserve.errors import SettingsError
from forkserve.gunicorn_names import UNSUPPORTED
from forkserve.settings import Declaration, table
from forkserve.values import to_toml

_FLAG_VALUE = "__is__"  # in a parameter's name, between a setting and the value that the flag stands for
_UNSUPPORTED = "unsupported__"


@dataclass(frozen=True, slots=True)
class Given:
    """What was given on a command line.

    Attributes:
        values: texts (or booleans of flags) by setting.
        unsupported: names of gunicorn's settings whose flags were given.
    """

    values: dict[str, object] = field(default_factory=dict)
    unsupported: list[str] = field(default_factory=list)


def options() -> list[click.Parameter]:
    """The argument APP and an option for every flag, fresh objects that a command may own."""
    found: list[click.Parameter] = [click.Argument(["app"], required=False, metavar="[APP]")]
    for declaration in table().values():
        found += _options_of(declaration)
    for name, other in UNSUPPORTED.items():
        if other.flags:
            kind = {"multiple": True} if other.takes_value else {"is_flag": True, "default": None}
            found.append(click.Option([_UNSUPPORTED + name, *other.flags.split()], hidden=True, **kind))
    return found


def _options_of(declaration: Declaration) -> list[click.Parameter]:
    flags = declaration.setting.flags.split()
    if not flags:
        return []
    valued = [flag.partition("=") for flag in flags if "=" in flag]
    if valued:
        return [
            SettingOption(
                [f"{declaration.name}{_FLAG_VALUE}{value}", flag],
                declaration=declaration,
                is_flag=True,
                flag_value=value,
                default=None,
                hidden=index > 0,
            )
            for index, (flag, _, value) in enumerate(valued)
        ]
    names = [declaration.name, *flags]
    if declaration.setting.bare:
        optional = {"is_flag": False, "flag_value": declaration.setting.bare, "default": None}
        return [SettingOption(names, declaration=declaration, type=str, metavar=_metavar(declaration), **optional)]
    if declaration.plain_type is bool:
        return [SettingOption(names, declaration=declaration, is_flag=True, default=None)]
    return [
        SettingOption(
            names, declaration=declaration, type=str, metavar=_metavar(declaration), multiple=declaration.is_list
        )
    ]


class SettingOption(click.Option):
    """An option that knows its setting, for the help by sections."""

    def __init__(self, names: Sequence[str], *, declaration: Declaration, **rest: object) -> None:
        super().__init__(names, help=_help(declaration), **rest)  # type: ignore[arg-type]  # passed on as given
        self.declaration = declaration

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Flags and help; flags that stand for values are shown together."""
        record = super().get_help_record(ctx)
        if record is None or "=" not in self.declaration.setting.flags:
            return record
        return " / ".join(flag.partition("=")[0] for flag in self.declaration.setting.flags.split()), record[1]


def _metavar(declaration: Declaration) -> str:
    if declaration.choices:
        return "[" + "|".join(declaration.choices) + "]"
    number = {int: "N", float: "SECONDS"}.get(declaration.plain_type)
    if number and declaration.setting.words:
        return "[" + "|".join([number, *declaration.setting.words.split()]) + "]"
    if declaration.setting.unit == "bytes":
        return "SIZE"
    return number or ("PATH" if declaration.setting.path else "TEXT")


def _help(declaration: Declaration) -> str:
    return f"{declaration.setting.help}  [{facts(declaration)}]"


def facts(declaration: Declaration) -> str:
    """Unit and default of a setting: "seconds; default: 30"."""
    unit = declaration.setting.unit
    return (f"{unit}; " if unit else "") + f"default: {default_text(declaration)}"


def default_text(declaration: Declaration) -> str:
    """The default as people write it."""
    default = declaration.default
    if declaration.setting.shown_default is not None:
        return declaration.setting.shown_default
    if default is None or default == () or default == {}:
        return "none"
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, tuple):
        return ",".join(default)
    if isinstance(default, dict):
        return to_toml(default)
    return f"{default:g}" if isinstance(default, float) else str(default)


def given(parameters: Mapping[str, object]) -> Given:
    """What was given, from the parameters that click parsed; what is no setting is left out."""
    found = Given()
    for name, value in parameters.items():
        setting, is_flag_value, _ = name.partition(_FLAG_VALUE)
        if value is None or value == ():
            continue
        if name.startswith(_UNSUPPORTED):
            found.unsupported.append(name.removeprefix(_UNSUPPORTED))
        elif setting not in table():
            continue
        elif is_flag_value and setting in found.values:
            flags = [flag.partition("=")[0] for flag in table()[setting].setting.flags.split()]
            raise SettingsError(f"command line: give only one of {', '.join(flags)}")
        else:
            found.values[setting] = value
    return found


def parse(arguments: Sequence[str]) -> Given:
    """What a list of command-line words gives.

    Raises:
        SettingsError: a word is no option, or lacks its value.
    """
    command = click.Command("forkserve", params=options(), add_help_option=False)
    try:
        return given(command.make_context("forkserve", list(arguments)).params)
    except click.UsageError as error:
        raise SettingsError(usage_text(error)) from error


def usage_text(error: click.UsageError) -> str:
    """click's error as one line without its final stop; for an unknown option the flags that were perhaps meant."""
    if isinstance(error, click.NoSuchOption):
        wrong = error.option_name
        known = [
            flag for option in options() for flag in option.opts if flag.startswith("--") and not _is_hidden(option)
        ]
        own = ["--check-config", "--print-config", "--version", "--help"]
        if wrong in own:
            return f"{wrong} stands on the command line only"
        near = get_close_matches(wrong, [*known, *own], n=2)
        return f"no such option {wrong}" + (f"; did you mean {' or '.join(near)}?" if near else "; see --help")
    text = " ".join(error.format_message().split()).rstrip(".")
    return text[:1].lower() + text[1:]


def _is_hidden(option: click.Parameter) -> bool:
    return (option.name or "").startswith(_UNSUPPORTED)
