"""Timeouts, results, progress, and settings of tasks over what their code says."""

from procjobs.migrate import apply

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    apply("0005_control.sql")


def downgrade() -> None:
    apply("0005_control_down.sql")
