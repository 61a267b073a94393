"""The value that is served makes the reader arrive at the desired count."""

from __future__ import annotations

from wva_adapter.core.fleet import Reader
from wva_adapter.core.signal import Signal, shape

HPA = Reader("HorizontalPodAutoscaler chat/llama")
EXACT = Reader("HorizontalPodAutoscaler chat/llama", tolerance_up=0.0, tolerance_down=0.0)
VALUE = Reader("HorizontalPodAutoscaler chat/llama", target_type="Value", target=1.0)


def served(desired: int, now: int, *, reader: Reader = HPA, ready: int | None = None) -> Signal:
    return shape(
        desired,
        spec_replicas=now,
        status_replicas=now,
        ready_replicas=now if ready is None else ready,
        reader=reader,
    )


def test_a_plain_count_is_served_where_it_gets_through() -> None:
    assert served(5, 4) == Signal(5000, 5, None)


def test_a_small_step_down_is_shaved_to_leave_the_tolerance() -> None:
    signal = served(9, 10)  # 9 is 0.9 of 10: inside; 8.001 rounds up to 9 and is outside
    assert (signal.value_milli, signal.arrives_at) == (8001, 9)
    assert signal.why is not None
    assert "8.001 served for 9" in signal.why


def test_a_small_step_up_says_that_it_is_ignored() -> None:
    signal = served(21, 20)
    assert (signal.value_milli, signal.arrives_at) == (21000, 20)
    assert signal.why is not None
    assert "stays at 20: the step to 21 is inside its tolerance" in signal.why


def test_who_reads_the_count_itself_is_served_nothing_else_and_told_what_it_ignores() -> None:
    keda = Reader("ScaledObject chat/llama", shaped=False)
    signal = served(9, 10, reader=keda)
    assert (signal.value_milli, signal.arrives_at) == (9000, 10)
    assert signal.why is not None
    assert "ScaledObject chat/llama stays at 10: the step to 9 is inside its tolerance" in (
        signal.why
    )
    assert served(8, 10, reader=keda) == Signal(8000, 8, None)


def test_zero_is_served_as_zero() -> None:
    assert served(0, 1).value_milli == 0
    assert served(0, 3, reader=VALUE).value_milli == 0


def test_another_target_scales_the_value() -> None:
    assert served(5, 4, reader=Reader("hpa", target=2.5)).value_milli == 12_500


def test_every_average_value_step_arrives_or_stays_on_the_safe_side() -> None:
    for now in range(61):
        for desired in range(61):
            signal = served(desired, now)
            if desired > now:
                assert signal.arrives_at in (desired, now), (now, desired)
                # a step of more than a tenth always gets through
                assert signal.arrives_at == desired or desired <= 1.1 * now
            else:
                assert desired <= signal.arrives_at <= now, (now, desired)
            assert served(desired, now, reader=EXACT).arrives_at == desired


def test_every_value_step_arrives_or_at_the_nearest_count_that_is_not_below() -> None:
    for now in range(61):
        for ready in range(now + 1):
            for desired in range(61):
                signal = served(desired, now, reader=VALUE, ready=ready)
                if now > 0 and ready == 0:
                    assert signal.arrives_at == now  # nothing to multiply: hold
                elif desired >= now:
                    assert signal.arrives_at >= desired, (now, ready, desired)
                    assert signal.arrives_at <= max(desired + 1, 1.1 * now + 2)
                else:
                    assert desired <= signal.arrives_at <= now, (now, ready, desired)
