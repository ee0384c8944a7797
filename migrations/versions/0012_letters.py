"""Notifications go to persons and bare addresses, too, and are written by any template."""

from procjobs.migrate import apply

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    apply("0012_letters.sql")


def downgrade() -> None:
    apply("0012_letters_down.sql")
