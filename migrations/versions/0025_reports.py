"""Daily reports: who asked for them, and which were made."""

from procjobs.migrate import apply

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    apply("0025_reports.sql")


def downgrade() -> None:
    apply("0025_reports_down.sql")
