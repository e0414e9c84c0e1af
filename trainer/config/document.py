"""Writes docs/configuration.md from the schema: `python -m trainer.config.document [--check]`."""

import sys
from collections.abc import Iterator
from typing import Any

from trainer.config.explain import first_comment, inline
from trainer.config.keys import Key, all_keys, leaves
from trainer.config.names import PACKAGE, group_files, group_names

PAGE = PACKAGE.parent / "docs" / "configuration.md"
"""The generated page."""

_HEAD = """<!-- Written by `python -m trainer.config.document` from trainer/config/schema.py and configs/. -->

# Configuration

Every key can be set on the command line as `KEY=VALUE`, in a recipe of your own (below), or through a group
as `GROUP=NAME`. `paceline config explain KEY` shows a key's value and who set it, `paceline config
show` all of them, and `paceline config diff A B` what differs between two runs. All of it is checked before
anything starts.
"""

_NOTES = """
## A recipe of your own

A file such as `my/recipe/birds.yaml`; the first line puts its keys at the top level:

```yaml
# @package _global_
defaults:
  - override /model: resnet50
  - override /optim: adamw

recipe: birds
epochs: 30
data:
  root: /images/birds
```

`paceline run --config-dir my recipe=birds` takes it, and so do `python -m trainer` and `paceline config show`.

## Good to know

- `global_batch_size` is what one optimizer step sees. Each worker takes its share, in pieces of at most
  `micro_batch_size`. What does not divide is split all the same and weighted exactly.
- `model.args.KEY=VALUE`, `data.args.KEY=VALUE` and `optim.args.KEY=VALUE` reach the constructor as keyword
  arguments.
- `data.name=NAME`, `model.name=NAME` and `optim.name=NAME` also choose the group's file of that name, or none
  where there is none, so that no argument of the default stays behind.
- Values with blanks, commas or `=` are quoted twice, for the shell and for Hydra: `"run.name='a=b'"`.
"""


def render() -> str:
    """The page."""
    return "\n".join([_HEAD, *_groups(), *_sections()]) + _NOTES


def main(arguments: list[str]) -> int:
    """Writes the page, or with `--check` returns 1 when it is stale."""
    text = render()
    if "--check" not in arguments:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{PAGE.name} is stale: run python -m trainer.config.document", file=sys.stderr)
    return 1


def _groups() -> Iterator[str]:
    yield "## Groups\n"
    yield "| choose with | what it is |"
    yield "|---|---|"
    for group in group_names():
        for name, file in group_files(group).items():
            yield f"| `{group}={name}` | {_cell(first_comment(file))} |"
    yield ""


def _sections() -> Iterator[str]:
    top = [key for path, key in leaves().items() if "." not in path]
    yield from _table("Top level", "", top)
    for path, section in all_keys().items():
        if section.section:
            own = [key for name, key in leaves().items() if name.rpartition(".")[0] == path]
            if own:
                yield from _table(f"`{path}`", section.doc, own)


def _table(title: str, doc: str, keys: list[Key]) -> Iterator[str]:
    yield f"## {title}\n"
    if doc:
        yield f"{doc}\n"
    yield "| key | takes | default | unit, range | meaning |"
    yield "|---|---|---|---|---|"
    for key in keys:
        bounds = ", ".join(part for part in (key.unit, key.range) if part)
        cells = (f"`{key.path}`", _cell(key.takes), f"`{_default(key.default)}`", bounds, _cell(key.doc))
        yield f"| {' | '.join(cells)} |"
    yield ""


def _default(value: Any) -> str:
    return _cell(inline(value))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
