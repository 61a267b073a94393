"""What a label's key and value may look like, and the sentences that say where one does not.

References:
    Kubernetes, "Labels and Selectors", syntax and character set.
"""

from __future__ import annotations

import json
import re

_NAME = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_VALUE = f"({_NAME})?"
_SUBDOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
_LONGEST_NAME = 63
_LONGEST_SUBDOMAIN = 253

# The two spaces after a comma are what every Kubernetes API prints.
_NAME_RULE = (
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an "
    "alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', "
    f"regex used for validation is '{_NAME}')"
)
_VALUE_RULE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or "
    "'.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',"
    f"  or '12345', regex used for validation is '{_VALUE}')"
)
_SUBDOMAIN_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or "
    "'.', and must start and end with an alphanumeric character (e.g. 'example.com', "
    f"regex used for validation is '{_SUBDOMAIN}')"
)


def key_problems(key: str) -> tuple[str, ...]:
    """Return what is wrong with a label's key, ``[subdomain/]name``; empty where nothing is."""
    *prefixes, name = key.split("/")
    if len(prefixes) > 1:
        rule = f"a qualified name {_NAME_RULE}"
        return (
            f"{rule} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
        )
    problems = []
    for prefix in prefixes:
        if prefix == "":
            problems.append("prefix part must be non-empty")
            continue
        if len(prefix.encode()) > _LONGEST_SUBDOMAIN:
            problems.append(f"prefix part must be no more than {_LONGEST_SUBDOMAIN} bytes")
        if not re.fullmatch(_SUBDOMAIN, prefix):
            problems.append(f"prefix part {_SUBDOMAIN_RULE}")
    if name == "":
        problems.append("name part must be non-empty")
    elif len(name.encode()) > _LONGEST_NAME:
        problems.append(f"name part must be no more than {_LONGEST_NAME} bytes")
    if not re.fullmatch(_NAME, name):
        problems.append(f"name part {_NAME_RULE}")
    return tuple(problems)


def value_problems(value: str) -> tuple[str, ...]:
    """Return what is wrong with a label's value; empty where nothing is."""
    problems = []
    if len(value.encode()) > _LONGEST_NAME:
        problems.append(f"must be no more than {_LONGEST_NAME} bytes")
    if not re.fullmatch(_VALUE, value):
        problems.append(_VALUE_RULE)
    return tuple(problems)


def quoted(text: str) -> str:
    """Return the text in double quotes, with escapes."""
    return json.dumps(text, ensure_ascii=False)
