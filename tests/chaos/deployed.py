"""Two releases of one application, for rolling deploys: the new one has a task that the old one does not know."""

from __future__ import annotations

from procrastinate import JobContext

import procjobs
from tests.chaos import victim

__all__ = ["new", "old"]

old = procjobs.App()
new = procjobs.App()
for release in (old, new):
    release.task(name="work", pass_context=True)(victim.work.func)


@new.task(name="new_work", pass_context=True)
async def new_work(context: JobContext, key: str, secret: str = "") -> None:
    await victim.work.func(context, key)
