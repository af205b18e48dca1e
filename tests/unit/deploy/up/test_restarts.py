"""When a process that died is started again, by a clock in the test's hand."""

from deploy.up.restarts import RestartPolicy, Restarts


def delays(restarts: Restarts, lives_s: list[float]) -> list[float | None]:
    """Return the delay after each of several lives, each begun when the delay before it was over."""
    now_s, found = 0.0, []
    for life_s in lives_s:
        started_s, now_s = now_s, now_s + life_s
        found.append(delay_s := restarts.died(started_s, now_s))
        now_s += delay_s or 0.0
    return found


def test_delays_double_up_to_the_longest() -> None:
    restarts = Restarts(RestartPolicy(first_delay_s=1, longest_delay_s=6))
    assert delays(restarts, [20.0] * 6) == [1, 2, 4, 6, 6, 6]


def test_a_process_that_ran_long_enough_begins_anew() -> None:
    assert delays(Restarts(RestartPolicy()), [1, 1, 59.9, 60, 1]) == [0.5, 1, 2, 0.5, 1]


def test_the_fifth_death_within_a_minute_is_the_last() -> None:
    assert delays(Restarts(RestartPolicy()), [0, 0, 0, 0, 0]) == [0.5, 1, 2, 4, None]


def test_deaths_longer_ago_than_a_minute_do_not_count() -> None:
    restarts = Restarts(RestartPolicy(first_delay_s=0))
    assert delays(restarts, [10, 15, 15, 15, 15, 14]) == [0, 0, 0, 0, 0, None]
