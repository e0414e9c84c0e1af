"""What is nobody else's business: which names mean secrets, and texts and values without them.

Standard library only, for the launcher.
"""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "***"
"""Stands in the place of a secret whose variable is not known."""

_SHORTEST = 8

# Words that say enough wherever they stand in a name, or at its end.
_ANYWHERE = r"SECRET|PASSWORD|PASSWD|CREDENTIAL|API[_-]?KEY|ACCESS[_-]?KEY|PRIVATE[_-]?KEY|CONNECTION_STRING"
_KEYS = re.compile(rf"{_ANYWHERE}|(^|[_.-])(TOKEN|PAT|PASSPHRASE)$", re.IGNORECASE)
# Variables hold secrets under names that in a configuration would mean something else: a sort key, a pass.
_VARIABLES = re.compile(rf"{_KEYS.pattern}|(^|_)(KEY|PASS|CREDS?)$|_(PWD|AUTH)$", re.IGNORECASE)
_LOGIN = re.compile(r"(://[^/\s:@]*:)[^/\s@]+@")
# A name alone, or with the password that GitHub's documents give to whoever has none, is more often a token than a
# name, where git and package indices are asked over HTTP.
_TOKEN_LOGIN = re.compile(r"(\bhttps?://)[^/\s:@]+(:|:x-oauth-basic)?@")
_REFERENCE = re.compile(r"(\$[A-Za-z_]\w*|\$\{[A-Za-z_]\w*\})")
_ASSIGNED = re.compile(r"(?P<name>[A-Za-z_][\w.-]*)(?P<sign>\s*[=:]\s*)(?P<value>'[^']*'|\"[^\"]*\"|[^\s,{}\[\]]+)")


def is_secret(name: str) -> bool:
    """Whether an environment variable of this name holds a secret."""
    return _VARIABLES.search(name) is not None


def is_secret_key(name: str) -> bool:
    """Whether a configuration key or an option of this name holds a secret."""
    return _KEYS.search(name) is not None


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Replaces the values of secret environment variables by their names, and passwords in addresses by stars."""
    for name, value in (os.environ if environment is None else environment).items():
        # A shorter value is no secret, and would be found all over the text.
        if is_secret(name) and len(value) >= _SHORTEST:
            text = _named(text, value, name)
    return _LOGIN.sub(rf"\1{HIDDEN}@", _TOKEN_LOGIN.sub(rf"\1{HIDDEN}@", text))


def redact_words(words: Sequence[str], environment: Mapping[str, str] | None = None) -> list[str]:
    """A command line without secrets: `data.args={token: abc}`, `--api-key abc`, and what `redact` finds."""
    shown: list[str] = []
    for word in (redact(word, environment) for word in words):
        option = shown[-1] if shown else ""
        if option.startswith("-") and "=" not in option and is_secret_key(option.lstrip("-")) and word[:1] != "-":
            word = word if word.startswith("$") else HIDDEN
        shown.append(_ASSIGNED.sub(_without_value, word))
    return shown


def pasted(words: Sequence[str]) -> str:
    """What `redact_words` gave as a command line to be typed: the shell puts the secrets in again that it knows."""
    return " ".join("".join(map(_quoted, _REFERENCE.split(word))) or "''" for word in words)


def redact_values(values: Any, environment: Mapping[str, str] | None = None) -> Any:
    """Nested dicts and lists without secrets: texts under keys that mean one, and what `redact` finds."""
    if isinstance(values, dict):
        return {
            key: HIDDEN
            if isinstance(value, str) and is_secret_key(str(key)) and redact(value, environment) == value
            else redact_values(value, environment)
            for key, value in values.items()
        }
    if isinstance(values, list):
        return [redact_values(value, environment) for value in values]
    return redact(values, environment) if isinstance(values, str) else values


def _without_value(match: "re.Match[str]") -> str:
    name, sign, value = match["name"], match["sign"], match["value"]
    if not is_secret_key(name) or value.startswith("$"):
        # What stands behind the sign may itself be an assignment: data.args={token: abc}.
        return f"{name}{sign}{_ASSIGNED.sub(_without_value, value)}"
    return f"{name}{sign}{HIDDEN}"


def _named(text: str, value: str, name: str) -> str:
    """A text with a variable's name in place of its value, so that a shell reads it as that name."""
    first, *others = text.split(value)
    return first + "".join(
        f"${{{name}}}{part}" if part[:1].isalnum() or part[:1] == "_" else f"${name}{part}" for part in others
    )


def _quoted(part: str) -> str:
    if _REFERENCE.fullmatch(part) and is_secret(part.strip("${}")):
        return f'"{part}"'
    return shlex.quote(part) if part else ""
