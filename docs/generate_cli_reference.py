"""Writes docs/reference/cli.md from the help texts of the command `durable`."""

from __future__ import annotations

import click
from durable_client._cli import cli
from durable_client._embedded import default_directory

from _reference import publish


def help_text(command: click.Command, name: str, parent: click.Context | None = None) -> str:
    # The width of the page, whatever the terminal; and no home directory of whoever runs this.
    context = command.make_context(name, [], parent=parent, resilient_parsing=True, terminal_width=110)
    return command.get_help(context).replace(str(default_directory()), "~/.local/share/durable")


def main() -> None:
    lines = [
        "# Command line reference",
        "",
        "Generated from the help texts by `docs/generate_cli_reference.py`; do not edit.",
        "",
    ]
    root = cli.make_context("durable", [], resilient_parsing=True, terminal_width=110)
    lines += ["## durable", "", "```text", help_text(cli, "durable"), "```", ""]
    for name, command in cli.commands.items():
        lines += [f"## durable {name}", "", "```text", help_text(command, name, root), "```", ""]
        if isinstance(command, click.Group):
            group = command.make_context(name, [], parent=root, resilient_parsing=True, terminal_width=110)
            for part, below in command.commands.items():
                lines += [f"### durable {name} {part}", "", "```text", help_text(below, part, group), "```", ""]
    publish("cli.md", "\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
