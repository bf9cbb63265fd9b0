"""An error as a failure that can be told: where it was, why, and what was said last."""

from __future__ import annotations

from collections.abc import Iterator

from bootagent.errors import AwsError, BootagentError, StepError
from bootagent.state import Failure


def failure_of(error: BaseException, app: str | None = None, phase: str = "read") -> Failure:
    """What went wrong, from an error and what caused it; ``phase`` is that of an error of no step."""
    chain = list(_chain(error))
    step = next((one for one in chain if isinstance(one, StepError)), None)
    call = next((one for one in chain if isinstance(one, AwsError)), None)
    said = step.cause if step else error
    if isinstance(error, BootagentError) and not isinstance(error, StepError):
        said = error  # it says more than what caused it
    return Failure(
        sentence=str(said),
        app=app,
        phase=(step.phase if step else None) or phase,
        step=step.step if step else None,
        tail=next((tail for one in chain if (tail := str(getattr(one, "tail", "")).strip())), ""),
        code=call.code if call else None,
        request_id=call.request_id if call else None,
        iam_action=call.iam_action if call else None,
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.cause if isinstance(error, StepError) else error.__cause__
