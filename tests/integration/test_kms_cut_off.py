"""KMS goes away in the middle of a release: a typed error, no key, and the next release works."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from enclave_kernel.key_release_errors import KmsUnreachableError
from tests.support.local_services import LocalCloudProcess
from tests.support.released_package import Release, running_release

_CUTS = {"at once": 0, "in the status line": 5, "in the headers": 60, "in the body": 400}
_ATTEMPTS = 3


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    with running_release(tmp_path_factory.mktemp("cut")) as running:
        yield running


@contextmanager
def cutting(cloud: LocalCloudProcess, after: int, times: int) -> Iterator[tuple[str, list[int]]]:
    """Yield the address of a relay that cuts the first `times` answers after `after` bytes."""
    target = urlsplit(cloud.endpoint_url)
    given: list[int] = []

    def serve(client: socket.socket) -> None:
        address = (target.hostname or "", target.port or 0)
        with client, closing(socket.create_connection(address)) as server:
            left = after if len(given) < times else 1 << 20
            given.append(0)
            number = len(given) - 1
            asked = threading.Thread(target=pump, args=(client, server))
            asked.start()
            while left > 0 and (data := server.recv(min(left, 4096))):
                client.sendall(data)
                given[number] += len(data)
                left -= len(data)
            for end in (client, server):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            asked.join()

    def pump(source: socket.socket, destination: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(4096):
                destination.sendall(data)

    def accept(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                serve(listener.accept()[0])

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, args=(listener,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", given
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("after", _CUTS.values(), ids=_CUTS)
def test_every_answer_is_cut(release: Release, after: int) -> None:
    file = release.encrypt(release.release_key(), "cut")
    with cutting(release.cloud, after, times=_ATTEMPTS) as (url, given):
        through = replace(release, cloud=replace(release.cloud, endpoint_url=url))
        with pytest.raises(KmsUnreachableError) as caught:
            through.contents(file)
        assert "\n" not in str(caught.value) and url in str(caught.value)
        # A connection that ends before there is an answer is tried again.
        assert given == [after] * (_ATTEMPTS if after < 10 else 1)
    assert release.contents(file) == b"x = 1\n"  # KMS is back


def test_one_answer_is_cut_and_the_next_is_not(release: Release) -> None:
    file = release.encrypt(release.release_key(), "once")
    with cutting(release.cloud, 0, times=1) as (url, given):
        through = replace(release, cloud=replace(release.cloud, endpoint_url=url))
        assert through.contents(file) == b"x = 1\n"
    assert len(given) == 2
