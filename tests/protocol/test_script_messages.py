import msgspec
import pytest

from enclave_protocol.script_messages import (
    MAX_IMAGE_SIDE,
    MAX_OUTPUT_CHARS,
    CellEnded,
    CellOutput,
    RunScript,
    ScriptEnded,
    check_workspace_path,
    decode_opening_message,
    decode_script_reply,
    workspace_path,
)
from enclave_protocol.vault_messages import Text, VaultMessageError


@pytest.mark.parametrize(
    ("argument", "found"),
    [
        ("/data/x.csv", ("", "data/x.csv", "")),
        ("/data/", ("", "data", "/")),
        ("//data/./sub//", ("", "data/sub", "/")),
        ("--input=/data", ("--input=", "data", "")),
        ("-o=/out/", ("-o=", "out", "/")),
        ("model.h5", None),
        ("data/x", None),
        ("--input=data", None),
        ("a=/b", None),
        ("/", None),
        ("/data/../etc", None),
        ("--input=/../x", None),
        ("", None),
        ("-", None),
    ],
)
def test_which_arguments_name_the_workspace(
    argument: str, found: tuple[str, str, str] | None
) -> None:
    assert workspace_path(argument) == found


@pytest.mark.parametrize("path", ["/a", "a/../b", "a//b", "", ".", "a\x00b", "a\\b", "x" * 300])
def test_paths_that_are_none(path: str) -> None:
    with pytest.raises(VaultMessageError):
        check_workspace_path(path)


def test_messages_of_one_side_are_refused_from_the_other() -> None:
    request = RunScript(1, "run", ("-o", "/output/"), ("output",), ("output",))
    encoded = msgspec.msgpack.encode(request)
    assert decode_opening_message(encoded) == request
    with pytest.raises(VaultMessageError):
        decode_script_reply(encoded)
    ended = msgspec.msgpack.encode(ScriptEnded(3, "ValueError", None, "0" * 16))
    assert decode_script_reply(ended) == ScriptEnded(3, "ValueError", None, "0" * 16)
    with pytest.raises(VaultMessageError):
        decode_opening_message(ended)
    with pytest.raises(VaultMessageError):
        decode_opening_message(msgspec.msgpack.encode(Text(1, "x")))


@pytest.mark.parametrize(
    "message",
    [
        RunScript(0, "run", (), (), ()),
        RunScript(1, "", (), (), ()),
        RunScript(1, "run", ("x",) * 1025, (), ()),
        RunScript(1, "run", ("x" * 8193,), (), ()),
        ScriptEnded(256),
        ScriptEnded(-1),
        ScriptEnded(1, "ValueError", "x" * 501, "0" * 16),
        ScriptEnded(1, "ValueError", None, "no incident"),
    ],
)
def test_values_out_of_range(message: RunScript | ScriptEnded) -> None:
    encoded = msgspec.msgpack.encode(message)
    decode = decode_opening_message if isinstance(message, RunScript) else decode_script_reply
    with pytest.raises(VaultMessageError):
        decode(encoded)


def test_a_cells_outputs() -> None:
    for message in (
        CellOutput("stream", "text\n"),
        CellOutput("execute_result", "<Figure>", (640, 480, 4)),
        CellOutput("display_data", "é" * MAX_OUTPUT_CHARS),
        CellEnded(3),
        CellEnded(None),
    ):
        encoded = msgspec.msgpack.encode(message)
        assert decode_script_reply(encoded) == message
        with pytest.raises(VaultMessageError):
            decode_opening_message(encoded)


@pytest.mark.parametrize(
    "fields",
    [
        [37, "update_display_data", "", None],
        [37, "stream", "x" * (MAX_OUTPUT_CHARS + 1), None],
        [37, "stream", b"bytes", None],
        [37, "display_data", "", [0, 1, 3]],
        [37, "display_data", "", [1, MAX_IMAGE_SIDE + 1, 3]],
        [37, "display_data", "", [1, 1, 2]],
        [37, "display_data", "", [1, 1]],
        [37, "display_data", "", None, {"text/html": "<script>"}],
        [38, -1],
        [38, 2**31],
        [38, "1"],
    ],
)
def test_outputs_that_are_none(fields: list[object]) -> None:
    with pytest.raises(VaultMessageError):
        decode_script_reply(msgspec.msgpack.encode(fields))
