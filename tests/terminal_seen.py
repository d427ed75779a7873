"""What somebody sees who sits at a terminal."""

from __future__ import annotations

import re

_SEQUENCE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|(\r|\n)|([^\x1b\r\n]+)")


class Seen:
    """What a terminal shows of what was written to it: rows, without colours, and whether there is a cursor."""

    def __init__(self, written: str) -> None:
        self.rows: list[str] = [""]
        self.cursor_shown = True
        self.styles: set[str] = set()
        """The parameters of all colours and styles that were asked for."""
        self._row = self._column = 0
        for match in _SEQUENCE.finditer(written):
            parameters, command, control, printed = match.groups()
            if command:
                self._obey(parameters, command)
            elif control:
                self._move(control)
            else:
                self._print(printed)

    def _obey(self, parameters: str, command: str) -> None:
        if command == "A":
            self._row = max(self._row - int(parameters or 1), 0)
        elif command == "K" and parameters == "2":
            self.rows[self._row] = ""
        elif command in "hl" and parameters == "?25":
            self.cursor_shown = command == "h"
        elif command == "m":
            self.styles.update(parameters.split(";"))
        else:
            raise NotImplementedError(f"\\e[{parameters}{command}")

    def _move(self, control: str) -> None:
        self._column = 0
        if control == "\n":
            self._row += 1
            self.rows += [""] * (self._row + 1 - len(self.rows))

    def _print(self, text: str) -> None:
        row = self.rows[self._row].ljust(self._column)
        self.rows[self._row] = row[: self._column] + text + row[self._column + len(text) :]
        self._column += len(text)

    @property
    def text(self) -> str:
        """All rows."""
        return "\n".join(row.rstrip() for row in self.rows)
