"""Who is told of alerts, by which method, and what each was told."""

from procjobs.migrate import apply

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    apply("0024_alert_mail.sql")


def downgrade() -> None:
    apply("0024_alert_mail_down.sql")
