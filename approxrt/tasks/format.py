"""Describe data files that are laid out otherwise than their task's own."""

from __future__ import annotations

from dataclasses import dataclass

from approxrt.errors import InputError

_NAMED = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " "}


@dataclass(frozen=True)
class DataFormat:
    """Say how .csv, .tsv and .jsonl files are read; None leaves a point to the file's suffix and the task.

    delimiter     the character between cells, or tab, comma, semicolon, pipe; by suffix: a comma or a tab
    text_column   name of the column of texts
    pair_column   name of the column of second texts
    label_column  name of the column of labels
    regression    True: labels are scores; False: they are classes, even where some are numbers with a fraction
    quotes        True: a cell in quotation marks is quoted as in csv; False: quotation marks belong to the text.
                  By default they quote, but in the .tsv files of GLUE's tasks, which quote nothing
    """

    delimiter: str | None = None
    text_column: str | None = None
    pair_column: str | None = None
    label_column: str | None = None
    regression: bool | None = None
    quotes: bool | None = None

    def __post_init__(self) -> None:
        if self.delimiter is not None:
            character = _NAMED.get(self.delimiter.lower(), self.delimiter)
            if len(character) != 1 or character in '"\r\n':
                raise InputError(
                    f"delimiter is {self.delimiter!r}; it must be one character other than a quotation mark or a line "
                    f"end, or one of {', '.join(name for name in _NAMED if name.isalpha())}"
                )
            object.__setattr__(self, "delimiter", character)
        names = {"text_column": self.text_column, "pair_column": self.pair_column, "label_column": self.label_column}
        seen: dict[str, str] = {}
        for option, name in names.items():
            if name is None:
                continue
            if not name.strip():
                raise InputError(f"{option} is {name!r}; give the name of a column")
            if name in seen:
                raise InputError(f"{seen[name]} and {option} are both {name!r}; each needs a column of its own")
            seen[name] = option

    @property
    def names_columns(self) -> bool:
        """Return whether any column is named, so that a file must have a header."""
        return (self.text_column, self.pair_column, self.label_column) != (None, None, None)


PLAIN = DataFormat()


def check_format(value: object) -> None:
    """Raise InputError for what is no DataFormat."""
    if not isinstance(value, DataFormat):
        raise InputError(f"data_format is {value!r:.80}; it must be an approxrt.tasks.format.DataFormat")
