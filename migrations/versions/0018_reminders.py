"""Reminders of payments and events: their steps as rows, and what came of each."""

from procjobs.migrate import apply

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    apply("0018_reminders.sql")


def downgrade() -> None:
    apply("0018_reminders_down.sql")
