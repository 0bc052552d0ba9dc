"""A calculator: arithmetic on numbers, for machines where no sandbox can be had. Runs no code."""

from __future__ import annotations

import ast
import operator
import re
import time
from collections.abc import Callable

from tools.tool import ToolContext, ToolResult

LONGEST = 200
"""Characters of an expression."""


LARGEST = 1e15
"""Magnitude of any number on the way: below it, float64 tells whole numbers apart."""

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
"""Characters of an expression; the parser warns on the console about others."""


class CalculatorTool:
    """Adds, subtracts, multiplies and divides. Stateless."""

    name = "calculator"
    description = "Computes an arithmetic expression such as (3 + 4) * 2."

    def initial_state(self, context: ToolContext) -> None:
        """None: nothing is remembered."""
        return None

    def run(self, state: None, argument: str) -> tuple[None, ToolResult]:
        """The value of the expression, or what is wrong with it."""
        start = time.perf_counter()
        try:
            text, ok = _shown(_value(_expression(argument))), True
        except (ValueError, ZeroDivisionError) as error:
            text, ok = f"Cannot compute that: {error}", False
        return None, ToolResult(text, ok, time.perf_counter() - start)

    def close(self) -> None:
        """Nothing is open."""


def _expression(argument: str) -> ast.expr:
    if len(argument) > LONGEST:
        raise ValueError(f"an expression of {len(argument)} characters; at most {LONGEST}")
    if not _ALLOWED.fullmatch(argument):
        raise ValueError(NOT_ARITHMETIC)
    try:
        return ast.parse(" ".join(argument.split()), mode="eval").body
    except (SyntaxError, MemoryError) as error:  # the parser's own limit is a MemoryError
        raise ValueError("the expression is incomplete or badly nested") from error


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        value = float(node.value)  # type: ignore[arg-type]
    elif isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        value = _BINARY[type(node.op)](_value(node.left), _value(node.right))
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        value = _UNARY[type(node.op)](_value(node.operand))
    else:
        raise ValueError(NOT_ARITHMETIC)
    if abs(value) > LARGEST:
        raise ValueError("the number is too large")
    return value


def _shown(value: float) -> str:
    """Whole numbers exactly, others to twelve digits."""
    return str(int(value)) if value.is_integer() else f"{value:.12g}"
