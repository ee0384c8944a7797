"""Digests of all groups remember from when on a muted group has not been told of."""

from procjobs.migrate import apply

revision = "0030"
down_revision = "0029"
branch_labels = None
depends_on = None


def upgrade() -> None:
    apply("0030_muted_groups.sql")


def downgrade() -> None:
    apply("0030_muted_groups_down.sql")
