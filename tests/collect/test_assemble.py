"""Sources and pages, joined."""

from __future__ import annotations

from tests.builders import a_key, a_sample, a_variant
from wva_adapter.collect.assemble import ReplicaView, Scraped, VariantView, assemble
from wva_adapter.core.snapshot import Phase


def a_view(*replicas: ReplicaView, name: str = "llama-a100", target: str = "") -> VariantView:
    return VariantView(a_variant(name), len(replicas), len(replicas), replicas)


def a_replica_view(uid: str = "u0", problem: str | None = None) -> ReplicaView:
    return ReplicaView(
        uid, f"pod-{uid}", "http://127.0.0.1:1/metrics", Phase.READY, problem=problem
    )


def test_pages_are_joined_by_uid_and_carry_the_pods_name() -> None:
    scraped = {"u0": Scraped(a_sample("whatever", usage=0.5)), "gone": Scraped(a_sample())}
    snapshot, conflicts = assemble([a_view(a_replica_view("u0"))], scraped, 10.0)
    (replica,) = snapshot.variants[0].replicas
    assert replica.sample is not None
    assert (replica.sample.replica, replica.sample.kv_cache_usage) == ("pod-u0", 0.5)
    assert conflicts == ()


def test_a_replica_that_was_not_asked_yet_has_no_page_and_no_problem() -> None:
    snapshot, _ = assemble([a_view(a_replica_view())], {}, 10.0)
    (replica,) = snapshot.variants[0].replicas
    assert (replica.sample, replica.problem) == (None, None)


def test_a_problem_of_the_source_or_of_the_scrape_is_kept() -> None:
    views = [a_view(a_replica_view("u0", problem="malformed URL"), a_replica_view("u1"))]
    snapshot, _ = assemble(views, {"u1": Scraped(None, "timed out after 2 s")}, 10.0)
    assert [r.problem for r in snapshot.variants[0].replicas] == [
        "malformed URL",
        "timed out after 2 s",
    ]


def test_a_variant_of_two_sources_is_taken_from_the_first_and_told() -> None:
    first, second = a_view(a_replica_view("u0")), a_view(a_replica_view("u1"))
    snapshot, conflicts = assemble([first, second], {}, 10.0)
    assert [r.name for r in snapshot.variants[0].replicas] == ["pod-u0"]
    assert conflicts == (f"{a_key()}: named twice; the first one (Deployment llama-a100) counts",)


def test_variants_come_sorted_by_name() -> None:
    snapshot, _ = assemble([a_view(name="b"), a_view(name="a")], {}, 0.0)
    assert [state.variant.key.name for state in snapshot.variants] == ["a", "b"]
