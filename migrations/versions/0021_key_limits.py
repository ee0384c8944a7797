"""Limits by a key alone, for jobs of all tasks and queues."""

from procjobs.migrate import apply

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    apply("0021_key_limits.sql")


def downgrade() -> None:
    apply("0021_key_limits_down.sql")
