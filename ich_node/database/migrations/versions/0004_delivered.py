"""Delivered is what a PACS is known to keep; reports of studies that were not read; people that are told"""

import sqlalchemy as sa
from alembic import op

revision = '0004'
down_revision = '0003'
branch_labels = None
depends_on = None


WORKLIST_V1 = """
CREATE VIEW worklist_v1 AS
SELECT s.study_instance_uid, s.accession_number, s.patient_id, s.patient_name, s.study_date, s.study_time,
       s.modality_ae_title, s.received_at, s.read_at, s.flagged_at, s.priority, s.state, s.reason, s.suspicion,
       CAST(s.subtypes AS TEXT) AS subtypes, r.model_name, r.model_version, r.sr_sop_instance_uid,
       (SELECT CASE WHEN COUNT(*) = COUNT(o.delivered_at) THEN MAX(o.delivered_at) END
          FROM outbox o JOIN result_object b ON b.sop_instance_uid = o.sop_instance_uid
         WHERE b.reading_id = s.reading_id) AS delivered_at,
       s.reviewed_at, s.reviewed_by
  FROM study s LEFT JOIN reading r ON r.id = s.reading_id
"""


def upgrade() -> None:
    op.execute('DROP VIEW worklist_v1')
    op.create_table('notice',
    sa.Column('id', sa.Integer(), nullable=False),
    sa.Column('study_instance_uid', sa.Text(), nullable=False),
    sa.Column('reading_id', sa.Integer(), nullable=True),
    sa.Column('facts', sa.JSON(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(['study_instance_uid'], ['study.study_instance_uid'], ),
    sa.ForeignKeyConstraint(['reading_id'], ['reading.id'], ),
    sa.PrimaryKeyConstraint('id')
    )
    op.create_index('notice_by_study', 'notice', ['study_instance_uid'], unique=False)

    with op.batch_alter_table('result_object') as table:
        table.add_column(sa.Column('study_instance_uid', sa.Text(), nullable=True))
        table.alter_column('reading_id', existing_type=sa.Integer(), nullable=True)
    op.execute(
        'UPDATE result_object SET study_instance_uid = '
        '(SELECT r.study_instance_uid FROM reading r WHERE r.id = result_object.reading_id)'
    )
    with op.batch_alter_table('result_object') as table:
        table.alter_column('study_instance_uid', existing_type=sa.Text(), nullable=False)
        table.create_foreign_key('result_object_of_study', 'study', ['study_instance_uid'], ['study_instance_uid'])
    op.create_index('result_object_by_study', 'result_object', ['study_instance_uid'], unique=False)

    with op.batch_alter_table('outbox') as table:
        table.alter_column('sop_instance_uid', existing_type=sa.Text(), nullable=True)
        table.add_column(sa.Column('notice_id', sa.Integer(), nullable=True))
        table.add_column(sa.Column('delivered_at', sa.DateTime(timezone=True), nullable=True))
        table.add_column(sa.Column('confirm_attempts', sa.Integer(), server_default='0', nullable=False))
        table.add_column(sa.Column('transaction_uid', sa.Text(), nullable=True))
        table.create_foreign_key('outbox_of_notice', 'notice', ['notice_id'], ['id'])
        table.create_unique_constraint('outbox_notice_once', ['notice_id', 'destination'])
    op.create_index('outbox_by_transaction', 'outbox', ['transaction_uid'], unique=False,
                    sqlite_where=sa.text('transaction_uid IS NOT NULL'),
                    postgresql_where=sa.text('transaction_uid IS NOT NULL'))
    # Long-past deliveries stay what they were said to be: asked for now, a PACS may have given them up on purpose.
    op.execute(
        "UPDATE outbox SET state = 'DELIVERED', delivered_at = sent_at, "
        "note = COALESCE(note, 'taken by the PACS before this node asked whether it keeps what it takes') "
        "WHERE state = 'SENT'"
    )
    op.execute(WORKLIST_V1)
