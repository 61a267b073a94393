"""What an operator writes is read whole or refused by name."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import takewhile
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from wva_adapter.core import policy as policy_module
from wva_adapter.core.policy import Policy
from wva_adapter.documents import format_duration, parse_duration_s
from wva_adapter.errors import ConfigError
from wva_adapter.settings import (
    Cluster,
    PolicySection,
    Reader,
    Settings,
    _inner_section,
    describe_settings,
    load_settings,
    parse_settings,
    why_not_chained,
)

SOURCE = "static_file: fleet.yaml\n"


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_settings(text, "wva.yaml")
    return str(caught.value)


def test_every_default_works() -> None:
    assert parse_settings(SOURCE, "wva.yaml") == Settings(static_file="fleet.yaml")
    assert Settings().to_policy() == Policy()


def test_what_is_printed_sets_every_key_to_its_default() -> None:
    text = "\n".join(describe_settings()).replace("static_file: null", SOURCE.strip())
    assert parse_settings(text, "printed") == Settings(static_file="fleet.yaml")


def test_what_an_entry_must_say_is_not_printed_as_if_it_had_a_default() -> None:
    printed = list(describe_settings())

    assert "  #   until: ...  # When it expires, a date and time" in printed
    assert not any(line.strip("# -").startswith("until: null") for line in printed)


@pytest.mark.parametrize("entries", ["max_changes", "hours", "freezes", "pins"])
def test_every_key_of_an_entry_is_printed_those_that_all_kinds_have_too(entries: str) -> None:
    printed = list(describe_settings())
    start = next(i for i, line in enumerate(printed) if line.startswith(f"  {entries}: []"))
    keys = {
        line[6:].partition(":")[0]
        for line in takewhile(lambda one: one.startswith("  # "), printed[start + 1 :])
    }

    assert {"name", "namespace", "model", "variant"} <= keys
    if entries in ("hours", "freezes"):
        assert {"days", "begins", "ends", "time_zone"} <= keys


def test_the_commented_sections_work_when_uncommented() -> None:
    lines = [
        line.removeprefix("# ")
        if line.startswith(("# cluster:", "# reader:", "#   ", "# - "))
        else line
        for line in describe_settings()
    ]
    text = (
        "\n".join(lines)
        .replace("open: False", "open: True")
        .replace("overrides: []", "overrides:")
        .replace("- namespace: null", "- namespace: chat")
        .replace("gateways: []", "gateways:")
        .replace("- namespace: ...", "- namespace: chat")
        .replace("urls: ...", "urls: ['http://epp:9090/metrics']")
    )
    settings = parse_settings(text, "printed")
    assert settings.cluster == Cluster()
    assert settings.reader == Reader(open=True)
    assert [one.namespace for one in settings.overrides] == ["chat"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("reader: {}", "reader: want token_file or open: true, found neither"),
        (
            "reader: {open: true, token_file: t}",
            "reader: want token_file or open: true, found both",
        ),
        ("memory: {config_map: a/b}", "memory.config_map without cluster: want cluster, or file"),
        ("memory: {file: m, config_map: a/b}", "memory: want file or config_map, found both"),
        ("memory: {config_map: b}", "memory.config_map: found 'b', want NAMESPACE/NAME"),
        ("memory: {file: m, period: 0s}", "memory.period: found '0s', want greater than 0"),
        ("gateways: [{namespace: chat, urls: []}]", "gateways[0].urls: found none, want at"),
        (
            "gateways: [{namespace: chat, urls: ['epp:9090']}]",
            "gateways[0].urls: found 'epp:9090', want http://HOST:PORT/PATH or https",
        ),
        ("gateways: [{urls: ['http://epp:9090/metrics']}]", "gateways[0].namespace: missing"),
        ("chain: {timeout: 5s}", "chain.timeout: found 5s, want below 5s"),
        (
            "chain: {providers: [{name: a, default: true}]}",
            "chain.providers[0]: want service or url, found neither",
        ),
        (
            "chain: {providers: [{name: a, service: a, default: true}]}",
            "chain.providers[0].service: found 'a', want NAMESPACE/NAME or with :PORT",
        ),
        (
            "chain: {providers: [{name: a, url: 'http://a', default: true}]}",
            "chain.providers[0].url: found 'http://a', want https://HOST:PORT",
        ),
        (
            "chain: {providers: [{name: a, service: a/b}]}",
            "chain.providers[0]: want keda: true or default: true, or it would never be asked",
        ),
        (
            "chain: {providers: [{name: a, service: a/b, keda: true, client_key_file: k}]}",
            "chain.providers[0]: want client_cert_file and client_key_file, found one of them",
        ),
        (
            "chain: {providers: ["
            + ", ".join(f"{{name: {n}, service: k/{n}, keda: true}}" for n in "ac")
            + "]}",
            "chain.providers: want one with keda: true, found a, c",
        ),
        ("api_service: {service: wva}", "api_service.service: found 'wva', want NAMESPACE/NAME"),
        (
            "authentication: {requestheader_client_ca_file: ca.crt}",
            "authentication.requestheader_client_ca_file without cluster: nobody could say",
        ),
    ],
)
def test_a_section_that_contradicts_itself_is_refused(section: str, message: str) -> None:
    assert message in refused(f"{SOURCE}{section}")


def test_the_policy_and_its_section_have_the_same_fields() -> None:
    of_policy = {field.name.removesuffix("_s") for field in fields(Policy)}
    assert set(PolicySection.model_fields) == of_policy


def test_the_core_reads_every_field_of_the_policy() -> None:
    read = set()
    for file in sorted((Path(policy_module.__file__).parent).glob("*.py")):
        tree = ast.parse(file.read_text())
        if file.name == "policy.py":
            # What checks the fields reads all of them.
            tree.body = [node for node in tree.body if not isinstance(node, ast.ClassDef)] + [
                method
                for node in tree.body
                if isinstance(node, ast.ClassDef)
                for method in node.body
                if isinstance(method, ast.FunctionDef) and method.name != "__post_init__"
            ]
        read |= {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
        }
    assert {field.name for field in fields(Policy)} - read == set()


def test_the_policy_and_its_section_have_the_same_defaults() -> None:
    written, default = Settings(static_file="x").to_policy(), Policy()
    assert {f.name: getattr(written, f.name) for f in fields(Policy)} == {
        f.name: getattr(default, f.name) for f in fields(Policy)
    }


def test_every_policy_value_of_the_file_arrives() -> None:
    text = SOURCE + "policy: {kv_cache_threshold: 0.7, scale_down_window: 2m, max_up_step: 3}"
    policy = parse_settings(text, "wva.yaml").to_policy()
    assert policy.kv_cache_threshold == 0.7
    assert policy.scale_down_window_s == 120
    assert policy.max_up_step == 3


def test_an_override_of_the_file_arrives_and_inherits_the_rest() -> None:
    text = SOURCE + (
        "policy: {slo_ttft: 3s}\n"
        "overrides:\n"
        "- {namespace: chat, model: org/llama, slo_itl: 30ms, analysis: tokens}\n"
        "- {variant: llama-a100, max_up_step: 1}\n"
    )
    policies = parse_settings(text, "wva.yaml").to_policies()
    policy = policies.of("chat", "org/llama", "llama-a100")
    assert (policy.slo_ttft_s, policy.slo_itl_s, policy.analysis) == (3, 0.030, "tokens")
    assert policy.max_up_step == 1
    assert policies.of("code", "org/llama").analysis == "demand"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{slo_ttft: 1s}", "wva.yaml: overrides[0]: for whom: want namespace, model or variant"),
        ("{model: m, slo_tfft: 1s}", "overrides[0].slo_tfft: unknown key; did you mean slo_ttft?"),
        (
            "{model: m, service_level: premuim}",
            "overrides[0].service_level: found 'premuim', want 'frugal', 'balanced' or 'premium'; did you mean premium?",
        ),
        (
            "{model: m, kv_spare_trigger: 0.9}",
            (
                "wva.yaml: overrides[0]: want kv_spare_trigger < kv_cache_threshold, "
                "got kv_spare_trigger=0.9, kv_cache_threshold=0.8"
            ),
        ),
        ("{model: m, utilization: .inf}", "overrides[0]: utilization inf, want a finite number"),
        ("{variant: v, slo_ttft: 1s}", "overrides[0]: slo_ttft holds for whole models, want it in"),
    ],
)
def test_a_wrong_override_is_refused_by_its_place(entry: str, message: str) -> None:
    assert message in refused(f"{SOURCE}overrides: [{entry}]")


def test_an_override_without_stale_after_keeps_the_three_scrapes() -> None:
    text = SOURCE + "scrape_period: 1s\noverrides: [{model: m, stale_after: null}]"
    assert parse_settings(text, "x").to_policies().of("n", "m").stale_after_s == 3


def test_a_page_goes_stale_after_three_scrapes_unless_said() -> None:
    assert parse_settings(SOURCE + "scrape_period: 1s", "x").to_policy().stale_after_s == 3
    text = SOURCE + "policy: {stale_after: 30s}"
    assert parse_settings(text, "x").to_policy().stale_after_s == 30


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("polcy: {}", "wva.yaml: polcy: unknown key; did you mean policy?"),
        (
            "policy: {kv_cache_treshold: 0.8}",
            "wva.yaml: policy.kv_cache_treshold: unknown key; did you mean kv_cache_threshold?",
        ),
        ("cluster: {kubeconfg: x}", "cluster.kubeconfg: unknown key; did you mean kubeconfig?"),
        ("listen: {colour: 1}", "listen.colour: unknown key; known: address, port"),
        ("scrape_period: 5", "scrape_period: found 5, want a duration such as 500ms, 60s, 4m"),
        ("scrape_period: 5 parsecs", "found '5 parsecs', want a duration"),
        ("cycle: 0s", "cycle: found '0s', want greater than 0"),
        ("listen: {port: '80'}", "listen.port: found '80', want a whole number"),
        ("listen: {port: 99999}", "listen.port: found 99999, want less than or equal to 65535"),
        ("listen: 3", "listen: found 3, want keys and values"),
        ("tls: {names: x}", "tls.names: found 'x', want a list"),
        ("policy: {max_up_step: 1.5}", "policy.max_up_step: found 1.5, want a whole number"),
        ("policy: {max_up_step: 0}", "policy: max_up_step 0, want at least 1"),
        (
            "policy: {analysis: saturatoin}",
            "policy.analysis: found 'saturatoin', want 'demand', 'saturation' or 'tokens'; did you mean saturation?",
        ),
        ("policy: {scale_down_window: -3s}", "found '-3s', want a duration"),
        ("policy: {kv_spare_trigger: .nan}", "kv_spare_trigger nan, want a finite number"),
        (
            "policy: {kv_spare_trigger: 0.9}",
            (
                "wva.yaml: policy: want kv_spare_trigger < kv_cache_threshold, "
                "got kv_spare_trigger=0.9, kv_cache_threshold=0.8"
            ),
        ),
        ("cycle: 2m", "want cycle < max_age, got cycle=2m, max_age=1m"),
        ("tls: {cert_file: tls.crt}", "tls.cert_file without tls.key_file: want both or neither"),
        ("tls: {key_file: tls.key}", "tls.key_file without tls.cert_file: want both or neither"),
        (
            "tls: {min_version: VersionTLS11}",
            "tls.min_version: found 'VersionTLS11', want 'VersionTLS12' or 'VersionTLS13'",
        ),
        (
            "tls: {cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA265]}",
            (
                "tls.cipher_suites[0]: found 'TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA265', "
                "did you mean TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256?"
            ),
        ),
        (
            "tls: {cipher_suites: [TLS_RSA_WITH_RC4_128_SHA]}",
            "want suites with ECDHE and GCM or CHACHA20: TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,",
        ),
        (
            "tls: {cipher_suites: [TLS_AES_128_GCM_SHA256]}",
            (
                "wva.yaml: no suite of TLS 1.2 in tls.cipher_suites: want one, such as "
                "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, or tls.min_version: VersionTLS13"
            ),
        ),
        ("cycle: 1s\ncycle: 2s", "wva.yaml: line 3: not valid YAML: key 'cycle' is written twice"),
        ("cycle: [", "not valid YAML"),
    ],
)
def test_a_wrong_value_is_refused_with_key_value_and_expectation(text: str, message: str) -> None:
    assert message in refused(SOURCE + text)


def test_several_wrong_values_are_all_named() -> None:
    lines = refused(SOURCE + "scrape_period: 5\nlisten: {port: x}").splitlines()
    assert len(lines) == 2


def test_a_file_without_any_source_of_variants_is_refused() -> None:
    assert "no variants to look at: want cluster" in refused("cycle: 5s")


def test_a_document_that_is_no_mapping_is_refused() -> None:
    assert "found [1, 2], want keys and values" in refused("[1, 2]")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "wva.yaml"
    with pytest.raises(ConfigError, match=r"wva.yaml: cannot be read: No such file"):
        load_settings(missing)
    missing.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"wva.yaml: cannot be read: not UTF-8 text"):
        load_settings(missing)


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("60s", 60), ("4m", 240), ("1h30m", 5400), ("1.5h", 5400)]
)
def test_durations_carry_their_unit(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == seconds
    assert parse_duration_s(format_duration(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "5", "s", "5 s", "-5s", "5s5", "five seconds", 5, 5.0, None])
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="want a duration such as"):
        parse_duration_s(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("cluster: {}", None),
        ("cluster: {}\nchain: {former_owner: false}", "chain.former_owner is false and chain"),
        ("cluster: {}\napi_service: null", "the adapter has no api_service and would not see it"),
        ("static_file: f", "the adapter has no cluster and would not see it on record"),
        (
            "static_file: f\nchain: {providers: [{name: k, service: keda/metrics, keda: true}]}",
            None,
        ),
        (
            "static_file: f\nchain: {providers: [{name: k, service: keda/other, keda: true}]}",
            "the adapter has no cluster",
        ),
        (
            "static_file: f\nchain: {providers: [{name: k, url: 'https://k', default: true}]}",
            None,
        ),
    ],
)
def test_settings_say_why_an_owner_would_be_cut_off(text: str, why: str | None) -> None:
    found = why_not_chained(parse_settings(text, "wva.yaml"), "keda/metrics")
    if why is None:
        assert found is None
    else:
        assert found is not None
        assert found.startswith(why)


def numbers(section: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield where in a document of this shape a number or a duration may stand."""
    for name, field in section.model_fields.items():
        inner = _inner_section(field)
        if inner is not None:
            listed = "tuple" in str(field.annotation)
            yield from numbers(inner, (*path, f"{name}[]" if listed else name))
        elif {float, int} & {field.annotation, *get_args(field.annotation)}:
            yield (*path, name)


def written(path: Sequence[str], value: str) -> str:
    """Return YAML in which this value stands there."""
    for name in reversed(path):
        value = f"{{{name[:-2]}: [{value}]}}" if name.endswith("[]") else f"{{{name}: {value}}}"
    return value


PLACES = tuple(numbers(Settings))


def test_numbers_are_found_in_every_part_of_the_file() -> None:
    assert {path[0].removesuffix("[]") for path in PLACES} >= {
        *("listen", "shutdown", "tls", "authentication", "reader", "chain", "memory", "cycle"),
        *("scrape_period", "scrape_timeout", "max_age", "policy", "guards", "overrides"),
    }


@pytest.mark.parametrize("value", ["-1", "-1.5", ".nan", ".inf", "-.inf", "-5s", "nan", "1e999s"])
@pytest.mark.parametrize("path", PLACES, ids=".".join)
def test_a_number_that_is_negative_or_none_is_refused_by_its_key_wherever_it_stands(
    path: Sequence[str], value: str
) -> None:
    # An override says first of all for whom it is.
    text = written(path, value)[1:-1].replace("overrides: [{", "overrides: [{model: m, ")
    message = refused(f"{SOURCE}{text}\n")

    assert path[-1] in message


def test_no_other_analysis_takes_offline_requests_than_the_one_that_knows_deadlines() -> None:
    for text in (
        "policy: {analysis: tokens, class: offline}",
        "policy: {analysis: saturation}\noverrides: [{model: batch, class: offline}]",
    ):
        message = refused(f"{SOURCE}{text}\n")

        assert "class offline, want analysis demand, got analysis=" in message


def test_a_model_is_offline_by_class_and_deadline() -> None:
    settings = parse_settings(
        f"{SOURCE}overrides: [{{model: batch, class: offline, deadline: 2h}}]", "wva.yaml"
    )
    policy = settings.to_policies().of("ns", "batch")
    assert (policy.request_class, policy.deadline_s) == ("offline", 7200)
    assert settings.to_policies().of("ns", "other").request_class == "online"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            "policy: {class: ofline}",
            "policy.class: found 'ofline', want 'online' or 'offline'; did you mean offline?",
        ),
        ("policy: {clas: offline}", "policy.clas: unknown key; did you mean class?"),
        ("policy: {deadline: 0s}", "policy.deadline: found '0s', want greater than 0"),
        ("policy: {deadline: 60}", "policy.deadline: found 60, want a duration such as"),
        (
            "overrides: [{variant: a, class: offline}]",
            "overrides[0]: class holds for whole models",
        ),
    ],
)
def test_a_wrong_class_or_deadline_is_refused_by_name(section: str, message: str) -> None:
    assert message in refused(f"{SOURCE}{section}")
