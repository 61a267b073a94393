"""The commands: parse, call, print.

Each command imports what it needs when it runs: all of it together takes ten times as long as
``--help`` may.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from wva_adapter import __version__, garbage
from wva_adapter.errors import CollectError, ConfigError, WvaError
from wva_adapter.flags import Command, Duration, ServingCommand, overrides, serving_flags
from wva_adapter.logs import log_to_stderr

if TYPE_CHECKING:
    import httpx

    from wva_adapter.collect.engines.reading import Reading
    from wva_adapter.demo.screen import DemoSummary

DEFAULT_URL = "https://127.0.0.1:6443"
DEFAULT_CA = "wva-adapter.certificates/ca.crt"
_MOST_BYTES = 4 * 2**20

Result = TypeVar("Result")


class VariantName(click.ParamType[tuple[str, str]]):
    """A variant, written ``NAMESPACE/NAME``."""

    name = "namespace/name"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        namespace, slash, name = str(value).partition("/")
        if not (namespace and slash and name) or "/" in name:
            self.fail(f"found {value!r}, want NAMESPACE/NAME", param, ctx)
        return namespace, name


class Seeds(click.ParamType[tuple[int, ...]]):
    """Seeds, written ``3`` or ``0-4``."""

    name = "seeds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        first, dash, last = str(value).partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not dash)):
            self.fail(f"found {value!r}, want one seed or FIRST-LAST", param, ctx)
        seeds = tuple(range(int(first), int(last or first) + 1))
        if not seeds:
            self.fail(f"found {value!r}, an empty range; want FIRST-LAST, rising", param, ctx)
        return seeds


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="wva-adapter")
def commands() -> None:
    """How many replicas every variant of an LLM deployment should have: decided, explained, served."""


@commands.command(cls=ServingCommand)
@click.option(
    "--config",
    "config",
    required=True,
    type=click.Path(path_type=Path),
    help="The settings; `wva-adapter config --print` shows every key.",
)
@click.option(
    "--record",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Record every cycle there; `wva-adapter decide` replays it.",
)
@serving_flags
def serve(config: Path, record: Path | None, **flags: Any) -> None:
    """Run the adapter until it is told to end (SIGTERM or Ctrl-C).

    Example: wva-adapter serve --config wva.yaml
    """
    from wva_adapter.runtime import Adapter
    from wva_adapter.settings import SettingsFile

    file = SettingsFile(config, overrides(flags))
    log_to_stderr()

    async def run() -> None:
        adapter = Adapter(file.settings, folder=config.parent, file=file, record=record)
        signals = _Signals()
        garbage.set_aside()
        await adapter.run(signals.stop, hurry=signals.hurry)

    _in_loop(run)


@commands.command()
@click.option(
    "--for", "for_s", type=Duration(), default="150s", show_default=True, help="How long."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of arrivals and lengths.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Write the summary there as JSON; /dev/stdout prints it.",
)
def demo(for_s: float, seed: int, json_file: Path | None) -> None:
    """Show the whole product on this machine, without Kubernetes.

    Emulated engines take real requests; the adapter reads their pages and serves what it decides
    over HTTPS; a stand-in for the HPA controller reads that and starts and stops engines.

    Example: wva-adapter demo --for 60s --seed 1
    """
    from wva_adapter.demo import DemoOptions, run_demo

    options = DemoOptions(for_s=for_s, seed=seed)

    async def run() -> DemoSummary:
        return await run_demo(options, _Signals().stop)

    summary = _in_loop(run)
    if json_file is not None:
        json_file.write_text(json.dumps(summary.document(), indent=2) + "\n")
    sys.exit(1 if summary.failed else 0)


@commands.command()
@click.argument("recording", metavar="SNAPSHOT", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Decide under the policy of these settings instead of the recorded one.",
)
@click.option("--line", type=click.IntRange(2), default=None, help="Replay up to this line.")
@click.option("--all", "whole", is_flag=True, help="Replay all and compare every decision.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def decide(
    recording: Path, config_file: Path | None, line: int | None, whole: bool, as_json: bool
) -> None:
    """Decide again what a recording holds: its last cycle, that of a line, or all.

    Example: wva-adapter decide run.jsonl --all
    """
    from wva_adapter.collect.record import open_recording
    from wva_adapter.replay import replay
    from wva_adapter.settings import load_settings

    if whole and line is not None:
        raise click.UsageError("want --line N or --all, not both")
    policies = None if config_file is None else load_settings(config_file).to_policies()
    found = replay(open_recording(recording), policies=policies, line=line)
    if as_json:
        click.echo(json.dumps(found.document(whole=whole), indent=2))
    else:
        click.echo("\n".join(found.lines(whole=whole)))
    if found.problem is not None:
        click.echo(f"wva-adapter: {found.problem}", err=True)
    bad = whole and policies is None and found.different
    sys.exit(1 if found.problem is not None or bad else 0)


@commands.command()
@click.argument("source", metavar="URL|FILE")
@click.option("--engine", help="Read it as this engine's page instead of finding out.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def inspect(source: str, engine: str | None, as_json: bool) -> None:
    """Show what the adapter reads from an engine's page, and from which series; or a gateway's.

    Example: wva-adapter inspect http://10.0.3.17:8000/metrics
    """
    from wva_adapter.collect.engines import inspect_page
    from wva_adapter.collect.engines.reading import inspect_document
    from wva_adapter.collect.gateway import gateway_document, is_gateway, read_gateway

    body = _page(source)
    if engine is None and is_gateway(body):
        found = gateway_document(read_gateway(body, at_s=time.time(), source=source))
        if as_json:
            click.echo(json.dumps(found, indent=2))
        else:
            click.echo("\n".join(f"{name}: {json.dumps(value)}" for name, value in found.items()))
        return
    reading = inspect_page(body, engine=engine, source=source, at_s=time.time())
    if as_json:
        click.echo(json.dumps(inspect_document(reading), indent=2))
    else:
        _print_reading(reading, source)


@commands.command()
@click.argument("variant", type=VariantName(), required=False, metavar="[NAMESPACE/NAME]")
@click.option("--url", default=DEFAULT_URL, show_default=True, help="Where the adapter serves.")
@click.option(
    "--ca",
    "ca_file",
    type=click.Path(path_type=Path),
    default=Path(DEFAULT_CA),
    show_default=True,
    help="The adapter's CA; the system's roots where this file does not exist.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="A bearer token, as `kubectl create token` prints it: who asks an adapter in a cluster.",
)
@click.option(
    "--why-not",
    "why_not",
    type=click.IntRange(min=0, max=999_999),
    metavar="N",
    help="What speaks against this count of the variant: what it breaks, or costs.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def explain(
    variant: tuple[str, str] | None,
    url: str,
    ca_file: Path,
    token_file: Path | None,
    why_not: int | None,
    as_json: bool,
) -> None:
    """Show why a running adapter decided what it did: inputs, rules, numbers.

    Example: wva-adapter explain chat/llama-a100 --why-not 3
    """
    if why_not is not None and variant is None:
        raise click.UsageError("--why-not: of which variant? want NAMESPACE/NAME")
    path = "/explain" if variant is None else f"/explain/{variant[0]}/{variant[1]}"
    if why_not is not None:
        path += f"?why_not={why_not}"
    accept = "application/json" if as_json else "text/plain"
    try:
        token = None if token_file is None else token_file.read_text().strip()
    except OSError as error:
        raise ConfigError(f"token file {token_file}: {error.strerror}") from None
    response = _get(url.rstrip("/") + path, accept=accept, ca_file=ca_file, token=token)
    if response.status_code != 200:
        try:
            message = response.json()["message"]
        except (ValueError, KeyError, TypeError):
            message = response.text.strip() or "no message"
        raise CollectError(url, f"HTTP {response.status_code}: {message}")
    click.echo(response.text.rstrip("\n"))


def _kept_or_shown(command: Command) -> Command:
    """Give a command the options that say where its tables go as a document or a page."""
    command = click.option(
        "--html",
        "html_file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="A page for a browser, which needs nothing else.",
    )(command)
    return click.option(
        "--json",
        "json_file",
        is_flag=False,
        flag_value="-",
        default=None,
        metavar="[FILE]",
        help="One JSON document, there or to stdout in place of the tables.",
    )(command)


def _check_files(json_file: str | None, html_file: Path | None) -> None:
    """Open what is to be written, so that it is refused before the work and not after it."""
    from wva_adapter.sim.report import open_file

    for option, file in (("--html", html_file), ("--json", json_file)):
        if file is not None and file != "-":
            open_file(option, Path(file))


def _keep_document(document: dict[str, Any], json_file: str | None) -> bool:
    """Write the document where it was asked for; return whether the tables are to be shown."""
    text = json.dumps(document, indent=2, allow_nan=False)
    if json_file == "-":
        click.echo(text)
    elif json_file is not None:
        Path(json_file).write_text(text + "\n")
    return json_file != "-"


@commands.command()
@click.argument("scenarios", nargs=-1, required=True, metavar="SCENARIO...")
@click.option(
    "--policy",
    "policies",
    multiple=True,
    default=("demand", "inflight-16"),
    show_default=True,
    help="A name, or a law in a YAML file; may be given again.",
)
@click.option("--seeds", type=Seeds(), default="0-4", show_default=True, help="FIRST-LAST, or one.")
@click.option(
    "--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes side by side."
)
@click.option(
    "--trace",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A CSV of arrival second, prompt tokens and output tokens, in place of the scenario's.",
)
@click.option(
    "--fleet",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A YAML file of variants, tables and prices, in place of the scenario's.",
)
@click.option(
    "--prior-error",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Multiplies the times that the adapter believes at first: 2 is twice too slow.",
)
@click.option("--startup-s", type=click.FloatRange(0), help="Mean start of a pod, in seconds.")
@click.option("--slo-ttft-s", type=click.FloatRange(0, min_open=True), help="Bound on TTFT.")
@click.option("--slo-itl-s", type=click.FloatRange(0, min_open=True), help="Bound on ITL.")
@click.option("--timeout-s", type=click.FloatRange(0, min_open=True), help="Clients' patience.")
@click.option("--grace-s", type=click.FloatRange(0), help="What a removed pod has to finish.")
@_kept_or_shown
def simulate(
    scenarios: tuple[str, ...],
    policies: tuple[str, ...],
    seeds: tuple[int, ...],
    jobs: int,
    prior_error: float,
    json_file: str | None,
    html_file: Path | None,
    **changed: Any,
) -> None:
    """Run scenarios under policies, and show what each gave its clients and what it cost.

    Example: wva-adapter simulate S1 S6 --policy demand --policy inflight-16 --jobs 2
    """
    from rich.console import Console

    from wva_adapter.sim.report import page
    from wva_adapter.sim.table import shown, tables
    from wva_adapter.sim.workers import Changes, Job, check, work_all

    changes = Changes(**changed)
    asked = [
        Job(scenario, policy, seed, changes, prior_error)
        for scenario in scenarios
        for policy in policies
        for seed in seeds
    ]
    check(asked)
    _check_files(json_file, html_file)
    with shown(asked) as progress:
        done = work_all(asked, progress, processes=jobs)
    if html_file is not None:
        html_file.write_text(page(done), encoding="utf-8")
    if _keep_document({"runs": [run.document() for run in done]}, json_file):
        for table in tables(done):
            Console().print(table)
    if len(done) < len(asked):
        click.echo(f"wva-adapter: interrupted: {len(done)} of {len(asked)} runs done", err=True)
        sys.exit(1)


@commands.command()
@click.option(
    "--from",
    "source",
    required=True,
    metavar="RECORD|URL",
    help="What `serve --record` wrote, or a Prometheus that scrapes vLLM.",
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    default=("demand", "inflight-16"),
    show_default=True,
    help="A name, or a law in a YAML file; may be given again.",
)
@click.option(
    "--since",
    type=Duration(),
    help="Only so long before the end, such as 7d; of a Prometheus, 1h if not said.",
)
@_kept_or_shown
def backtest(
    source: str,
    policies: tuple[str, ...],
    since: float | None,
    json_file: str | None,
    html_file: Path | None,
) -> None:
    """Show what policies would have asked for in what was recorded, and when it was too little.

    Example: wva-adapter backtest --from run.jsonl --policy demand --policy inflight-16
    """
    from rich.console import Console

    from wva_adapter.backtest import check, of_recording, of_url, remarks, shown, tables
    from wva_adapter.backtest.page import page

    check(policies)
    _check_files(json_file, html_file)
    with shown() as on_share:
        if source.startswith(("http://", "https://")):
            tested = of_url(source, policies, since_s=since, now_s=time.time(), on_share=on_share)
        else:
            tested = of_recording(Path(source), policies, since_s=since, on_share=on_share)
    if html_file is not None:
        html_file.write_text(page(tested), encoding="utf-8")
    if _keep_document(tested.document(), json_file):
        for table in tables(tested):
            Console().print(table)
        click.echo("\n".join(remarks(tested)))
    if tested.problem is not None:
        click.echo(f"wva-adapter: {tested.problem}", err=True)
        sys.exit(1)


@commands.command()
@click.option("--print", "print_all", is_flag=True, help="Every key with default and meaning.")
@click.option(
    "--check", "check", type=click.Path(path_type=Path), help="Validate FILE without starting."
)
def config(print_all: bool, check: Path | None) -> None:
    """Show every setting, or check a file.

    Example: wva-adapter config --check wva.yaml
    """
    from wva_adapter.settings import describe_settings, load_settings

    if print_all == (check is not None):
        raise click.UsageError("want --print or --check FILE")
    if check is not None:
        load_settings(check)
        click.echo(f"{check}: good")
    else:
        click.echo("\n".join(describe_settings()))


@commands.command()
@click.option(
    "--status", "action", flag_value="status", help="Who answers external.metrics.k8s.io."
)
@click.option(
    "--take-over",
    "action",
    flag_value="take-over",
    help="Make it us; the former one is kept on record and chained.",
)
@click.option("--restore", "action", flag_value="restore", help="Put the former one back.")
@click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Whose rights to use; default: $KUBECONFIG, else ~/.kube/config.",
)
@click.option(
    "--service",
    default="wva-system/wva-adapter",
    show_default=True,
    metavar="NAMESPACE/NAME[:PORT]",
    help="The Service that leads to the adapter.",
)
@click.option(
    "--ca",
    "ca_file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="The adapter's CA; without it, the running adapter writes its own into caBundle.",
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="The adapter's settings; default: the ConfigMap named as its Service.",
)
@click.option("--force", is_flag=True, help="Although the former one would be cut off.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def apiservice(
    action: str | None,
    kubeconfig: Path | None,
    service: str,
    ca_file: Path | None,
    config_file: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Show who answers external.metrics.k8s.io in a cluster, make it us, or put it back.

    Example: wva-adapter apiservice --take-over
    """
    from wva_adapter.kube.api import KubernetesApi
    from wva_adapter.publish.apiservice import ServiceAddress, parse_address
    from wva_adapter.publish.takeover import Chained, Registration, Registry
    from wva_adapter.settings import parse_settings, why_not_chained

    if action is None:
        raise click.UsageError("want --status, --take-over or --restore")
    try:
        ours = parse_address(service)
    except ValueError as error:
        raise click.UsageError(f"--service: {error}") from None
    ca = None if ca_file is None else _content(ca_file)
    given = None if config_file is None else _content(config_file).decode(errors="replace")

    def read_settings(text: str | None, owner: ServiceAddress) -> Chained:
        where = str(config_file or f"ConfigMap {ours.namespace}/{ours.name}")
        text = given if given is not None else text
        if text is None:
            return Chained(f"{where} with the adapter's settings is not there; want --config FILE")
        settings = parse_settings(text, where)
        otherwise = any(
            provider.service == str(owner) and (provider.token_file or provider.client_cert_file)
            for provider in settings.chain.providers
        )
        return Chained(why_not_chained(settings, str(owner)), as_account=not otherwise)

    async def run() -> Registration:
        api = KubernetesApi(kubeconfig or _default_kubeconfig())
        try:
            registry = Registry(api, ours)
            if action == "take-over":
                return await registry.take_over(ca=ca, read_settings=read_settings, force=force)
            if action == "restore":
                return await registry.restore(force=force)
            return await registry.status()
        finally:
            await api.close()

    found = _in_loop(run)
    click.echo(json.dumps(found.document(), indent=2) if as_json else "\n".join(found.lines()))


def main() -> None:
    """Run the program; the exit status says how it went (0 well, 1 a bad answer, 2 refused)."""
    try:
        commands.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ConfigError as error:
        click.echo(f"wva-adapter: {error}", err=True)
        sys.exit(2)
    except WvaError as error:
        click.echo(f"wva-adapter: {error}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        # The reader of a pipe went away (head, less); Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _default_kubeconfig() -> Path:
    return Path(os.environ.get("KUBECONFIG") or Path.home() / ".kube" / "config")


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None


def _in_loop(work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work())


class _Signals:
    """What SIGTERM and Ctrl-C ask for; a second one ends the process at once.

    Attributes:
        stop: Set by either.
        hurry: Set by Ctrl-C: nobody has to be told first that this process ends.
    """

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._told, (self.stop,))
        loop.add_signal_handler(signal.SIGINT, self._told, (self.stop, self.hurry))

    def _told(self, events: tuple[asyncio.Event, ...]) -> None:
        if self.stop.is_set():
            os._exit(1)
        for event in events:
            event.set()


def _page(source: str) -> bytes:
    if source.startswith(("http://", "https://")):
        response = _get(source, accept="text/plain", ca_file=None)
        if response.status_code != 200:
            raise CollectError(source, f"HTTP {response.status_code}")
        return response.content
    try:
        with Path(source).open("rb") as file:
            return file.read(_MOST_BYTES)
    except OSError as error:
        raise CollectError(source, f"cannot be read: {error.strerror}") from None


def _get(
    url: str, *, accept: str, ca_file: Path | None, token: str | None = None
) -> httpx.Response:
    import httpx

    verify = str(ca_file) if ca_file is not None and ca_file.exists() else True
    try:
        with httpx.Client(verify=verify, timeout=10, trust_env=False) as client:
            headers = {"accept": accept}
            if token is not None:
                headers["authorization"] = f"Bearer {token}"
            return client.get(url, headers=headers)
    except httpx.TimeoutException:
        raise CollectError(url, "timed out after 10 s") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise CollectError(url, str(error) or type(error).__name__) from None


def _print_reading(reading: Reading, source: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from wva_adapter.collect.engines.reading import VALUES

    version = f" {reading.version}" if reading.version else ""
    names = ", ".join(reading.total.model_names) or "no model named"
    console = Console()
    console.print(f"{escape(source)}: {reading.engine}{version}, {escape(names)}")
    table = Table("field", box=None, header_style="bold")
    ranks = reading.ranks if len(reading.ranks) > 1 else {}
    for rank in ranks:
        table.add_column(f"rank {rank}", justify="right")
    table.add_column("total", justify="right")
    table.add_column("read from", overflow="fold", style="dim")
    for field in VALUES:
        values = [_shown(getattr(sample, field)) for sample in (*ranks.values(), reading.total)]
        table.add_row(field, *values, escape(str(reading.origins.get(field, ""))))
    console.print(table)


def _shown(value: object) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
