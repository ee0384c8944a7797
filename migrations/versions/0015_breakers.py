"""Circuit breakers, limits of the notifications queue, what becomes of doubtful deliveries, the ledger of effects."""

from procjobs.migrate import apply

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    apply("0015_breakers.sql")


def downgrade() -> None:
    apply("0015_breakers_down.sql")
