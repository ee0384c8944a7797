"""Where in a fair queue the jobs without a tenant stand."""

from procjobs.migrate import apply

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    apply("0022_places_of_nobody.sql")


def downgrade() -> None:
    apply("0022_places_of_nobody_down.sql")
