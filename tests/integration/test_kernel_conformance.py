"""jupyter_kernel_test against kernel `enclave`, through the gateway."""

import unittest

import jupyter_kernel_test  # type: ignore[import-untyped]
import pytest

from tests.support.enclave_home import EnclaveHome


@pytest.mark.usefixtures("enclave")
class TestEnclaveKernel(jupyter_kernel_test.KernelTests):  # type: ignore[misc]
    """The common tests of all Jupyter kernels, with their limit of 0.1 s between iopub messages."""

    kernel_name = "enclave"
    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    code_page_something = "zip?"
    code_generate_error = "raise ValueError('no')"
    code_execute_result = [{"code": "1+2+3", "result": "6"}]  # noqa: RUF012 (the base's form)
    code_display_data = [  # noqa: RUF012
        {
            "code": "from IPython.display import HTML, display; display(HTML('<b>x</b>'))",
            "mime": "text/html",
        }
    ]
    code_history_pattern = "1?2*"
    supported_history_operations = ("tail", "search")
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"
    completion_samples = [{"text": "zi", "matches": {"zip"}}]  # noqa: RUF012
    complete_code_samples = ["1", "print('hello, world')", "def f(x):\n  return x*2\n\n\n"]  # noqa: RUF012
    incomplete_code_samples = ["print('''hello", "def f(x):\n  x*2"]  # noqa: RUF012
    invalid_code_samples = ["import = 7q"]  # noqa: RUF012


def test_the_common_tests_were_collected() -> None:
    names = unittest.TestLoader().getTestCaseNames(TestEnclaveKernel)
    assert len(names) >= 12


@pytest.fixture(autouse=True, scope="module")
def _environment(enclave: EnclaveHome) -> None:
    """The class starts its kernel before function fixtures apply."""
