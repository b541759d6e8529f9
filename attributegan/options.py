"""Options of dataclasses: help, range and type beside each field, and filling from YAML values.

Owns `option`, the conversion of values and the text of errors. The options themselves are in `attributegan.config` and
`slurm.cluster_config`. Command-line help, the reference page and the JSON Schemas read the same fields.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from attributegan.errors import require

T = TypeVar("T")

TYPE_NAMES = {int: "whole number", float: "number", bool: "true or false", str: "text"}


@dataclass(frozen=True)
class Spec:
    """What `option` says about a field. Limits apply to each item of a list."""

    help: str  # complete sentences; the first one alone is the short help
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    below: float | None = None
    multiple_of: int | None = None
    choices: tuple[int, ...] = ()
    source: str = ""  # paper, equation

    @property
    def limits(self) -> str:
        """The range in English, such as "from 0 to 1"; "" without one."""
        if self.choices:
            return f"one of {', '.join(map(str, self.choices))}"
        if self.minimum is not None and self.maximum is not None:
            text = f"from {self.minimum:g} to {self.maximum:g}"
        else:
            bounds = (("at least", self.minimum), ("above", self.above), ("at most", self.maximum), ("below", self.below))
            text = " and ".join(f"{name} {value:g}" for name, value in bounds if value is not None)
        return ", ".join(filter(None, (text, f"a multiple of {self.multiple_of}" if self.multiple_of else "")))

    def allows(self, value: float) -> bool:
        """Returns whether ``value`` is within the limits; NaN never is."""
        return (
            (not self.choices or value in self.choices)
            and (self.minimum is None or value >= self.minimum)
            and (self.above is None or value > self.above)
            and (self.maximum is None or value <= self.maximum)
            and (self.below is None or value < self.below)
            and (self.multiple_of is None or value % self.multiple_of == 0)
        )


def option(
    default: T,
    help: str,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    multiple_of: int | None = None,
    choices: tuple[int, ...] = (),
    source: str = "",
) -> T:
    """Declare a dataclass field with its help and its range.

    Args:
        default: The default value; a dict is copied for each instance.
        help: What the option does, with its unit, in complete sentences. The first one is shown in lists.
        minimum: Smallest value.
        above: Exclusive lower bound.
        maximum: Largest value.
        below: Exclusive upper bound.
        multiple_of: Divisor of the value.
        choices: All values of an integer option; use ``Literal`` for text.
        source: Where the option comes from, such as a paper and its equation.
    """
    spec = Spec(help, minimum, above, maximum, below, multiple_of, choices, source)
    if isinstance(default, dict):
        return typing.cast(T, field(default_factory=default.copy, metadata={"option": spec}))
    return field(default=default, metadata={"option": spec})


@dataclass(frozen=True)
class Option:
    """One option of a configuration."""

    name: str  # as in errors and overrides: section.key
    hint: Any  # the annotation
    default: Any
    spec: Spec

    @property
    def section(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def key(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def values(self) -> str:
        """Type and range in English, such as "whole number, at least 1"."""
        return self.spec.limits if self.spec.choices else ", ".join(filter(None, (_type_name(self.hint), self.spec.limits)))

    @property
    def shown_default(self) -> str:
        """The default in YAML syntax."""
        return yaml_value(self.default)

    @property
    def short_help(self) -> str:
        """The first sentence of the help."""
        return self.spec.help.partition(". ")[0].rstrip(".") + "."

    @property
    def help_line(self) -> str:
        return f"{self.name} ({self.values}; default: {self.shown_default}): {self.spec.help}"


def yaml_value(value: Any) -> str:
    """Returns a scalar, list or mapping of scalars in YAML flow syntax."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(yaml_value, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {yaml_value(item)}' for key, item in value.items())}}}"
    return str(value) or '""'


def _type_name(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple:
        item = _type_name(arguments[0])
        return f"list, each {item}" if item.startswith("one of") else f"list of {_plural(item)}"
    return "mapping of names to text" if origin is dict else TYPE_NAMES[hint]


def _plural(name: str) -> str:
    return name if name == "text" else f"{name}s"


def list_options(cls: type, prefix: str = "") -> Iterator[Option]:
    """Yields the options of a dataclass and of the sections inside it, in their order."""
    hints = typing.get_type_hints(cls)
    for each in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[each.name]):
            yield from list_options(typing.cast(type, hints[each.name]), f"{prefix}{each.name}.")
        else:
            default = each.default_factory() if each.default_factory is not dataclasses.MISSING else each.default
            yield Option(f"{prefix}{each.name}", hints[each.name], default, each.metadata["option"])


def sections(cls: type) -> Iterator[tuple[str, type]]:
    """Yields the name and the dataclass of each section of a configuration, in their order."""
    hints = typing.get_type_hints(cls)
    for each in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[each.name]):
            yield each.name, typing.cast(type, hints[each.name])


def section_doc(cls: type) -> str:
    """Returns the docstring of a section on one line."""
    return " ".join((cls.__doc__ or "").replace("``", "`").split())


def check_limits(options: Any, section: str = "") -> None:
    """Check every value of a dataclass of options against its range; call it from ``__post_init__``.

    Raises:
        ValueError: A value is out of range; names the option, the value and the range.
    """
    for each in dataclasses.fields(options):
        spec, value = each.metadata.get("option"), getattr(options, each.name)
        if spec is None or isinstance(value, dict):
            continue
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, int | float) and not isinstance(item, bool):
                name = f"{section}.{each.name}" if section else each.name
                verb = "is not" if spec.choices else "must be"
                require(spec.allows(item), f"{name}: {item} {verb} {spec.limits}")


def fill(cls: type[T], tree: Any, where: str, section: str = "") -> T:
    """Fill a dataclass of options from nested mappings; options that are not given keep their defaults.

    Args:
        cls: The dataclass, such as `attributegan.config.Config`.
        tree: Values as YAML gives them.
        where: The source of the values for error messages, such as a file name.
        section: The section of the configuration that ``cls`` is; "" for the whole.

    Raises:
        ValueError: An unknown option, or a value of the wrong type or out of range; names ``where``, the option and
            the allowed values, and ends with the option's help.
    """
    prefix = f"{section}." if section else ""
    known = {each.name: each for each in list_options(cls, prefix)}
    try:
        return _fill(cls, tree, prefix, known)
    except ValueError as error:
        raise ValueError(f"{where}: {with_help(str(error), known)}") from None


def with_help(message: str, known: Mapping[str, Option]) -> str:
    """Returns ``message`` with the help of the option that it begins with, or suggests, on a second line."""
    named = [message.partition(":")[0], message.partition("did you mean ")[2].partition("?")[0]]
    lines = [f"\n  {known[name].help_line}" for name in named if name in known]
    return message + "".join(lines[:1])


def suggestion(name: str, siblings: list[str], known: Mapping[str, Option]) -> str:
    """Returns the option most like ``name``: of ``siblings`` by spelling, else of another section by its key; "" without one."""
    section, _, key = name.rpartition(".")
    if close := difflib.get_close_matches(str(key), siblings, n=1, cutoff=0.7):
        return f"{section}.{close[0]}" if section else close[0]
    elsewhere = [each.name for each in known.values() if each.key == key]
    return elsewhere[0] if len(elsewhere) == 1 else ""


def _fill(cls: type[T], tree: Any, prefix: str, known: Mapping[str, Option]) -> T:
    require(isinstance(tree, Mapping), f"{prefix.rstrip('.') or 'top level'}: expected a mapping of options, got {tree!r}")
    hints = typing.get_type_hints(cls)
    names = [each.name for each in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in tree:
        if key not in names:
            similar = suggestion(f"{prefix}{key}", names, known)
            hint = f"; did you mean {similar}?" if similar else "."
            group = f"Options of {prefix.rstrip('.')}" if prefix else "Options"
            raise ValueError(f"{prefix}{key}: unknown option{hint} {group}: {', '.join(names)}")
    return cls(**{key: _convert(hints[key], value, f"{prefix}{key}", known) for key, value in tree.items()})


def _convert(hint: Any, value: Any, name: str, known: Mapping[str, Option]) -> Any:
    """Returns ``value`` in the type of the annotation; ValueError names the option."""
    if dataclasses.is_dataclass(hint):
        return _fill(typing.cast(type, hint), {} if value is None else value, f"{name}.", known)
    origin = typing.get_origin(hint)
    if origin is Literal:
        choices = typing.get_args(hint)
        require(value in choices, f"{name}: {value!r} is not one of {', '.join(map(str, choices))}")
        return value
    if origin is tuple:
        require(isinstance(value, list | tuple), f"{name}: expected a list such as [a, b], got {value!r}")
        return tuple(_convert(typing.get_args(hint)[0], item, name, known) for item in value)
    if origin is dict:
        require(isinstance(value, dict), f"{name}: expected a mapping such as {{NAME: value}}, got {value!r}")
        return {str(key): _convert(typing.get_args(hint)[1], item, f"{name}.{key}", known) for key, item in value.items()}
    return _convert_scalar(hint, value, name)


def _convert_scalar(hint: type, value: Any, name: str) -> Any:
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:  # YAML reads 2e-4 as text
            number = float(value)
        except (ValueError, OverflowError):
            number = float("nan")
        require(number == number and abs(number) != float("inf"), f"{name}: {value!r} is not a finite number")
        return number
    if hint is int and isinstance(value, str | float):
        try:  # people write 1e6 and 1_000_000 for numbers of images
            if float(value).is_integer():
                return int(float(value))
        except (ValueError, OverflowError):
            pass
    if hint is str and value is None:
        return ""
    if hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    require(type(value) is hint, f"{name}: expected {_WITH_ARTICLE[hint]}, got {value!r}")
    return value


_WITH_ARTICLE = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
