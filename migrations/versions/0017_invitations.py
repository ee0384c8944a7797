"""Invitations into organizations, and secrets that are made when a letter is written."""

from procjobs.migrate import apply

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    apply("0017_invitations.sql")


def downgrade() -> None:
    apply("0017_invitations_down.sql")
