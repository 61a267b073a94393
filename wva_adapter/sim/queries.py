"""What a PromQL query of a ScaledObject means in the simulator: its metrics by the names of series.

Understood are sums and means over replicas, any aggregation of what the pool has once, windows by ``avg_over_time``, the 90th percentiles of
latencies over a minute, and arithmetic with numbers. Labels are left aside: the simulator has one
model. Whatever else is refused by name, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NoReturn


@dataclass(frozen=True, slots=True)
class _Meaning:
    """What a metric is.

    Attributes:
        total: An expression for its sum over replicas.
        mean: One for its mean over them.
        alone: Whether one element answers for the whole pool, so that it needs no aggregation.
    """

    total: str
    mean: str
    alone: bool = False


def _count(series: str) -> _Meaning:
    return _Meaning(series, f"({series} / ready)")


def _share(series: str) -> _Meaning:
    return _Meaning(f"({series} * ready)", series)


def _pool(expression: str) -> _Meaning:
    return _Meaning(expression, expression, alone=True)


METRICS: Mapping[str, _Meaning] = MappingProxyType(
    {
        "vllm:num_requests_running": _count("running"),
        "vllm:num_requests_waiting": _count("waiting"),
        "vllm:kv_cache_usage_perc": _share("kv_usage"),
        "vllm:gpu_cache_usage_perc": _share("kv_usage"),
        "DCGM_FI_DEV_GPU_UTIL": _share("(100 * gpu_busy)"),
        "inference_extension_flow_control_queue_size": _pool("queue"),
        "llm_d_epp_flow_control_queue_size": _pool("queue"),
        "inference_extension_flow_control_pool_saturation": _pool("saturation"),
        "llm_d_epp_flow_control_pool_saturation": _pool("saturation"),
        "inference_objective_running_requests": _pool("in_flight"),
        "inference_model_running_requests": _pool("in_flight"),
        "llm_d_epp_request_running": _pool("in_flight"),
        "llm_d_epp_inflight_requests": _count("in_flight"),
        "llm_d_epp_inflight_tokens": _count("in_flight_prompt_tokens"),
        "inference_pool_average_kv_cache_utilization": _pool("kv_usage"),
        "llm_d_epp_average_kv_cache_utilization": _pool("kv_usage"),
        "inference_pool_average_queue_size": _pool("(waiting / ready)"),
        "llm_d_epp_average_queue_size": _pool("(waiting / ready)"),
        "inference_pool_average_running_requests": _pool("(running / ready)"),
        "llm_d_epp_average_running_requests": _pool("(running / ready)"),
        "inference_pool_ready_pods": _pool("ready"),
        "llm_d_epp_ready_endpoints": _pool("ready"),
    }
)
"""The gauges that the simulator has, by the names that engines and gateways give them."""

HISTOGRAMS: Mapping[str, str] = MappingProxyType(
    {
        "vllm:time_to_first_token_seconds_bucket": "ttft_p90_1m_s",
        "vllm:inter_token_latency_seconds_bucket": "itl_p90_1m_s",
        "vllm:time_per_output_token_seconds_bucket": "itl_p90_1m_s",
    }
)
"""The latencies whose 90th percentile over a minute the simulator has."""

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<labels>\{(?:[^{}"']|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')*\})
      | (?P<window>\[\d+[smh]\])
      | (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w:])
      | (?P<name>[A-Za-z_:][\w:]*)
      | (?P<sign>[-+*/(),])
    )""",
    re.VERBOSE,
)
_MOST_NESTED = 30


def translate(query: str) -> str:
    """Return the expression (of ``expression.py``) that a PromQL query means.

    Raises:
        ValueError: It reads what the simulator does not have, or in a way that it can't; the
            message names it, with its position (from 1).
    """
    return _Reader(query).read()


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    position: int


class _Reader:
    def __init__(self, query: str) -> None:
        self._tokens: list[_Token] = []
        self._next = 0
        self._depth = 0
        text, at = query.rstrip(), 0
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                position = at + len(text[at:]) - len(text[at:].lstrip()) + 1
                raise ValueError(f"position {position}: {text[position - 1 :][:20]!r} is not read")
            kind = str(found.lastgroup)
            self._tokens.append(_Token(kind, found[kind], found.start(kind) + 1))
            at = found.end()
        self._end = _Token("end", "the end", len(text) + 1)

    def read(self) -> str:
        expression = self._sum()
        if self._token.kind != "end":
            self._refuse(f"{self._token.text!r} is not read here")
        return expression

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next] if self._next < len(self._tokens) else self._end

    def _take(self, text: str | None = None) -> _Token:
        token = self._token
        if text is not None and token.text != text:
            self._refuse(f"found {token.text!r}, want {text!r}")
        self._next += 1
        return token

    def _refuse(self, problem: str, token: _Token | None = None) -> NoReturn:
        raise ValueError(f"position {(token or self._token).position}: {problem}")

    def _sum(self) -> str:
        left = self._product()
        while self._token.text in ("+", "-"):
            left = f"{left} {self._take().text} {self._product()}"
        return left

    def _product(self) -> str:
        left = self._value()
        while self._token.text in ("*", "/"):
            left = f"{left} {self._take().text} {self._value()}"
        return left

    def _value(self) -> str:
        self._depth += 1
        if self._depth > _MOST_NESTED:
            self._refuse(f"nested deeper than {_MOST_NESTED}")
        try:
            return self._one_value()
        finally:
            self._depth -= 1

    def _one_value(self) -> str:
        token = self._take()
        if token.text == "-":
            return f"-{self._value()}"
        if token.text == "(":
            inner = self._sum()
            self._take(")")
            return f"({inner})"
        if token.kind == "number":
            return token.text
        if token.text in ("sum", "avg", "max", "min"):
            return self._aggregated(token)
        if token.text == "ceil":
            self._take("(")
            inner = self._sum()
            self._take(")")
            return f"ceil({inner})"
        if token.text == "histogram_quantile":
            return self._quantile(token)
        if token.kind == "name":
            # Of the whole pool, or a number per replica, of which KEDA takes none.
            self._next -= 1
            metric = self._token
            meaning, window = self._gauge()
            if not meaning.alone:
                self._refuse(f"{metric.text} is one number per replica, want sum or avg", metric)
            return _windowed(meaning.total, window)
        self._refuse(f"found {token.text!r}, want a metric or a number", token)

    def _aggregated(self, function: _Token) -> str:
        self._skip_grouping()
        self._take("(")
        metric = self._token
        meaning, window = self._gauge()
        self._take(")")
        self._skip_grouping()
        if function.text in ("max", "min") and not meaning.alone:
            self._refuse(
                f"the simulator has no {function.text} over the replicas of {metric.text}", function
            )
        return _windowed(meaning.total if function.text == "sum" else meaning.mean, window)

    def _skip_grouping(self) -> None:
        """Pass over labels to group by: there is one model, so there is one group."""
        if self._token.text not in ("by", "without"):
            return
        self._take()
        self._take("(")
        while self._token.text != ")":
            label = self._take()
            if label.text in ("pod", "instance", "endpoint_name"):
                self._refuse(f"grouping by {label.text} gives one number per replica", label)
            if label.kind == "end":
                self._refuse("found the end, want ')'", label)
        self._take(")")

    def _gauge(self) -> tuple[_Meaning, str | None]:
        """Return what a metric means and over which window it is averaged, if over one."""
        if self._token.text == "avg_over_time":
            self._take()
            self._take("(")
            meaning = self._metric()
            if self._token.kind != "window":
                self._refuse(f"found {self._token.text!r}, want a window such as [1m]")
            window = self._take().text[1:-1]
            self._take(")")
            return meaning, window
        return self._metric(), None

    def _metric(self) -> _Meaning:
        token = self._take()
        if token.kind != "name":
            self._refuse(f"found {token.text!r}, want a metric", token)
        meaning = METRICS.get(token.text)
        if meaning is None and self._token.text in ("(", "by", "without"):
            self._refuse(f"the function {token.text} is not read here", token)
        if meaning is None:
            known = ", ".join((*METRICS, *HISTOGRAMS))
            self._refuse(f"the simulator has no {token.text}; it has {known}", token)
        if self._token.kind == "labels":
            self._take()
        return meaning

    def _quantile(self, function: _Token) -> str:
        """Read ``histogram_quantile(0.9, sum(rate(metric[1m])) by (le))``."""
        self._take("(")
        quantile = self._take()
        self._take(",")
        self._take("sum")
        self._skip_grouping()
        self._take("(")
        self._take("rate")
        self._take("(")
        metric = self._take()
        if self._token.kind == "labels":
            self._take()
        window = self._take()
        self._take(")")
        self._take(")")
        self._skip_grouping()
        self._take(")")
        series = HISTOGRAMS.get(metric.text)
        if series is None:
            self._refuse(
                f"the simulator has no {metric.text}; it has {', '.join(HISTOGRAMS)}", metric
            )
        if quantile.kind != "number" or float(quantile.text) != 0.9 or window.text != "[1m]":
            found = f"{quantile.text} over {window.text}"
            self._refuse(f"the simulator has 0.9 over [1m] of it, not {found}", function)
        return series


def _windowed(expression: str, window: str | None) -> str:
    return expression if window is None else f"avg({expression}, {window})"
