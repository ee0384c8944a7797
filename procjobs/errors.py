"""Every error procjobs raises, keyed by the SQLSTATE that PostgreSQL reports.

    ProcjobsError
     +-- SettingsError            a setting is missing or wrong
     +-- DatabaseError            a call into PostgreSQL failed (carries sqlstate, detail, hint)
     |    +-- DatabaseUnavailable   no connection; worth trying again
     |    |    +-- QueueUnavailable    an e-mail cannot be queued now, and was not sent either
     |    +-- UnknownTask           PJ001
     |    +-- InvalidArguments      PJ002
     |    |    +-- ArgumentsTooLarge  PJ003
     |    |    +-- ArgumentsTooDeep   PJ004
     |    |    +-- ArgumentsMalformed PJ005
     |    +-- DuplicateWaitingJob   PJ006
     |    +-- JobNotFound           PJ007
     |    +-- InvalidState          PJ008
     |    +-- InvalidOption         PJ009
     |    +-- InvalidName           PJ010
     |    +-- WorkerGone            PJ011
     |    +-- HostBindingMissing    PJ012
     |    +-- InvalidTrigger        PJ013
     |    +-- InvalidCron           PJ014
     |    +-- ScheduleNotFound      PJ015
     |    +-- InvalidRoutine        PJ016
     |    +-- PgCronMissing         PJ017
     |    +-- UnknownRecipient      PJ020
     |    +-- UnknownGroup          PJ021
     |    +-- UnknownUpdate         PJ022
     |    +-- InvalidNotification   PJ023
     |    +-- NotificationNotAllowed PJ024
     |    +-- InvalidPolicy         PJ030
     |    +-- UnknownPolicy         PJ031
     |    +-- InvalidInvite         PJ050
     |    +-- InviteNotAllowed      PJ051
     |    +-- InviteNotFound        PJ052
     |    +-- InviteConflict        PJ053
     |    +-- AlreadyMember         PJ054
     |    +-- InvalidDigest         PJ060
     |    +-- DigestNotFound        PJ061
     |    +-- DuplicateDigest       PJ062
     |    +-- InvalidReminderStep   PJ070
     +-- DependencyFailed         what a task needs outside does not work; its breaker is told
     +-- JobTimeout               a run took longer than its task's timeout
     +-- JobFailed                the job that was waited for is a dead letter
     +-- JobCancelled             the job that was waited for was cancelled
     +-- JobNotOver               it has not ended in time (also a TimeoutError)
     +-- MigrationError           the schema cannot be brought to the wanted state
     +-- ServerError              the embedded or given PostgreSQL cannot be used

The SQL functions raise these codes with MESSAGE (what), DETAIL (the values) and HINT (the next step).
"""

from __future__ import annotations

from typing import ClassVar

import psycopg
from procrastinate.exceptions import ProcrastinateException

__all__ = [
    "SQLSTATES",
    "AlreadyMember",
    "ArgumentsMalformed",
    "ArgumentsTooDeep",
    "ArgumentsTooLarge",
    "DatabaseError",
    "DatabaseUnavailable",
    "DependencyFailed",
    "DigestNotFound",
    "DuplicateDigest",
    "DuplicateWaitingJob",
    "HostBindingMissing",
    "InvalidArguments",
    "InvalidCron",
    "InvalidDigest",
    "InvalidInvite",
    "InvalidName",
    "InvalidNotification",
    "InvalidOption",
    "InvalidPolicy",
    "InvalidReminderStep",
    "InvalidRoutine",
    "InvalidState",
    "InvalidTrigger",
    "InviteConflict",
    "InviteNotAllowed",
    "InviteNotFound",
    "JobCancelled",
    "JobFailed",
    "JobNotFound",
    "JobNotOver",
    "JobTimeout",
    "MigrationError",
    "NotificationNotAllowed",
    "PgCronMissing",
    "ProcjobsError",
    "QueueUnavailable",
    "ScheduleNotFound",
    "ServerError",
    "SettingsError",
    "UnknownGroup",
    "UnknownPolicy",
    "UnknownRecipient",
    "UnknownTask",
    "UnknownUpdate",
    "WorkerGone",
    "cause_of",
    "translate",
]


class ProcjobsError(ProcrastinateException):
    """Base of every error of procjobs; `hint` says what to do next, where there is something to do."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class SettingsError(ProcjobsError):
    """A setting is missing or wrong; the message names the field, the value and the mend."""


class MigrationError(ProcjobsError):
    """The schema cannot be brought to the wanted state; nothing was changed."""


class ServerError(ProcjobsError):
    """PostgreSQL cannot be started or used; the message says why and what to do."""


class JobTimeout(ProcjobsError):
    """A run took longer than its timeout; `Retry(on=(JobTimeout, ...))` may name it."""


class DependencyFailed(ProcjobsError):
    """What a task needs outside does not work; within `app.dependency(name)` the breaker of that name is told."""


class JobFailed(ProcjobsError):
    """The job that was waited for failed for good. error_class, error_message: of its last run."""

    def __init__(self, job_id: int, error_class: str | None, error_message: str | None) -> None:
        said = ": ".join(part for part in (error_class, error_message) if part)
        super().__init__(
            f"job {job_id} failed{f' with {said}' if said else ''}",
            hint=f"procjobs jobs show {job_id} tells all about it, procjobs jobs retry {job_id} runs it again",
        )
        self.job_id = job_id
        self.error_class = error_class
        self.error_message = error_message


class JobCancelled(ProcjobsError):
    """The job that was waited for was cancelled. reason: why, if somebody said so."""

    def __init__(self, job_id: int, reason: str | None) -> None:
        super().__init__(f"job {job_id} was cancelled{f': {reason}' if reason else ''}")
        self.job_id = job_id
        self.reason = reason


class JobNotOver(ProcjobsError, TimeoutError):
    """The job that was waited for has not ended within the time given; it goes on."""

    def __init__(self, job_id: int, seconds: float) -> None:
        super().__init__(
            f"job {job_id} has not ended within {seconds:g} s",
            hint=f"procjobs jobs show {job_id} says what it waits for",
        )
        self.job_id = job_id


class DatabaseError(ProcjobsError):
    """A statement failed in PostgreSQL.

    sqlstate: five characters, or None when the connection failed before the server could answer.
    detail:   the values at fault, when the server gave them.
    context:  where it happened in routines of the server, when it was in one.
    """

    code: ClassVar[str | None] = None
    _status: ClassVar[int] = 500

    def __init__(
        self,
        message: str,
        *,
        sqlstate: str | None = None,
        detail: str | None = None,
        hint: str | None = None,
        context: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.sqlstate = sqlstate or self.code
        self.detail = detail
        self.context = context

    @property
    def transient(self) -> bool:
        """Whether the same call may well succeed next time: an outage, or somebody else was in the way."""
        return isinstance(self, DatabaseUnavailable) or self.sqlstate in _IN_THE_WAY

    @property
    def status_code(self) -> int:
        """What an HTTP answer says of it: 400 (ask for something else), 403, 404, 409, 503 (again later), else 500."""
        if self.transient:
            return 503
        return 400 if (self.sqlstate or "").startswith("22") else self._status


#: Serialization failure, deadlock, lock not available, query cancelled.
_IN_THE_WAY = ("40001", "40P01", "55P03", "57014")


class DatabaseUnavailable(DatabaseError):
    """PostgreSQL cannot be reached, is starting, stopping or full; the call may be tried again."""


class QueueUnavailable(DatabaseUnavailable):
    """An e-mail cannot be queued now, and was not sent: nothing goes round the queue. `detail` says what is wrong."""

    def __init__(self, error: DatabaseError) -> None:
        super().__init__(
            "the queue cannot take it now, since PostgreSQL is away, and nothing was sent",
            sqlstate=error.sqlstate,
            detail=error.message,
            hint="try again in a moment; if the connection broke amid the call, it may be queued all the same",
        )


class UnknownTask(DatabaseError):
    code = "PJ001"
    _status = 400


class InvalidArguments(DatabaseError):
    """Arguments that the task's registered signature refuses: missing, unexpected or mistyped."""

    code = "PJ002"
    _status = 400


class ArgumentsTooLarge(InvalidArguments):
    code = "PJ003"


class ArgumentsTooDeep(InvalidArguments):
    code = "PJ004"


class ArgumentsMalformed(InvalidArguments):
    """Not a JSON object, a NUL character, or a number no worker could read."""

    code = "PJ005"


class DuplicateWaitingJob(DatabaseError):
    """A job with the same queueing lock waits already."""

    code = "PJ006"
    _status = 409


class JobNotFound(DatabaseError):
    code = "PJ007"
    _status = 404


class InvalidState(DatabaseError):
    """The job is in a state in which this cannot be done to it."""

    code = "PJ008"
    _status = 409


class InvalidOption(DatabaseError):
    """An option has a value outside its range."""

    code = "PJ009"
    _status = 400


class InvalidName(DatabaseError):
    """An empty or overlong name."""

    code = "PJ010"
    _status = 400


class WorkerGone(DatabaseError):
    """The worker was declared dead or never registered; it must register anew before it claims."""

    code = "PJ011"


class HostBindingMissing(DatabaseError):
    """A host_* view or function that a pack needs is not bound to the application's tables."""

    code = "PJ012"


class InvalidTrigger(DatabaseError):
    """enqueue_on_change was called for a table or event on which it cannot work."""

    code = "PJ013"


class InvalidCron(DatabaseError):
    """A cron expression that cannot be read or never fires, or a time zone that is not known."""

    code = "PJ014"
    _status = 400


class ScheduleNotFound(DatabaseError):
    """No schedule has this name."""

    code = "PJ015"
    _status = 404


class InvalidRoutine(DatabaseError):
    """A function or procedure cannot be the body of a task, or may not by whoever registers it."""

    code = "PJ016"


class PgCronMissing(DatabaseError):
    """pg_cron is not there, or may not be used; the message and the hint say what is missing."""

    code = "PJ017"


class UnknownRecipient(DatabaseError):
    code = "PJ020"
    _status = 400


class UnknownGroup(DatabaseError):
    code = "PJ021"
    _status = 400


class UnknownUpdate(DatabaseError):
    code = "PJ022"
    _status = 400


class InvalidNotification(DatabaseError):
    """Notification type, urgency, delivery method or content outside what can be delivered."""

    code = "PJ023"
    _status = 400


class NotificationNotAllowed(DatabaseError):
    """Whoever asks has no such recipient."""

    code = "PJ024"
    _status = 403


class InvalidPolicy(DatabaseError):
    """A policy for a table that does not fit it, or whose role lacks a right or cannot be taken on."""

    code = "PJ030"
    _status = 400


class UnknownPolicy(DatabaseError):
    """No table's policy has this name."""

    code = "PJ031"
    _status = 404


class InvalidInvite(DatabaseError):
    """What is no e-mail address cannot be invited, and not for so long."""

    code = "PJ050"
    _status = 400


class InviteNotAllowed(DatabaseError):
    """The inviter may not give that role in that organization."""

    code = "PJ051"
    _status = 403


class InviteNotFound(DatabaseError):
    """No invitation has this id."""

    code = "PJ052"
    _status = 404


class InviteConflict(DatabaseError):
    """The invitation is in a state in which this cannot be done, or another one is in the way."""

    code = "PJ053"
    _status = 409


class AlreadyMember(DatabaseError):
    """Who is a member of the organization need not be invited."""

    code = "PJ054"
    _status = 409


class InvalidDigest(DatabaseError):
    """A digest schedule cannot have such a frequency, time, zone, day, limit or kind."""

    code = "PJ060"
    _status = 400


class DigestNotFound(DatabaseError):
    """No digest schedule has this id, or not for its owner."""

    code = "PJ061"
    _status = 404


class DuplicateDigest(DatabaseError):
    """The recipient has a digest of that group and frequency already."""

    code = "PJ062"
    _status = 409


class InvalidReminderStep(DatabaseError):
    """There can be no such step of reminders; DETAIL lists every problem."""

    code = "PJ070"
    _status = 400


def _subclasses(cls: type[DatabaseError]) -> list[type[DatabaseError]]:
    return [cls, *(found for child in cls.__subclasses__() for found in _subclasses(child))]


#: The one table from SQLSTATE to exception class.
SQLSTATES: dict[str, type[DatabaseError]] = {
    cls.code: cls for cls in _subclasses(DatabaseError) if cls.code is not None
}

#: Class 08 (connection), 53 (resources), 57P (shutdown, startup) and 25006 (a standby answered): try again.
_UNAVAILABLE = ("08", "53", "57P", "25006")


#: Ways out of errors of PostgreSQL's own, which comes without one.
_HINTS = {
    "22007": "write times as 2030-01-31 09:00 or 2030-01-31T09:00Z, spans as '30 days' or '12 hours'",
    "42501": "grant the database user the role it needs: procjobs_producer, procjobs_worker, procjobs_reader or "
    "procjobs_admin",
    "22P05": "a NUL character cannot be stored: remove it, or encode binary data as base64",
}


def _unavailable(error: psycopg.Error, state: str | None) -> bool:
    if state is None:
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return state.startswith(_UNAVAILABLE)


def cause_of(error: BaseException) -> DatabaseError | None:
    """The procjobs error for the error of psycopg that this one came from, however deep; None if there is none."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, psycopg.Error):
            return translate(found)
        found = found.__cause__
    return None


def translate(error: psycopg.Error) -> DatabaseError:
    """The procjobs error for an error of psycopg, with the server's message, DETAIL, HINT and CONTEXT kept."""
    state = error.sqlstate
    diag = error.diag
    message = diag.message_primary or str(error).strip() or type(error).__name__
    hint = diag.message_hint or _HINTS.get(state or "")
    kind: type[DatabaseError]
    if state in SQLSTATES:
        kind = SQLSTATES[state]
    elif _unavailable(error, state):
        kind = DatabaseUnavailable
    else:
        kind = DatabaseError
    return kind(message, sqlstate=state, detail=diag.message_detail, hint=hint, context=diag.context)
