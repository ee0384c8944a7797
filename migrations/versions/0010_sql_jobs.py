"""Tasks whose body is a routine in SQL, and sessions that run them."""

from procjobs.migrate import apply

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    apply("0010_sql_jobs.sql")


def downgrade() -> None:
    apply("0010_sql_jobs_down.sql")
