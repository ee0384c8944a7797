"""Digests and batched notice mails: schedules, what came of each, and notices that wait to be mailed."""

from procjobs.migrate import apply

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    apply("0016_digests.sql")


def downgrade() -> None:
    apply("0016_digests_down.sql")
