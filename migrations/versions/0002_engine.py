"""The engine's tables, and what it adds to Procrastinate's job table."""

from procjobs.migrate import apply, restore_upstream

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    apply("0002_engine.sql")
    apply("0002_engine_adopt.sql")


def downgrade() -> None:
    apply("0002_engine_down.sql")
    restore_upstream()
