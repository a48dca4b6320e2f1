"""The form that an answer has to have to count as one."""

import pytest

from experiments.answers import fault_of


@pytest.mark.parametrize(
    ("text", "stop_reason", "fault"),
    [
        ("The Rhine is a river. It flows north.", "end_of_text", None),
        ('Rhine is a river, called "the father."', "stop_sequence", None),
        ("The Rhine is a river.", "length", "does not end"),
        ("It is one of the long rivers, as the Rhine is.", "end_of_text", "does not begin with the name"),
        ("The Rhine is a river. It flows", "end_of_text", "ends within a sentence"),
        ("Rhine is one. It is two. It is three. It is four. It is five.", "end_of_text", "is longer than 4 sentences"),
        ("", "end_of_text", "does not begin with the name"),
    ],
)
def test_an_answer_names_its_subject_in_whole_sentences(text: str, stop_reason, fault: str | None) -> None:
    assert fault_of("Rhine", text, stop_reason) == fault
