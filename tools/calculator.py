"""A calculator for arithmetic, for machines without a sandbox. It runs no code."""

from __future__ import annotations

import ast
import operator
import re
import time
from collections.abc import Callable

from tools.tool import ToolContext, ToolResult

MAX_CHARACTERS = 200
"""Longest expression."""

MAX_MAGNITUDE = 1e15
"""Largest magnitude of any intermediate result; up to here float64 represents integers exactly."""

NOT_ARITHMETIC = "only numbers, + - * / // % and parentheses are allowed"

_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}

_UNARY: dict[type[ast.unaryop], Callable[[float], float]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}

_ALLOWED = re.compile(r"[0-9.eE_+*/%()\s-]*")
"""Characters of an expression. Checked first, because the parser warns about others."""


class CalculatorTool:
    """Adds, subtracts, multiplies and divides. Has no state."""

    name = "calculator"
    description = "Computes an arithmetic expression such as (3 + 4) * 2."

    def initial_state(self, context: ToolContext) -> None:
        """Return None: nothing is remembered."""
        return None

    def run(self, state: None, argument: str) -> tuple[None, ToolResult]:
        """Return the value of the expression, or what is wrong with it."""
        start = time.perf_counter()
        try:
            text, ok = _format(_evaluate(_parse(argument))), True
        except (ValueError, ZeroDivisionError) as error:
            text, ok = f"Cannot compute that: {error}", False
        return None, ToolResult(text, ok, time.perf_counter() - start)

    def close(self) -> None:
        """Do nothing: nothing is open."""


def _parse(argument: str) -> ast.expr:
    if len(argument) > MAX_CHARACTERS:
        raise ValueError(f"an expression of {len(argument)} characters; at most {MAX_CHARACTERS}")
    if not _ALLOWED.fullmatch(argument):
        raise ValueError(NOT_ARITHMETIC)
    try:
        return ast.parse(" ".join(argument.split()), mode="eval").body
    except (SyntaxError, MemoryError) as error:  # MemoryError: the parser's own limit on nesting
        raise ValueError("the expression is incomplete or badly nested") from error


def _evaluate(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        value = float(node.value)  # type: ignore[arg-type]
    elif isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        value = _BINARY[type(node.op)](_evaluate(node.left), _evaluate(node.right))
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        value = _UNARY[type(node.op)](_evaluate(node.operand))
    else:
        raise ValueError(NOT_ARITHMETIC)
    if abs(value) > MAX_MAGNITUDE:
        raise ValueError("the number is too large")
    return value


def _format(value: float) -> str:
    """Return an integer exactly, any other number to twelve digits."""
    return str(int(value)) if value.is_integer() else f"{value:.12g}"
