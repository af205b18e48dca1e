from simulator.events import EventLoop


def test_callbacks_run_in_order_of_time_and_then_of_scheduling() -> None:
    loop, seen = EventLoop(), []
    loop.at(2.0, lambda: seen.append("late"))
    loop.at(1.0, lambda: seen.append("first"))
    loop.at(1.0, lambda: seen.append("second"))
    loop.run()
    assert seen == ["first", "second", "late"]
    assert loop.now_s == 2.0


def test_a_cancelled_callback_does_not_run_and_is_no_event() -> None:
    loop, seen = EventLoop(), []
    loop.after(1.0, lambda: seen.append(1)).cancel()
    loop.run()
    assert not seen
    assert loop.num_events == 0


def test_what_is_scheduled_for_the_past_runs_now() -> None:
    loop, seen = EventLoop(), []

    def schedule() -> None:
        loop.at(1.0, lambda: seen.append(loop.now_s))

    loop.at(5.0, schedule)
    loop.run()
    assert seen == [5.0]


def test_a_run_ends_at_its_limit_and_can_go_on() -> None:
    loop, seen = EventLoop(), []
    loop.at(1.0, lambda: seen.append(1))
    loop.at(3.0, lambda: seen.append(3))
    loop.run(2.0)
    assert (seen, loop.now_s) == ([1], 2.0)
    loop.run()
    assert seen == [1, 3]


def test_stop_ends_the_run_behind_the_callback() -> None:
    loop, seen = EventLoop(), []
    loop.at(1.0, loop.stop)
    loop.at(2.0, lambda: seen.append(2))
    loop.run()
    assert not seen
    assert loop.now_s == 1.0
