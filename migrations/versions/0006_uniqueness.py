"""Unique keys that outlive their job, and batches."""

from procjobs.migrate import apply

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    apply("0006_uniqueness.sql")


def downgrade() -> None:
    apply("0006_uniqueness_down.sql")
