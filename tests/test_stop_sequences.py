"""Stop sequences as they are typed into one line of a form."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformer.inference import stops_of


@pytest.mark.parametrize(
    ("line", "stops"),
    [
        ("", ()),
        ("a", ("a",)),
        ("a,b", ("a", "b")),
        (",a, b,,", ("a", " b")),
        ("\n", ("\n",)),
        (r"\n", ("\n",)),
        (r"\n\nUser:,###", ("\n\nUser:", "###")),
        ('["a, b", "c"]', ("a, b", "c")),
        (' ["\\n", "\\\\n"] ', ("\n", "\\n")),
        ('["a"', ('["a"',)),  # no JSON: as it stands
        ("[INST],[/INST]", ("[INST]", "[/INST]")),
        ("[1]", ("[1]",)),
        ("[]", ("[]",)),
        ('"a"', ('"a"',)),
        ('{"a": "b"}', ('{"a": "b"}',)),
    ],
)
def test_a_line_is_a_json_list_or_separated_by_commas(line: str, stops: tuple[str, ...]) -> None:
    assert stops_of(line) == stops


@given(st.lists(st.text(min_size=1), min_size=1))
def test_any_strings_can_be_given_as_json(stops: list[str]) -> None:
    assert stops_of(json.dumps(stops)) == stops_of(json.dumps(stops, ensure_ascii=False)) == tuple(stops)


@given(st.text())
def test_any_line_is_understood(line: str) -> None:
    assert all(stops_of(line))


def test_deep_brackets_are_text() -> None:
    assert stops_of("[" * 100_000) == ("[" * 100_000,)
