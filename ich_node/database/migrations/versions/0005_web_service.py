"""Users, sessions and tokens, reviews, accesses, UPS workitems; likelihood maps for the study page"""

import sqlalchemy as sa
from alembic import op

revision = '0005'
down_revision = '0004'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('access',
    sa.Column('id', sa.Integer(), nullable=False),
    sa.Column('at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('caller', sa.Text(), nullable=False),
    sa.Column('role', sa.Text(), nullable=False),
    sa.Column('source', sa.Text(), nullable=False),
    sa.Column('action', sa.Text(), nullable=False),
    sa.Column('study_instance_uid', sa.Text(), nullable=True),
    sa.Column('outcome', sa.Text(), nullable=False),
    sa.Column('detail', sa.Text(), nullable=True),
    sa.PrimaryKeyConstraint('id')
    )
    op.create_index('access_by_study', 'access', ['study_instance_uid'], unique=False)
    op.create_index('access_by_time', 'access', ['at'], unique=False)

    op.create_table('api_token',
    sa.Column('token_sha256', sa.Text(), nullable=False),
    sa.Column('name', sa.Text(), nullable=False),
    sa.Column('role', sa.Text(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('created_by', sa.Text(), nullable=False),
    sa.Column('expires_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('last_used_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('revoked_at', sa.DateTime(timezone=True), nullable=True),
    sa.PrimaryKeyConstraint('token_sha256'),
    sa.UniqueConstraint('name', name='api_token_name')
    )

    op.create_table('login_failure',
    sa.Column('id', sa.Integer(), nullable=False),
    sa.Column('at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('user_name', sa.Text(), nullable=False),
    sa.Column('source', sa.Text(), nullable=False),
    sa.PrimaryKeyConstraint('id')
    )
    op.create_index('login_failure_by_source', 'login_failure', ['source', 'at'], unique=False)
    op.create_index('login_failure_by_user', 'login_failure', ['user_name', 'at'], unique=False)

    op.create_table('web_session',
    sa.Column('token_sha256', sa.Text(), nullable=False),
    sa.Column('user_name', sa.Text(), nullable=False),
    sa.Column('role', sa.Text(), nullable=False),
    sa.Column('origin', sa.Text(), nullable=False),
    sa.Column('csrf_token', sa.Text(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('last_seen_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('expires_at', sa.DateTime(timezone=True), nullable=False),
    sa.PrimaryKeyConstraint('token_sha256')
    )
    op.create_index('web_session_by_user', 'web_session', ['user_name'], unique=False)

    op.create_table('web_user',
    sa.Column('name', sa.Text(), nullable=False),
    sa.Column('role', sa.Text(), nullable=False),
    sa.Column('password_hash', sa.Text(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('password_changed_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('disabled_at', sa.DateTime(timezone=True), nullable=True),
    sa.PrimaryKeyConstraint('name')
    )

    op.create_table('workitem_event',
    sa.Column('id', sa.Integer(), nullable=False),
    sa.Column('at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('sop_instance_uid', sa.Text(), nullable=False),
    sa.Column('study_instance_uid', sa.Text(), nullable=False),
    sa.Column('content', sa.JSON(), nullable=False),
    sa.PrimaryKeyConstraint('id')
    )
    op.create_index('workitem_event_by_time', 'workitem_event', ['at'], unique=False)

    op.create_table('workitem_subscription',
    sa.Column('id', sa.Integer(), nullable=False),
    sa.Column('ae_title', sa.Text(), nullable=False),
    sa.Column('workitem_uid', sa.Text(), nullable=False),
    sa.Column('deletion_lock', sa.Boolean(), nullable=False),
    sa.Column('filter', sa.JSON(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.PrimaryKeyConstraint('id'),
    sa.UniqueConstraint('ae_title', 'workitem_uid', name='workitem_subscription_once')
    )

    op.create_table('access_export',
    sa.Column('access_id', sa.Integer(), nullable=False),
    sa.ForeignKeyConstraint(['access_id'], ['access.id'], ),
    sa.PrimaryKeyConstraint('access_id')
    )

    op.create_table('workitem',
    sa.Column('sop_instance_uid', sa.Text(), nullable=False),
    sa.Column('study_instance_uid', sa.Text(), nullable=False),
    sa.Column('procedure_step_state', sa.Text(), nullable=False),
    sa.Column('transaction_uid', sa.Text(), nullable=True),
    sa.Column('performer', sa.Text(), nullable=True),
    sa.Column('attributes', sa.JSON(), nullable=False),
    sa.Column('changed_at', sa.DateTime(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(['study_instance_uid'], ['study.study_instance_uid'], ),
    sa.PrimaryKeyConstraint('sop_instance_uid'),
    sa.UniqueConstraint('study_instance_uid', name='workitem_once')
    )

    op.create_table('review',
    sa.Column('id', sa.Integer(), nullable=False),
    sa.Column('at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('study_instance_uid', sa.Text(), nullable=False),
    sa.Column('reading_id', sa.Integer(), nullable=True),
    sa.Column('reviewer', sa.Text(), nullable=False),
    sa.Column('verdict', sa.Text(), nullable=False),
    sa.Column('reason', sa.Text(), nullable=True),
    sa.Column('comment', sa.Text(), nullable=True),
    sa.Column('priority', sa.Text(), nullable=False),
    sa.ForeignKeyConstraint(['reading_id'], ['reading.id'], ),
    sa.ForeignKeyConstraint(['study_instance_uid'], ['study.study_instance_uid'], ),
    sa.PrimaryKeyConstraint('id')
    )
    op.create_index('review_by_study', 'review', ['study_instance_uid'], unique=False)
    op.create_index('review_by_time', 'review', ['at'], unique=False)
    op.add_column('reading', sa.Column('maps_file_name', sa.Text(), nullable=True))
