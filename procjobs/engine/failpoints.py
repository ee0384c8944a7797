"""Points of the worker where a test makes it die or freeze; nothing happens unless PROCJOBS_FAILPOINT is set.

    PROCJOBS_FAILPOINT=after_claim:kill            SIGKILL to this process once a claim is committed
    PROCJOBS_FAILPOINT=before_finish:stop,after_finish:kill:0.01

Each is `name:action` or `name:action:probability`, separated by commas; the actions are kill and stop (SIGKILL,
SIGSTOP). Read once, when this module is imported.
"""

from __future__ import annotations

import os
import random
import signal
from typing import Final

from procjobs.errors import SettingsError

__all__ = ["NAMES", "failpoint", "parse"]

#: after_claim: jobs are ours and none was started. before_*, after_*: their end is about to be sent, is durable.
NAMES: Final = ("after_claim", "before_finish", "after_finish", "before_settle", "after_settle")
_ACTIONS: Final = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


def parse(text: str) -> dict[str, tuple[signal.Signals, float]]:
    """What the variable says: signal and probability by name. Raises SettingsError."""
    armed = {}
    for part in filter(None, text.split(",")):
        name, _, rest = part.strip().partition(":")
        action, _, probability = rest.partition(":")
        try:
            chance = float(probability or 1)
        except ValueError:
            chance = -1.0
        if name not in NAMES or action not in _ACTIONS or not 0 <= chance <= 1:
            raise SettingsError(
                f"PROCJOBS_FAILPOINT: {part!r} is none",
                hint=f"name:action or name:action:probability; {', '.join(NAMES)}; {', '.join(_ACTIONS)}",
            )
        armed[name] = (_ACTIONS[action], chance)
    return armed


_armed = parse(os.environ.get("PROCJOBS_FAILPOINT", ""))


def failpoint(name: str, happened: object = True) -> None:
    """Die or freeze here if the environment says so; `happened` false is as if the point was not reached."""
    if _armed and happened and name in _armed:
        number, chance = _armed[name]
        if random.random() < chance:
            os.kill(os.getpid(), number)
