"""Chat templates as trees: the tag of transformers, and hooks where Jinja has none.

The hooks are filters, which `template_sandbox` defines. Their names begin with a blank, so
that no filter written in a template has one of them by accident.
"""

from collections.abc import Sequence

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.visitor import NodeTransformer
from typing_extensions import override


def instrument(tree: nodes.Template) -> nodes.Template:
    """Pass loops, literals, comparisons, tests, slices and joined texts through the hooks."""
    hooked = _Instrument().visit(tree)
    assert isinstance(hooked, nodes.Template)
    return hooked


class _Instrument(NodeTransformer):
    """Wraps the parts of a template that Jinja has no hooks for."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802  the names are Jinja's
        self.generic_visit(node)
        node.iter = _wrapped(" each", node.iter)
        return node

    def visit_Call(self, node: nodes.Call | nodes.Filter | nodes.Test) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if node.dyn_args is not None:
            node.dyn_args = _wrapped(" each", node.dyn_args)
        return node

    visit_Filter = visit_Call  # noqa: N815

    def visit_Test(self, node: nodes.Test) -> nodes.Node:  # noqa: N802
        self.visit_Call(node)
        node.node = _wrapped(" tick", node.node)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = _wrapped(" tick", node.expr)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _wrapped(" concat", nodes.List(node.nodes, lineno=node.lineno))

    def visit_List(self, node: nodes.Literal) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _wrapped(" made", node)

    visit_Dict = visit_List  # noqa: N815

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _wrapped(" made", node) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        none = nodes.Const(None, lineno=node.lineno)
        bounds = [bound or none for bound in (node.arg.start, node.arg.stop, node.arg.step)]
        return _wrapped(" slice", node.node, bounds)

    def visit_ScopedEvalContextModifier(self, node: nodes.Node) -> nodes.Node:  # noqa: N802
        raise SecurityError(f"line {node.lineno}: autoescape is not for chat templates")


def _wrapped(name: str, node: nodes.Node, args: Sequence[nodes.Expr] = ()) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


class Generation(Extension):
    """`{% generation %}`, with which transformers marks the tokens to train on."""

    tags = {"generation"}  # noqa: RUF012  declared so by Jinja

    @override
    def parse(self, parser: Parser) -> nodes.Node:
        """Render the body; it has variables of its own, as in transformers."""
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)
