"""Limits on rate and concurrency, fairness between tenants, ageing priorities."""

from procjobs.migrate import apply

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    apply("0004_limits.sql")


def downgrade() -> None:
    apply("0004_limits_down.sql")
