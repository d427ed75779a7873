"""Questions to whoever sits at the terminal."""

from __future__ import annotations

import select
import signal
import socket
import sys

import click


def answer_to(question: str) -> str:
    """Ask on standard error, and return the line that is typed: in lower case, without what is blank around it.

    `input` would sleep on when Ctrl-C comes right before it reads; here it is seen whenever it comes.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    click.echo(question, err=True, nl=False)
    bell, hammer = socket.socketpair()
    with bell, hammer:
        hammer.settimeout(0)
        before = signal.set_wakeup_fd(hammer.fileno())
        try:
            while sys.stdin not in select.select([sys.stdin, bell], [], [])[0]:
                bell.recv(1)
        except KeyboardInterrupt:
            click.echo(err=True)
            raise
        finally:
            signal.set_wakeup_fd(before)
    return sys.stdin.readline().strip().lower()
