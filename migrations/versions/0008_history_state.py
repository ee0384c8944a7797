"""The history tells the planner which states it cannot hold."""

from procjobs.migrate import apply

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    apply("0008_history_state.sql")


def downgrade() -> None:
    apply("0008_history_state_down.sql")
