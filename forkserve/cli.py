"""The command ``forkserve``: words in, exit codes out.

    main ─▶ run ─▶ click (options of the declarations) ─▶ sources.load ─┬─▶ --print-config
                                                                        ├─▶ --check-config   loads the application
                                                                        └─▶ Master(…).run()

Exit codes: 0 all well, 1 the system said no, 2 a setting or the usage is wrong, 3 the application did not boot.
Promises: an error is one line on standard error, ``forkserve: error: …``, after the traceback of the user's code where
there is one; nothing has been started when it is 2.  This is the only place that exits.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from forkserve import __version__
from forkserve.errors import ForkserveError, SettingsError

if TYPE_CHECKING:
    import click

    from forkserve.settings import Settings
    from forkserve.sources import Loaded

INTERRUPTED = 130
"""The exit code after control-C before the master runs: 128 + SIGINT, the shell's convention."""

NO_APPLICATION = (
    "no application: type `forkserve MODULE:ATTRIBUTE`, for example `forkserve mysite.wsgi:application`, or set app in "
    "forkserve.toml; `forkserve --help` shows the rest"
)

EPILOG = """\
Every setting can also stand in a configuration file or in the environment as FORKSERVE_<NAME>; \
stronger is: default < file < WEB_CONCURRENCY < GUNICORN_CMD_ARGS < FORKSERVE_<NAME> < command line.

Exit codes: 0 all well, 1 the system refused something, 2 wrong usage or setting, 3 the application did not boot.

Completion of options in your shell: eval "$(_FORKSERVE_COMPLETE=bash_source forkserve)" in ~/.bashrc, zsh_source in \
~/.zshrc; for fish: _FORKSERVE_COMPLETE=fish_source forkserve | source"""


def main() -> NoReturn:
    """The console script: run with the words of this process and exit."""
    _open_standard_streams()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: the words after the command's name.

    Returns:
        The exit code.
    """
    if list(arguments) == ["--version"]:  # scripts ask for it; it does not need all the rest
        print(f"forkserve {__version__}")
        return 0
    try:
        return _run_click(arguments)
    except ForkserveError as error:
        _complain(str(error), error.traceback_text)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `forkserve --help | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0


def _run_click(arguments: Sequence[str]) -> int:
    import click

    from forkserve import options

    try:
        code = command().main(list(arguments), prog_name="forkserve", standalone_mode=False)
    except click.UsageError as error:
        raise SettingsError(options.usage_text(error)) from error
    except click.Abort:
        return INTERRUPTED
    return int(code or 0)


def command() -> click.Command:
    """The command as click knows it: every flag, help by sections."""
    import click

    from forkserve import options

    class SectionedCommand(click.Command):
        """A command whose help lists options under the sections of the settings."""

        def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
            _format_sections(self, ctx, formatter)

        def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
            for paragraph in EPILOG.split("\n\n"):
                formatter.write_paragraph()
                formatter.write_text(paragraph)

    own = [
        click.Option(["--print-config"], is_flag=True, help="Print every setting and where it came from, then exit."),
        click.Option(["--check-config"], is_flag=True, help="Load configuration and application, say what was found."),
        click.Option(
            ["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Version."
        ),
    ]
    return SectionedCommand(
        "forkserve",
        params=[*options.options(), *own],
        callback=_start,
        help="Serve the WSGI application APP (module:attribute) from pre-forked worker processes.",
    )


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        print(f"forkserve {__version__}")
        ctx.exit()


def _format_sections(shown: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    from forkserve.options import SettingOption
    from forkserve.settings import SECTIONS

    records: dict[str, list[tuple[str, str]]] = {section: [] for section in SECTIONS}
    for parameter in shown.get_params(ctx):
        section = parameter.declaration.setting.section if isinstance(parameter, SettingOption) else "Information"
        record = parameter.get_help_record(ctx)
        if record is not None:
            records.setdefault(section, []).append(record)
    for section, rows in records.items():
        if rows:
            with formatter.section(section):
                formatter.write_dl(rows, col_max=34)


def _start(print_config: bool, check_config: bool, **parameters: object) -> int:
    """What the command does once click has read the words."""
    from forkserve import options, sources
    from forkserve.gunicorn_names import UNSUPPORTED

    given = options.given(parameters)
    for name in given.unsupported:
        flag = UNSUPPORTED[name].flags.split()[0]
        raise SettingsError(f"command line: {flag} is gunicorn's: forkserve {UNSUPPORTED[name].why}; leave it out")
    environ, cwd = dict(os.environ), _working_directory(os.environ)

    def load() -> Loaded:
        return sources.load(given.values, environ, cwd)

    loaded = load()
    if print_config:
        _warn(loaded.warnings)
        _print_config(loaded)
        return 0
    if not loaded.settings.app:
        raise SettingsError(NO_APPLICATION)
    _check_surroundings(loaded)
    if check_config:
        _warn(loaded.warnings)
        _check_application(loaded)
    from forkserve.master import Master

    _log_warnings(loaded)
    sys.path.extend([*loaded.settings.pythonpath, loaded.settings.chdir])  # at the end: for hooks and logger_class
    master = Master(
        loaded.settings.app,
        loaded.settings,
        hooks=loaded.hooks,
        reload_settings=load,
        config_path=loaded.config_path,
    )
    return master.run()


def _working_directory(environ: Mapping[str, str]) -> str:
    """The current directory by the name that the shell knows, so that a symbolic link in it is followed anew at reload.

    Raises:
        ForkserveError: the directory is gone.
    """
    try:
        real, named = os.getcwd(), environ.get("PWD", "")
        if os.path.isabs(named) and os.path.isdir(named) and os.path.samefile(real, named):
            return named
    except OSError as error:
        raise ForkserveError(
            f"the current directory cannot be read ({error.strerror}): change to another one"
        ) from error
    return real


def _check_surroundings(loaded: Loaded) -> None:
    """What settings alone do not show: addresses that are none, a missing extra.

    Raises:
        SettingsError: something is wrong.
    """
    from importlib.util import find_spec

    from forkserve.posix.listeners import parse_address

    for address in loaded.settings.bind:
        try:
            parse_address(address)
        except SettingsError as error:
            raise SettingsError(f"{loaded.origins['bind']}: {error}") from error
    _check_access_log_format(loaded)
    directory = loaded.settings.tmp_upload_dir
    if directory is not None and not os.path.isdir(directory):
        raise SettingsError(f"{loaded.origins['tmp_upload_dir']} = {directory!r}: there is no such directory")
    if loaded.settings.reload and find_spec("watchfiles") is None:
        raise SettingsError(f"{loaded.origins['reload']} needs the package watchfiles: pip install 'forkserve[reload]'")


def _check_access_log_format(loaded: Loaded) -> None:
    template, origin = loaded.settings.access_log_format, loaded.origins["access_log_format"]
    if origin == "default":
        return
    from forkserve.server.access_log import check_template

    try:
        check_template(template)
    except ValueError as error:
        raise SettingsError(f"{origin} = {template!r}: {error}") from error


def _log_warnings(loaded: Loaded) -> None:
    from forkserve import log

    if loaded.warnings:
        log.setup(loaded.settings)
    for warning in loaded.warnings:
        log.event(log.WARNING, "settings.warning", warning)


def _print_config(loaded: Loaded) -> None:
    """Print the settings as a TOML file that says where each value came from."""
    from forkserve.settings import HOOK_ARGUMENTS, table
    from forkserve.values import shown

    for name, declaration in table().items():
        value = getattr(loaded.settings, name)
        if name == "config":
            line = f"# the configuration file is {value or 'none'}"
        else:
            line = f"# {name} is not set" if value is None else f"{name} = {shown(declaration, value)}"
        print(f"{line}  # {loaded.origins[name]}")
    hooks = [name for name in HOOK_ARGUMENTS if getattr(loaded.hooks, name) is not None]
    if hooks:
        print(f"# hooks: {', '.join(hooks)}  # {loaded.config_path}")


def _check_application(loaded: Loaded) -> NoReturn:
    """Load the application and say what was found.

    Ends the process here and now: threads that the application has started must not keep it.

    Raises:
        ForkserveError: the application cannot be loaded.
    """
    from forkserve.posix import process
    from forkserve.server import loader

    settings = loaded.settings
    assert settings.app is not None
    os.environ.update(item.partition("=")[::2] for item in settings.raw_env)
    code = 0
    try:
        loader.prepare_path(settings.chdir, settings.pythonpath)
        application = loader.load_application(settings.app)
        _check_worker(loaded)
        _print_findings(settings, loaded, loader.describe(application))
    except ForkserveError as error:
        _complain(str(error), error.traceback_text)
        code = error.exit_code
    process.abandon(code)


def _check_worker(loaded: Loaded) -> None:
    """What otherwise only the master or a worker would find.

    Raises:
        ForkserveError: there is no such worker class, user or group; certificate or key cannot be used.
    """
    from forkserve.posix import privileges
    from forkserve.supervisor import certificates
    from forkserve.workers import load_worker_class

    settings = loaded.settings
    try:
        load_worker_class(settings.worker_type)
    except SettingsError as error:
        raise SettingsError(f"{loaded.origins['worker_class']}: {error}") from error
    privileges.resolve(settings.user, settings.group)
    if settings.certfile:
        certificates.check(settings, loaded.hooks.ssl_context)


def _print_findings(settings: Settings, loaded: Loaded, application: str) -> None:
    origin = loaded.origins
    print(f"configuration  {loaded.config_path or 'no file'}")
    print(f"bind           {', '.join(settings.bind)}  ({origin['bind']})")
    if settings.certfile:
        print(f"certificate    {settings.certfile}  ({origin['certfile']})")
    print(f"workers        {settings.workers} {settings.worker_type}  ({origin['workers']})")
    print(f"application    {settings.app}: {application}")
    print("all well: nothing was started")


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        _say(f"forkserve: warning: {warning}\n")


def _complain(message: str, traceback_text: str = "") -> None:
    _say(f"{traceback_text}forkserve: error: {message}\n")


def _say(text: str) -> None:
    if sys.stdout is not None:
        sys.stdout.flush()
    try:
        os.write(2, text.encode("utf-8", "backslashreplace"))
    except OSError:
        return  # nobody reads standard error; the exit code says the rest


def _open_standard_streams() -> None:
    """Open what is closed of descriptors 0, 1 and 2, or the first socket would become standard error."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
            os.set_inheritable(number, True)
