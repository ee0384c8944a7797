"""The log of settings."""

from procjobs.migrate import apply

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    apply("0023_setting_log.sql")


def downgrade() -> None:
    apply("0023_setting_log_down.sql")
