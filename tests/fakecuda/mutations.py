"""Mutations of the project's CUDA code: each leaves out one wait, event, copy or `record_stream`.

They are found in the source, so that a new wait has its mutation from the start. Work on another stream than intended
(`with torch.cuda.stream(…)` left out) is slower and not wrong, so it is none.
"""

import ast
import inspect
import textwrap
from typing import NamedTuple

from prompted_clip import graphs, transfers

MODULES = (graphs, transfers)
STATEMENTS = {"wait_event", "wait_stream", "record_stream", "synchronize", "record"}
"""Calls that are left out."""
COPIES = {"clone"}
"""Calls that are replaced by the tensor that they copy."""
EVENTS = {"record_event"}
"""Calls that are replaced by an event that was never recorded."""


class Mutation(NamedTuple):
    """One change of one function's source.

    Args:
        module: where the function is.
        function: its qualified name.
        node: which of the function's calls is left out, counted in the order of `ast.walk`.
        text: that call.
    """

    module: object
    function: str
    node: int
    text: str

    def __str__(self):
        return f"{self.module.__name__.split('.')[-1]}.{self.function} without {self.text}"

    def code(self):
        """The function, and its code without the call."""
        function = self.module
        for name in self.function.split("."):
            function = getattr(function, name)
        function = inspect.unwrap(function)
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        left_out = list(ast.walk(tree))[self.node]
        changed = ast.fix_missing_locations(Without(left_out).visit(tree))
        definition = changed.body[0]
        definition.decorator_list = []
        namespace = {}
        exec(compile(changed, self.module.__file__, "exec"), vars(self.module), namespace)  # noqa: S102 - our own source
        return function, namespace[definition.name].__code__


class Without(ast.NodeTransformer):
    """Leaves out one call."""

    def __init__(self, call):
        self._call = call

    def visit_Expr(self, node):
        return ast.Pass() if node.value is self._call else self.generic_visit(node)

    def visit_Call(self, node):
        if node is not self._call:
            return self.generic_visit(node)
        if node.func.attr in EVENTS:
            return ast.parse("torch.cuda.Event()", mode="eval").body
        return node.func.value  # `tensor.clone()` becomes `tensor`


def all_mutations():
    """One for every such call in the modules."""
    return [
        Mutation(module, function, index, ast.unparse(node))
        for module in MODULES
        for function, source in _functions(module)
        for index, node in enumerate(ast.walk(ast.parse(textwrap.dedent(source))))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in STATEMENTS | COPIES | EVENTS
    ]


def _functions(module):
    """Names and sources of a module's functions and methods."""
    for name, value in vars(module).items():
        if getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value):
            yield name, inspect.getsource(value)
        elif inspect.isclass(value):
            for method, function in vars(value).items():
                if inspect.isfunction(inspect.unwrap(function)) and hasattr(function, "__code__"):
                    yield f"{name}.{method}", inspect.getsource(inspect.unwrap(function))
