"""The parameters of a call in EC2's query protocol ("Making requests to the Amazon EC2 API")."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence

from bootagent.sandbox.ebs_model import Refusal


class Form:
    """The parameters of one call: ``Filter.1.Value.2`` and the like."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        self._fields = fields

    def text(self, name: str) -> str | None:
        """A parameter; None when it is not given."""
        return self._fields.get(name) or None

    def required(self, name: str) -> str:
        """A parameter that must be given. Raises Refusal."""
        found = self.text(name)
        if found is None:
            raise Refusal("MissingParameter", f"The request must contain the parameter {name}")
        return found

    def number(self, name: str) -> int | None:
        """A whole number. Raises Refusal."""
        found = self.text(name)
        if found is not None and not re.fullmatch(r"-?[0-9]+", found):
            raise Refusal("InvalidParameterValue", f"Invalid value '{found}' for {name}.")
        return int(found) if found else None

    def flag(self, name: str) -> bool:
        """A truth value; false when it is not given."""
        return (self.text(name) or "").lower() == "true"

    def has(self, prefix: str) -> bool:
        """Whether any parameter's name begins so."""
        return any(name.startswith(prefix) for name in self._fields)

    def words(self, name: str) -> list[str]:
        """A list of plain values."""
        return [form._fields[""] for form in self.items(name) if "" in form._fields]

    def items(self, name: str) -> Iterator[Form]:
        """A list of structures, each a form of its own."""
        found: dict[int, dict[str, str]] = {}
        for field, value in self._fields.items():
            match = re.fullmatch(re.escape(name) + r"\.([0-9]+)(?:\.(.+))?", field)
            if match:
                found.setdefault(int(match[1]), {})[match[2] or ""] = value
        for _, fields in sorted(found.items()):
            yield Form(fields)

    def tags(self, resource_type: str) -> dict[str, str]:
        """The tags of TagSpecification for one kind of resource."""
        return {
            tag.required("Key"): tag.text("Value") or ""
            for specification in self.items("TagSpecification")
            if specification.text("ResourceType") == resource_type
            for tag in specification.items("Tag")
        }


def passes(criterion: Form, tags: Mapping[str, str], fields: Mapping[str, Sequence[str]]) -> bool:
    """Whether a resource, with these tags and the values that filters can ask for, passes a Filter. Raises Refusal."""
    name = criterion.required("Name")
    values: Sequence[str]
    if name.startswith("tag:"):
        key = name.removeprefix("tag:")
        values = [tags[key]] if key in tags else []
    elif name == "tag-key":
        values = list(tags)
    elif name in fields:
        values = fields[name]
    else:
        raise Refusal("InvalidParameterValue", f"The filter '{name}' is invalid")
    return any(_matches(value, pattern) for pattern in criterion.words("Value") for value in values)


def _matches(value: str, pattern: str) -> bool:
    # Of fnmatch, EC2 knows * and ?, and a backslash that takes them literally.
    return fnmatch.fnmatchcase(value, re.sub(r"\\(.)", r"[\1]", pattern.replace("[", "[[]")))
