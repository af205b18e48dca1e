"""News of layers, as a step's thread tells them."""

import pytest

from services.prefill.step import NEWS_S, LayerNews


def test_news_of_quick_layers_come_together_and_the_last_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr("services.prefill.step.time.perf_counter", lambda: now_s[0])
    told: list[list[int]] = []
    news = LayerNews(5, lambda done: told.append([layer for layer, _, _ in done]))
    for layer, pause_s in enumerate((0.0, NEWS_S / 4, NEWS_S / 4, NEWS_S, NEWS_S / 4, 0.0)):
        now_s[0] += pause_s
        news.add(layer, None, (0,))
    assert told == [[0], [1, 2, 3], [4, 5]]
