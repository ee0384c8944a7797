"""Schedules, the ledger of their slots, alerts."""

from procjobs.migrate import apply

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    apply("0009_schedules.sql")


def downgrade() -> None:
    apply("0009_schedules_down.sql")
