"""Which names of a notebook its user may set as parameters.

Source: docs/spec/scripts.md, "Notebooks".
"""

import ast
from collections.abc import Collection

from enclave_protocol.manifest import did_you_mean
from enclave_protocol.notebook_parameters import NotebookParameterError

__all__ = ["check_parameter_names", "parameter_names"]


def parameter_names(source: str) -> frozenset[str]:
    """Return what the user may set of a notebook: names that its tagged cell assigns.

    Args:
        source: That cell's, as Python: what IPython adds to it is transformed.
    """
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError):
        return frozenset()
    names = set()
    for statement in statements:
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return frozenset(name for name in names if not name.startswith("_"))


def check_parameter_names(names: Collection[str], known: Collection[str]) -> None:
    """Check that the parameters are the notebook's.

    Any other name could be one the owner's code relies on, such as a limit or a function.

    Raises:
        NotebookParameterError: One is not.
    """
    for name in names:
        if name not in known:
            listed = ", ".join(sorted(known)) or "it has none"
            raise NotebookParameterError(
                f"its notebook has no parameter {name!r}{did_you_mean(name, known)}; "
                f"parameters: {listed}"
            )
