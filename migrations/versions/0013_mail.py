"""Mail: addresses that bounced, subscriptions that were ended, the secret of unsubscribe links."""

from procjobs.migrate import apply

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    apply("0013_mail.sql")


def downgrade() -> None:
    apply("0013_mail_down.sql")
