"""Alembic's entry: runs the migrations on the connection that `ich_node.database.engine` hands over."""

from alembic import context

from ich_node.database import web_tables  # noqa: F401 - its tables
from ich_node.database.tables import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
