"""Locks that tasks have by themselves, also for jobs that SQL enqueues."""

from procjobs.migrate import apply

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    apply("0020_task_locks.sql")


def downgrade() -> None:
    apply("0020_task_locks_down.sql")
