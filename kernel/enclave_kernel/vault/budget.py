"""The owner's limits on use, counted before each call. They end with the vault: nothing is kept."""

import time
from collections import deque

from enclave_kernel.trusted_clock import TrustedClock
from enclave_protocol.errors import EnclaveError
from enclave_protocol.manifest import Policy
from enclave_protocol.package_errors import PackageError

__all__ = ["BudgetExceededError", "CallBudget"]

_MINUTE_S = 60.0


class BudgetExceededError(EnclaveError):
    """The owner's policy allows no further call now."""


class CallBudget:
    """Counts the calls of one notebook to one package.

    Args:
        policy: The package's policy; 0 and "" mean no limit.
        clock: Time that neither the parent nor the package can turn.
    """

    def __init__(self, policy: Policy, clock: TrustedClock) -> None:
        self._policy = policy
        self._clock = clock
        self._calls = 0
        self._recent: deque[float] = deque()
        self._limited = bool(policy.max_calls or policy.calls_per_minute or policy.expires)

    def check_expiry(self) -> None:
        """Check the clock and count nothing, for what goes on after the call that was counted.

        Raises:
            BudgetExceededError: The package expired.
        """
        try:
            self._clock.check(self._policy.expires)
        except PackageError as error:
            raise BudgetExceededError(error.reason) from None

    def take(self) -> None:
        """Count one call.

        Raises:
            BudgetExceededError: The policy allows it no more, or not yet.
        """
        if not self._limited:
            return
        policy = self._policy
        self.check_expiry()
        if policy.max_calls and self._calls >= policy.max_calls:
            raise BudgetExceededError(
                f"the owner allows {policy.max_calls} calls each time the package is loaded, "
                "and they are used up"
            )
        now = time.monotonic()
        while self._recent and self._recent[0] <= now - _MINUTE_S:
            self._recent.popleft()
        if policy.calls_per_minute and len(self._recent) >= policy.calls_per_minute:
            wait = self._recent[0] + _MINUTE_S - now
            raise BudgetExceededError(
                f"the owner allows {policy.calls_per_minute} calls a minute: try again in "
                f"{wait:.0f} s"
            )
        self._calls += 1
        if policy.calls_per_minute:
            self._recent.append(now)
