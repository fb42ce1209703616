"""Constraints in the words of the grammar library; for the processes that may load it.

llguidance takes JSON schemas, regular expressions and context-free grammars, and makes masks over
any vocabulary. It bounds most of its work by itself, but deep chains of rules overflow its stack
and a nested repetition may take seconds: so a media worker, which can be killed, tries every
constraint first, and a process of the engine alone keeps the masks.
"""

import re

from llguidance import LLMatcher, LLTokenizer
from llguidance._lib import LLParserLimits
from llguidance.gbnf_to_lark import any_to_lark

from lightvl.types import JSON_OPTIONS, Constraint

LIMITS = LLParserLimits(
    initial_lexer_fuel=500_000,
    step_lexer_fuel=50_000,
    step_max_items=20_000,
    max_lexer_states=20_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)

BYTES = LLTokenizer("byte")
"""A vocabulary of single bytes."""

_PLACE = re.compile(r"^(?:at )?(\d+)\((\d+)\)")
_KEYWORDS = re.compile(r"^Unimplemented keys: \[(.*)\]")
_TOO_LARGE = re.compile(r"too (large|big|complex|deep|many)|fuel|limit", re.IGNORECASE)


class BadConstraint(ValueError):
    """A constraint can't be used; the message is a clause for the client, without a subject."""


def library_text(constraint: Constraint) -> str:
    """Returns a constraint as the library takes it.

    Raises:
        BadConstraint: It is malformed.
    """
    text = constraint.text
    if constraint.kind == "json":
        try:
            return LLMatcher.grammar_from_json_schema(text, overrides=JSON_OPTIONS)  # type: ignore[arg-type]
        except ValueError:
            raise BadConstraint("not a JSON schema") from None
    if constraint.kind == "regex":
        return LLMatcher.grammar_from_regex(text)
    if constraint.kind == "lark":
        return LLMatcher.grammar_from_lark(text)
    try:
        return LLMatcher.grammar_from_lark(any_to_lark(text))
    except Exception:  # that is what it raises
        raise BadConstraint("not a grammar in GBNF or Lark notation") from None


def check(constraint: Constraint) -> None:
    """Compiles a constraint over the vocabulary of bytes; may take long or overflow the stack.

    Raises:
        BadConstraint: It is malformed, too large, or asks for what the library lacks.
    """
    matcher = LLMatcher(BYTES, library_text(constraint), log_level=0, limits=LIMITS)
    if not matcher.is_error():
        matcher.compute_bitmask()
    if matcher.is_error():
        raise BadConstraint(told(constraint, matcher.get_error()))


def told(constraint: Constraint, error: str) -> str:
    """Returns what a client is told of the library's error."""
    if _TOO_LARGE.search(error):
        return "too large or too complex"
    if constraint.kind == "regex":
        return "not a regular expression that is supported (look-around and references are not)"
    if constraint.kind == "json":
        keywords = _KEYWORDS.match(error)
        if keywords:
            return f"unsupported keywords: {keywords[1]}"
        if error.startswith("Unsatisfiable"):
            return "no value satisfies this schema"
        if error.startswith("oneOf"):
            return "oneOf is supported where its schemas exclude each other, else use anyOf"
        return "not a JSON schema that is supported"
    place = _PLACE.match(error)
    where = f" (line {place[1]}, column {place[2]})" if place else ""
    return f"not a grammar that is supported{where}"
