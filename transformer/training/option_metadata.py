"""Metadata of options, given as arguments of Annotated in a dataclass field.

max_grad_norm: Annotated[float, POSITIVE, FormerName("clip")] = 1.0
"""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal, TypeVar

from transformer.errors import ConfigError

Metadata = TypeVar("Metadata")


@dataclass(frozen=True)
class Interval:
    """The interval of the finite numbers that an option accepts; [0, 1) includes 0 and excludes 1."""

    low: float
    high: float = sys.float_info.max
    includes_low: bool = True
    includes_high: bool = True

    def __contains__(self, number: float) -> bool:
        above = self.low <= number if self.includes_low else self.low < number
        return above and (number <= self.high if self.includes_high else number < self.high)  # False for NaN

    def __str__(self) -> str:
        if self.high >= sys.float_info.max:
            return f"a number {'of at least' if self.includes_low else 'more than'} {self.low}"
        return f"in {'[' if self.includes_low else '('}{self.low}, {self.high}{']' if self.includes_high else ')'}"


POSITIVE = Interval(0, includes_low=False)
POSITIVE_OR_INFINITE = Interval(0, float("inf"), includes_low=False)
AT_LEAST_0 = Interval(0)
AMOUNT = Interval(0, 1e12, includes_low=False)  # so that products and quotients are finite
PRICE = Interval(1e-12, 1e12)
FROM_0_TO_1 = Interval(0, 1)
FROM_0_BELOW_1 = Interval(0, 1, includes_high=False)
BETWEEN_0_AND_1 = Interval(0, 1, includes_low=False, includes_high=False)


class Mark(Enum):
    """A property of an option."""

    MAY_CHANGE = "a resumed run may have another value than the run had before"
    PATH = "names a file, a folder or a repository; of two such names only the last part is compared"
    OF_INITIAL_MODEL = "given by the model of --init-from"


@dataclass(frozen=True)
class FormerName:
    """An earlier name of the option, which is refused with an error that names the present one."""

    name: str


@dataclass(frozen=True)
class Alias:
    """Another name of the option on the command line, as in other programs."""

    name: str


@dataclass(frozen=True)
class Option:
    """A field of a group of options.

    kind: its type, without metadata. default: MISSING if the option is required.
    """

    name: str
    kind: Any
    default: Any
    metadata: tuple[object, ...]

    @property
    def choices(self) -> tuple[str, ...] | None:
        """The strings that it accepts; None: it is not a choice."""
        literals = [kind for kind in (self.kind, *typing.get_args(self.kind)) if typing.get_origin(kind) is Literal]
        return typing.get_args(literals[0]) if literals else None

    @property
    def expected(self) -> str:
        """Its type in words, for error messages."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        return self.kind.__name__ if isinstance(self.kind, type) else str(self.kind)

    @property
    def base(self) -> type:
        """The type of its values other than None: str, int, float, bool or tuple."""
        if self.choices:
            return str
        kinds = [kind for kind in typing.get_args(self.kind) if kind is not type(None)]
        kind = kinds[0] if self.is_optional else self.kind
        return typing.get_origin(kind) or kind

    @property
    def is_optional(self) -> bool:
        """Whether it may be None."""
        return type(None) in typing.get_args(self.kind)

    def find(self, kind: type[Metadata]) -> list[Metadata]:
        """Its metadata of this class."""
        return [one for one in self.metadata if isinstance(one, kind)]

    def check(self, value: Any) -> None:
        """Check a value.

        Raises:
            ConfigError: if it is not one of the choices, not in the interval, or not valid Unicode.
        """
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and not _is_unicode(text):
                raise ConfigError(
                    f"{self.name} has bytes that are not text in this locale: {text!r:.80}. Set PYTHONUTF8=1 if "
                    "they are UTF-8, or rename what it names."
                )
        if value is None:
            if self.is_optional:
                return
            raise ConfigError(f"{self.name} must be {self.expected}, not None.")
        if self.choices and value not in self.choices:
            raise ConfigError(f"{self.name} must be {self.expected}, not {value!r}.")
        for interval in self.find(Interval):
            if value not in interval:
                raise ConfigError(f"{self.name} must be {interval}, not {value}.")


class OptionGroup:
    """Base class of the groups of options; it checks each value."""

    def __post_init__(self) -> None:
        for option in options_of(type(self)):
            option.check(getattr(self, option.name))


def options_of(group: type) -> tuple[Option, ...]:
    """The fields of a group of options."""
    if group not in _known:
        _known[group] = tuple(_read_options(group))
    return _known[group]


def _read_options(group: type) -> Iterator[Option]:
    hints = typing.get_type_hints(group, include_extras=True)
    for field in dataclasses.fields(group):
        hint = hints[field.name]
        annotated = typing.get_origin(hint) is Annotated
        kind, metadata = (hint.__origin__, hint.__metadata__) if annotated else (hint, ())
        yield Option(field.name, kind, field.default, metadata)


_known: dict[type, tuple[Option, ...]] = {}  # the hints of a class take milliseconds to resolve


def _is_unicode(text: str) -> bool:
    """Whether a text can be encoded in UTF-8. Python decodes invalid bytes of a command line as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
