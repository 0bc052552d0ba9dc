"""The language of the code: names that say nothing, and docstrings that begin as questions."""

import ast
import re

import pytest

from tests.conftest import ROOT
from tests.test_architecture import FILES, name_of, parsed

EMPTY_NAMES = {"found", "told", "said"}
"""Past participles that name no thing; use the noun: rows, matches, message, usage."""
OPENINGS = re.compile(r"(What|Whether|Nothing|Of)\b")
"""Docstrings open with an imperative verb or a noun phrase; a predicate with "True if"."""
SOURCES = [*FILES, *sorted((ROOT / "scripts").glob("*.py"))]


def empty_names(tree):
    """Lines that assign an empty name or take it as a parameter."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            if node.id in EMPTY_NAMES:
                yield node.lineno
        elif isinstance(node, ast.arg) and node.arg in EMPTY_NAMES:
            yield node.lineno


def questions(tree):
    """Lines of docstrings, those of attributes included, that open as a question does."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():  # a lambda has an expression
            text = getattr(getattr(statement, "value", None), "value", None)
            is_docstring = isinstance(statement, ast.Expr) and isinstance(text, str)
            if is_docstring and OPENINGS.match(text):
                yield statement.lineno


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_names_are_nouns(path):
    assert not list(empty_names(parsed(path))), f"{name_of(path)}: name the thing it is"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_docstrings_open_with_a_verb_or_a_noun(path):
    assert not list(questions(parsed(path))), f"{name_of(path)}: say what it does or is"


def test_the_rules_see_what_they_forbid():
    code = 'def f(told):\n    """Whether."""\n    found = 1\n    for said in ():\n        pass\n'
    assert sorted(empty_names(ast.parse(code))) == [1, 3, 4]
    assert list(questions(ast.parse(code))) == [2]
    fields = 'class A:\n    """A thing."""\n    x: int\n    """Of it."""\n'
    assert list(questions(ast.parse(fields))) == [4]
    assert not list(questions(ast.parse('"""Official scores."""\nfounded = 1')))
