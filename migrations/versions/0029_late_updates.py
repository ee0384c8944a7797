"""Digests remember what they looked at lately, so that an update that is committed late is told by the next one."""

from procjobs.migrate import apply

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None


def upgrade() -> None:
    apply("0029_late_updates.sql")


def downgrade() -> None:
    apply("0029_late_updates_down.sql")
