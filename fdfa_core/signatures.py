"""Options as a function's signature states them: their names, their defaults, and the values that they take.

The keyword-only arguments of a constructor are its options. Their annotations say what a value must be (a type, `Literal`
choices, a range as `typing.Annotated`), and pydantic checks it, so that no constructor repeats such a check. An option without
annotation takes any value, and so does one whose annotation cannot be resolved or is not one that pydantic can check; then the
constructor must judge.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo

from fdfa_core.errors import InvalidInput

REQUIRED = Parameter.empty  # the default of an option that must be given
_STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)  # "1" is no number, and neither is True
_WORDS = {
    bool: "True or False (a bool)",
    int: "an integer (an int)",
    float: "a finite number",
    str: "text (a str)",
    type(None): "None",
}

_ACCEPTED = {  # by pydantic's type of error
    **dict.fromkeys(("int_type", "int_from_float", "int_parsing", "int_parsing_size"), "an integer"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "a table"),
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "finite_number": "a finite number",
    "missing": "a value: it is missing",
    "extra_forbidden": "no such key",
}


@dataclass(frozen=True)
class Option:
    """One option of a function.

    Attributes:
        name: what the option is called.
        default: its value where none is given, or `REQUIRED`.
        annotation: what its value must be; `typing.Any` where the signature does not say.
    """

    name: str
    default: Any
    annotation: Any = Any

    def check(self, value: Any) -> None:
        """Raise `InvalidInput` unless the annotation admits the value."""
        adapter = self._adapter
        if adapter is None:
            return
        try:
            adapter.validate_python(value)
        except ValidationError as error:
            example = "" if self.default in (REQUIRED, None) or _described(self.annotation) else f", such as {self.default!r}"
            reason = in_words(error.errors()[0])
            raise InvalidInput(self.name, value, accepted(self.annotation, reason) + example) from None

    @functools.cached_property
    def _adapter(self) -> TypeAdapter | None:
        try:
            return TypeAdapter(self.annotation, config=_STRICT)
        except PydanticUserError:  # an annotation that pydantic cannot check
            return None


@functools.cache
def options_of(*functions: Callable[..., Any]) -> Mapping[str, Option]:
    """Return the options of functions by name; of an option of several functions, the last default and annotation hold."""
    options: dict[str, Option] = {}
    for function in functions:
        for parameter in signature(function).parameters.values():
            if parameter.kind is Parameter.KEYWORD_ONLY:
                annotation = _resolved(function, parameter)
                if annotation is Any and parameter.name in options:
                    annotation = options[parameter.name].annotation
                options[parameter.name] = Option(parameter.name, parameter.default, annotation)
    return types.MappingProxyType(options)


def check_options(known: Mapping[str, Option], given: Mapping[str, Any]) -> None:
    """Check the values of the given options that are known; raises `InvalidInput` for the first that is not admitted."""
    for name, value in given.items():
        if name in known:
            known[name].check(value)


def checked(name: str, annotation: Any, value: Any) -> Any:
    """Return the value if the annotation admits it; raises `InvalidInput` otherwise."""
    Option(name, REQUIRED, annotation).check(value)
    return value


def accepted(annotation: Any, reason: str = "") -> str:
    """Say in words what an annotation admits, e.g. "'mean' or 'projection'".

    Args:
        annotation: a type, a union, `Literal`, or `Annotated`. The description of a pydantic `Field` stands for all else.
        reason: what pydantic found wrong, for annotations that say no more than their type.
    """
    if described := _described(annotation):
        return described
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return f"{accepted(arguments[0])} ({reason})" if reason else accepted(arguments[0])
    if origin is Literal:
        return " or ".join(repr(choice) for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join("True or False" if part is bool else accepted(part) for part in arguments)
    name = annotation.__name__ if isinstance(annotation, type) and origin is None else str(annotation)
    return _WORDS.get(annotation, name)


def in_words(error: Mapping[str, Any]) -> str:
    """Say in this project's words what was accepted in place of what pydantic refused.

    Args:
        error: one of `ValidationError.errors()`.

    Examples:
        >>> in_words({"type": "greater_than", "ctx": {"gt": 0}, "msg": "Input should be greater than 0"})
        'a number greater than 0'
    """
    kind, context = error["type"], error.get("ctx", {})
    if kind in _ACCEPTED:
        return _ACCEPTED[kind]
    match kind:
        case "greater_than" | "less_than":
            return f"a number {kind.replace('_', ' ')} {next(iter(context.values()))}"
        case "greater_than_equal":
            return f"a number greater than or equal to {context['ge']}"
        case "less_than_equal":
            return f"a number less than or equal to {context['le']}"
        case "too_short":
            return f"a list of {context['min_length']} or more values"
        case "literal_error":
            return context["expected"]
        case "value_error":
            return str(context["error"])
    return error["msg"].removeprefix("Input should be ")


def _described(annotation: Any) -> str:
    """Return the description that a pydantic `Field` gives an annotation, "" without one."""
    if get_origin(annotation) is not Annotated:
        return ""
    return next((part.description for part in annotation.__metadata__ if isinstance(part, FieldInfo) and part.description), "")


def _resolved(function: Callable[..., Any], parameter: Parameter) -> Any:
    """Return a parameter's annotation as an object; `Any` without one, and where a name in it exists for type checkers only."""
    if parameter.annotation is Parameter.empty:
        return Any
    holder = types.SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    try:
        return get_type_hints(holder, getattr(function, "__globals__", {}), include_extras=True)[parameter.name]
    except NameError:
        return Any
