"""The commands as a person types them: what they print, and how they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

PROGRAM = Path(sys.executable).parent / "wva-adapter"
DATA = Path(__file__).parent / "data"


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "120"},
    )


def test_every_command_has_help_with_an_example() -> None:
    listed = run("--help")
    assert listed.returncode == 0
    for command in ("serve", "demo", "inspect", "explain", "config", "apiservice", "simulate"):
        assert command in listed.stdout
        helped = run(command, "--help")
        assert helped.returncode == 0
        assert "Example: wva-adapter" in helped.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["serve"], "Missing option '--config'"),
        (["serve", "--confg", "x"], "No such option"),
        (["serve", "--config", "x", "--vmodule=a=3"], "means nothing here"),
        (["serve", "--config", "x", "--client-qps", "5"], "is one of servers written in Go"),
        (["serve", "--config", "x", "--authentication-kubeconfig", "f"], "cluster.kubeconfig"),
        (
            ["serve", "--config", "x", "--authorization-webhook-cache-authorized-ttl", "5"],
            "found '5', want a duration",
        ),
        (["serve", "--config", "x", "--tls-min-version=VersionTLS10"], "'VersionTLS12'"),
        (["config"], "want --print or --check FILE"),
        (["demo", "--for", "5"], "found '5', want a duration such as 500ms, 60s"),
        (["explain", "llama"], "found 'llama', want NAMESPACE/NAME"),
        (["apiservice"], "want --status, --take-over or --restore"),
        (
            ["apiservice", "--status", "--service", "wva"],
            "--service: found 'wva', want NAMESPACE/NAME or NAMESPACE/NAME:PORT",
        ),
        (
            ["apiservice", "--status", "--kubeconfig", "/no/such/file"],
            "/no/such/file: cannot be read: No such file or directory",
        ),
    ],
)
def test_wrong_usage_ends_with_2_and_says_why(arguments: list[str], message: str) -> None:
    ended = run(*arguments)
    assert ended.returncode == 2
    assert message in ended.stderr


def test_inspect_prints_each_value_with_its_series() -> None:
    page = DATA / "vllm-0.32.0-saturated.txt"
    shown = run("inspect", page)
    assert shown.returncode == 0
    assert "vllm, tiny" in shown.stdout
    line = next(line for line in shown.stdout.splitlines() if line.startswith(" queued_requests"))
    assert " 32 " in line
    assert "vllm:num_requests_waiting_by_reason" in line


def test_inspect_prints_one_json_document() -> None:
    shown = run("inspect", DATA / "vllm-0.32.0-dp2-saturated.txt", "--json")
    document = json.loads(shown.stdout)
    assert document["engine"] == "vllm"
    assert [rank["queued_requests"] for rank in document["ranks"]] == [16, 14]
    assert document["total"]["queued_requests"] == 30
    assert document["total"]["rejections_total"] == 0


def test_inspect_of_a_gateway_says_what_it_holds_back_and_whether_its_zeros_mean_anything(
    tmp_path: Path,
) -> None:
    page = tmp_path / "epp.txt"
    page.write_text(
        "process_start_time_seconds 1.6e+09\n"
        'llm_d_epp_flow_control_queue_size{model_name="llama",priority="0"} 3\n'
        'llm_d_epp_flow_control_queue_size{model_name="llama",priority="1"} 4\n'
        'llm_d_epp_request_total{model_name="llama"} 9\n'
        'llm_d_epp_inflight_requests{endpoint_name="r0-rank-0",namespace="chat"} 2\n'
    )
    found = json.loads(run("inspect", page, "--json").stdout)
    assert found["in_flight"] == {"chat/r0-rank-0": {"requests": 2, "tokens": None}}
    assert found["queued_requests"] == {"llama": 7}
    assert found["requests_total"] == {"llama": 9}
    assert found["zeros_known"]
    assert 'queued_requests: {"llama": 7.0}' in run("inspect", page).stdout


def test_inspect_of_an_unknown_engine_lists_what_it_knows_and_saw(tmp_path: Path) -> None:
    page = tmp_path / "page.txt"
    page.write_text("# TYPE node_load1 gauge\nnode_load1 0.5\nother_total 1\n")
    ended = run("inspect", page)
    assert ended.returncode == 1
    assert "vllm" in ended.stderr
    assert "node_" in ended.stderr


def test_inspect_of_nothing_says_what_failed(tmp_path: Path) -> None:
    ended = run("inspect", tmp_path / "none.txt")
    assert ended.returncode == 1
    assert "none.txt: cannot be read: No such file" in ended.stderr
    ended = run("inspect", "http://127.0.0.1:1/metrics")
    assert ended.returncode == 1
    assert "http://127.0.0.1:1/metrics" in ended.stderr


def test_config_prints_what_config_check_takes(tmp_path: Path) -> None:
    printed = run("config", "--print").stdout
    file = tmp_path / "wva.yaml"
    file.write_text(printed.replace("static_file: null", "static_file: fleet.yaml"))
    checked = run("config", "--check", file)
    assert (checked.returncode, checked.stdout.strip()) == (0, f"{file}: good")


def test_config_check_refuses_with_2(tmp_path: Path) -> None:
    file = tmp_path / "wva.yaml"
    file.write_text("static_file: x\npolicy: {kv_cache_treshold: 0.7}\n")
    ended = run("config", "--check", file)
    assert ended.returncode == 2
    assert "kv_cache_treshold: unknown key; did you mean kv_cache_threshold?" in ended.stderr


def test_explain_of_no_adapter_ends_with_1() -> None:
    ended = run("explain", "--url", "https://127.0.0.1:1")
    assert ended.returncode == 1
    assert "127.0.0.1:1" in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_answers_explains_and_ends_with_0_when_told(
    tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "fleet.yaml").write_text(
        "variants: [{namespace: chat, name: llama, model_id: m, replicas: ['http://127.0.0.1:1']}]"
    )
    (tmp_path / "wva.yaml").write_text(
        "static_file: fleet.yaml\nlisten: {port: 0}\ntls: {directory: certificates}\ncycle: 100ms\n"
        "shutdown: {lame_duck: 200ms}\n"
    )
    with subprocess.Popen(
        [PROGRAM, "serve", "--config", tmp_path / "wva.yaml"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            events = map(json.loads, process.stderr)
            first = next(event for event in events if event["event"] == "serving")
            time.sleep(1)
            ca = tmp_path / "certificates" / "ca.crt"
            shown = run("explain", "chat/llama", "--url", first["url"], "--ca", ca)
            assert shown.returncode == 0, shown.stderr
            assert "unseen" in shown.stdout
            other = run("explain", "chat/lama", "--url", first["url"], "--ca", ca)
            assert other.returncode == 1
            assert "404" in other.stderr
            process.send_signal(number)
            assert process.wait(timeout=15) == 0
        finally:
            process.kill()


def test_serve_of_a_missing_file_ends_with_2(tmp_path: Path) -> None:
    ended = run("serve", "--config", tmp_path / "none.yaml")
    assert ended.returncode == 2
    assert "none.yaml: cannot be read" in ended.stderr


def test_flags_of_kubernetes_servers_win_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "wva.yaml").write_text("static_file: fleet.yaml\nlisten: {port: 1}")
    (tmp_path / "fleet.yaml").write_text("variants: []")
    ended = run("serve", "--config", tmp_path / "wva.yaml", "--bind-address=192.0.2.1")
    assert ended.returncode == 2
    assert "192.0.2.1 is not a loopback address" in ended.stderr
    # Relative to where the program is started, not to the settings.
    flag = "--client-ca-file=no-such.crt"
    ended = run("serve", "--config", "wva.yaml", flag, "--secure-port=0", cwd=tmp_path)
    assert ended.returncode == 2
    assert f"client CA {tmp_path / 'no-such.crt'}: No such file or directory" in ended.stderr
    ended = run(
        "serve",
        "--config",
        tmp_path / "wva.yaml",
        "--requestheader-client-ca-file=a",
        "--secure-port=0",
    )
    assert "authentication.requestheader_client_ca_file without cluster" in ended.stderr


def test_each_flag_has_a_variable_over_which_it_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wva.yaml").write_text("static_file: fleet.yaml\nlisten: {port: 0}")
    (tmp_path / "fleet.yaml").write_text("variants: []")
    monkeypatch.setenv("WVA_ADAPTER_BIND_ADDRESS", "192.0.2.1")
    ended = run("serve", "--config", tmp_path / "wva.yaml")
    assert "192.0.2.1 is not a loopback address" in ended.stderr
    ended = run("serve", "--config", tmp_path / "wva.yaml", "--bind-address=192.0.2.2")
    assert "192.0.2.2 is not a loopback address" in ended.stderr
    assert "WVA_ADAPTER_BIND_ADDRESS" in run("serve", "--help").stdout


def test_a_list_of_names_is_written_with_commas() -> None:
    from wva_adapter.flags import overrides, serving_flags

    command = click.command(serving_flags(lambda **flags: overrides(flags)))
    given = command.main(
        ["--requestheader-allowed-names", "a, b,", "--authentication-skip-lookup"],
        standalone_mode=False,
    )
    assert given == {
        "authentication": {"requestheader_allowed_names": ("a", "b"), "skip_lookup": True}
    }


def test_simulate_prints_a_row_for_each_policy_and_keeps_a_document(tmp_path: Path) -> None:
    document, page = tmp_path / "runs.json", tmp_path / "runs.html"
    policies = ("--policy", "inflight-16", "--policy", "inflight-64")
    arguments = ("simulate", "S1c", *policies, "--seeds", "1", "--jobs", "2")
    ran = run(*arguments, "--json", document, "--html", page)
    assert ran.returncode == 0, ran.stderr
    assert "S1c, 1 seed" in ran.stdout
    runs = json.loads(document.read_text())["runs"]
    assert [(r["scenario"], r["policy"], r["seed"]) for r in runs] == [
        ("S1c", "inflight-16", 1),
        ("S1c", "inflight-64", 1),
    ]
    for entry in runs:
        assert f"{entry['usd']:.2f}" in ran.stdout
    assert "<title>" in page.read_text()
    again = json.loads(run(*arguments, "--json").stdout)["runs"]
    assert [r["hash"] for r in again] == [r["hash"] for r in runs]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("s1C",), "scenario 's1C': unknown; did you mean S1c?"),
        (
            ("S1", "--policy", "inflite-16"),
            "policy 'inflite-16': unknown; did you mean inflight-16?",
        ),
        (("S1", "--seeds", "4-0"), "found '4-0', an empty range; want FIRST-LAST, rising"),
        (("S1", "--seeds", "a"), "found 'a', want one seed or FIRST-LAST"),
        (("S1", "--html", "/none/x.html"), "--html /none/x.html: cannot be written: No such file"),
        (("S1", "--json", "/none/x.json"), "--json /none/x.json: cannot be written: No such file"),
    ],
)
def test_simulate_refuses_before_it_runs(arguments: tuple[str, ...], why: str) -> None:
    begin_s = time.monotonic()
    refused = run("simulate", *arguments)
    assert refused.returncode == 2
    assert why in refused.stderr
    assert time.monotonic() - begin_s < 20


def test_simulate_refuses_a_trace_by_its_row(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("0,5,5\n-2,5,5\n")
    refused = run("simulate", "S1", "--trace", "t.csv", cwd=tmp_path)
    assert refused.returncode == 2
    assert "trace t.csv: row 2: arrival '-2', want a finite number of seconds" in refused.stderr


def test_an_interrupted_simulation_prints_what_is_done() -> None:
    # The first runs are done in seconds, all six hundred take minutes on any machine.
    # Whoever runs the tests in the background of a shell has them ignore interrupts.
    command = ["env", "--default-signal=INT", str(PROGRAM), "simulate", "S1c", "S6"]
    process = subprocess.Popen(
        [*command, "--policy", "inflight-16", "--seeds", "0-299"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "120"},
    )
    time.sleep(20)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "interrupted: " in errors
    assert "of 600 runs done" in errors
    assert "inflight-16" in output
