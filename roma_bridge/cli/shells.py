"""Completion of the command line in shells."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

PROGRAM = "ptc-enqueue"
SHELLS = ("bash", "zsh", "fish")

_VARIABLE = "_PTC_ENQUEUE_COMPLETE"
"""Set by the script when it asks for completions; the name is click's."""

_USE = {
    "bash": f'# In ~/.bashrc: eval "$({PROGRAM} --completion bash)"',
    "zsh": f'# In ~/.zshrc, after compinit: eval "$({PROGRAM} --completion zsh)"',
    "fish": f"# Once: {PROGRAM} --completion fish > ~/.config/fish/completions/{PROGRAM}.fish",
}


def script(program: click.Command, shell: str) -> str:
    """Write the script that makes a shell complete the program."""
    made = get_completion_class(shell)
    assert made is not None, shell  # noqa: S101 click knows all of SHELLS
    completion = made(program, {}, PROGRAM, _VARIABLE)
    return f"{_USE[shell]}\n{completion.source_template % completion.source_vars()}"


def completed_plans(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a plan: a file, and where the first word stands a command too."""
    first = not ctx.params.get("plans")
    root = ctx.find_root().command
    commands = (
        [name for name, c in root.commands.items() if not c.hidden] if isinstance(root, click.Group) else []
    )
    matching = [name for name in commands if first and name.startswith(incomplete)]
    if not matching:
        return [CompletionItem(incomplete, type="file")]
    here = [] if incomplete else sorted(str(path) for path in Path().glob("*.json*"))
    return [CompletionItem(name) for name in (*matching, *here)]
