"""What is said while a run trains."""

import logging

import pytest

from emnist_jax.reporting import terminal


@pytest.fixture
def lines():
    found = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    logger = logging.getLogger("emnist_jax")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_the_standard_error_is_that_of_a_fraction_of_the_images():
    assert terminal.standard_error(0.9, 100) == pytest.approx(0.03)


@pytest.mark.parametrize("is_terminal", [False, True])
@pytest.mark.parametrize("quiet", [False, True])
def test_a_bar_shows_on_a_terminal_but_in_no_sweep(monkeypatch, is_terminal, quiet):
    monkeypatch.setattr(terminal, "CONSOLE", terminal._Console(force_terminal=is_terminal, quiet=quiet))
    assert terminal.Progress(0, 10)._bar.disable == (quiet or not is_terminal)


def test_without_a_bar_progress_is_a_line_a_minute(lines, monkeypatch):
    clock = iter(float(second) for second in (0, 30, 90, 100, 200))
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(terminal, "LOG_SECONDS", 60.0)
    progress = terminal.Progress(1000, 4000)
    # Not in rich's own time, which goes by the same clock.
    monkeypatch.setattr(progress, "_bar", type("Bar", (), {"disable": True, "update": lambda *_, **__: None})())
    for step in (1010, 1100, 1200, 1400):
        progress.update(step)
    # 100 steps in 90 s, then 400 steps in 200 s.
    assert lines == ["step 1,100 of 4,000, 44 minutes to go", "step 1,400 of 4,000, 22 minutes to go"]
