"""What a person sees: a bar on a terminal, plain lines elsewhere."""

import io

import numpy as np

from jaxreward.training import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(stream, steps=100, done=0, **kwargs):
    with progress.open_progress(steps, done, stream=stream, **kwargs) as display:
        for step in range(done + 1, steps + 1):
            display.update(step, {"loss": np.float32(step), "arm": np.arange(2.0)})
        display.note("a word")
    return stream.getvalue()


def test_plain_lines_are_few_and_end_with_the_last_step():
    lines = shown(io.StringIO(), name="warm start").splitlines()
    assert len(lines) == 21
    assert lines[0].startswith("warm start 5/100  ") and lines[0].endswith("loss 5")
    assert lines[-2].startswith("warm start 100/100") and lines[-1] == "a word"


def test_a_bar_on_a_terminal_shows_chosen_figures():
    text = shown(Terminal(), done=40, show=("arm", "absent"))
    assert "\r" in text and "100/100" in text
    assert "arm 0.5" in text and "loss" not in text
