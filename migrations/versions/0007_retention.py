"""How long finished jobs are kept, and dead letters by their error."""

from procjobs.migrate import apply

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    apply("0007_retention.sql")


def downgrade() -> None:
    apply("0007_retention_down.sql")
