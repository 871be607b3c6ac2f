"""Writes the generated pages: docs/SETTINGS.md and conf/forkserve.toml.

python -m forkserve.settings_docs          write both, relative to the current directory
pages()                                    ─▶ {path: text}, which a test compares with the tree
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

from forkserve.gunicorn_names import UNSUPPORTED
from forkserve.options import default_text
from forkserve.settings import HOOK_ARGUMENTS, SECTIONS, Declaration, declarations
from forkserve.values import shown

_NOTE = "made by `python -m forkserve.settings_docs` from forkserve/settings.py: change that, not this"

_INTRODUCTION = f"""\
# Settings

<!-- {_NOTE} -->

Every setting has one name. It can stand

* on the command line, as the flag that is listed with it;
* in the environment, as `FORKSERVE_` and the name in capitals;
* in `forkserve.toml` (or another TOML file named with `-c`), as `name = value`;
* in `gunicorn.conf.py` (or another Python file named with `-c`), as `name = value`, with gunicorn's names.

The stronger source wins: default < file < `WEB_CONCURRENCY` < `GUNICORN_CMD_ARGS` < `FORKSERVE_…` < command line.
(In gunicorn `WEB_CONCURRENCY` is weaker than the file.) `PORT` sets `bind` to `0.0.0.0:$PORT` where nothing else does,
`FORWARDED_ALLOW_IPS` in the same way `forwarded_allow_ips`.
`forkserve --print-config` shows each value and where it came from; `forkserve --check-config APP` also loads the
application and says what it found.

Without `-c` (or `FORKSERVE_CONFIG`), `./forkserve.toml` or else `./gunicorn.conf.py` is used where it exists.
Times are in seconds and may carry a suffix (`"500ms"`, `"30s"`, `"2m"`), sizes in bytes (`"64k"`, `"10M"`, `"1G"`).
A name that nobody knows is an error and nothing is started; in a Python file it is that file's own affair, and gives a
warning where it looks like a misspelt setting. A setting marked *restart* keeps its old value at a reload, and the log
says so.
"""

_HOOKS = """\
## Hooks

Functions in a Python configuration file that are called at moments of the server's life, as in gunicorn. A hook that
raises is named in the log and the server goes on; but `ssl_context`, which must return an `ssl.SSLContext`, ends what
it was called for: the first start, the new generation, or the change of the certificate.

| hook | called with |
|---|---|
"""

_UNSUPPORTED_INTRODUCTION = """\
## gunicorn's settings that do nothing here

In a gunicorn configuration file and in `GUNICORN_CMD_ARGS` they are named together in one warning; on the command line
and in `forkserve.toml` they are refused.

| setting | forkserve |
|---|---|
"""

_TOML_INTRODUCTION = f"""\
# forkserve.toml: every setting with its default. Take away the # in front of what you change.
# ({_NOTE})
#
# forkserve reads this file when it lies in the directory that it is started in, or by `forkserve -c FILE`.
# The environment (FORKSERVE_<NAME>) and the command line are stronger.
"""


_EXAMPLES = {
    "app": "mysite.wsgi:application",
    "chdir": "/srv/mysite",
    "certfile": "/etc/letsencrypt/live/mysite.example/fullchain.pem",
    "keyfile": "/etc/letsencrypt/live/mysite.example/privkey.pem",
    "ca_certs": "/etc/mysite/clients.pem",
    "ciphers": "ECDHE+AESGCM:ECDHE+CHACHA20",
    "tmp_upload_dir": "/var/tmp",
    "pidfile": "/run/mysite.pid",
    "proc_name": "mysite",
    "user": "www-data",
    "group": "www-data",
    "accesslog": "-",
    "logconfig": "conf/logging.ini",
    "logconfig_json": "conf/logging.json",
    "logger_class": "mysite.logs.make_logger",
}
"""Values to show in forkserve.toml where the default is none or depends on the machine."""


def pages() -> Mapping[str, str]:
    """The generated files by their path in the project."""
    return {"docs/SETTINGS.md": settings_page(), "conf/forkserve.toml": toml_example()}


def settings_page() -> str:
    """docs/SETTINGS.md: all settings by section, hooks, and gunicorn's settings that do nothing here."""
    parts = [_INTRODUCTION]
    for section in SECTIONS:
        parts.append(f"## {section}\n")
        parts += [_entry(each) for each in declarations() if each.setting.section == section]
    hooks = "".join(f"| `{name}` | `({', '.join(arguments)})` |\n" for name, arguments in HOOK_ARGUMENTS.items())
    others = "".join(f"| `{name}` | {other.why} |\n" for name, other in UNSUPPORTED.items())
    return "\n".join([*parts, _HOOKS + hooks, _UNSUPPORTED_INTRODUCTION + others])


def _entry(declaration: Declaration) -> str:
    setting = declaration.setting
    flags = [flag.partition("=")[0] for flag in setting.flags.split()]
    aliases = [f"`{alias}` (gunicorn)" for alias in setting.aliases.split()]
    facts = {
        "Flags": ", ".join(f"`{flag}`" for flag in flags)
        or ("argument `APP`" if declaration.name == "app" else "none"),
        "Environment": ", ".join(f"`{name}`" for name in (declaration.variable, *setting.env.split()))
        + (f"; `{setting.default_env}` gives the default" if setting.default_env else ""),
        "Other names": ", ".join(aliases),
        "Value": declaration.allowed,
        "Default": _default(declaration),
        "Change needs": "" if setting.reload else "*restart*",
    }
    lines = "".join(f"* {title}: {text}\n" for title, text in facts.items() if text)
    return f"### {declaration.name}\n\n{_wrapped(setting.help)}\n\n{lines}"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)


def _default(declaration: Declaration) -> str:
    text = default_text(declaration)
    return text if declaration.setting.shown_default or text == "none" else f"`{text}`"


def toml_example() -> str:
    """conf/forkserve.toml: every setting as a comment with help, values and default."""
    parts = [_TOML_INTRODUCTION]
    for section in SECTIONS:
        parts.append(f"\n# ---- {section} ----\n")
        for declaration in declarations():
            if declaration.setting.section == section and declaration.name != "config":
                parts.append(_toml_entry(declaration))
    return "".join(parts)


def _toml_entry(declaration: Declaration) -> str:
    paragraph = f"{declaration.setting.help} ({declaration.allowed}; default: {default_text(declaration)})"
    comment = textwrap.indent(textwrap.fill(paragraph, 110, break_on_hyphens=False), "# ")
    return f"\n{comment}\n# {declaration.name} = {_toml_default(declaration)}\n"


def _toml_default(declaration: Declaration) -> str:
    """The default as TOML; where there is none, or it depends on the machine, an example."""
    if declaration.name in _EXAMPLES:
        return shown(declaration, _EXAMPLES[declaration.name])
    return shown(declaration, declaration.default)


def main() -> None:
    """Write the generated files under the current directory."""
    for path, text in pages().items():
        Path(path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
