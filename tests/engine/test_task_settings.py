"""Settings of tasks, as the Python side meets them."""

from __future__ import annotations

import pytest


def where(sql, job):
    return sql("select queue, priority from procjobs.jobs where id = %s", job)[0]


@pytest.mark.parametrize("how", ["defer", "batch"])
async def test_jobs_enqueued_in_python_follow_the_setting_unless_they_say_otherwise(app, sql, how):
    @app.task(name="work", queue="slow", priority=1)
    async def work():
        pass

    await app.register_tasks()
    sql("select procjobs.set_task('work', queue => 'fast', priority => 7)")

    async def defer(deferrer):
        if how == "batch":
            return (await deferrer.batch_defer_async({}))[0]
        return await deferrer.defer_async()

    assert where(sql, await defer(work)) == ("fast", 7)
    assert where(sql, await defer(work.configure(queue="own", priority=2))) == ("own", 2)
    sql("select procjobs.reset_task('work')")
    assert where(sql, await defer(work)) == ("slow", 1)


async def test_a_paused_task_is_not_run_and_goes_on_when_resumed(app, working, sql, eventually):
    ran = []

    @app.task(name="work")
    async def work():
        ran.append("work")

    @app.task(name="other")
    async def other():
        ran.append("other")

    await app.register_tasks()
    sql("select procjobs.pause_task('work')")
    async with working():
        await work.defer_async()
        await other.defer_async()
        await eventually(lambda: ran == ["other"])
        await eventually(lambda: sql.one("select count(*) from procjobs.jobs where state = 'paused'") == 1)
        sql("select procjobs.resume_task('work')")
        await eventually(lambda: ran == ["other", "work"])
