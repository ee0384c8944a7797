"""Delivery logs know the provider's id, error code, HTTP status and Retry-After; apprise is a delivery method."""

from procjobs.migrate import apply

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    apply("0014_channels.sql")


def downgrade() -> None:
    apply("0014_channels_down.sql")
