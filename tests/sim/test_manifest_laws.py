"""Users' own ScaledObjects and HPAs as laws: what they come to, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.test_laws import Store, follow
from wva_adapter.core.hpa_sync import DOWN, Behavior, Direction, Rate
from wva_adapter.errors import ConfigError
from wva_adapter.sim.laws import HpaLaw, scaler
from wva_adapter.sim.policy_files import law, parse_law
from wva_adapter.sim.queries import translate

SCALED_OBJECT = """
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: {name: chat, namespace: prod}
spec:
  scaleTargetRef: {name: llama}
  minReplicaCount: 2
  maxReplicaCount: 9
  cooldownPeriod: 60
  triggers:
    - type: prometheus
      metadata:
        serverAddress: http://prometheus:9090
        query: sum(vllm:num_requests_waiting{model_name="llama", namespace="prod"}) by (model_name)
        threshold: "5"
  advanced:
    horizontalPodAutoscalerConfig:
      behavior:
        scaleUp:
          stabilizationWindowSeconds: 0
          tolerance: "0"
          policies: [{type: Pods, value: 2, periodSeconds: 60}]
"""

HPA = """
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: chat}
spec:
  maxReplicas: 5
  metrics:
    - type: Pods
      pods:
        metric: {name: vllm_num_requests_waiting}
        target: {type: AverageValue, averageValue: "3"}
    - type: Pods
      pods:
        metric: {name: "vllm:kv_cache_usage_perc"}
        target: {type: AverageValue, averageValue: 600m}
    - type: Resource
      resource: {name: cpu, target: {type: Utilization, averageUtilization: 80}}
"""


def test_a_scaled_object_acts_as_it_would_in_a_cluster(tmp_path: Path) -> None:
    file = tmp_path / "chat.yaml"
    file.write_text(SCALED_OBJECT)
    found = law(str(file))
    assert isinstance(found.acts, HpaLaw)
    assert (found.name, found.acts.cooldown_s) == ("chat", 60)
    assert found.acts.behavior == Behavior(
        Direction(0.0, (Rate("Pods", 2, 60.0),), tolerance=0.0), DOWN
    )
    # 40 wait, 5 each: 8, two per minute
    assert follow(scaler(found, {}), Store(waiting=40.0), 75) == [4, 4, 4, 4, 6]


def test_an_hpas_own_metrics_are_those_of_its_pods() -> None:
    found = parse_law(HPA, "hpa.yaml")
    # a mean queue of 6 by 3: twice the 4 there are
    store = Store(a_waiting=24.0, a_ready=4.0, a_kv_usage=0.3, a_cpu=0.2)
    assert follow(scaler(found, {}), store, 15, ready=4) == [8]


def test_an_external_metric_is_a_sum() -> None:
    text = """
kind: HorizontalPodAutoscaler
spec:
  metrics:
    - type: External
      external:
        metric: {name: llm_d_epp_flow_control_queue_size}
        target: {type: AverageValue, averageValue: 2}
"""
    found = parse_law(text, "hpa.yaml")
    assert follow(scaler(found, {}), Store(queue=7.0), 15) == [4]


@pytest.mark.parametrize(
    ("query", "expression"),
    [
        ("sum(vllm:num_requests_running)", "running"),
        ('avg(vllm:num_requests_waiting{a="}"})', "(waiting / ready)"),
        ("sum(vllm:kv_cache_usage_perc)", "(kv_usage * ready)"),
        ("avg(avg_over_time(vllm:kv_cache_usage_perc[2m])) * 100", "avg(kv_usage, 2m) * 100"),
        ("sum by (model_name) (llm_d_epp_inflight_requests)", "in_flight"),
        ("llm_d_epp_flow_control_queue_size / 4 + 1", "queue / 4 + 1"),
        ("-(avg(DCGM_FI_DEV_GPU_UTIL) - 50)", "-((100 * gpu_busy) - 50)"),
        ("max(llm_d_epp_flow_control_pool_saturation)", "saturation"),
        (
            "histogram_quantile(0.90,sum by(le)(rate(vllm:time_to_first_token_seconds_bucket[1m])))",
            "ttft_p90_1m_s",
        ),
    ],
)
def test_what_a_query_means(query: str, expression: str) -> None:
    assert translate(query) == expression


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("sum(my_metric)", "position 5: the simulator has no my_metric; it has vllm:num_requests"),
        ("vllm:num_requests_waiting", "position 1: .* is one number per replica, want sum or avg"),
        (
            "sum(vllm:num_requests_waiting) by (pod)",
            "position 36: grouping by pod gives one number",
        ),
        (
            "max(vllm:num_requests_waiting)",
            "position 1: the simulator has no max over the replicas",
        ),
        ("sum(rate(x[1m]))", "position 5: the function rate is not read here"),
        ("sum(vllm:num_requests_waiting", r"position 30: found 'the end', want '\)'"),
        ("sum(vllm:num_requests_waiting) > 3", "position 32: '> 3' is not read"),
        ("sum(vllm:num_requests_waiting) 3", "position 32: '3' is not read here"),
        (
            "histogram_quantile(0.99,sum(rate(vllm:time_to_first_token_seconds_bucket[1m]))by(le))",
            r"has 0.9 over \[1m\] of it, not 0.99 over \[1m\]",
        ),
        ("(" * 40, "nested deeper than 30"),
    ],
)
def test_a_query_of_what_is_not_there_is_refused_by_name(query: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        translate(query)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            SCALED_OBJECT.replace("vllm:num_requests_waiting", "http_requests"),
            r"mine.yaml: spec.triggers\[0\].metadata.query: position 5: the simulator has no http_re",
        ),
        (
            SCALED_OBJECT.replace("type: prometheus", "type: kafka"),
            r"spec.triggers\[0\].type: found 'kafka', want prometheus",
        ),
        (
            SCALED_OBJECT.replace('threshold: "5"', "other: x"),
            r"spec.triggers\[0\].metadata: want a query, and a threshold above 0",
        ),
        (
            SCALED_OBJECT.replace('tolerance: "0"', 'tolerance: "lots"'),
            "tolerance: found 'lots', want a quantity such as 3, 0.6 or 600m",
        ),
        (
            SCALED_OBJECT.replace("  advanced:", "  advanced:\n    scalingModifiers: {formula: a}"),
            "spec.advanced.scalingModifiers: not read by the simulator",
        ),
        (
            HPA.replace("vllm_num_requests_waiting", "requests_per_second"),
            r"spec.metrics\[0\].metric.name: the simulator has no requests_per_second",
        ),
        (HPA.replace("name: cpu", "name: memory"), "found 'memory', want cpu with averageUtil"),
        (HPA.replace("type: Resource", "type: Object"), "found 'Object', want External, Pods or"),
        ("kind: Deployment", "mine.yaml: kind: found 'Deployment', want ScaledObject or Horizont"),
    ],
)
def test_a_manifest_that_reads_something_else_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_law(text, "mine.yaml")
