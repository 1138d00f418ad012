import os
import signal

import pytest

from enclave_parent_gateway.interrupts import DeferredInterrupts


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_waits_for_the_check(signum: signal.Signals) -> None:
    before = signal.getsignal(signum)
    with DeferredInterrupts() as interrupts:
        interrupts.check()
        os.kill(os.getpid(), signum)
        done = "the step under way was finished"
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
        interrupts.check()
    assert done
    assert signal.getsignal(signum) is before


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with DeferredInterrupts() as interrupts:
            os.kill(os.getpid(), signal.SIGHUP)
            interrupts.check()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
