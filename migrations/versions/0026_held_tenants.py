"""What waits for a limit, by tenant."""

from procjobs.migrate import apply

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None


def upgrade() -> None:
    apply("0026_held_tenants.sql")


def downgrade() -> None:
    apply("0026_held_tenants_down.sql")
