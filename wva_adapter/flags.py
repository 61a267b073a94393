"""The flags that servers of the Kubernetes API share, as far as they mean something here.

Each one sets a key of the settings file and wins over it; so does its environment variable, over
which the flag wins.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

import click

from wva_adapter.ciphers import MinVersion
from wva_adapter.documents import parse_duration_s

Command = TypeVar("Command", bound=Callable[..., Any])


class Duration(click.ParamType[float]):
    """Seconds, written as ``60s``, ``4m`` or ``2h``."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        try:
            return parse_duration_s(value)
        except ValueError as error:
            self.fail(f"found {value!r}, {error}", param, ctx)


class _Names(click.ParamType[tuple[str, ...]]):
    """Names with commas between them."""

    name = "names"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        return tuple(name.strip() for name in value.split(",") if name.strip())


class _File(click.ParamType[str]):
    """A file, relative to where the program is started."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(Path(value).absolute())


_FLAGS: Final[tuple[tuple[str, str, click.ParamType[Any]], ...]] = (
    ("--bind-address", "listen.address", click.STRING),
    ("--secure-port", "listen.port", click.IntRange(0, 65535)),
    ("--cert-dir", "tls.directory", _File()),
    ("--tls-cert-file", "tls.cert_file", _File()),
    ("--tls-private-key-file", "tls.key_file", _File()),
    ("--tls-min-version", "tls.min_version", click.Choice(get_args(MinVersion))),
    ("--tls-cipher-suites", "tls.cipher_suites", _Names()),
    ("--client-ca-file", "authentication.client_ca_file", _File()),
    (
        "--requestheader-client-ca-file",
        "authentication.requestheader_client_ca_file",
        _File(),
    ),
    (
        "--requestheader-allowed-names",
        "authentication.requestheader_allowed_names",
        _Names(),
    ),
    (
        "--requestheader-username-headers",
        "authentication.requestheader_username_headers",
        _Names(),
    ),
    (
        "--requestheader-group-headers",
        "authentication.requestheader_group_headers",
        _Names(),
    ),
    (
        "--requestheader-extra-headers-prefix",
        "authentication.requestheader_extra_headers_prefix",
        _Names(),
    ),
    ("--requestheader-uid-headers", "authentication.requestheader_uid_headers", _Names()),
    ("--authentication-skip-lookup", "authentication.skip_lookup", click.BOOL),
    (
        "--authentication-token-webhook-cache-ttl",
        "authentication.token_webhook_cache_ttl",
        Duration(),
    ),
    ("--authorization-always-allow-paths", "authentication.always_allow_paths", _Names()),
    (
        "--authorization-webhook-cache-authorized-ttl",
        "authentication.authorized_cache_ttl",
        Duration(),
    ),
    (
        "--authorization-webhook-cache-unauthorized-ttl",
        "authentication.unauthorized_cache_ttl",
        Duration(),
    ),
)
_ONE_KUBECONFIG: Final = "one kubeconfig serves for all: the key cluster.kubeconfig"
_OF_GO: Final = "it is one of servers written in Go and means nothing here"
_KNOWN_ELSEWHERE: Final = {
    "--authentication-kubeconfig": _ONE_KUBECONFIG,
    "--authorization-kubeconfig": _ONE_KUBECONFIG,
    "--lister-kubeconfig": _ONE_KUBECONFIG,
    "--kubeconfig": "it is the key cluster.kubeconfig of the settings",
    "--authentication-tolerate-lookup-failure": (
        "the adapter starts anyway and says what it waits for"
    ),
    "--disable-http2-serving": "only HTTP/1.1 is spoken",
    "--client-qps": _OF_GO,
    "--client-burst": _OF_GO,
    "--discovery-interval": _OF_GO,
    "--enable-priority-and-fairness": _OF_GO,
    "--log-flush-frequency": _OF_GO,
    "--profiling": _OF_GO,
    "--tls-sni-cert-key": _OF_GO,
    "--vmodule": _OF_GO,
    "--v": _OF_GO,
    "-v": _OF_GO,
}


def serving_flags(command: Command) -> Command:
    """Give a command these flags; each is an argument named as its key, ``None`` if not given."""
    for flag, key, kind in reversed(_FLAGS):
        switch = {"is_flag": True, "default": None} if kind is click.BOOL else {"type": kind}
        command = click.option(
            flag,
            key.replace(".", "__"),
            help=f"Sets {key}.",
            envvar=environment_variable(flag),
            show_envvar=True,
            **switch,
        )(command)
    return command


def environment_variable(flag: str) -> str:
    """Return the name of the variable that sets what the flag does: ``WVA_ADAPTER_SECURE_PORT``."""
    return "WVA_ADAPTER_" + flag.removeprefix("--").upper().replace("-", "_")


def overrides(given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what flags set, by section and key."""
    found: dict[str, dict[str, Any]] = {}
    for argument, value in given.items():
        if value is not None:
            section, _, key = argument.partition("__")
            found.setdefault(section, {})[key] = value
    return found


class ServingCommand(click.Command):
    """A command that says of a flag from elsewhere what became of it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            hint = _KNOWN_ELSEWHERE.get(error.option_name)
            if hint is None:
                raise
            raise click.UsageError(f"No such option {error.option_name}: {hint}.", ctx) from None
