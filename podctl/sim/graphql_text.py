"""Reads GraphQL documents: operations of fields with arguments, variables filled in. No fragments, no directives."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TOKEN = re.compile(
    r"""[\s,]+ | \#[^\n]* | (?P<name>[_A-Za-z]\w*) | (?P<float>-?\d+(\.\d+)?([eE][+-]?\d+)|-?\d+\.\d+) | (?P<int>-?\d+)
    | (?P<text>"(?:[^"\\\n]|\\.)*") | (?P<mark>\.\.\.|[{}()\[\]:=!$|])""",
    re.VERBOSE,
)
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}


class GraphQlSyntaxError(ValueError):
    """The document can't be read."""


@dataclass(frozen=True)
class Field:
    """`alias: name(arguments) { fields }`."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    fields: tuple["Field", ...] = ()
    alias: str = ""

    @property
    def key(self) -> str:
        """Its name in the answer."""
        return self.alias or self.name


@dataclass(frozen=True)
class Operation:
    kind: str  # query, mutation
    fields: tuple[Field, ...]


def parse(document: str, variables: Mapping[str, Any] | None = None) -> Operation:
    """The first operation of a document. Raises GraphQlSyntaxError."""
    return _Reader(document, variables or {}).operation()


class _Reader:
    def __init__(self, document: str, variables: Mapping[str, Any]) -> None:
        self._tokens = _tokens(document)
        self._at = 0
        self._variables = dict(variables)

    def operation(self) -> Operation:
        kind = "query"
        if self._peek()[0] == "name":
            kind = self._next()[1]
            if kind not in ("query", "mutation"):
                raise GraphQlSyntaxError(f'Syntax Error: Unexpected Name "{kind}".')
            if self._peek()[0] == "name":
                self._next()
            if self._peek()[1] == "(":
                self._declarations()
        return Operation(kind, self._selection())

    def _declarations(self) -> None:
        """`($id: String! = "x")`: only the defaults matter here."""
        self._expect("(")
        while self._peek()[1] != ")":
            self._expect("$")
            name = self._name()
            self._expect(":")
            self._type()
            if self._peek()[1] == "=":
                self._next()
                self._variables.setdefault(name, self._value())
        self._expect(")")

    def _type(self) -> None:
        if self._peek()[1] == "[":
            self._next()
            self._type()
            self._expect("]")
        else:
            self._name()
        if self._peek()[1] == "!":
            self._next()

    def _selection(self) -> tuple[Field, ...]:
        self._expect("{")
        fields = []
        while self._peek()[1] != "}":
            name, alias = self._name(), ""
            if self._peek()[1] == ":":
                self._next()
                name, alias = self._name(), name
            arguments = self._members("(", ")") if self._peek()[1] == "(" else {}
            inner = self._selection() if self._peek()[1] == "{" else ()
            fields.append(Field(name, arguments, inner, alias))
        self._expect("}")
        return tuple(fields)

    def _members(self, opening: str, closing: str) -> dict[str, Any]:
        self._expect(opening)
        found = {}
        while self._peek()[1] != closing:
            name = self._name()
            self._expect(":")
            found[name] = self._value()
        self._expect(closing)
        return found

    def _value(self) -> Any:
        kind, text = self._peek()
        if text == "{":
            return self._members("{", "}")
        self._next()
        if text == "[":
            items = []
            while self._peek()[1] != "]":
                items.append(self._value())
            self._expect("]")
            return items
        if text == "$":
            return self._variables.get(self._name())
        if kind == "text":
            return re.sub(r"\\(u[0-9a-fA-F]{4}|.)", _unescaped, text[1:-1])
        if kind in ("int", "float"):
            return int(text) if kind == "int" else float(text)
        if kind == "name":
            return {"true": True, "false": False, "null": None}.get(text, text)
        raise GraphQlSyntaxError(f'Syntax Error: Unexpected "{text}".')

    def _name(self) -> str:
        kind, text = self._next()
        if kind != "name":
            raise GraphQlSyntaxError(f'Syntax Error: Expected Name, found "{text or "<EOF>"}".')
        return text

    def _expect(self, mark: str) -> None:
        _, text = self._next()
        if text != mark:
            raise GraphQlSyntaxError(f'Syntax Error: Expected "{mark}", found "{text or "<EOF>"}".')

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "")

    def _next(self) -> tuple[str, str]:
        token = self._peek()
        if token[0] == "end":
            raise GraphQlSyntaxError("Syntax Error: Unexpected <EOF>.")
        self._at += 1
        return token


def _tokens(document: str) -> list[tuple[str, str]]:
    found, at = [], 0
    while at < len(document):
        match = TOKEN.match(document, at)
        if match is None:
            raise GraphQlSyntaxError(f"Syntax Error: Unexpected character: {document[at]!r}.")
        at = match.end()
        if match.lastgroup:
            found.append((match.lastgroup, match.group(match.lastgroup)))
    return found


def _unescaped(match: re.Match[str]) -> str:
    code = match.group(1)
    return chr(int(code[1:], 16)) if len(code) == 5 else ESCAPES.get(code, code)
