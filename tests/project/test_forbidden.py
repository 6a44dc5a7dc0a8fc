"""What the project's code never does: unpickle, or run what a file or a caller says.

The one place that reads pickles is a program of its own, which the guard starts with limits.
"""

import ast
from collections.abc import Iterator

import pytest

from tests.project.sources import modules

UNPICKLER = "hyprstream.lora.exchange.unpickle"
_MODULES = {  # what they read or exchange is, or may be, a pickle
    *("pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "multiprocessing", "zmq"),
}
_CALLS = {
    *("eval", "exec", "compile", "__import__"),
    *("torch.load", "torch.jit.load", "torch.hub.load", "numpy.load", "np.load"),
    *("jinja2.Environment", "jinja2.Template", "Environment", "Template"),
    *("yaml.load", "os.system", "os.popen"),
}
_KEYWORDS = {"trust_remote_code", "shell", "allow_pickle"}
_OURS = {"allow_pickle"}  # also the name of our own switch for the program above


def crimes(tree: ast.AST) -> Iterator[str]:
    """List what a module does of it."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (n.name for n in names if n.name.split(".")[0] in _MODULES)
            case ast.ImportFrom(module=str(name)) if name.split(".")[0] in _MODULES:
                yield name
            case ast.Call(func=function, keywords=keywords):
                if (called := ast.unparse(function)) in _CALLS:
                    yield called
                yield from _given(called, keywords)


def _given(called: str, keywords: list[ast.keyword]) -> Iterator[str]:
    for keyword in keywords:
        off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
        ours = keyword.arg in _OURS and called in {"ReadOptions", "Source", "AdapterSource"}
        if keyword.arg in _KEYWORDS and not off and not ours:
            yield f"{called}({keyword.arg}=...)"


def test_no_module_does_what_is_never_done():
    found = {name: sorted(crimes(tree)) for name, tree in modules()}
    assert {name: what for name, what in found.items() if what} == {UNPICKLER: ["torch.load"]}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from multiprocessing.connection import Client",
        "import zmq.asyncio",
        "torch.load(file)",
        "np.load(file, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=flag)",
        "jinja2.Template(text)",
        "Environment()",
        "eval(text)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_each_of_it_would_be_found(code):
    assert list(crimes(ast.parse(code)))
