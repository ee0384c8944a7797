"""The log of settings has more kinds: those of procjobs.setting_kinds()."""

from procjobs.migrate import apply

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None


def upgrade() -> None:
    apply("0028_more_settings.sql")


def downgrade() -> None:
    apply("0028_more_settings_down.sql")
