"""The figures by which sampling settings are compared with real text."""

import pytest

from experiments.sampling import ends_in_loop, figures


@pytest.mark.parametrize(
    ("text", "loop"),
    [
        ("it is a river and a river and a river and a river", True),
        ("the the the", True),
        ("the the", False),
        ("one two one two one two end", False),
        ("one two three four five six seven", False),
        ("", False),
        (" ".join([f"w{n}" for n in range(40)] * 3), True),
        (" ".join([f"w{n}" for n in range(41)] * 3), False),
    ],
)
def test_a_loop_is_a_phrase_said_three_times_at_the_end(text: str, loop: bool) -> None:
    assert ends_in_loop(text.split()) is loop
    assert figures(text).loop is loop


def test_repeated_runs_and_distinct_words() -> None:
    found = figures("a b c d a b c d e")  # 6 runs of four words, of which "a b c d" stands there twice; 5 words of 9
    assert found.repeated == pytest.approx(1 / 6)
    assert found.distinct == pytest.approx(5 / 9)
    assert figures("A a").distinct == 0.5
