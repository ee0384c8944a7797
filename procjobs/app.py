"""The composition root: an application's tasks, its connection, and what its tasks share."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Generator, Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import procrastinate
from procrastinate import blueprints, builtin_tasks, jobs, schema, utils
from procrastinate.connector import BaseAsyncConnector, BaseConnector
from procrastinate.tasks import Task
from psycopg.conninfo import make_conninfo

from procjobs.db import Database, Target
from procjobs.engine.batches import Batch, Callback, open_batch
from procjobs.engine.connector import quicken
from procjobs.engine.enqueue import DeferredTask, Deferrer, Enqueuer, adopt, own_options, quietly
from procjobs.engine.outside import Effect, begin_effect, report_outcome, through_breaker
from procjobs.engine.periodic import Cron
from procjobs.engine.results import Outcome, Results
from procjobs.engine.retry import seconds_of
from procjobs.engine.scheduler import Scheduler
from procjobs.engine.schedules import Schedules, declare
from procjobs.engine.supervision import stop_signals
from procjobs.engine.unique import JobId, Unique
from procjobs.engine.worker import Worker
from procjobs.errors import SettingsError
from procjobs.packs.digests import Digests
from procjobs.packs.invitations import Invites
from procjobs.packs.requests import Requests

if TYPE_CHECKING:
    from procrastinate.app import WorkerOptions
    from procrastinate.worker import Worker as UpstreamWorker

    from procjobs.settings import Settings

__all__ = ["App", "Blueprint", "default_app"]

_LONGEST_TIMEOUT = 10 * 365 * 86400


class Blueprint(blueprints.Blueprint):
    """Procrastinate's Blueprint; its tasks may also say `execution="process"` and `timeout=30`."""

    def task(
        self,
        _func: Any = None,
        *,
        execution: str | None = None,
        timeout: float | timedelta | None = None,
        unique: Unique | None = None,
        **options: Any,
    ) -> Any:
        """Declare a task: Procrastinate's options, and

        execution: "process" runs a CPU-bound task in a process of its own, which cancelling kills. The function must
        be importable by its module and name, and cannot take the context. By default coroutine functions run on the
        worker's loop and others in a thread.
        timeout:   how long one run may take, in seconds or as a timedelta. Then it is stopped and fails with
        JobTimeout, retried like any error: a coroutine is cancelled, a process killed; a thread is asked to stop by
        context.should_abort(), and its job fails when it returns, whatever it returned.
        unique:    which jobs are the same, so that deferring another returns the first one's id: procjobs.Unique(...).
        """
        if _func is not None:
            return super().task(_func)
        if execution not in (None, "async", "thread", "process"):
            raise ValueError(f"execution={execution!r}: one of async, thread, process")
        if execution == "process" and options.get("pass_context"):
            raise ValueError("a task that runs in a process cannot be passed its context")
        seconds = None if timeout is None else seconds_of(timeout)
        if seconds is not None and not 0 < seconds <= _LONGEST_TIMEOUT:
            raise ValueError(f"timeout={timeout!r}: more than 0 seconds, and at most 10 years")
        declare = super().task(**options)

        def decorate(function: Any) -> Task[Any, Any, Any]:
            declared = cast("Task[Any, Any, Any]", declare(function))
            if execution is not None:
                declared.execution = execution  # type: ignore[attr-defined]
            if seconds is not None:
                declared.timeout = seconds  # type: ignore[attr-defined]
            if unique is not None:
                declared.unique = unique  # type: ignore[attr-defined]
            return declared

        return decorate

    def periodic(self, *, cron: str, periodic_id: str = "", timezone: str = "UTC", **configure: Any) -> Any:
        """Defer a task again and again: Procrastinate's decorator, and

        cron:     five fields, or six with the seconds last; names, ranges, steps, lists, `L`, `@hourly` and the like.
        timezone: the cron's time zone, a name of the IANA database such as Europe/Paris. A fixed hour and minute fire
                  once a day when clocks change too.

        The task gets its slot as `timestamp`, in epoch seconds. A cron that cannot be read or never fires, or an
        unknown zone, is logged when a worker starts, and left out.
        """
        return super().periodic(cron=Cron(cron, timezone), periodic_id=periodic_id, **configure)

    def schedule(self, cron: str | None = None, *, name: str | None = None, **options: Any) -> Any:
        """Enqueue a task again and again. Stands above @app.task, any number of times.

            @app.schedule("0 9 * * *", timezone="Europe/Paris")
            @app.task
            async def report() -> None: ...

        cron:    five fields, or six with the seconds first; or instead `every`, seconds or a timedelta.
        name:    default: the task's. A second schedule of a task needs one.
        options: timezone, args, queue, priority, tenant, tags, max_attempts, timeout, lock, queueing_lock, anchor,
                 jitter, misfire, misfire_window, catch_up, grace, overlap, group, description, enabled: as
                 procjobs.schedule has them.

        A task with an argument `slot` (text) or `timestamp` (epoch seconds) is told its slot. What an administrator
        changes in SQL stays until the code says something else than before. What cannot be is logged when a worker
        starts, and left out.
        """
        return declare(name, {"cron": cron, **options})

    def _register_task(self, task: Task[Any, Any, Any]) -> None:
        super()._register_task(task)
        adopt(task)

    def add_tasks_from(self, blueprint: blueprints.Blueprint, *, namespace: str) -> None:
        """Procrastinate's: copies the tasks of a blueprint, with `namespace:` before their names."""
        super().add_tasks_from(blueprint, namespace=namespace)
        for task in blueprint.tasks.values():
            adopt(task)


class App(Requests, Blueprint, procrastinate.App):
    """A Procrastinate application on the engine of procjobs.

        app = procjobs.App("postgresql://localhost/mydb")

        @app.task(queue="mail", retry=procjobs.Retry(max_attempts=3, base=60))
        async def welcome(user_id: int) -> None: ...

    dsn_or_connector: a connection string, a Procrastinate connector, or nothing for `DATABASE_URL` and the settings.
    finished_jobs:    what becomes of finished jobs: archive (into the history, the default), keep (in the job table,
                      as Procrastinate does), delete.
    listen_dsn:       a direct connection for LISTEN when a pooler sits in front.
    Everything else as in Procrastinate.
    """

    def __init__(
        self,
        dsn_or_connector: str | BaseConnector | None = None,
        *,
        connector: BaseConnector | None = None,
        import_paths: Iterable[str] | None = None,
        worker_defaults: WorkerOptions | None = None,
        periodic_defaults: dict[str, Any] | None = None,
        settings: Settings | None = None,
        finished_jobs: str | None = None,
        listen_dsn: str | None = None,
    ) -> None:
        if isinstance(dsn_or_connector, BaseConnector):
            connector = dsn_or_connector
        self._settings = settings
        if connector is None:
            dsn = dsn_or_connector if isinstance(dsn_or_connector, str) else self.settings.dsn
            connector = procrastinate.PsycopgConnector(conninfo=dsn or "")
        super().__init__(
            connector=connector,
            import_paths=import_paths,
            worker_defaults=worker_defaults,
            periodic_defaults=periodic_defaults,
        )
        self._results = Results(self.database, self._listen_target)
        self.job_manager = Enqueuer(connector, self.tasks, self._results.wait_for)
        self._finished_jobs = finished_jobs
        self._listen_dsn = listen_dsn
        self._database: Database | None = None
        self._resources: dict[str, Any] = {}
        self._building = asyncio.Lock()
        #: Jobs that its worker runs at a time; what its tasks share, such as a pool, is made as large.
        self.concurrency = 1
        #: Schedules by hand: `await app.schedules.run_now("nightly")`.
        self.schedules = Schedules(self.database)
        #: Who gets a digest of what: `await app.digests.list(recipient=...)`.
        self.digests = Digests(self.database)
        #: Invitations: `await app.invites.create(organization, "ann@example.com", "member", invited_by=person)`.
        self.invites = Invites(self.database)

    @property
    def settings(self) -> Settings:
        """The settings this app was made with, or those of the environment. Raises SettingsError."""
        if self._settings is None:
            from procjobs.settings import Settings

            self._settings = Settings.load()
        return self._settings

    def with_connector(self, connector: BaseConnector) -> App:
        """Another app with the same tasks and another connector; `replace_connector` is the better way."""
        app = App(
            connector=connector,
            import_paths=self.import_paths,
            worker_defaults=self.worker_defaults,
            periodic_defaults=self.periodic_defaults,
            settings=self._settings,
            finished_jobs=self._finished_jobs,
            listen_dsn=self._listen_dsn,
        )
        app.tasks = self.tasks
        app.job_manager = Enqueuer(connector, self.tasks, app._results.wait_for)
        app.periodic_registry = self.periodic_registry
        return app

    @contextlib.contextmanager
    def replace_connector(self, connector: BaseConnector) -> Generator[App]:
        """Procrastinate's: the same app, on another connector within the block."""
        outside = self._database, self._results
        self._database, self._results = None, Results(self.database, self._listen_target)
        quicken(connector)
        try:
            with super().replace_connector(connector):
                yield self
        finally:
            self._database, self._results = outside

    def configure_task(self, name: str, *, allow_unknown: bool = True, **kwargs: Any) -> jobs.JobDeferrer:
        """Procrastinate's: a deferrer for a task by its name, known here or only to the workers."""
        if name in self.tasks:
            return quietly(super().configure_task(name, allow_unknown=allow_unknown, **kwargs))
        ours = own_options(kwargs)
        return quietly(super().configure_task(name, allow_unknown=allow_unknown, **kwargs), ours)

    async def debounce(
        self,
        task: Task[Any, Any, Any],
        arguments: dict[str, Any],
        *,
        key: str,
        wait: float | timedelta,
        max_wait: float | timedelta | None = None,
        **options: Any,
    ) -> JobId:
        """Defer a job that runs once nobody has called this with its task and key for `wait`, with the last arguments.

        wait, max_wait: seconds or a timedelta; it is not put off beyond max_wait after the first call.
        options:        queue, priority, lock, tenant.
        Raises InvalidArguments, InvalidOption, UnknownTask (when no worker has registered the task yet).
        """
        spans = {"wait": wait, "max_wait": max_wait}
        return await self._enqueuer.enqueue_by_key("debounce", task, key, spans, arguments, options)

    async def throttle(
        self,
        task: Task[Any, Any, Any],
        arguments: dict[str, Any],
        *,
        key: str,
        period: float | timedelta,
        **options: Any,
    ) -> JobId:
        """Defer a job unless this was done with its task and key within the last `period`: then it is that job's id."""
        return await self._enqueuer.enqueue_by_key("throttle", task, key, {"period": period}, arguments, options)

    def batch(
        self,
        name: str,
        *,
        on_finish: Callback | None = None,
        on_success: Callback | None = None,
        on_discard: Callback | None = None,
    ) -> contextlib.AbstractAsyncContextManager[Batch]:
        """Open a batch of jobs, sealed on leaving; after an exception it stays open and calls nothing back.

            async with app.batch("import", on_success=report) as batch:
                await batch.defer(load, path="a.csv")

        on_finish, on_success, on_discard: a task, or `task.configure(...)`, to be enqueued once when all its jobs have
        ended: in any case, when all succeeded, when some failed or were cancelled. An argument batch_id is filled in.
        """
        callbacks = {"on_finish": on_finish, "on_success": on_success, "on_discard": on_discard}
        return open_batch(self._enqueuer, name, callbacks)

    def dependency(self, breaker: str) -> contextlib.AbstractAsyncContextManager[None]:
        """What the block does goes through a breaker: its success and its failures count.

            async with app.dependency("crm"):
                await crm.update(customer)

        OSError, TimeoutError and procjobs.DependencyFailed are failures; other exceptions say nothing of it. Which
        jobs wait while it is open is told once, with procjobs.set_breaker; here the job runs already.
        """
        return through_breaker(self.database, breaker)

    async def report_outcome(self, breaker: str, ok: bool, error: str | None = None) -> str | None:
        """Tell a breaker how a use of its dependency ended; its state after that, None if there is no such breaker."""
        return await report_outcome(self.database, breaker, ok, error)

    def effect(self, key: str) -> contextlib.AbstractAsyncContextManager[Effect]:
        """Do something outside that must not be done twice: written down before and after.

            async with app.effect(f"charge:{order}") as effect:
                if effect.state == "do":
                    await effect.done(await charge(order))

        After a crash in between, the next try finds "unknown", never "do".
        """
        return begin_effect(self.database, key)

    @property
    def _enqueuer(self) -> Enqueuer:
        return cast(Enqueuer, self.job_manager)

    def _register_builtin_tasks(self) -> None:
        # Of our own making: upstream's blueprint gets another "builtin:" before its names with every app.
        old = builtin_tasks.remove_old_jobs
        name = "procrastinate.builtin_tasks.remove_old_jobs"
        builtin = blueprints.Blueprint()
        task = builtin.task(name=name, pass_context=True, queue=old.queue)(old.func)
        self.add_tasks_from(builtin, namespace="builtin")
        self.add_task_alias(task, name)
        # `builtin_tasks.remove_old_jobs.defer(...)` defers through the app made last.
        old.__class__ = _UpstreamsOwn
        old.blueprint = self

    def _worker(self, **kwargs: Any) -> UpstreamWorker:
        worker: UpstreamWorker
        if not isinstance(self.connector, procrastinate.PsycopgConnector):
            worker = super()._worker(**kwargs)  # in-memory and foreign connectors: upstream's worker
        else:
            options: dict[str, Any] = {**self.worker_defaults, **kwargs}
            worker = Worker(
                app=self,
                target=self.target,
                listen_target=self._listen_target(),
                **{"finished_jobs": self._finished_jobs or "archive", **options},
            )
        self.concurrency = worker.concurrency
        return worker

    @property
    def target(self) -> Target:
        """Where the app's connector connects."""
        connector: Any = self.connector
        pool = getattr(connector, "_async_pool", None)
        if pool is not None and isinstance(pool.conninfo, str) and isinstance(pool.kwargs, dict | None):
            return Target(pool.conninfo, dict(pool.kwargs or {}))
        arguments = getattr(connector, "_pool_args", {})
        return Target(arguments.get("conninfo", ""), dict(arguments.get("kwargs") or {}))

    @property
    def schema_manager(self) -> schema.SchemaManager:
        """`procrastinate schema --apply` applies Procrastinate's schema and ours."""
        if isinstance(self.connector, BaseAsyncConnector) and self.job_manager.in_memory:  # type: ignore[attr-defined]
            return super().schema_manager
        return _SchemaManager(self)

    async def database(self) -> Database:
        """A pool for calls of SQL functions, opened once and closed with the app. Raises DatabaseUnavailable."""
        async with self._building:
            if self._database is None:
                database = Database(self.target.conninfo, kwargs=self.target.kwargs)
                await database.open()
                self._database = database
        return self._database

    async def resource(self, name: str, factory: Callable[[], Any | Awaitable[Any]]) -> Any:
        """What tasks of this process share (a mailer, say): made on first use by `factory`, closed with the app."""
        async with self._building:
            if name not in self._resources:
                made = factory()
                self._resources[name] = await made if isinstance(made, Awaitable) else made
        return self._resources[name]

    def _listen_target(self) -> Target:
        listen = self._listen_dsn or self.settings.listen_dsn
        return Target(listen) if listen else self.target

    async def wait_for(self, job_id: int, *, timeout: float | None = None) -> Outcome:
        """Wait until a job has ended, however it does, and say how.

        timeout: seconds to wait at most; None waits as long as it takes. Outages of the database are waited through.
        Raises JobNotOver when the time is over, JobNotFound for an unknown id or one that was forgotten.
        """
        return await self._results.wait_for(job_id, timeout)

    async def result(self, job_id: int, *, timeout: float | None = None) -> Any:
        """Wait until a job has ended and give what its task returned.

            job_id = await thumbnail.defer_async(photo_id=7)
            url = await app.result(job_id, timeout=30)

        Raises JobFailed, JobCancelled, and as `wait_for` JobNotOver and JobNotFound.
        """
        return (await self.wait_for(job_id, timeout=timeout)).value()

    def open_async(self, pool: Any = None) -> utils.AwaitableContext[Any]:
        """Procrastinate's; what `database`, `resource` and `result` opened is closed with the app."""
        return utils.AwaitableContext(
            open_coro=functools.partial(self.connector.open_async, pool=pool),
            close_coro=self.close_async,
            return_value=self,
        )

    async def close_async(self) -> None:
        """Close everything that this app opened."""
        await self.close_resources()
        await super().close_async()

    async def close_resources(self) -> None:
        """Close what `resource`, `database` and `result` made; they are made anew when needed again."""
        await self._results.close()
        resources, self._resources = self._resources, {}
        for made in resources.values():
            await made.close()
        if self._database is not None:
            database, self._database = self._database, None
            await database.close()

    async def run_worker_async(self, **kwargs: Any) -> None:
        """Procrastinate's `run_worker_async` on our worker: takes its options, and `finished_jobs`, `kill_timeout`.

        Raises ShutdownIncomplete when jobs had to be left behind.
        """
        try:
            await super().run_worker_async(**kwargs)
        finally:
            await self.close_resources()

    async def run_scheduler_async(self, *, install_signal_handlers: bool = True, **options: Any) -> None:
        """Keep time without running a job, until SIGTERM, SIGINT or cancelled: upkeep and schedules.

        Workers do the same beside their jobs: this is for fleets that scale to zero, or whose workers are all busy.
        options: name, heartbeat_every and lease (seconds).
        """
        if not isinstance(self.connector, procrastinate.PsycopgConnector):
            raise SettingsError(
                f"there is no time to keep for a {type(self.connector).__name__}",
                hint="make the App with a DSN or a procrastinate.PsycopgConnector",
            )
        self.perform_import_paths()  # type: ignore[no-untyped-call]
        scheduler = Scheduler(self, self.target, **options)
        with stop_signals(scheduler.stop) if install_signal_handlers else contextlib.nullcontext():
            await scheduler.run()

    async def register_tasks(self) -> int:
        """Register the tasks with the database, as a starting worker does; how many were new or changed."""
        from procjobs.db import Link
        from procjobs.engine.registration import describe_tasks, register

        self.perform_import_paths()  # type: ignore[no-untyped-call]
        link = Link(self.target, "procjobs register")
        try:
            return await register(link, describe_tasks(self), "register_tasks")
        finally:
            await link.close()


class _UpstreamsOwn(DeferredTask[..., Any, ...]):
    """Procrastinate's builtin task, bound to an app of ours: its own name grows with every app of Procrastinate's."""

    def configure(self, **options: Any) -> Deferrer:
        if isinstance(self.blueprint, App):
            return quietly(self.blueprint.configure_task("procrastinate.builtin_tasks.remove_old_jobs", **options))
        return super().configure(**options)


class _SchemaManager(schema.SchemaManager):
    def __init__(self, app: App) -> None:
        super().__init__(app.connector)
        self._app = app

    def apply_schema(self) -> None:
        from procjobs.migrate import migrate

        migrate(make_conninfo(self._app.target.conninfo, **self._app.target.kwargs))

    async def apply_schema_async(self) -> None:
        await asyncio.to_thread(self.apply_schema)


def default_app(settings: Settings | None = None) -> App:
    """An app with the tasks of the packs, for `procjobs worker` without an application of one's own."""
    from procjobs.packs import blueprints as packs

    app = App(settings.dsn if settings else None, settings=settings)
    for pack in packs():
        app.add_tasks_from(pack, namespace="")
    return app
