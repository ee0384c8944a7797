"""Notifications: what is to be sent to whom, and every try to deliver it."""

from procjobs.migrate import apply

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    apply("0003_notifications.sql")


def downgrade() -> None:
    apply("0003_notifications_down.sql")
