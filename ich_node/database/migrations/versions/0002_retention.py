"""What retention purges: series keep the number of their images, removals and chores are noted"""

import sqlalchemy as sa
from alembic import op

revision = '0002'
down_revision = '0001'
branch_labels = None
depends_on = None


def upgrade() -> None:
    # It holds BLAKE3 from now on; what is there stays, and tells objects apart as well.
    op.execute('ALTER TABLE instance RENAME COLUMN sha256 TO content_hash')
    op.add_column('study', sa.Column('purged_at', sa.DateTime(timezone=True), nullable=True))
    op.add_column('series', sa.Column('purged_instances', sa.Integer(), server_default='0', nullable=False))
    op.add_column('result_object', sa.Column('purged_at', sa.DateTime(timezone=True), nullable=True))

    op.drop_index('study_by_state', table_name='study')
    op.create_index('study_by_state', 'study', ['state', 'priority'], unique=False)
    op.create_index('study_by_flagged_at', 'study', ['flagged_at'], unique=False,
                    sqlite_where=sa.text('flagged_at IS NOT NULL'),
                    postgresql_where=sa.text('flagged_at IS NOT NULL'))
    op.create_index('study_by_read_at', 'study', ['read_at'], unique=False,
                    sqlite_where=sa.text('read_at IS NOT NULL'),
                    postgresql_where=sa.text('read_at IS NOT NULL'))
    op.drop_index('instance_by_series', table_name='instance')
    op.create_index('instance_by_series', 'instance', ['series_instance_uid', 'size_bytes'], unique=False)
    op.create_index('instance_in_conflict', 'instance', ['received_at'], unique=False,
                    sqlite_where=sa.text('conflict'), postgresql_where=sa.text('conflict'))

    op.create_table('removal',
    sa.Column('id', sa.Integer(), nullable=False),
    sa.Column('folder', sa.Text(), nullable=False),
    sa.Column('file_name', sa.Text(), nullable=False),
    sa.Column('modified_ns', sa.BigInteger(), nullable=False),
    sa.Column('decided_at', sa.DateTime(timezone=True), nullable=False),
    sa.PrimaryKeyConstraint('id'),
    sa.UniqueConstraint('folder', 'file_name', name='removal_once')
    )
    op.create_table('chore',
    sa.Column('name', sa.Text(), nullable=False),
    sa.Column('lease_owner', sa.Text(), nullable=True),
    sa.Column('lease_until', sa.DateTime(timezone=True), nullable=True),
    sa.Column('started_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('ended_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('note', sa.Text(), nullable=True),
    sa.PrimaryKeyConstraint('name')
    )
