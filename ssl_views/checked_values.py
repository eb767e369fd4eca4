"""Dataclasses whose values are checked against their annotations, and that JSON can hold."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

_Values = TypeVar("_Values", bound="CheckedValues")
_LARGEST = 1e300  # whole numbers of JSON may be larger than a float can be
_KINDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    NoneType: "left out",
}


class CheckedValues:
    """Base of dataclasses that may hold what strangers wrote.

    Fields are bool, int, float, str, None, tuples, mappings with names as keys, other such
    dataclasses, and unions of these. Numbers are finite.
    """

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if not _fits(value, hint):
                raise ValueError(
                    f"{name} must be {_described(hint)}; got {repr(value)[:80]}. Leave out what is "
                    "not known."
                )

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, as JSON values."""
        return {key: _jsonable(value) for key, value in asdict(self).items()}  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls: type[_Values], stored: Mapping[str, Any]) -> _Values:
        """Return what `as_dict` was called on.

        Raises:
            ValueError: if a field is unknown, missing, or of another type.
        """
        if not isinstance(stored, Mapping):
            raise ValueError(
                f"{cls.__name__} must be read from an object; got {repr(stored)[:80]}. Write the "
                "file again."
            )
        hints = get_type_hints(cls)
        needed = [
            each.name
            for each in fields(cls)  # type: ignore[arg-type]
            if each.default is MISSING and each.default_factory is MISSING
        ]
        odd = sorted({*map(str, stored.keys() - hints.keys()), *(set(needed) - stored.keys())})
        if odd:
            raise ValueError(
                f"{cls.__name__} has the fields {sorted(hints)}; missing or unknown: {odd}. Write "
                "the file again."
            )
        return cls(**{name: _read(value, hints[name]) for name, value in stored.items()})


def is_finite(value: Any) -> bool:
    """Return whether a value is a number, and not a truth value, NaN or infinite."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) < _LARGEST


def _fits(value: Any, hint: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if isinstance(hint, UnionType):
        return any(_fits(value, each) for each in args)
    if origin is tuple:
        open_ended = args[-1] is Ellipsis
        hints = args[:1] * len(value) if open_ended and isinstance(value, tuple) else args
        return (
            isinstance(value, tuple) and len(value) == len(hints) and all(map(_fits, value, hints))
        )
    if origin is not None:  # a mapping
        return isinstance(value, Mapping) and all(
            isinstance(key, str) and _fits(each, args[1]) for key, each in value.items()
        )
    if hint is float:
        return is_finite(value)
    if hint is int:
        return isinstance(value, int) and is_finite(value)
    return hint is Any or isinstance(value, hint)


def _described(hint: Any) -> str:
    if isinstance(hint, UnionType):
        return " or ".join(_described(each) for each in get_args(hint))
    origin, args = get_origin(hint), get_args(hint)
    if origin is tuple:
        count = "any number" if args[-1] is Ellipsis else len(args)
        return f"{count} of: {_described(args[0])}"
    if origin is not None:
        return "an object with names as keys"
    return _KINDS.get(hint) or f"of {hint.__name__}"


def _read(value: Any, hint: Any) -> Any:
    """Return a JSON value as what a field holds; what does not fit is refused by the dataclass."""
    if isinstance(hint, UnionType):
        if value is None:
            return None
        hint = next(each for each in get_args(hint) if each is not NoneType)
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(value)
    if isinstance(hint, type) and issubclass(hint, CheckedValues):
        return hint.from_dict(value)
    return value


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _jsonable(each) for key, each in value.items()}
    return [_jsonable(each) for each in value] if isinstance(value, tuple | list) else value
