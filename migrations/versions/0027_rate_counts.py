"""Rates that count runs until after their end: never more than the rate for whoever the jobs call, either."""

from procjobs.migrate import apply

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None


def upgrade() -> None:
    apply("0027_rate_counts.sql")


def downgrade() -> None:
    apply("0027_rate_counts_down.sql")
