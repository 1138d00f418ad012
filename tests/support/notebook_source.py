"""Notebooks as an owner writes them."""

import nbformat
from nbformat import v4

__all__ = ["notebook_source", "outputs_of", "read_executed", "shown_text"]


def notebook_source(*cells: str, parameters: str | None = None) -> str:
    """Return a notebook's file: a markdown cell, the parameters if there are any, then `cells`."""
    made = [v4.new_markdown_cell("# The owner's notes: NOTES-CANARY")]  # type: ignore[no-untyped-call]
    if parameters is not None:
        tagged = v4.new_code_cell(parameters)  # type: ignore[no-untyped-call]
        tagged.metadata["tags"] = ["parameters"]
        made.append(tagged)
    made += [v4.new_code_cell(cell) for cell in cells]  # type: ignore[no-untyped-call]
    made[0].attachments = {"CANARY.png": {"image/png": "Q0FOQVJZ"}}
    for number, cell in enumerate(made):
        cell.id = f"CANARY-{number}"
        cell.metadata["owner"] = "METADATA-CANARY"
        cell.metadata.setdefault("tags", []).append("TAG-CANARY")
        cell.metadata["execution"] = {"shell.execute_reply": "TIME-CANARY"}
    for cell in made[1:]:
        # As saved after a run: what the owner saw stays with the owner.
        output = v4.new_output("stream", name="stdout", text="OLD-OUTPUT-CANARY")  # type: ignore[no-untyped-call]
        cell.outputs = [output]
    made.append(v4.new_raw_cell("RAW-CANARY"))  # type: ignore[no-untyped-call]
    metadata = {
        "authors": [{"name": "AUTHOR-CANARY"}],
        "kernelspec": {"name": "kernel-CANARY", "display_name": "CANARY", "language": "python"},
        "language_info": {"name": "python", "file_extension": ".CANARY"},
        "widgets": {"state": "CANARY"},
    }
    notebook = v4.new_notebook(cells=made, metadata=metadata)  # type: ignore[no-untyped-call]
    text: str = nbformat.writes(notebook)  # type: ignore[no-untyped-call]
    return text


def read_executed(text: str | bytes) -> nbformat.NotebookNode:
    """Return an executed notebook: valid, and without any source, metadata or attachment."""
    data = text if isinstance(text, str) else text.decode()
    assert "CANARY" not in data, data
    notebook: nbformat.NotebookNode = nbformat.reads(data, as_version=4)  # type: ignore[no-untyped-call]
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert (cell.cell_type, cell.source, cell.metadata) == ("code", "", {})
        for output in cell.outputs:
            assert output.get("metadata", {}) == {}
            assert set(output.get("data", {})) <= {"text/plain", "image/png"}
    return notebook


def outputs_of(notebook: nbformat.NotebookNode) -> list[list[dict[str, object]]]:
    """Return the outputs of each cell, as plain dictionaries."""
    return [[dict(output) for output in cell.outputs] for cell in notebook.cells]


def shown_text(notebook: nbformat.NotebookNode) -> list[str]:
    """Return the text of each cell: printed, displayed, results and errors."""
    return [
        "".join(
            output.get("text", "")
            or output.get("data", {}).get("text/plain", "")
            or "".join(output.get("traceback", []))
            for output in cell.outputs
        )
        for cell in notebook.cells
    ]
