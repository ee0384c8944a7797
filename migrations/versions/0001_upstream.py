"""Procrastinate's own schema, from the installed package, and the row that says what is applied here."""

from procjobs.migrate import apply

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    apply("0001_upstream.sql", upstream_first=True)


def downgrade() -> None:
    """Procrastinate's tables stay, with the jobs in them: they may have been here before us."""
    apply("0001_upstream_down.sql")
