"""Successes of jobs that were made to run again: runs like the others."""

from procjobs.migrate import apply

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    apply("0019_successes.sql")


def downgrade() -> None:
    apply("0019_successes_down.sql")
