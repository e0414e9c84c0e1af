"""`paceline config`: what the configuration is, what its keys mean, and what differs between two."""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.arguments import Parser, check_overrides, did_you_mean, typed
from trainer.errors import ConfigError

HELP = """\
paceline config show [KEY=VALUE ...]         every value, and who set it
paceline config show RUN                     the configuration of a run
paceline config explain KEY [KEY=VALUE ...]  value, type, range, meaning, origin
paceline config diff A B                     of run directories or config files
paceline config GROUP                        what recipe, data, model ... offer

  --json            for programs
  -q                names alone; of explain the value alone
  --config-dir DIR  more configuration groups"""

TOPICS = ("show", "explain", "diff")
"""What it does besides listing keys."""


def main(arguments: Sequence[str]) -> int:
    """Answers one question about the configuration; returns the exit code."""
    parser = Parser("config", HELP, flags=["--json", "-q"], values=["--config-dir"], overrides=True)
    options = parser.read(arguments)
    if options.help:
        return parser.print_text()

    from trainer.config import explain

    topic, *words = options.words or [""]
    directory, as_json = Path(options.config_dir) if options.config_dir else None, options.json or options.q
    if topic == "show":
        if len(words) == 1 and any((folder / words[0]).is_dir() for folder in (Path(), Path("runs"))):
            text = explain.recorded(words[0], as_json)
        else:
            check_overrides(words)
            text = explain.show(words, as_json, config_dir=directory)
    elif topic == "explain":
        if not words:
            raise ConfigError("explain needs a key", typed("config", "explain", "optim.lr"))
        text = explain.explain(words[0], words[1:], as_json, config_dir=directory)
    elif topic == "diff":
        if len(words) != 2:
            raise ConfigError(f"diff needs two configurations, not {len(words)}", typed("config", "diff", "A", "B"))
        text = explain.diff(words[0], words[1], as_json, config_dir=directory)
    elif words:
        near = next(iter(difflib.get_close_matches(topic, TOPICS, n=1)), None)
        raise ConfigError(
            f"unknown topic {topic!r}{did_you_mean(topic, TOPICS)}",
            f"{typed('config', '--help')} lists them",
            instead=([topic], [near]) if near else None,
        )
    else:
        text = explain.listing(topic, as_json, config_dir=directory)
    print("\n".join(_names(json.loads(text))) if options.q else text)
    return 0


def _names(answer: Mapping[str, Any]) -> Iterator[str]:
    """The names in an answer for programs, a line each; of one key its value."""
    from trainer.config.explain import inline
    from trainer.config.keys import leaves

    if "key" in answer:
        yield inline(answer["value"])
    yield from leaves() if "config" in answer else ()
    yield from (f"{group}={name}" for group, names in answer.get("groups", {}).items() for name in names)
    yield from (row["key"] for row in [*answer.get("keys", []), *answer.get("differences", [])])
