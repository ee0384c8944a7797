"""How long rows of the application's own tables are kept, and which dead letters are tried again."""

from procjobs.migrate import apply

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    apply("0011_table_retention.sql")


def downgrade() -> None:
    apply("0011_table_retention_down.sql")
