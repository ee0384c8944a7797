"""Alembic's entry: runs inside the connection and the transaction that procjobs.migrate holds."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table_schema="procjobs",
    transactional_ddl=True,
)
context.run_migrations()
